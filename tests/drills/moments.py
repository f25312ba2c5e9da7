"""Signals at chosen moments of a training process, which sends them to itself: `before` of `Launcher.start`."""

from pathlib import Path

from jaxbert import config
from tests.drills.processes import launcher

PROGRAM = """
import os, threading, time
from jaxbert import checkpoint, preemption, step, train

MOMENTS = {
    "compile": (step.Step, "compile"),
    "restore": (checkpoint, "read"),
    "save": (checkpoint.Checkpoints, "save"),
    "step": (train.sharding, "put_batch"),
}
notices = []

class Notice(preemption.Notice):
    def __init__(self):
        super().__init__()
        notices.append(self)

preemption.Notice = Notice

def send(number):
    os.kill(os.getpid(), number)
    while not notices[0].come:  # the thread that hears of it has not run yet
        time.sleep(0.001)

def signal_at(moment, count, number, seconds, pace):
    owner, name = MOMENTS[moment]
    real, calls = getattr(owner, name), []
    def replaced(*arguments, **more):
        time.sleep(pace)
        calls.append(None)
        if len(calls) != count:
            return real(*arguments, **more)
        print("now in", moment, flush=True)
        if seconds:
            later = threading.Timer(seconds, send, (number,))
            later.daemon = True  # a process that ends before is not kept
            later.start()
        else:
            send(number)
        found = real(*arguments, **more)
        print("now past", moment, flush=True)
        return found
    setattr(owner, name, replaced)
"""


def signal_at(moment: str, count: int, number: int, seconds: float = 0.0, pace: float = 0.0) -> str:
    """A signal `seconds` after the `count`-th "compile", "restore", "save" or "step" of the process has begun.

    `pace`: seconds that each such moment takes longer.
    """
    return f"signal_at({moment!r}, {count}, {int(number)}, {float(seconds)}, {float(pace)})\n"


def run(settings: config.Config, workdir: Path, *signals: str, logs: Path | None = None) -> tuple[int, str]:
    """Exit code (negative: a signal's) and output of one process on one device; `logs` None: beside `workdir`."""
    with launcher(logs or workdir.with_name(f"{workdir.name}-output")) as starts:
        process = starts.start(settings, workdir, devices=1, before=PROGRAM + "".join(signals) if signals else "")
        return process.wait(1200), process.output()
