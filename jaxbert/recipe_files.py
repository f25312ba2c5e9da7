"""Recipe files: Python files that return a `Config`, read, overridden from the command line, and checked.

A recipe file defines `get_config()` (or `get_config(variant)`). Any field is overridden with
`--config.section.field=value` (flags.py), a list by repeating the flag.
"""

import argparse
import dataclasses
import runpy
import types
import typing
from pathlib import Path
from typing import Any, Literal

from jaxbert import flags
from jaxbert.config import ACROSS, LENGTHS, MOST_WEIGHT, Config, Corpus, Model, Train, family, named_model, resolve
from jaxbert.errors import BadInput


def load(path: str, overrides: typing.Sequence[str] = ()) -> Config:
    """A recipe file, optionally `FILE:VARIANT`, with overrides such as "--config.train.steps=100" applied.

    Raises BadInput for a missing or broken recipe; a wrong override ends the process with exit code 2 and a message
    that names the field and the nearest valid one.
    """
    recipe = _read_recipe(path)
    given = {flag.partition("=")[0].removeprefix("--config.") for flag in overrides}
    lengths = [f for f in LENGTHS if f"train.{f}" in given]
    if len(lengths) > 1:
        raise BadInput(f"train.{' and train.'.join(lengths)} were both given; keep one, it replaces the recipe's")
    if lengths:  # the one on the command line replaces the recipe's
        recipe = flags.replace(recipe, "train", **{f: None for f in LENGTHS if f not in lengths})
    name = next(
        (flag.partition("=")[2] for flag in reversed(overrides) if flag.startswith("--config.model.name=")), None
    )
    if name is not None and type(recipe.model) is not family(name).Config:  # another encoder: its own fields
        recipe = dataclasses.replace(recipe, model=named_model(name, initialize_from=recipe.model.initialize_from))
    config = flags.override(recipe, list(overrides)) if overrides else recipe
    validate(config)
    return config


def _read_recipe(path: str) -> Config:
    file, _, variant = path.partition(":")
    if not Path(file).is_file():
        raise BadInput(
            f"--config: there is no recipe file {file!r}; recipes are in configs/, for example configs/own_text.py"
        )
    try:
        get_config = runpy.run_path(file).get("get_config")
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"--config: {file} does not run: {type(error).__name__}: {error}") from None
    if get_config is None:
        raise BadInput(f"--config: {file} defines no get_config(); a recipe returns a jaxbert.config.Config from it")
    try:
        recipe = get_config(variant) if variant else get_config()
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"--config: get_config({variant!r}) of {file} failed: {type(error).__name__}: {error}") from None
    if not isinstance(recipe, Config):
        raise BadInput(f"--config: get_config() of {file} returned {type(recipe).__name__}; it must return a Config")
    if type(recipe.model) is Model:  # a recipe that only names the size
        given = {name: value for name, value in dataclasses.asdict(recipe.model).items() if value is not None}
        recipe = dataclasses.replace(recipe, model=named_model(**given))
    _check_types(recipe, "")
    return recipe


def help_text() -> str:
    """Every field of a recipe with its default, for the commands' --help."""
    recipe = dataclasses.replace(Config(), model=named_model("bert_mini"))
    lines = [f"  --config.{name}={flags.get(recipe, name)!r}" for name in flags.field_names(recipe)]
    return "fields of the recipe, with their defaults (None: the named size's, or derived):\n" + "\n".join(lines)


