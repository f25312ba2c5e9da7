"""Where a run's time goes: the share of it in steps that counted, over all its processes, and which steps were slow.

The loop says which phase it enters, and the watchdog of progress.py hears it, too. Every second belongs to the phase
that was entered last. Nothing here waits for a device: the time of a step is the time between readings of metrics,
which the loop does one step late.
"""

import collections
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from jaxbert import progress

SLOW = 3.0  # × the median of the last steps with rows of this shape: what takes longer is slow
RECENT, ENOUGH = 100, 20  # steps that the median is of, and how many it needs
WRITE_EVERY = 10.0  # seconds of a killed process that are told as "down", besides the step that it was killed in
# phases that can make a step slow, and what to call them
OF_A_STEP = {"data": "data", "step": "compute", "save": "save"}


@dataclasses.dataclass(frozen=True)
class Slow:
    """A step that took over `SLOW` × the median of those before it."""

    seconds: float
    median: float
    phase: str  # of `OF_A_STEP`'s values: the one that was longest beyond its own median
    excess: float  # seconds that this phase took beyond its median

    def __str__(self) -> str:
        """For people, behind "step 7: "."""
        times = self.seconds / self.median
        return f"slow, {self.seconds:.2f} s, {times:.1f} × the median: {self.phase} took {self.excess:.2f} s longer"


class SlowSteps:
    """The last `RECENT` steps of every shape of rows, by phase, and how many steps were slow by which phase."""

    def __init__(self) -> None:
        """Nothing is known yet; steps are judged from the `ENOUGH`th of their shape on."""
        self._recent: dict[Hashable, collections.deque[dict[str, float]]] = {}

    def judge(self, shape: Hashable, parts: dict[str, float]) -> Slow | None:
        """One more step with rows of `shape`; `parts`: its seconds by phase of `OF_A_STEP`. What was slow about it."""
        recent = self._recent.setdefault(shape, collections.deque(maxlen=RECENT))
        slow, seconds = None, sum(parts.values())
        if len(recent) >= ENOUGH:
            median = statistics.median(sum(step.values()) for step in recent)
            if seconds > SLOW * median:
                excess = {p: s - statistics.median(step.get(p, 0.0) for step in recent) for p, s in parts.items()}
                phase = max(excess, key=lambda p: excess[p])
                slow = Slow(seconds, median, OF_A_STEP[phase], excess[phase])
        recent.append(parts)
        return slow


