"""Where every array lies: a mesh `data × fsdp × tensor` and a table of letters.

A parameter's name ends in its axes (`query_DNH`); a stacked layer's array has one axis more, in front. The table says
which mesh axis splits which letter, so a new encoder is sharded by naming its parameters.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbert.config import Sharding
from jaxbert.errors import BadInput

LETTERS = {"N": "tensor", "F": "tensor", "V": "tensor", "D": "fsdp"}
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    sharding: Sharding, batch_rows: int, field: str = "train.batch_size", devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over `devices` (None: all there are); one axis may be -1 and takes what the others leave.

    `batch_rows`: rows that one forward pass holds, which data × fsdp must divide; `field`: of the recipe, that gives
    them. Raises BadInput otherwise.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": sharding.data, "fsdp": sharding.fsdp, "tensor": sharding.tensor}
    count, free = len(devices), [axis for axis, size in sizes.items() if size == -1]
    if any(size < 1 and size != -1 for size in sizes.values()) or len(free) > 1:
        raise BadInput(f"sharding: {sizes}; every axis is 1 or more, and at most one is -1 (the rest of the devices)")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if count % fixed or (not free and fixed != count):
        raise BadInput(f"sharding: {sizes} does not fit {count} devices; the product must be {count}, or leave one -1")
    for axis in free:
        sizes[axis] = count // fixed
    if batch_rows % (sizes["data"] * sizes["fsdp"]):
        raise BadInput(
            f"{field}: {batch_rows} rows (batch_size / accumulate) do not divide among "
            f"{sizes['data'] * sizes['fsdp']} devices (sharding.data × sharding.fsdp); choose a multiple"
        )
    types = (AxisType.Auto,) * 3
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=types, devices=devices)


def parameter_name(path: tuple[Any, ...]) -> str:
    """The attribute's name of a leaf ("query_DNH"), from its tree path; NNX adds `.value` behind it."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value").rpartition("/")[2]


def letters_of(path: tuple[Any, ...]) -> str:
    """The axes at the end of a leaf's name ("query_DNH" → "DNH"), without the L of stacked layers."""
    return parameter_name(path).rpartition("_")[2]


def is_stacked(path: tuple[Any, ...], shape: tuple[int, ...]) -> bool:
    """Whether axis 0 of a parameter of that name and shape counts layers."""
    return len(shape) == len(letters_of(path)) + 1


def elements(path: tuple[Any, ...], shape: tuple[int, ...], vocab_size: int) -> int:
    """Numbers in a parameter, with `vocab_size` true rows where an axis is V: its padding counts for nothing."""
    letters = letters_of(path)
    padded = shape[letters.index("V") - len(letters)] if "V" in letters else 1
    return math.prod(shape) // padded * (vocab_size if "V" in letters else 1)


def _spec(path: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    letters = letters_of(path)
    stacked = len(shape) - len(letters)
    if not letters.isupper() or stacked not in (0, 1):
        return PartitionSpec()  # counters and other scalars of the state
    axes: list[str | None] = [None] * stacked
    for letter, size in zip(letters, shape[stacked:], strict=True):
        axis = LETTERS.get(letter)
        # An axis splits once, and only evenly: a size that does not divide stays whole on every device.
        axes.append(axis if axis and axis not in axes and size % mesh.shape[axis] == 0 else None)
    return PartitionSpec(*axes)


def shard_by_name(tree: Any, mesh: Mesh) -> Any:
    """NamedShardings of the shape of `tree` (arrays or ShapeDtypeStructs), by the letters of each leaf's name."""
    return jax.tree_util.tree_map_with_path(lambda p, x: NamedSharding(mesh, _spec(p, x.shape, mesh)), tree)


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Rows split over data and fsdp; `leading` axes before them stay whole."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, BATCH_AXES))


def local_axes(size: int, axes: tuple[str, ...]) -> tuple[str, ...]:
    """The axes among `axes` that split a dimension of that size where this is traced; () where they would unevenly.

    For operations that have to run on each device's own part (`jax.shard_map`): those that XLA would gather.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in axes if axis in mesh.auto_axes and mesh.shape[axis] > 1)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def split_rows(x: jax.Array) -> jax.Array:
    """An activation (B, …) with its rows split over data and fsdp and whole otherwise; the values stay as they are.

    Without it the compiler may take the split of the parameters over fsdp for one of the activations' widths, and sends
    activations where it should gather parameters. Without a mesh, or where rows do not divide, nothing happens.
    """
    axes = local_axes(x.shape[0], BATCH_AXES)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


def split_widths(x: jax.Array) -> jax.Array:
    """Rows of a table (B, …, D) with B split over data and D over fsdp, as the table is, then their rows as
    `split_rows` has them; the values stay as they are.

    So looking tokens up, and adding their gradients up, needs no device to hold the table: what is sent are B × T rows
    instead of V.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not local_axes(x.shape[0], BATCH_AXES) or x.shape[-1] % mesh.shape["fsdp"]:
        return split_rows(x)
    place = PartitionSpec("data", *[None] * (x.ndim - 2), "fsdp")
    return split_rows(jax.lax.with_sharding_constraint(x, place))


def put_batch(batch: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """A host batch on the devices, asynchronously."""
    return {name: jax.device_put(array, sharding) for name, array in batch.items()}
