"""Key maps between our trees and PyTorch's state dicts: rows of (ours, theirs, transform), total both ways."""

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxbert.errors import BadInput
from jaxbert.sharding import leaf_name


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter on both sides.

    `theirs` holds "{}" for the layer where ours is stacked on a leading axis. Transforms: "copy" (the same order of
    axes; head axes are split or joined by a reshape), "transpose" (torch's Linear.weight is (out, in)), "vocabulary"
    (our rows past the true vocabulary are cut and added back as zeros). `aliases`: other names under which a source
    may hold the same tied tensor, also or instead; an export writes it once, under `theirs`.
    """

    ours: str
    theirs: str
    transform: Literal["copy", "transpose", "vocabulary"] = "copy"
    aliases: tuple[str, ...] = ()


def dense(ours: str, bias: str, theirs: str) -> list[Row]:
    """The rows of a dense layer: `theirs` is the path of a torch Linear."""
    return [Row(ours, f"{theirs}.weight", "transpose"), Row(bias, f"{theirs}.bias")]


def norm(ours: str, theirs: str) -> list[Row]:
    """The rows of a layer norm, from one path to the other."""
    return [Row(f"{ours}/scale_D", f"{theirs}.weight"), Row(f"{ours}/bias_D", f"{theirs}.bias")]


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name ("encoder/blocks/query_DNH")."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {leaf_name(path): leaf for path, leaf in leaves}


def to_torch(tree: Any, rows: Sequence[Row], vocab_size: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Our parameters under their PyTorch names, each once, NumPy, dtype unchanged.

    `shapes`: of their arrays, by name without the layer ("…layer.{}.…"), where a reshape is needed; a name that is
    absent keeps our shape (after the transform). Raises ValueError if a leaf has no row, or a row no leaf.
    """
    leaves, state = flatten(tree), {}
    _check_total(leaves, rows)
    for row in rows:
        array = np.asarray(leaves[row.ours])
        layers = list(array) if "{}" in row.theirs else [array]
        for number, layer in enumerate(layers):
            if row.transform == "vocabulary":
                layer = layer[:vocab_size]
            if row.transform == "transpose":
                shape = shapes.get(row.theirs, layer.shape[::-1])
                layer = layer.reshape(shape[::-1]).T
            else:
                shape = shapes.get(row.theirs, layer.shape)
            state[row.theirs.format(number)] = np.ascontiguousarray(layer.reshape(shape))
    return state


def from_torch(
    state: Mapping[str, np.ndarray],
    rows: Sequence[Row],
    abstract: Any,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    *,
    vocab_size: int | None = None,
    ignore: Sequence[str] = (),
    dtypes: Sequence[str] = ("float32", "float64"),
    cast: Sequence[str] = (),
) -> Any:
    """A tree of the structure of `abstract` (ShapeDtypeStructs) from a PyTorch state dict.

    Args:
      state: their arrays by name.
      shapes: as in `to_torch`; None: an array need only have as many elements as our leaf.
      vocab_size: rows of a table of the vocabulary; None: as many as are stored, or fewer.
      ignore: patterns ("*.position_ids") of names that the state may hold in vain.
      dtypes: accepted as they are, and kept.
      cast: accepted and cast to float32.

    Raises BadInput naming at once every tensor that is missing, that no row reads, that has another shape or dtype,
    or that differs from the one that it is tied to; ValueError if a leaf has no row, or a row no leaf.
    """
    by_name, wanted = {row.ours: row for row in rows}, flatten(abstract)
    _check_total(wanted, rows)
    found_as = {row.ours: _names(row, wanted[row.ours].shape) for row in rows}
    expected = [names[0] for layers in found_as.values() for names in layers]
    known = {name for layers in found_as.values() for names in layers for name in names}
    unread = [n for n in state if n not in known and not any(fnmatch.fnmatchcase(n, p) for p in ignore)]
    problems = [(name, f"is not of this model{_nearest(name, expected)}") for name in unread]
    leaves = []
    for name, leaf in wanted.items():
        row, stacked = by_name[name], "{}" in by_name[name].theirs
        shape = tuple(leaf.shape[1:] if stacked else leaf.shape)
        theirs = _their_shape(row, shape, shapes, vocab_size)
        arrays = []
        for names in found_as[name]:
            given = [alias for alias in names if alias in state]
            if not given:
                problems.append((names[0], f"is missing{_nearest(names[0], unread)}"))
                continue
            array = state[given[0]]
            problem = _misfit(row, array, shape, theirs, (*dtypes, *cast))
            problem = problem or _untied(array, {alias: state[alias] for alias in given[1:]})
            if problem:
                problems.append((given[0], problem))
            elif not problems:
                arrays.append(_ours(row, array, shape, array.dtype.name in cast))
        if arrays and not problems:
            leaves.append(np.stack(arrays) if stacked else arrays[0])
    if problems:
        raise BadInput(f"the tensors do not fit the model: {'; '.join(_by_layer(problems))}")
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _names(row: Row, shape: Sequence[int]) -> list[tuple[str, ...]]:
    """For each layer (for one, if ours is not stacked) the names that its tensor may have."""
    return [
        tuple(name.format(number) for name in (row.theirs, *row.aliases))
        for number in range(shape[0] if "{}" in row.theirs else 1)
    ]


def _their_shape(
    row: Row, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]] | None, vocab_size: int | None
) -> tuple[int, ...] | None:
    """The shape that their array must have; None: any with as many elements, or as few rows."""
    if row.transform == "vocabulary":
        return None if vocab_size is None else (vocab_size, *shape[1:])
    if shapes is None:
        return None
    return tuple(shapes.get(row.theirs, shape[::-1] if row.transform == "transpose" else shape))


