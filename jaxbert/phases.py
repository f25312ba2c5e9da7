"""A run's phases: which rows a step reads, of which length and mixture, and how many steps there are.

A batch is a pure function of (recipe, step): step → its phase → the step within the phase → rows of that phase's folder
in the corpus directory. Nothing here knows of hosts or devices.
"""

import bisect
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert import config
from jaxbert.data import staging
from jaxbert.data.source import Feed, Rows
from jaxbert.errors import BadInput
from jaxbert.prepare import ensure_rows


@dataclasses.dataclass(frozen=True)
class Stretch:
    """A phase with its rows and its steps, begin … end − 1."""

    number: int  # from 0
    feed: Feed
    begin: int
    end: int
    first: int  # where the feed begins (`Feed.after`): 0, unless an earlier phase read the same rows

    @property
    def epochs(self) -> float:
        """How often it reads each of its rows."""
        return (self.end - self.begin) / self.feed.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long the run is, and over what it reads and predicts."""

    steps: int
    stretches: tuple[Stretch, ...]
    vocab_size: int

    def stretch(self, step: int) -> Stretch:
        """The phase that `step`, from 0, belongs to."""
        return next(s for s in self.stretches if step < s.end)

    def at(self, step: int) -> tuple[Rows, np.ndarray, np.ndarray]:
        """(rows, epoch_B, row_B int64) of `step`, as `Feed.at`."""
        stretch = self.stretch(step)
        return stretch.feed.at(step - stretch.begin, stretch.first)


def open_feeds(settings: config.Config) -> list[Feed]:
    """The rows of every phase of a resolved recipe, in their order; made, and copied to `data.stage`, where missing.

    Raises BadInput.
    """
    directory, pack, seed = Path(settings.corpus.directory), bool(settings.data.pack), settings.train.data_seed
    feeds = []
    for field, phase in config.phases(settings):
        folder = ensure_rows(directory, phase.row_length, pack, phase.weights, field)
        if settings.data.stage:
            folder = staging.stage(folder, Path(settings.data.stage))
        feeds.append(Feed(folder, phase.batch_size, seed))
    return feeds


def make_plan(settings: config.Config, feeds: list[Feed], vocab_size: int) -> Plan:
    """Steps of the run from whichever of steps, tokens, epochs the recipe gives, and of each phase.

    Tokens are real ones, no padding; epochs are the sum of those of the phases. Raises BadInput for bounds that leave a
    phase without a step.
    """
    train, phases = settings.train, [phase for _, phase in config.phases(settings)]

    def ends(steps: int) -> list[int]:
        bounds = [round(p.until * steps if p.until <= 1 else p.until) for p in phases[:-1]]
        return [*bounds, steps]

    def amount(steps: int) -> float:
        """What the recipe counts, epochs or tokens, of a run of so many steps."""
        total, begin = 0.0, 0
        for feed, end in zip(feeds, ends(steps), strict=True):
            of_step = (feed.tokens if train.tokens is not None else 1) / feed.steps_per_epoch
            total += of_step * max(0, min(end, steps) - begin)
            begin = max(begin, end)
        return total

    if train.steps is not None:
        steps = train.steps
    elif len(feeds) > 1:
        wanted = train.tokens if train.tokens is not None else train.epochs
        steps = bisect.bisect_left(range(2**40), wanted, key=amount)
    elif train.tokens is not None:
        steps = math.ceil(train.tokens / (feeds[0].tokens / feeds[0].steps_per_epoch))
    else:
        steps = math.ceil(train.epochs * feeds[0].steps_per_epoch)

    stretches: list[Stretch] = []
    read: dict[Path, int] = {}  # folder → where the next phase that reads it goes on
    for number, (feed, end) in enumerate(zip(feeds, ends(steps), strict=True)):
        begin = stretches[-1].end if stretches else 0
        _check_bounds(settings, number, begin, end, steps)
        stretches.append(Stretch(number, feed, begin, end, read.get(feed.folder, 0)))
        read[feed.folder] = feed.after(end - begin, stretches[-1].first)
    return Plan(steps, tuple(stretches), vocab_size)


def _check_bounds(settings: config.Config, number: int, begin: int, end: int, steps: int) -> None:
    phases = settings.train.phases
    if not phases or 1 < end and begin < end <= steps and (end < steps or number == len(phases) - 1):
        return
    raise BadInput(
        f"train.phases[{number}].until: {phases[number].until:g}, so this phase has the steps {begin} to {end} of the "
        f"run's {steps}; each needs one at least, and the first two: change the bounds or the length of the run"
    )


def in_steps(settings: config.Config, plan: Plan) -> config.Config:
    """The recipe with its phases' ends in steps, as config.json holds them, so that a longer run cannot move them."""
    pairs = list(zip(settings.train.phases, plan.stretches, strict=False))
    ended: list[Any] = [dataclasses.replace(phase, until=float(stretch.end)) for phase, stretch in pairs[:-1]]
    return dataclasses.replace(
        settings, train=dataclasses.replace(settings.train, phases=(*ended, *settings.train.phases[-1:]))
    )
