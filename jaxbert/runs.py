"""A run directory: what it was made from, what may change on resume, and its model for those who read it.

config.json  metrics.jsonl  goodput.json  checkpoints/  tokenizer/  tensorboard/  profile/  evaluation.json
summary.json
"""

import dataclasses
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import SingleDeviceSharding

from jaxbert import checkpoint, objectives, sharding
from jaxbert import config as configs
from jaxbert.data.stages import write_json
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput

# What changes neither the batches nor the update of any step; everything else must be as it was.
MAY_CHANGE = (
    "corpus.input",
    "corpus.workers",
    "data.stage",
    "sharding.",
    "train.log_every",
    "train.bad_step",
    "train.max_skipped",
    "train.check_first_loss",
    "checkpoint.every",
    "checkpoint.keep_last",
    "checkpoint.keep_every",
    "checkpoint.max_failures",
    "checkpoint.timeout",
    "evaluation.every",
    "evaluation.rows",
    "evaluation.batch_size",
    "limits.",
    "model.initialize_from",
    "model.unroll",
    "model.rematerialize",
)
# With these, phases that no step was made in yet may change, too.
MAY_CHANGE_UNDER_WSD = ("train.steps", "train.tokens", "train.epochs")  # the rate before the decay depends on no length


def checkpoints_of(workdir: Path, config: configs.Config) -> epath.Path:
    """Where the checkpoints of a run are: `checkpoint.directory`, or in the run directory."""
    return checkpoint.absolute(config.checkpoint.directory or workdir / "checkpoints")


def is_run(workdir: Path) -> bool:
    """Whether a directory has the config.json of a run (a transformers folder has another)."""
    try:
        return "checkpoint" in json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def open_run(workdir: Path, config: configs.Config, corpus: Path, *, write: bool = True) -> None:
    """Make the run directory, or check that the recipe is the one that it was started with.

    `write`: of a run's processes, one makes the directory, and all check it. Raises BadInput naming every field that
    differs and may not, or if the directory cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir) as probe:
            probe.write(b"\0" * 2**20)
            probe.flush()
    except OSError as error:
        raise BadInput(
            f"--workdir: cannot write to {workdir}: {error.strerror}; free space or choose another"
        ) from None
    new = configs.to_dict(config)
    if write:
        _fetch(workdir, config)
    if (workdir / "config.json").exists():
        # Fields of later versions are at their defaults, which do what was done before.
        old = configs.to_dict(configs.from_dict(_read_config(workdir)))
        constant = config.schedule.name in ("wsd", "constant")
        allowed = (*MAY_CHANGE, "train.phases", *(MAY_CHANGE_UNDER_WSD if constant else ()))
        changed = [d for d in configs.differences(old, new) if not d[0].startswith(allowed)]
        if any(name == "checkpoint.directory" for name, _, _ in changed) and checkpoint.steps_in(
            checkpoints_of(workdir, config)
        ):
            changed = [d for d in changed if d[0] != "checkpoint.directory"]  # they were moved there
        if old["train"]["phases"] != new["train"]["phases"]:
            # What is to come may change as the length may; what was read may not.
            done = max(checkpoint.steps_in(checkpoints_of(workdir, config)), default=0) if constant else math.inf
            was = configs.from_dict(old)
            if _phases(was, done) != _phases(config, done):
                changed += configs.differences(_phases(was), _phases(config))
        if changed:
            fields = "; ".join(f"{name} was {a!r}, now {b!r}" for name, a, b in changed)
            raise BadInput(
                f"{workdir} holds a run of another recipe: {fields}. Take the old values or another --workdir"
                + _ends_in_steps(changed)
            )
    if not write:
        return
    # The tokenizer first: a run directory with a config.json has its tokenizer.
    if not (workdir / "tokenizer").exists():
        partial = workdir / f"tokenizer.tmp-{os.getpid()}"
        shutil.copytree(corpus / "tokenizer", partial)
        partial.rename(workdir / "tokenizer")
    ours, theirs = (TextTokenizer.load(place / "tokenizer").fingerprint for place in (workdir, corpus))
    if ours != theirs:
        raise BadInput(
            f"corpus.directory: {corpus} was tokenized with another tokenizer ({theirs[:12]}) than the run {workdir} "
            f"({ours[:12]}); restore the corpus that the run was started with, or take another --workdir"
        )
    write_json(workdir / "config.json", new)


def _fetch(workdir: Path, config: configs.Config) -> None:
    """On a machine that does not know the run: what `publish` left beside its checkpoints. Raises BadInput."""
    if not config.checkpoint.directory or (workdir / "config.json").exists():
        return
    source = checkpoints_of(workdir, config)
    try:
        if (source / "config.json").exists():
            _copy_record(source, epath.Path(workdir))
    except ImportError as error:
        raise BadInput(f"checkpoint.directory: {source}: {error}; {checkpoint.INSTALL}") from None
    except Exception as error:  # every file system has its own for what it does not allow
        raise BadInput(
            f"checkpoint.directory: cannot read {source}: {type(error).__name__}: {error}; give this account the "
            "right to, or choose another"
        ) from None


def publish(workdir: Path, config: configs.Config) -> None:
    """Copy what a new machine needs to go on beside checkpoints that are elsewhere: recipe, tokenizer, metrics.

    A copy that fails is a warning: the next one has all that it had.
    """
    if not config.checkpoint.directory or jax.process_index() > 0:
        return
    try:
        _copy_record(epath.Path(workdir), checkpoints_of(workdir, config))
    except Exception as error:
        checkpoint.log.warning("metrics were not copied to %s: %s", config.checkpoint.directory, error)


def _copy_record(source: epath.Path, target: epath.Path) -> None:
    (target / "tokenizer").mkdir(parents=True, exist_ok=True)
    # config.json last: where it is, the rest is.
    for file in [*(source / "tokenizer").iterdir(), source / "metrics.jsonl", source / "config.json"]:
        if file.exists():
            (target / file.relative_to(source)).write_bytes(file.read_bytes())


def _phases(config: configs.Config, done: float = math.inf) -> dict[str, Any]:
    """What the first `done` steps read: their phases, whose ends are in steps, by the fields' names."""
    found, begin = {}, 0.0
    for i, (_, phase) in enumerate(configs.phases(config)):
        end = math.inf if phase.until == 1 else phase.until
        if begin < done:
            until = phase.until if end <= done else done
            found[f"train.phases[{i}]"] = {**configs.to_dict(phase), "until": until}
        begin = end
    return found