def _misfit(
    row: Row, array: np.ndarray, shape: tuple[int, ...], theirs: tuple[int, ...] | None, dtypes: Sequence[str]
) -> str:
    """What is wrong with their array; "" if nothing is. `shape` is that of our leaf or of its layer."""
    if array.dtype.name not in dtypes:
        return f"has dtype {array.dtype.name}, not {' or '.join(dtypes)}"
    if theirs is None and row.transform == "vocabulary" and array.ndim == len(shape):
        fits = array.shape[1:] == shape[1:] and array.shape[0] <= shape[0]
    else:
        fits = array.shape == theirs if theirs is not None else array.size == int(np.prod(shape))
    return "" if fits else f"has shape {array.shape}, which does not fit {row.ours} {theirs or shape}"


def _untied(array: np.ndarray, others: Mapping[str, np.ndarray]) -> str:
    differing = [name for name, other in others.items() if not np.array_equal(array, other, equal_nan=True)]
    return f"and {differing[0]} are tied, yet hold different values" if differing else ""


def _ours(row: Row, array: np.ndarray, shape: tuple[int, ...], cast: bool) -> np.ndarray:
    array = array.astype(np.float32) if cast else array
    if row.transform == "transpose":
        array = array.T
    if row.transform == "vocabulary":
        array = np.concatenate([array, np.zeros((shape[0] - array.shape[0], *shape[1:]), array.dtype)])
    return array.reshape(shape)


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, 0.6)
    return f" (nearest: {close[0]})" if close else ""


def _by_layer(problems: Sequence[tuple[str, str]]) -> list[str]:
    """One entry for what differs by the layer's number alone: "layer.{0, 1, 2}.up.weight is missing"."""
    groups: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for name, problem in problems:
        number = re.search(r"\.(\d+)\.", name)
        layer = number[1] if number else ""
        pattern = (name.replace(f".{layer}.", ".{}.", 1), problem.replace(f".{layer}.", ".{}.")) if number else None
        groups.setdefault(pattern or (name, problem), []).append((layer, name, problem))
    told = []
    for (name, problem), found in groups.items():
        if len(found) == 1:
            told.append(f"{found[0][1]} {found[0][2]}")
        else:
            numbers = f".{{{', '.join(layer for layer, _, _ in found)}}}."
            told.append(f"{name} {problem}".replace(".{}.", numbers))
    return told


def _check_total(leaves: Mapping[str, Any], rows: Sequence[Row]) -> None:
    if unmapped := sorted(set(leaves) - {row.ours for row in rows}):
        raise ValueError(f"no row of the key map for {', '.join(unmapped)}")
    if idle := sorted({row.ours for row in rows} - set(leaves)):
        raise ValueError(f"the model has no leaf for the key map's {', '.join(idle)}")
    theirs = [row.theirs for row in rows]
    if twice := sorted({name for name in theirs if theirs.count(name) > 1}):
        raise ValueError(f"two rows of the key map for {', '.join(twice)}")
