"""Where every array lies: a mesh `data × fsdp × tensor` and a table of letters.

A parameter's name ends in its axes (`query_DNH`); a stacked layer's array has one axis more, in front. The table says
which mesh axis splits which letter, so a new encoder is sharded by naming its parameters.
"""

import difflib
import fnmatch
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbert.config import Override, Sharding
from jaxbert.errors import BadInput

AnyMesh = Mesh | AbstractMesh

LETTERS = {"N": "tensor", "F": "tensor", "V": "tensor", "D": "fsdp"}
BATCH_AXES = ("data", "fsdp")


def mesh_sizes(sharding: Sharding, count: int, slices: int = 1) -> dict[str, int]:
    """Axis → devices of a mesh over `count` devices, in the order of its axes; an axis of -1 takes what others leave.

    Raises BadInput where they do not fit, or where TPU `slices`, between which the network is slow, do not divide data.
    """
    sizes = {"data": sharding.data, "fsdp": sharding.fsdp, "tensor": sharding.tensor}
    free = [axis for axis, size in sizes.items() if size == -1]
    if any(size < 1 and size != -1 for size in sizes.values()) or len(free) > 1:
        raise BadInput(f"sharding: {sizes}; every axis is 1 or more, and at most one is -1 (the rest of the devices)")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if count % fixed or (not free and fixed != count):
        raise BadInput(f"sharding: {sizes} does not fit {count} devices; the product must be {count}, or leave one -1")
    for axis in free:
        sizes[axis] = count // fixed
    if sizes["data"] % slices:
        raise BadInput(
            f"sharding.data: {sizes['data']} does not divide among {slices} TPU slices; choose a multiple of {slices}: "
            "parameters are gathered and heads are split within a slice alone"
        )
    return sizes


def check_rows(sizes: Mapping[str, int], batch_rows: int, field: str = "train.batch_size") -> None:
    """Raises BadInput unless data × fsdp divide the rows that one forward pass holds; `field` gives them."""
    shards = sizes["data"] * sizes["fsdp"]
    if batch_rows % shards:
        raise BadInput(
            f"{field}: {batch_rows} rows (batch_size / accumulate) do not divide among "
            f"{shards} devices (sharding.data × sharding.fsdp); choose a multiple"
        )


