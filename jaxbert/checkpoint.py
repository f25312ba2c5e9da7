"""Checkpoints: Orbax writes them, asynchronously and atomically; a fingerprint of every leaf proves them whole.

Orbax restores a file with a flipped bit without noticing, so each checkpoint carries a uint32 per leaf that changes
with any bit and does not depend on the mesh; restore checks it and falls back to the newest checkpoint that is whole.
Several processes save and restore together, and what one of them could not do, none of them did.
"""

import contextlib
import copy
import importlib
import logging
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxbert.config import Checkpoint
from jaxbert.errors import BadInput
from jaxbert.sharding import leaf_name

log = logging.getLogger("jaxbert")
INSTALL = 'pip install "jaxbert[gcs]"'  # what Orbax and epath import for gs://
LOOP = "loop"  # beside the state's own keys: what the loop knows, as JSON


def fingerprint(x: jax.Array) -> jax.Array:
    """uint32: a position-weighted sum of the bits of `x`, equal on any mesh; the weights are odd, so one flip shows.

    Any shape; floating point, integer or bool of 1, 2, 4 or 8 bytes.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if x.dtype.itemsize == 8:
        x = jax.lax.bitcast_convert_type(x, jnp.uint32)  # adds an axis of two words
    words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, words).astype(jnp.uint32)
    weight = jnp.uint32(0)
    for axis in range(x.ndim):
        weight = weight * jnp.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    weight = (weight ^ (weight >> 15)) * jnp.uint32(0x85EBCA6B)
    return jnp.sum(bits * (weight | 1), dtype=jnp.uint32)


@jax.jit
def _fingerprints(tree: Any) -> list[jax.Array]:
    return [fingerprint(leaf) for leaf in jax.tree.leaves(tree)]


def _names(tree: Any) -> list[str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [leaf_name(path) for path, _ in paths]


def _root_cause(error: BaseException) -> str:
    """The last exception of the chain: Orbax reports every load error as "incompatible handler"."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return text if len(text) <= 300 else f"{text[:150]} … {text[-150:]}"  # the reason is often last


def _not_by_orbax(record: logging.LogRecord) -> bool:
    """A filter for the log of absl, where Orbax writes a thousand lines about a save that failed, and we one."""
    return "orbax" not in record.pathname


def _context(alone: bool = False, timeout: float | None = None) -> ocp.Context:
    """`alone`: this process waits for no other, so that one that fails leaves none waiting. `timeout`: of saves, s."""
    context = ocp.Context()
    if timeout is not None:
        context.asynchronous.timeout_secs = math.ceil(timeout)
    registry = ocp.handlers.local_registry().add(ocp.handlers.JsonHandler, checkpointable_name=LOOP)
    context.checkpointables.registry = registry
    if alone and jax.process_count() > 1:
        here = jax.process_index()
        context.multiprocessing.primary_host = here
        context.multiprocessing.active_processes = {here}
        context.multiprocessing.barrier_sync_key_prefix = f"process{here}"
    return context


def _of_all_processes(problem: str | None) -> str | None:
    """What stopped this process or another one; None where every process got through.

    The same in all of them, with the number of its process: that of the first to say more than that it waited in vain,
    as those do that wait for one that failed.
    """
    if jax.process_count() == 1:
        return problem
    own = np.frombuffer((problem or "").encode()[:600].ljust(600), np.uint8)
    told = [bytes(row).decode(errors="replace").strip() for row in multihost_utils.process_allgather(own)]
    problems = [f"process {number}: {text}" for number, text in enumerate(told) if text]
    return next((text for text in problems if "TimeoutError" not in text), problems[0] if problems else None)


def absolute(directory: str | os.PathLike[str]) -> epath.Path:
    """A local path made absolute; gs://… as it is. Raises BadInput for a scheme that Orbax does not know."""
    try:
        return epath.Path(directory if "://" in os.fspath(directory) else os.path.abspath(directory))
    except KeyError as error:
        raise BadInput(f"checkpoint.directory: {directory}: no {error.args[0]} here; give a path or gs://…") from None


def steps_in(directory: epath.PathLike) -> list[int]:
    """The steps that have a checkpoint directory, ascending; whether they are whole only a restore tells."""
    place = epath.Path(directory)
    return sorted(int(p.name) for p in place.iterdir() if p.name.isdigit()) if place.is_dir() else []