def command_parser(program: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command that takes a recipe; --help lists its fields, and `load` reads what is left over."""
    return argparse.ArgumentParser(
        program,
        description=description,
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _check_types(config: Any, prefix: str) -> None:
    """A recipe is Python, and dataclasses check nothing: a wrong type is named here, not deep in a run."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, hint, name = getattr(config, field.name), hints[field.name], f"{prefix}{field.name}"
        nested = {name: value}
        if isinstance(value, tuple):
            nested |= {f"{name}[{i}]": element for i, element in enumerate(value)}
        if not _fits(value, hint):
            shown = hint if typing.get_args(hint) else getattr(hint, "__name__", hint)
            raise BadInput(f"{name}: {value!r} is not {shown}; change it in the recipe")
        for where, inner in nested.items():
            if dataclasses.is_dataclass(inner):
                _check_types(inner, f"{where}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def validate(config: Config) -> None:
    """Checks that need more than one field, or a field's range. Raises BadInput."""
    given = [f for f in LENGTHS if getattr(config.train, f) is not None]
    if len(given) != 1:
        raise BadInput(f"train: give exactly one of steps, tokens, epochs (given: {', '.join(given) or 'none'})")
    ranges = {
        "data.row_length": (8, 2**20),
        "train.batch_size": (1, 2**24),
        "train.accumulate": (1, 2**16),
        "train.log_every": (1, 2**31),
        f"train.{given[0]}": (0, 2**62),
        "tokenizer.vocab_size": (16, 2**24),
        "objective.mask_rate": (1e-6, 0.95),
        "evaluation.mask_rate": (1e-6, 0.95),
        "objective.mask_share": (0.0, 1.0),
        "objective.random_share": (0.0, 1.0 - config.objective.mask_share + 1e-9),
        "objective.z_loss": (0.0, 1.0),
        "evaluation.piece_length": (8, 2**20),
        "evaluation.every": (1, 2**31),
        "evaluation.batch_size": (1, 2**20),
        "checkpoint.every": (1, 2**31),
        "checkpoint.keep_last": (1, 2**16),
        "checkpoint.keep_every": (0, 2**31),
        "checkpoint.max_failures": (0, 2**16),
        "checkpoint.timeout": (1.0, 1e6),
        "corpus.validation_share": (0.0, 0.9),
        **{f"limits.{name}": (0.0, 1e9) for name in ("compile", "restore", "step", "evaluate", "save")},
        "limits.silence": (5.0, 45.0),  # all survivors are to be gone within a minute
        "optimizer.learning_rate": (0.0, 1e3),
        "optimizer.beta1": (0.0, 1.0),
        "optimizer.beta2": (0.0, 1.0),
        "optimizer.weight_decay": (0.0, 1e3),
    }
    for name, (low, high) in ranges.items():
        value = flags.get(config, name)
        if not low <= value <= high:
            raise BadInput(f"{name}: {value} is outside {low} to {high}")
    if config.train.batch_size % config.train.accumulate:
        raise BadInput(
            f"train.accumulate: {config.train.accumulate} does not divide train.batch_size {config.train.batch_size}"
        )
    if config.optimizer.name == "stable_adamw" and not config.optimizer.bias_correction:
        raise BadInput("optimizer.bias_correction: false, but stable_adamw is only defined with it; leave it out")
    if config.checkpoint.keep_every % config.checkpoint.every:
        raise BadInput(
            f"checkpoint.keep_every: {config.checkpoint.keep_every} is no multiple of checkpoint.every "
            f"{config.checkpoint.every}, so nothing would be saved there; choose one, or 0"
        )
    _check_sources(config.corpus)
    if config.tokenizer.kind == "folder" and not config.tokenizer.folder:
        raise BadInput("tokenizer.folder: empty; kind 'folder' needs the path of an existing tokenizer")
    for i, override in enumerate(config.sharding.overrides):
        named = [axis for axis in override.axes if axis]
        if set(named) - {"fsdp", "tensor"} or len(set(named)) < len(named):
            raise BadInput(
                f'sharding.overrides[{i}].axes: {override.axes}; give fsdp, tensor or "" (whole) for each letter '
                "of the parameter's name, each axis once"
            )
    _check_phases(resolve(config).train)


def _check_sources(corpus: Corpus) -> None:
    labels: list[str] = []
    for i, source in enumerate(corpus.sources):
        where = f"corpus.sources[{i}]"
        if not source.input:
            raise BadInput(f"{where}.input: empty; give a file, a directory, a glob or deb:PACKAGE")
        if source.label in labels:
            raise BadInput(f"{where}.name: {source.label!r} is given twice; call one of them something else")
        labels.append(source.label)
        if not 0 <= source.weight <= MOST_WEIGHT:
            raise BadInput(f"{where}.weight: {source.weight} is outside 0 to {MOST_WEIGHT}")
        for name in ACROSS if source.clean else ():
            ours, theirs = getattr(source.clean, name), getattr(corpus.clean, name)
            if ours != theirs:
                raise BadInput(
                    f"{where}.clean.{name}: {ours!r}, but corpus.clean.{name} is {theirs!r}, and it compares documents "
                    "of all sources; give the same in both (dataclasses.replace keeps what it is not told)"
                )


def _check_phases(train: Train) -> None:
    before = 0.0
    for i, phase in enumerate(train.phases):
        where, last = f"train.phases[{i}]", i == len(train.phases) - 1
        if (phase.until == 1) != last:
            raise BadInput(f"{where}.until: {phase.until}; the last phase has 1, the end of the run, and no other has")
        # Steps and shares can only be put in order when the length of the run is known (phases.py).
        if not 0 < phase.until < 2**31 or (phase.until > 1 and phase.until % 1):
            raise BadInput(f"{where}.until: {phase.until}; give a share of the run between 0 and 1, or whole steps")
        if (before > 1) == (phase.until > 1) and phase.until <= before:
            raise BadInput(f"{where}.until: {phase.until} is not after {before}, where the phase before it ends")
        before = phase.until
        for name, value, low in (("row_length", phase.row_length, 8), ("batch_size", phase.batch_size, 1)):
            if not low <= value <= 2**24:
                raise BadInput(f"{where}.{name}: {value} is outside {low} to {2**24}")
        if phase.batch_size % train.accumulate:
            raise BadInput(
                f"train.accumulate: {train.accumulate} does not divide {where}.batch_size {phase.batch_size}"
            )
        for j, given in enumerate(phase.weights):
            if not 0 <= given.weight <= MOST_WEIGHT:
                raise BadInput(f"{where}.weights[{j}].weight: {given.weight} is outside 0 to {MOST_WEIGHT}")
            if given.source in [other.source for other in phase.weights[:j]]:
                raise BadInput(f"{where}.weights[{j}].source: {given.source!r} is given twice; keep one of them")