def make_mesh(
    sharding: Sharding, batch_rows: int, field: str = "train.batch_size", devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over `devices` (None: all there are) for batches that hold `batch_rows` at once, which `field` gives.

    Devices of several TPU slices: each slice holds a part of `data`. Raises BadInput as `mesh_sizes` and `check_rows`.
    """
    devices = jax.devices() if devices is None else devices
    slices = {getattr(device, "slice_index", 0) for device in devices}
    sizes = mesh_sizes(sharding, len(devices), len(slices))
    check_rows(sizes, batch_rows, field)
    types = (AxisType.Auto,) * 3
    inside = (sizes["data"] // len(slices), sizes["fsdp"], sizes["tensor"])
    if len(slices) > 1:
        outside = (len(slices), 1, 1)
        placed = mesh_utils.create_hybrid_device_mesh(inside, outside, devices, allow_split_physical_axes=True)
        return Mesh(placed, tuple(sizes), axis_types=types)
    try:
        return jax.make_mesh(inside, tuple(sizes), axis_types=types, devices=devices)
    except NotImplementedError:  # a tensor of 2 on a v5p of 4 × 4 × 4 is half of one of its axes
        placed = mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
        return Mesh(placed, tuple(sizes), axis_types=types)


def check_model(config: Any, model: Any, sizes: Mapping[str, int]) -> None:
    """Raises BadInput for a model, its fields and its abstract arrays, with heads, widths or words that do not divide.

    Else an axis would split nothing there, and each device would hold, and compute, the whole.
    """
    for field, axis in (("num_heads", "tensor"), ("feed_forward_size", "tensor"), ("hidden_size", "fsdp")):
        size = getattr(config, field, None)
        if size and size % sizes[axis]:
            raise BadInput(
                f"model.{field}: {size} do not divide among sharding.{axis} {sizes[axis]}; choose a divisor of them"
            )
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        letters = letters_of(path)
        words = leaf.shape[letters.index("V") - len(letters)] if "V" in letters else 0
        if words % sizes["tensor"]:
            raise BadInput(
                f"sharding.tensor: {sizes['tensor']} does not divide the {words} rows of the word table (a multiple of "
                "128); choose a power of two"
            )


def leaf_name(path: tuple[Any, ...]) -> str:
    """The whole name of a leaf ("encoder/blocks/query_DNH"), from its tree path; NNX adds `.value` behind it."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def parameter_name(path: tuple[Any, ...]) -> str:
    """The attribute's name of a leaf ("query_DNH"), from its tree path."""
    return leaf_name(path).rpartition("/")[2]


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


def _fits(path: str, override: Override) -> bool:
    return fnmatch.fnmatchcase(path, override.parameter) or fnmatch.fnmatchcase(path, f"*/{override.parameter}")


def _spec(path: tuple[Any, ...], shape: tuple[int, ...], mesh: AnyMesh, overrides: Sequence[Override]) -> PartitionSpec:
    letters = letters_of(path)
    stacked = len(shape) - len(letters)
    if not letters.isupper() or stacked not in (0, 1):
        return PartitionSpec()  # counters and other scalars of the state
    axes: list[str | None] = [None] * stacked
    for i, override in enumerate(overrides):
        if _fits(leaf_name(path), override):
            _check_override(f"sharding.overrides[{i}].axes", override, leaf_name(path), shape[stacked:], mesh)
            return PartitionSpec(*axes, *(axis or None for axis in override.axes))
    for letter, size in zip(letters, shape[stacked:], strict=True):
        axis = LETTERS.get(letter)
        # An axis splits once, and only evenly: a size that does not divide stays whole on every device.
        axes.append(axis if axis and axis not in axes and size % mesh.shape[axis] == 0 else None)
    return PartitionSpec(*axes)


def _check_override(field: str, override: Override, path: str, shape: tuple[int, ...], mesh: AnyMesh) -> None:
    if len(override.axes) != len(shape):
        raise BadInput(f"{field}: {override.axes}, but {path} is {shape}; give one for each of its letters")
    for axis, size in zip(override.axes, shape, strict=True):
        if axis and size % mesh.shape[axis]:
            raise BadInput(f"{field}: {path} is {shape}, and sharding.{axis} {mesh.shape[axis]} does not divide {size}")


def shard_by_name(tree: Any, mesh: AnyMesh, overrides: Sequence[Override] = ()) -> Any:
    """NamedShardings of the shape of `tree` (arrays or ShapeDtypeStructs), by the letters of each leaf's name.

    The first of `overrides` that fits a leaf's path counts in their place, for the optimizer's moments as well. Raises
    BadInput for one that fits no leaf, or whose axes do not fit one.
    """
    paths = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    for i, override in enumerate(overrides):
        if not any(_fits(path, override) for path in paths):
            names = sorted({path.rpartition("/")[2] for path in paths})
            near = difflib.get_close_matches(override.parameter.rpartition("/")[2], names, 3, 0.0)
            raise BadInput(
                f"sharding.overrides[{i}].parameter: {override.parameter!r} fits no parameter; there are, for example, "
                f"{', '.join(near)}; --explain-sharding lists them"
            )
    return jax.tree_util.tree_map_with_path(lambda p, x: NamedSharding(mesh, _spec(p, x.shape, mesh, overrides)), tree)


def explain(tree: Any, mesh: AnyMesh, overrides: Sequence[Override] = ()) -> tuple[list[str], int, int]:
    """A line for each leaf of `tree` (name, shape, axes that split it, bytes a device); bytes of all, and a device's.

    `mesh` may be abstract: nothing is placed anywhere.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    places = jax.tree.leaves(shard_by_name(tree, mesh, overrides))
    rows, whole, local = [("parameter", "shape", "split by", "bytes a device")], 0, 0
    for (path, leaf), place in zip(leaves, places, strict=True):
        part = math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        whole, local = whole + leaf.size * leaf.dtype.itemsize, local + part
        axes = " × ".join(axis or "·" for axis in place.spec)
        rows.append((leaf_name(path), " × ".join(map(str, leaf.shape)), axes, f"{part:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
    return lines, whole, local


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


def by_rows(function: Callable[..., jax.Array], rows: Sequence[jax.Array], *whole: jax.Array) -> jax.Array:
    """`function(*rows, *whole)`, arrays (B, …) and whole ones → (B, …), computed by each device for its own rows.

    For what is made of parameters before it meets rows, a matrix of offsets or words of ids: the compiler would have
    devices add up the gradients of the matrix, or gather the ids. So each has its parameters' gradients first.
    """
    axes = local_axes(len(rows[0]), BATCH_AXES)
    if not axes:
        return function(*rows, *whole)
    split = PartitionSpec(axes)
    return jax.shard_map(
        function,
        in_specs=(*(split,) * len(rows), *(PartitionSpec(),) * len(whole)),
        out_specs=split,
        axis_names={*axes},
        check_vma=False,  # with it devices add up where a parameter first meets rows
    )(*rows, *whole)


def sum_over_data(function: Callable[..., Any], dtype: Any, batch: Any, *whole: Any) -> Any:
    """`function(batch, *whole)`, sums over rows, of which every part of `data` sums its own first.

    What the parts found is added up once, when all is done, arrays in `dtype`, that of the computation, and scalars in
    their own: whatever `function` adds up itself, over layers or over `train.accumulate` parts of a batch, stays on its
    device. Within it the axis `data` is manual and the others are the compiler's still; `first_row` tells where its
    rows begin. `batch`: arrays (parts, B, …), of which `data` splits B.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.shape.get("data", 1) == 1:
        return function(batch, *whole)

    def add_up(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x.astype(dtype) if x.ndim else x, "data").astype(x.dtype)

    def of_own_rows(batch: Any, *whole: Any) -> Any:
        return jax.tree.map(add_up, function(batch, *whole))

    return jax.shard_map(
        of_own_rows,
        in_specs=(PartitionSpec(None, "data"), *(PartitionSpec(),) * len(whole)),
        out_specs=PartitionSpec(),
        axis_names={"data"},
        check_vma=False,  # with it devices add up where a parameter first meets rows: in every layer, of every part
    )(batch, *whole)


def first_row(rows: int) -> Any:
    """The index in the whole batch of the first of `rows` rows where this is traced: 0 outside `sum_over_data`."""
    manual = "data" in jax.sharding.get_abstract_mesh().manual_axes
    return jax.lax.axis_index("data").astype(jnp.uint32) * jnp.uint32(rows) if manual else jnp.uint32(0)


def look_up(table_VD: jax.Array, ids_BT: jax.Array, letters: str) -> jax.Array:
    """The table's rows of some ids, (V, D) and (B, T) integers → (B, T, D), with B split over data and D over fsdp.

    `letters` are those of the table's name: they say how it lies, and no device needs to hold the whole. What is sent,
    when `split_rows` then has the rows, and for their gradients, are B × T of them in place of V. Where an axis splits
    the words, each device looks among its own (Shoeybi et al. 2019, arXiv:1909.08053, §3).
    """
    (words, width), (V, D) = ((LETTERS.get(letter, "") for letter in letters), table_VD.shape)
    split = _Split(local_axes(len(ids_BT), ("data",)), local_axes(V, (words,)), local_axes(D, (width,)))
    return _look_up(split, V, table_VD, ids_BT) if any(split) else jnp.take(table_VD, ids_BT, axis=0)


class _Split(NamedTuple):
    """The mesh axes that split ids, a table's words and its width."""

    rows: tuple[str, ...]
    words: tuple[str, ...]
    width: tuple[str, ...]

    def among_own(self, ids_BT: jax.Array, count: int) -> jax.Array:
        """The ids as places among this device's `count` words; `count` where another device has the word."""
        if not self.words:
            return ids_BT
        place_BT = ids_BT - jax.lax.axis_index(self.words) * count
        return jnp.where((place_BT >= 0) & (place_BT < count), place_BT, count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _look_up(split: _Split, count: int, table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    def rows_of(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
        place_BT = split.among_own(ids_BT, len(table_VD))
        x_BTD = jnp.take(table_VD, place_BT, axis=0, fill_value=0 if split.words else None)
        return jax.lax.psum(x_BTD, split.words)

    return jax.shard_map(
        rows_of,
        in_specs=(PartitionSpec(split.words, split.width), PartitionSpec(split.rows)),
        out_specs=PartitionSpec(split.rows, None, split.width),
        axis_names={*itertools.chain(*split)},
        check_vma=False,
    )(table_VD, ids_BT)


def _look_up_backward(split: _Split, count: int, ids_BT: jax.Array, gradient_BTD: jax.Array) -> tuple[jax.Array, None]:
    own = count // math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in split.words)

    def add_up(ids_BT: jax.Array, gradient_BTD: jax.Array) -> jax.Array:
        zeros_VD = jnp.zeros((own, gradient_BTD.shape[2]), gradient_BTD.dtype)
        return jax.lax.psum(zeros_VD.at[split.among_own(ids_BT, own)].add(gradient_BTD, mode="drop"), split.rows)

    sum_VD = jax.shard_map(
        add_up,
        in_specs=(PartitionSpec(split.rows), PartitionSpec(split.rows, None, split.width)),
        out_specs=PartitionSpec(split.words, split.width),
        axis_names={*itertools.chain(*split)},
        check_vma=False,
    )(ids_BT, gradient_BTD)
    return sum_VD, None


_look_up.defvjp(
    lambda split, count, table_VD, ids_BT: (_look_up(split, count, table_VD, ids_BT), ids_BT), _look_up_backward
)


def own_rows(place: NamedSharding, parts: int, rows: int) -> np.ndarray:
    """Which of a batch's rows, (parts × rows,) in the order of `step.in_parts`, the devices of this process hold.

    `place`: of its arrays, (parts, rows / parts, …). Part by part and ascending, int64.
    """
    mine, blocks = _own_blocks(place)
    size = rows // parts // blocks
    of_part = (np.array(mine)[:, None] * size + np.arange(size)).reshape(-1)
    return (np.arange(parts)[:, None] * (rows // parts) + of_part).reshape(-1)


@functools.lru_cache
def _own_blocks(place: NamedSharding) -> tuple[tuple[int, ...], int]:
    """The equal blocks of a part's rows that the devices of this process hold, ascending, and how many there are."""
    blocks = math.prod(place.mesh.shape[axis] for axis in BATCH_AXES)
    indices = place.addressable_devices_indices_map((1, blocks)).values()
    return tuple(sorted({index[1].indices(blocks)[0] for index in indices if index})), blocks


def batch_shapes(batch: dict[str, np.ndarray], place: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
    """The global arrays of a batch of which this process has its own rows, (parts, rows, …)."""
    mine, blocks = _own_blocks(place)
    return {
        name: jax.ShapeDtypeStruct((len(x), x.shape[1] // len(mine) * blocks, *x.shape[2:]), x.dtype)
        for name, x in batch.items()
    }


def put_batch(batch: dict[str, np.ndarray], place: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows of a batch, (parts, rows, …), on its devices, as its part of the global arrays.

    Asynchronous. Where one process has all devices these are the whole arrays.
    """
    mine, blocks = _own_blocks(place)
    if len(mine) == blocks:
        return {name: jax.device_put(array, place) for name, array in batch.items()}
    shapes = batch_shapes(batch, place)

    def part(array: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        size = array.shape[1] // len(mine)
        at = mine.index((index[1].start or 0) // size) * size
        return array[:, at : at + size]

    return {
        name: jax.make_array_from_callback(shapes[name].shape, place, functools.partial(part, array))
        for name, array in batch.items()
    }