def read(directory: epath.PathLike, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checkpoint of `step`, checked leaf by leaf: (state, loop).

    Args:
      directory: of all checkpoints of a run, absolute.
      abstract: ShapeDtypeStructs with shardings under the state's top-level keys, or some of them ({"model": …}).

    Raises ValueError with the reason if what was asked for is not whole, and BadInput if it is of another model.
    """
    path, problem, loaded = epath.Path(directory) / str(step), None, {}
    with _context(alone=True):
        try:
            loaded = ocp.load_checkpointables(path, {**abstract, LOOP: None})
        except Exception as error:  # Orbax raises many types for a torn directory
            problem = _root_cause(error)
            _check_same_model(path, abstract)
    if problem := _of_all_processes(problem):
        raise ValueError(problem)
    loop = loaded.pop(LOOP)
    for name, value in zip(_names(loaded), _fingerprints(loaded), strict=True):
        if loop["fingerprints"].get(name) != int(value):
            raise ValueError(f"{name} is not what was saved (its fingerprint differs: a flipped bit, or another model)")
    return loaded, loop


def _check_same_model(path: epath.Path, abstract: dict[str, Any]) -> None:
    """Raises BadInput if what a checkpoint says of itself is another model than `abstract`; nothing if it is torn."""
    try:
        names = ocp.load_checkpointables(path, {LOOP: None})[LOOP]["fingerprints"]
        record = ocp.checkpointables_metadata(path).metadata
        arrays = {key: record[key] for key in abstract if key in record}
        found = {name: leaf.shape for name, leaf in zip(_names(arrays), jax.tree.leaves(arrays), strict=True)}
    except Exception:
        return
    wanted = {name: leaf.shape for name, leaf in zip(_names(abstract), jax.tree.leaves(abstract), strict=True)}
    saved = {name for name in names if name.partition("/")[0] in abstract}
    for name in sorted(saved | set(wanted)):
        theirs, ours = found.get(name, "there") if name in saved else "absent", wanted.get(name, "absent")
        if "absent" in (theirs, ours) or (name in found and theirs != ours):
            raise BadInput(
                f"{path} is a checkpoint of another model: {name} is {theirs} in it, {ours} in this recipe; take the "
                "recipe that it was saved with, or another --workdir"
            )


class Checkpoints:
    """The checkpoints of one run: the last N, every K-th, and the best by held-out loss."""

    def __init__(self, directory: str | os.PathLike[str], checkpoint: Checkpoint):
        """`directory` is made; half-written leftovers of a killed process are removed by the first save.

        Raises BadInput if it cannot be written, or is not the same directory for all processes.
        """
        logging.getLogger("absl").addFilter(_not_by_orbax)
        self.directory, self.checkpoint = absolute(directory), checkpoint
        self.newest: int | None = None  # step of the newest checkpoint that is known to be on disk
        self._failures = 0  # in a row
        self._open: Any = None
        self._pending: tuple[int, Any] | None = None  # step, Orbax's response or the exception of its start
        _check_writable(self.directory)

    def restore_newest(self, abstract: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, loop) of the newest checkpoint that is whole, None if there is none at all.

        A broken one is renamed to `broken-<step>`, named in a warning and left for inspection. Raises BadInput if
        there are checkpoints and none is whole, or if they are of another model.
        """
        steps = steps_in(self.directory)
        for step in reversed(steps):
            try:
                state, loop = read(self.directory, step, abstract)
            except ValueError as error:
                self._put_aside(step, error)
                continue
            if step < steps[-1]:
                log.warning("going on from step %d: %d steps are done again", step, steps[-1] - step)
            self.newest = step
            return step, state, loop
        if steps:
            raise BadInput(
                f"{self.directory}: none of the {len(steps)} checkpoints is whole; start in another --workdir"
            )
        return None

    def _put_aside(self, step: int, error: ValueError) -> None:
        broken, aside = self.directory / str(step), self.directory / f"broken-{step}"
        if jax.process_index() == 0:
            with contextlib.suppress(FileNotFoundError):
                aside.rmtree()
            broken.rename(aside)
        log.warning("checkpoint %s is broken: %s; moved to %s", broken, error, aside.name)

    def _checkpointer(self) -> Any:
        if self._open is None:
            save, keep = ocp.training.save_decision_policies, ocp.training.preservation_policies
            kept = [
                keep.LatestN(self.checkpoint.keep_last),
                keep.BestN(get_metric_fn=lambda m: -m["loss"], n=1, keep_checkpoints_without_metrics=False),
            ]
            if self.checkpoint.keep_every:
                kept.append(keep.EveryNSteps(self.checkpoint.keep_every))
            self._open = ocp.training.Checkpointer(
                self.directory,
                context=_context(timeout=self.checkpoint.timeout),
                save_decision_policy=save.FixedIntervalPolicy(1),  # the loop decides when; Orbax's own would skip
                cleanup_tmp_directories=True,
                preservation_policy=keep.AnyPreservationPolicy(kept),
            )
            # Orbax asks jax whether a preemption's step has come, too, from a thread and with the step of a save that
            # is over: a notice at that moment would be for a step that the loop has passed.
            self._open._manager.reached_preemption = lambda step: False
        return self._open

    def save(self, step: int, state: Any, loop: dict[str, Any], held_out_loss: float | None) -> None:
        """Start saving; returns as soon as the arrays are copied off the devices.

        A failed save is a warning, which the next call or `wait` gives. `loop` is copied: it is written later, when the
        caller's has gone on. Raises BadInput as `wait` does.
        """
        self.wait()
        fingerprints = dict(zip(_names(state), map(int, _fingerprints(state)), strict=True))
        metrics = None if held_out_loss is None else {"loss": held_out_loss}
        saved = {**state, LOOP: {**copy.deepcopy(loop), "fingerprints": fingerprints}}
        try:
            response = self._checkpointer().save_checkpointables_async(step, saved, metrics=metrics)
        except ocp.training.errors.StepAlreadyExistsError:
            raise BadInput(
                f"{self.directory / str(step)} is there already: another process trains in this directory; end one"
            ) from None
        except Exception as error:
            response = error
        self._pending = step, response

    def wait(self) -> None:
        """Until the save in flight is on disk; a failure is a warning, because an older checkpoint is whole.

        Raises BadInput at the failure that is one more in a row than `checkpoint.max_failures`: what is not saved is
        lost with the process, and somebody has to make room; starting again would not.
        """
        if self._pending is None:
            return
        step, problem = self._result()
        problem = _of_all_processes(problem)
        if problem is None:
            self.newest, self._failures = step, 0
            return
        self._failures += 1
        self._forget(step)
        most = self.checkpoint.max_failures
        if self._failures > most:
            raise BadInput(
                f"checkpoint of step {step} was not saved: {problem}; {self._failures} saves failed in a row, "
                f"checkpoint.max_failures is {most}; {self._remedy()}"
            )
        log.warning(
            "checkpoint of step %d was not saved: %s; training goes on (failure %d in a row, "
            "checkpoint.max_failures is %d)",
            *(step, problem, self._failures, most),
        )

    def _result(self) -> tuple[int, str | None]:
        """The step of the save in flight, when it is over, and what went wrong in this process."""
        (step, response), self._pending = self._pending, None
        try:
            if isinstance(response, Exception):
                raise response
            response.result()
        except Exception as error:
            return step, _root_cause(error)
        return step, None

    def finish(self, step: int) -> None:
        """Wait until the checkpoint of `step` is on disk. Raises BadInput if it cannot be saved."""
        self.wait()
        if self.newest != step:
            raise BadInput(f"the checkpoint of step {step} was not saved; {self._remedy()}")

    def last_words(self, step: int) -> str:
        """Wait for the save of `step`, and say what is lost when the process ends now. Raises BadInput as `wait`."""
        self.wait()
        if self.newest == step:
            return "its checkpoint is saved, no step is lost"
        return f"its checkpoint was not saved, steps after {self.newest or 0:,} are done again"

    def _remedy(self) -> str:
        goes_on = "at the beginning" if self.newest is None else f"at step {self.newest}"
        return f"make room at {self.directory} and start the same command again: it goes on {goes_on}"

    def _forget(self, step: int) -> None:
        """Orbax raises a failed save's error once more at the next save: a fresh Checkpointer does not know it."""
        broken, self._open = self._open, None
        try:
            if broken is not None:
                broken.close()
        except Exception as again:
            log.debug("closing after a failed save: %s", _root_cause(again))
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                (self.directory / str(step)).rmtree()

    def close(self) -> None:
        """Wait for the save in flight and release Orbax's threads.

        For an end by an error, too: nothing is raised that would hide it, and no other process is asked.
        """
        if self._pending is not None:
            step, problem = self._result()
            if problem is None:
                self.newest = step
            else:
                self._forget(step)
                log.warning("checkpoint of step %d was not saved: %s", step, problem)
        if self._open is not None:
            self._open.close()
            self._open = None


def _check_writable(directory: epath.Path) -> None:
    """Make the directory, write into it, and see that all processes see that. Raises BadInput."""
    token = int(multihost_utils.broadcast_one_to_all(np.int32(os.getpid() % 2**31)))
    probe, problem = directory / f"probe-{token}", None
    try:
        if os.fspath(directory).startswith("gs://"):
            importlib.import_module("google.cloud.storage")  # Orbax does, in the first save
        directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            probe.write_text("")
    except ImportError as error:
        problem = f"{error}; {INSTALL}"
    except Exception as error:  # every file system has its own for what it does not allow
        problem = f"{_root_cause(error)}; give this account the right to write there, or choose another"
    if problem := _of_all_processes(problem):
        raise BadInput(f"checkpoint.directory: cannot write to {directory}: {problem}")
    shared = _of_all_processes(None if probe.exists() else "absent")
    if jax.process_index() == 0:
        probe.unlink()
    if shared:
        raise BadInput(
            f"checkpoint.directory: {directory} is not the same directory for all processes; give a shared disk or a "
            "bucket (gs://…)"
        )


def abstract_with_shardings(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs that say where each leaf goes, the form in which Orbax wants its target."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