class Account:
    """A run's wall time by phase, over every process it had; kept beside the run, so that a resumed run adds up.

    A step counts if its update was made and stayed: not those left out as bad, nor those after the checkpoint that a
    later process went on from. Each checkpoint holds what had counted when it was saved; a process that starts from it
    goes on from there, while the seconds of all processes add up in the file, or, where the file was lost with its
    machine, from those in the checkpoint. Time in which no process ran ("down") is told and is no part of the share,
    because nobody knows whether the run was to go on.
    """

    def __init__(self, path: Path | None, began: float, clock: Callable[[], float] = time.time):
        """`path`: goodput.json of the run, None where another process keeps it; `clock`: seconds since 1970; `began`:
        when this process did, by that clock.

        The phase is "start" until another is entered. A file that is not whole is as good as none.
        """
        self.path, self.clock, self.counted = path, clock, 0.0
        self.phase, self._since = "start", began
        self._of_step: dict[str, float] = {}  # seconds by phase since a step ended
        self._unjudged = 0.0  # seconds of steps that are not yet known to count
        self._slow_steps = SlowSteps()
        self.slow_in_window = 0
        kept: dict[str, Any] = {}
        try:
            kept = json.loads(path.read_text(encoding="utf-8")) if path else {}
            self._down = kept["down"] + max(0.0, self._since - kept["written"]) if kept else 0.0
        except (OSError, ValueError, KeyError):
            kept, self._down = {}, 0.0
        self.seconds: dict[str, float] = collections.defaultdict(float, kept.get("seconds", {}))
        self.slow: dict[str, int] = collections.defaultdict(int, kept.get("slow_steps", {}))
        self._written, self._kept = self._since, kept

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        self._spend()
        return {"counted": self.counted, "seconds": dict(self.seconds)}

    def go_on(self, saved: dict[str, Any] | None) -> None:
        """The run goes on from a checkpoint with what `saved` returned then; None: from the beginning."""
        self.counted = saved["counted"] if saved else 0.0
        in_file = self._kept.get("seconds", {})
        if saved and sum(saved["seconds"].values()) > sum(in_file.values()):
            for phase, seconds in saved["seconds"].items():
                self.seconds[phase] += seconds - in_file.get(phase, 0.0)

    def enter(self, phase: str, step: int = 0) -> None:
        """The loop enters a phase (compile, restore, data, step, evaluate, save, …); `step`: steps done."""
        self._spend()
        self.phase = phase
        progress.enter(phase, step)

    def _spend(self) -> None:
        """The time since this was last asked belongs to the present phase."""
        now = self.clock()
        spent, self._since = max(0.0, now - self._since), now  # a clock that is set back costs nothing
        self.seconds[self.phase] += spent
        self._of_step[self.phase] = self._of_step.get(self.phase, 0.0) + spent
        if self.phase == "step":
            self._unjudged += spent

    def judged(self, counts: bool) -> None:
        """Metrics of a step are read: its time, what "step" took since the last reading, counts or it does not."""
        self._spend()
        self.counted += self._unjudged if counts else 0.0
        self._unjudged = 0.0

    def step_ends(self, shape: Hashable) -> Slow | None:
        """The loop went around once, with rows of `shape`; what was slow about it, None if nothing was."""
        self._spend()
        parts = {phase: self._of_step.get(phase, 0.0) for phase in OF_A_STEP}
        self._of_step = {}
        slow = self._slow_steps.judge(shape, parts)
        if slow is not None:
            self.slow[slow.phase] += 1
            self.slow_in_window += 1
        if self._since - self._written > WRITE_EVERY:
            self.write()
        return slow

    @property
    def share(self) -> float:
        """Goodput: the share of the time of all processes so far that went into steps that counted."""
        self._spend()
        return self.counted / max(sum(self.seconds.values()), 1e-9)

    def write(self) -> None:
        """The file, whole or as it was; a full disk costs the account and not the run."""
        seconds = {phase: round(spent, 3) for phase, spent in self.seconds.items()}
        self._kept = {
            "goodput": round(self.counted / max(sum(self.seconds.values()), 1e-9), 4),
            "counted": round(self.counted, 3),
            "seconds": seconds,
            "down": round(self._down, 3),
            "slow_steps": dict(self.slow),
            "written": self._since,
        }
        self._written = self._since
        if self.path is not None:
            beside = self.path.with_suffix(".tmp")
            with contextlib.suppress(OSError):
                beside.write_text(json.dumps(self._kept) + "\n", encoding="utf-8")
                beside.replace(self.path)

    def summary(self) -> dict[str, Any]:
        """What was written last, as summary.json holds it: of a run that was finished before, by its last process."""
        kept = {name: value for name, value in self._kept.items() if name != "written"}
        return {"goodput": kept.pop("goodput"), "time": kept} if kept else {}

    def __str__(self) -> str:
        """What was written last, for people."""
        kept = self._kept
        total = sum(kept["seconds"].values())
        lost = {"lost": kept["seconds"].get("step", 0.0) - kept["counted"], **kept["seconds"]}
        parts = sorted(((s, p) for p, s in lost.items() if p != "step" and s >= 0.005 * total), reverse=True)
        told = ", ".join(f"{phase} {seconds / total:.0%}" for seconds, phase in parts)
        slow = ", ".join(f"{count} by {phase}" for phase, count in kept["slow_steps"].items())
        return (
            f"{kept['goodput']:.1%} of {total:,.0f} s in steps that counted"
            + (f"; {told}" if told else "")
            + (f"; slow steps: {slow}" if slow else "")
        )
