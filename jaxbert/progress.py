"""Where this process is in its run: told by the loop, watched against limits, and written beside the run.

A process can hang where nothing times out: a collective that a peer never joins, a disk, a data thread. The loop says
which phase it enters; the watchdog ends the process when a phase takes longer than its limit, and prints what every
thread is doing. It works in one process, too. Its thread needs Python's lock: a C function that hangs while it holds
the lock stops the watchdog as well, and then the beats to the other processes (distributed.py), which end.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxbert.config import Limits

LIMIT_OF = {  # phase → the field of `Limits` that bounds it; a phase that is not here may take any time
    "compile": "compile",
    "restore": "restore",
    "data": "step",
    "step": "step",
    "evaluate": "evaluate",
    "save": "save",
}
HEARTBEAT_EVERY = 10.0  # seconds between two heartbeat files


def who() -> str:
    """This process for people: host and process id."""
    return f"{socket.gethostname()}, pid {os.getpid()}"


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the loop said last."""

    phase: str = "start"
    step: int = 0  # steps that were done when the phase began
    since: float = 0.0  # time.monotonic()

    def __str__(self) -> str:
        """For people: "save at step 500"."""
        return f"{self.phase} at step {self.step:,}"


_now = Moment()  # of this process, which has one loop; replaced as a whole, so any thread may read it


def enter(phase: str, step: int = 0) -> None:
    """The loop enters a phase; `step`: steps done."""
    global _now
    _now = Moment(phase, step, time.monotonic())


def now() -> Moment:
    """Where this process is."""
    return _now


def overdue(moment: Moment, limits: Limits, clock: float) -> str | None:
    """What to say if the phase has taken longer than its limit at `clock` (time.monotonic()), None if it has not."""
    field = LIMIT_OF.get(moment.phase)
    limit = getattr(limits, field) if field else 0
    seconds = clock - moment.since
    if not limit or seconds <= limit:
        return None
    return (
        f"no progress: {seconds:.0f} s in phase {moment.phase!r} at step {moment.step:,} (limits.{field} is {limit:g} "
        "s); what every thread was doing is printed above"
    )


@contextlib.contextmanager
def watched(workdir: Path, process: int, processes: int, limits: Limits, end: Callable[[str], Any]) -> Iterator[None]:
    """While this holds, phases are limited and `workdir/processes/<process>.json` says where the process is.

    `end` gets the reason when a limit is exceeded, after Python's stacks of all threads went to stderr, and does not
    return. The file is written by a thread of its own, which a full or hung disk may fail or stop without harm.
    """
    stop = threading.Event()
    path = workdir / "processes" / f"{process}.json"

    def watch() -> None:
        while not stop.wait(0.5):
            if (reason := overdue(_now, limits, time.monotonic())) is not None:
                faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
                return end(reason)

    def beat() -> None:
        while not stop.wait(HEARTBEAT_EVERY):
            write_heartbeat(path, process, processes)

    write_heartbeat(path, process, processes)
    for target in (watch, beat):
        threading.Thread(target=target, name=f"jaxbert-{target.__name__}", daemon=True).start()
    try:
        yield
        enter("done", _now.step)
    finally:
        stop.set()
        write_heartbeat(path, process, processes)


def write_heartbeat(path: Path, process: int, processes: int) -> bool:
    """One heartbeat file, whole or not at all; False where the disk is full or the directory cannot be written."""
    moment = _now
    beside = path.with_suffix(".tmp")
    values = {
        "process": process,
        "processes": processes,
        "who": who(),
        "phase": moment.phase,
        "phase_seconds": round(time.monotonic() - moment.since, 1),
        "step": moment.step,
        "time": time.time(),  # seconds since 1970
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(values) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        return False
    return True
