"""Where the functions of a preparation run: processes of this machine, or a pipeline of Apache Beam.

An engine has one operation, `map`: pieces → (`expand`: each into works) → `function` of every work → results, in order.
The functions are pure but for files of their own that they write below the corpus directory, which all machines of a
cluster must see. What comes after, group-bys on hashes among it, is the same code in this process for both engines, so
both write the same bytes.
"""

import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from jaxbert.data import stages
from jaxbert.errors import BadInput

IN_FLIGHT = 3  # works a process


Function = Callable[[Any], Any]  # of a work; importable by name, or a partial of such
Expand = Callable[[Any], Iterable[Any]]  # a piece → its works; alike


class Engine:
    """What runs functions over pieces of a preparation. A context manager, which can be entered again."""

    workers = 1  # processes that share this machine's cores; an engine of other machines says 1

    def __enter__(self) -> "Engine":
        """Nothing is started yet."""
        return self

    def __exit__(self, *_: Any) -> None:
        """End what was started."""

    def map(self, function: Function, pieces: Sequence[Any], expand: Expand, folder: Path) -> Iterator[Any]:
        """The results of `function` for every work of `expand(piece)`, in the order of pieces and works.

        `folder`: all machines see it; results may wait there. Raises what a function raised.
        """
        raise NotImplementedError


def whole(piece: Any) -> Iterable[Any]:
    """The `expand` of pieces that are one work each."""
    return (piece,)


class Local(Engine):
    """Processes of this machine, started when first needed; with one worker everything happens in this process.

    `expand` runs in this process, works are taken as fast as they are done: memory is bounded by those in flight.
    """

    def __init__(self, workers: int) -> None:
        """`workers`: processes."""
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __exit__(self, *_: Any) -> None:
        """End the processes."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, function: Function, pieces: Sequence[Any], expand: Expand, folder: Path) -> Iterator[Any]:
        """See `Engine.map`."""
        works = itertools.chain.from_iterable(map(expand, pieces))
        if self.workers == 1:
            yield from map(function, works)
            return
        if not self._pool:
            # A process a core: threads of numpy's products besides would wait for each other, spinning. Children read
            # this when they import numpy.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            context = multiprocessing.get_context("spawn")  # fork would copy the threads' locks of tokenizers and jax
            self._pool = ProcessPoolExecutor(self.workers, context, initializer=_start_worker)
        pending: deque[Any] = deque()
        for work in works:
            pending.append(self._pool.submit(function, work))
            del work
            if len(pending) >= self.workers * IN_FLIGHT:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it: a killed parent would leave workers waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class Beam(Engine):
    """Pipelines of Apache Beam with Beam's own options; results come back through files in `folder`."""

    def __init__(self, options: Sequence[str]) -> None:
        """`options`: as Beam's command line takes them. Raises BadInput where Beam is missing or knows one not."""
        try:
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError:
            raise BadInput("--runner=beam needs Apache Beam; pip install 'jaxbert[beam]'") from None
        self.options = list(options)
        known = PipelineOptions(self.options).get_all_options(retain_unknown_options=False)
        for option in options:
            name = option.partition("=")[0].lstrip("-").replace("-", "_")
            if option.startswith("--") and name not in known:
                raise BadInput(
                    f"--runner=beam: Beam has no option {option.partition('=')[0]}; see its pipeline options"
                )

    def map(self, function: Function, pieces: Sequence[Any], expand: Expand, folder: Path) -> Iterator[Any]:
        """See `Engine.map`. The pipeline has ended before the first result comes."""
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions

        results = folder.absolute() / "results"
        results.mkdir()
        with apache_beam.Pipeline(options=PipelineOptions(self.options)) as pipeline:
            (
                pipeline
                | apache_beam.Create(list(enumerate(pieces)), reshuffle=True)
                | apache_beam.FlatMap(_expanded, expand)
                | apache_beam.Reshuffle()
                | apache_beam.Map(_stored, function, str(results))
            )
        for path in sorted(p for p in results.iterdir() if ".tmp-" not in p.name):  # what a work that was cut off left
            with open(path, "rb") as file:
                result = pickle.load(file)
            if isinstance(result, Exception):
                raise result
            yield result
        shutil.rmtree(results)


def open_engine(runner: str, workers: int, options: Sequence[str]) -> Engine:
    """The engine called "local", with so many processes, or "beam". Raises BadInput for options it does not take."""
    if runner == "beam":
        return Beam(options)
    if options:
        raise BadInput(f"--: {' '.join(options)}: only --runner=beam takes options behind a --")
    return Local(workers)


def _expanded(numbered: tuple[int, Any], expand: Expand) -> Iterator[tuple[str, Any]]:
    """(the name of its result, the work); an error of reading is a work that `_stored` passes on."""
    number, piece = numbered
    made = -1
    try:
        for made, work in enumerate(expand(piece)):
            yield f"{number:08d}-{made:08d}", work
    except BadInput as error:
        yield f"{number:08d}-{made + 1:08d}", error


def _stored(named: tuple[str, Any], function: Function, results: str) -> None:
    """Write the result; Beam may run a work again, or twice at once."""
    name, work = named
    try:
        result = work if isinstance(work, Exception) else function(work)
    except BadInput as error:  # Beam would wrap it into an error of its own
        result = error
    with stages.whole_file(Path(results) / name) as path, open(path, "wb") as file:
        pickle.dump(result, file, pickle.HIGHEST_PROTOCOL)
