"""The flags of a recipe: `--config.section.field=value` for any field of nested frozen dataclasses, by their types.

A list is given by repeating the flag. A list of sections (`corpus.sources`, `train.phases`) is given in the recipe file
alone; a field of an element that the recipe has is named by the element's number: `--config.train.phases.0.until=500`.
"""

import dataclasses
import difflib
from typing import Any, TypeVar

from jaxbert.errors import BadInput

Recipe = TypeVar("Recipe")


def override(recipe: Recipe, flags: list[str]) -> Recipe:
    """A dataclass of sections with `flags` applied.

    Raises BadInput for a flag that names no field; a value of another type ends the process with exit code 2 and a
    message that names the field.
    """
    import tyro

    names = [f"--config.{name}" for name in field_names(recipe)]
    lists = [f"--config.{name}" for name in _section_lists(recipe)]
    for flag in flags:
        name, equals, _ = flag.partition("=")
        if name not in names:
            for whole in lists:
                if name == whole or name.startswith(f"{whole}."):
                    raise BadInput(
                        f"{flag}: {whole.removeprefix('--config.')} is given in a recipe file alone; change it in a "
                        f"copy of the recipe (fields of what it has: {whole}.0.FIELD=value)"
                    )
            close = difflib.get_close_matches(name, names, 1, 0.4)
            hint = f"did you mean {close[0]}?" if close else "recipe fields are --config.section.field=value"
            raise BadInput(f"unknown option {flag!r}; {hint}")
        if not equals:
            raise BadInput(f"{flag}: no value; write {flag}=VALUE")
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _bool(info: Any) -> Any:  # tyro's own accepts only True and False, capitalised
        if info.type is not bool:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="{true,false}",
            choices=("true", "false", "True", "False"),
            instance_from_str=lambda a: a[0].lower() == "true",
            is_instance=lambda x: isinstance(x, bool),
            str_from_instance=lambda b: [str(b).lower()],
        )

    # A repeated flag makes a list: tyro's append action would add to the recipe's list, so the recipe's is taken out.
    for name in field_names(recipe):
        if isinstance(get(recipe, name), tuple) and any(f.partition("=")[0] == f"--config.{name}" for f in flags):
            section, _, field = name.rpartition(".")
            recipe = replace(recipe, section, **{field: ()})
    # The class is made here because a section's type is the recipe's own, such as its encoder's configuration.
    sections: Any = dataclasses.fields(recipe)  # type: ignore[arg-type]
    values = {field.name: getattr(recipe, field.name) for field in sections}
    typed = dataclasses.make_dataclass("Config", [(f.name, type(values[f.name]), f) for f in sections], frozen=True)
    outer = dataclasses.make_dataclass("Flags", [("config", typed)], frozen=True)
    with registry:
        parsed = tyro.cli(
            outer,
            args=flags,
            default=outer(typed(**values)),  # type: ignore[call-arg]
            use_underscores=True,
            config=(tyro.conf.FlagConversionOff, tyro.conf.UseAppendAction, tyro.conf.AvoidSubcommands),
        ).config  # type: ignore[attr-defined]
    return type(recipe)(**{name: getattr(parsed, name) for name in values})


def field_names(config: Any, prefix: str = "") -> list[str]:
    """Every leaf field that a flag can give, dotted: ["corpus.input", …, "train.phases.0.until", …]."""
    names = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            names += field_names(value, f"{name}.")
        elif _element(field.type) is None:
            names.append(name)
        elif isinstance(value, tuple):
            names += [n for i, element in enumerate(value) for n in field_names(element, f"{name}.{i}.")]
    return names


def _section_lists(config: Any, prefix: str = "") -> list[str]:
    """The fields that hold lists of sections, dotted."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += _section_lists(value, f"{prefix}{field.name}.")
        elif _element(field.type) is not None:
            found.append(f"{prefix}{field.name}")
    return found


def _element(hint: Any) -> Any:
    """The dataclass in tuple[X, ...] or X | None, None for any other type."""
    return next((a for a in getattr(hint, "__args__", ()) if dataclasses.is_dataclass(a)), None)


def get(config: Any, name: str) -> Any:
    """The value of a dotted field."""
    for part in name.split("."):
        config = config[int(part)] if isinstance(config, tuple) else getattr(config, part)
    return config


def replace(config: Any, section: str, **fields: Any) -> Any:
    """`dataclasses.replace` on a nested section ("corpus.clean", "corpus.sources.0")."""
    first, _, rest = section.partition(".")
    if isinstance(config, tuple):
        i = int(first)
        return (*config[:i], _replaced(config[i], rest, fields), *config[i + 1 :])
    return dataclasses.replace(config, **{first: _replaced(getattr(config, first), rest, fields)})


def _replaced(child: Any, rest: str, fields: dict[str, Any]) -> Any:
    return replace(child, rest, **fields) if rest else dataclasses.replace(child, **fields)