def _ends_in_steps(changed: list[tuple[str, Any, Any]]) -> str:
    """What to do about a phase that would end elsewhere than it did."""
    moved = [(name, old) for name, old, _ in changed if name.endswith("].until") and old is not None]
    if not moved:
        return ""
    flags = (f"--config.{name.replace('[', '.').replace(']', '')}={old:g}" for name, old in moved)
    return f". A share of a longer run is other steps: to make this one longer, give {' '.join(flags)}"


def _read_config(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    if not path.is_file():
        raise BadInput(f"--workdir: {workdir} has no config.json; it is not the directory of a training run")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not JSON ({error}); the run was damaged") from None


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with what belongs to it."""

    config: configs.Config
    objective: Any
    model: Any  # pytree of float32 arrays
    tokenizer: TextTokenizer
    step: int
    loop: dict[str, Any]  # what the loop stored beside the state: step, tokens, fingerprints
    averaged: tuple[int, ...] = ()  # steps whose parameters' mean `model` is; empty: it is of `step` alone


def load_run(workdir: str | Path, step: str = "latest", average: int = 1, mesh: Any = None) -> Run:
    """The model of a run at a step ("latest", "best" by held-out loss, or a number), fingerprints checked.

    `average`: checkpoints, the one of the step and the newest before it, whose parameters' mean the model is.
    `mesh`: over whose devices its arrays are split, as in training; None: they are on the default device.

    Raises BadInput if the directory is no run, has no such step or not as many, or the step's checkpoint is not whole.
    """
    workdir = Path(workdir)
    config = configs.from_dict(_read_config(workdir))
    tokenizer = TextTokenizer.load(workdir / "tokenizer")
    objective = objectives.for_tokenizer(config, tokenizer)
    directory = checkpoints_of(workdir, config)
    steps = checkpoint.steps_in(directory)
    if not steps:
        raise BadInput(f"{directory} has no checkpoint; train first, or for longer than checkpoint.every steps")
    candidates = _candidates(workdir, step, steps)
    if average > 1:
        candidates = [s for s in steps[::-1] if s <= candidates[0]]
    abstract = jax.eval_shape(objective.init, jax.random.key(0))
    if mesh is None:
        here = SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: here, abstract)
    else:
        shardings = sharding.shard_by_name(abstract, mesh)
    target = {"model": checkpoint.abstract_with_shardings(abstract, shardings)}
    problems: list[str] = []
    whole = itertools.islice(_whole(directory, candidates, target, problems), average)
    first = next(whole, None)
    if first is None:
        raise BadInput(f"{directory}: no whole checkpoint ({'; '.join(problems)}); choose another --step of {steps}")
    number, model, loop = first
    averaged = [number]
    if average > 1:  # float64, on the host: a sum of a few float32 numbers has no error there
        total = jax.tree.map(lambda x: np.asarray(x, np.float64), model)
        for other, more, _ in whole:
            averaged.append(other)
            total = jax.tree.map(lambda t, x: t + np.asarray(x), total, more)
        if len(averaged) < average:
            raise BadInput(
                f"--average: {average} checkpoints, but up to step {candidates[0]} {directory} has {len(averaged)} "
                f"whole ones ({averaged}); give no more, or train with a larger checkpoint.keep_last"
            )
        model = jax.tree.map(lambda x, t: jax.device_put((t / average).astype(x.dtype), x.sharding), model, total)
    for problem in problems:
        checkpoint.log.warning("checkpoint is broken, an older one is taken: %s", problem)
    return Run(config, objective, model, tokenizer, number, loop, tuple(averaged[::-1]) if average > 1 else ())


def _whole(
    directory: epath.Path, steps: list[int], target: dict[str, Any], problems: list[str]
) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """(step, model, loop) of the whole ones among the checkpoints of `steps`; what is wrong with the others is added to
    `problems`."""
    for step in steps:
        try:
            state, loop = checkpoint.read(directory, step, target)
        except ValueError as error:
            problems.append(f"step {step}: {error}")
        else:
            yield step, state["model"], loop


def _candidates(workdir: Path, step: str, steps: list[int]) -> list[int]:
    """Steps to try, in order: the one asked for, and for "latest" every older one behind it."""
    if step == "latest":
        return steps[::-1]
    if step == "best":
        scores, path = {}, workdir / "metrics.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed
                continue
            if record["split"] == "validation" and record["step"] in steps:
                scores[record["step"]] = record["loss"]
        if not scores:
            raise BadInput(f"--step=best: no checkpoint of {workdir} was scored; use --step=latest")
        return [min(scores, key=lambda s: scores[s])]
    if not step.isdecimal() or int(step) not in steps:
        raise BadInput(f"--step: {step!r} is not latest, best or one of {steps}")
    return [int(step)]
