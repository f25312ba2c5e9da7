"""A profiler's trace of some steps, for TensorBoard's or XProf's viewer: --profile=START:STOP."""

import contextlib
from pathlib import Path
from typing import Any

import jax

from jaxbert.errors import BadInput


def parse(text: str) -> range:
    """START:STOP → the steps that are traced, from 0: those that the log numbers START + 1 to STOP. Raises BadInput."""
    start, colon, stop = text.partition(":")
    if not (colon and start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise BadInput(f"--profile: {text!r}; write START:STOP, as in 100:110 for the ten steps after the 100th")
    return range(int(start), int(stop))


class Trace:
    """Starts and stops jax's profiler. The devices are waited for once, at the end of the last traced step."""

    def __init__(self, steps: range, directory: Path):
        """`steps` from 0, an empty range for none; the trace lies in directory/plugins/profile/<time>/."""
        self.steps, self.directory, self.running = steps, directory, False

    def begin(self, step: int) -> None:
        """Before the data of `step`: the first step of the trace starts it."""
        if step in self.steps and not self.running:
            jax.profiler.start_trace(self.directory)
            self.running = True

    def around(self, step: int) -> contextlib.AbstractContextManager[Any]:
        """Around the dispatch of `step`: its name in the trace, from which the viewer makes its table of steps."""
        return jax.profiler.StepTraceAnnotation("train", step_num=step) if self.running else contextlib.nullcontext()

    def end(self, step: int, told: Any) -> bool:
        """After `step`, whose arrays `told` are waited for if the trace ends with it; whether it was written now."""
        if not self.running or step + 1 in self.steps:
            return False
        jax.block_until_ready(told)
        self.close()
        return True

    def close(self) -> None:
        """Write what there is, also of a run that ends early."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
