"""Key maps between our trees and PyTorch's state dicts: rows of (ours, theirs, transform), total both ways."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxbert.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter on both sides.

    `theirs` holds "{}" for the layer where ours is stacked on a leading axis. Transforms: "copy" (the same order of
    axes; head axes are split or joined by a reshape), "transpose" (torch's Linear.weight is (out, in)), "vocabulary"
    (our rows past the true vocabulary are cut and added back as zeros).
    """

    ours: str
    theirs: str
    transform: Literal["copy", "transpose", "vocabulary"] = "copy"


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name ("encoder/blocks/query_DNH")."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf for path, leaf in leaves
    }


def to_torch(tree: Any, rows: Sequence[Row], vocab_size: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Our parameters under their PyTorch names, NumPy, dtype unchanged.

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


def from_torch(state: Mapping[str, np.ndarray], rows: Sequence[Row], abstract: Any) -> Any:
    """A tree of the structure of `abstract` (ShapeDtypeStructs) from a PyTorch state dict, in the state's dtype.

    Raises BadInput naming every tensor that is missing or does not fit, ValueError if a leaf has no row, or a row no
    leaf. Tensors that no row reads are the caller's to judge: a state dict may hold more heads than the model.
    """
    by_name, wanted, problems, leaves = {row.ours: row for row in rows}, flatten(abstract), [], []
    _check_total(wanted, rows)
    for name, leaf in wanted.items():
        row, shape = by_name[name], tuple(leaf.shape)
        stacked = "{}" in row.theirs
        found = []
        for number in range(shape[0] if stacked else 1):
            theirs, one = row.theirs.format(number), shape[1:] if stacked else shape
            array = state.get(theirs)
            if array is None:
                problems.append(f"{theirs} is missing")
                continue
            if row.transform == "transpose":
                array = array.T
            if row.transform == "vocabulary" and array.shape[0] <= one[0]:
                array = np.concatenate([array, np.zeros((one[0] - array.shape[0], *array.shape[1:]), array.dtype)])
            if array.size != int(np.prod(one)):
                problems.append(f"{theirs} has shape {state[theirs].shape}, which does not fit {name} {one}")
                continue
            found.append(array.reshape(one))
        if found and not problems:
            leaves.append(np.stack(found) if stacked else found[0])
    if problems:
        raise BadInput("the tensors do not fit the model: " + "; ".join(problems))
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def _check_total(leaves: Mapping[str, Any], rows: Sequence[Row]) -> None:
    if unmapped := sorted(set(leaves) - {row.ours for row in rows}):
        raise ValueError(f"no row of the key map for {', '.join(unmapped)}")
    if idle := sorted({row.ours for row in rows} - set(leaves)):
        raise ValueError(f"the model has no leaf for the key map's {', '.join(idle)}")
