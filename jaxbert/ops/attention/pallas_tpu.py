"""Attention within segments for TPUs: a Pallas kernel, forward and backward, that skips tiles by what a batch holds.

Online softmax over tiles (Dao et al. 2022, arXiv:2205.14135; Milakov & Gimelshein 2018, arXiv:1805.02867), laid out for
head sizes below the matrix unit's width:

- Arrays stay (B, T, N·H), as projections write them; a grid step takes 128 lanes: two heads of 64, or one of 128. For
  scores the other head's lanes of one operand are zeroed instead of cut out, which costs the matrix unit nothing.
- Scores lie transposed, keys on sublanes and queries on lanes. A query's statistics are then a lane of one row, sums
  over keys need no lane shuffles, and in `vᵀ p` the probabilities are what the matrix unit holds: only a head's own 64
  rows stream through it, so that it is not half idle there.
- Data-dependent skipping: `visits.table` goes to scalar memory before a grid step, whose loops run along it.
- Backward: one pass computes dq, dk and dv; dq adds up in VMEM. Kept from forward: the output and a row statistic.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from jaxbert.ops.attention import visits
from jaxbert.ops.attention.tiles import Tiles, chosen
from jaxbert.ops.attention.visits import UNIT
from jaxbert.ops.kernels import product
from jaxbert.sharding import BATCH_AXES, LETTERS, local_axes

LANES = 128
LOG2_E = math.log2(math.e)
MASKED = -2.0e38  # of a pair that is not allowed; below LEAST by more than any exponent
LEAST = -1.0e38  # the largest score of a query that has met no key


@dataclasses.dataclass(frozen=True)
class Static:
    """What a call is compiled for."""

    head_size: int
    scale: float
    window: int | None
    tiles: Tiles
    interpret: Any

    @property
    def heads(self) -> int:
        """Heads that share a block of lanes."""
        return LANES // self.head_size


def attention(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    tiles: Tiles | None = None,
    interpret: Any = False,
) -> jax.Array:
    """softmax(scale · q kᵀ) v over the keys that a query sees, as `reference.attention`; no array has T × S entries.

    Args:
      q_BTNH, k_BSNH, v_BSNH: bfloat16 or float32, of one dtype; scores, softmax and sums run in float32.
      q_segment_ids_BT, k_segment_ids_BS: integers ≥ 0; tiles are skipped best where they increase along a row.
      window: None: any distance; otherwise T = S and |t − s| ≤ window // 2 is seen.
      tiles: None: what `tiles.chosen` has for the devices.
      interpret: True, or pltpu.InterpretParams(): on a CPU.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`. Named "mixed" for rematerialisation policies, the row sums "statistics".

    Raises ValueError for what the kernel lacks: see `lacks`.
    """
    if missing := lacks(q_BTNH, k_BSNH):
        raise ValueError(f"attention: the TPU kernel cannot serve this call: {missing}")
    B, T, N, H = q_BTNH.shape
    static = Static(H, scale, window, tiles or chosen(q_BTNH.dtype.itemsize), interpret)
    q_BTE, k_BSE, v_BSE = (_padded(x.reshape(*x.shape[:2], N * H)) for x in (q_BTNH, k_BSNH, v_BSNH))
    ids = (_padded(q_segment_ids_BT.astype(jnp.int32)), _padded(k_segment_ids_BS.astype(jnp.int32)))
    return _attention(static, q_BTE, k_BSE, v_BSE, *ids)[:, :T].reshape(B, T, N, H)


def lacks(q_BTNH: jax.Array, k_BSNH: jax.Array) -> str | None:
    """What the kernel would need to serve the call, naming the argument; None: it serves it."""
    N, H = q_BTNH.shape[2:]
    shards = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in local_axes(N, (LETTERS["N"],)))
    if q_BTNH.dtype not in (jnp.bfloat16, jnp.float32):
        return f"q_BTNH is {q_BTNH.dtype}; it takes bfloat16 and float32"
    if H not in (64, 128):
        return f"q_BTNH has head size {H}; it takes 64 and 128"
    if N // shards * H % LANES:
        return (
            f"q_BTNH has {N // shards} heads of size {H} on a device; two of 64 go together, so it takes even numbers"
        )
    return None


def _padded(x_BT: jax.Array) -> jax.Array:
    """Zeros behind the last row up to a multiple of UNIT; ids of 0 are padding."""
    missing = -x_BT.shape[1] % UNIT
    return jnp.pad(x_BT, ((0, 0), (0, missing), *((0, 0),) * (x_BT.ndim - 2))) if missing else x_BT


def computed_entries(
    q_segment_ids_BT: Any, k_segment_ids_BS: Any, *, window: int | None = None, tiles: Tiles | None = None
) -> tuple[int, int]:
    """Score entries that the forward and the backward kernel compute for one head of these rows.

    From the very tables that the kernels walk along. Arguments as in `attention`.
    """
    forward, backward = _computed_entries(q_segment_ids_BT, k_segment_ids_BS, window, tiles or chosen(2))
    return int(forward), int(backward)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _computed_entries(
    q_segment_ids_BT: Any, k_segment_ids_BS: Any, window: int | None, tiles: Tiles
) -> tuple[jax.Array, jax.Array]:
    q_ids_BT, k_ids_BS = (_padded(jnp.asarray(ids, jnp.int32)) for ids in (q_segment_ids_BT, k_segment_ids_BS))
    T, S = q_ids_BT.shape[1], k_ids_BS.shape[1]
    visited, whole = visits.needed(q_ids_BT, k_ids_BS, window)
    forward, backward = visits.forward_plan(T, S, tiles), visits.backward_plan(T, S, tiles)
    return (
        visits.computed_entries(visits.table(visited, whole, forward), forward),
        visits.computed_entries(visits.table(visited.swapaxes(1, 2), whole.swapaxes(1, 2), backward), backward),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: Static, *arrays: jax.Array) -> jax.Array:
    return _forward(static, *arrays)[0]


def _forward(static: Static, *arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    q_BTE = arrays[0]
    out_BTE, log_sum_BGHT = _locally(static, _forward_call, q_BTE, arrays, "EEEII", "EL")
    out_BTE = checkpoint_name(out_BTE, "mixed")
    log_sum_BGHT = checkpoint_name(log_sum_BGHT, "statistics")
    return out_BTE, (*arrays, out_BTE, log_sum_BGHT)


def _backward(static: Static, saved: tuple[jax.Array, ...], gradient_BTE: jax.Array) -> tuple[Any, ...]:
    gradients = _locally(static, _backward_call, saved[0], (*saved, gradient_BTE), "EEEIIELE", "EEE")
    return *gradients, None, None


_attention.defvjp(_forward, _backward)


def _locally(static: Static, call: Any, q_BTE: jax.Array, arrays: tuple[jax.Array, ...], ins: str, outs: str) -> Any:
    """`call` on each device's own rows and heads. Letters: E (B, T, N·H), I (B, T), L (B, N·H / 128, heads, T)."""
    rows = local_axes(q_BTE.shape[0], BATCH_AXES)
    heads = local_axes(q_BTE.shape[2] // LANES, (LETTERS["N"],))
    call, split = functools.partial(call, static), set(jax.sharding.get_abstract_mesh().auto_axes)
    if not split:
        return call(*arrays)
    specs = {
        "E": PartitionSpec(rows, None, heads),
        "I": PartitionSpec(rows),
        "L": PartitionSpec(rows, heads),
    }
    return jax.shard_map(
        call,
        in_specs=tuple(specs[letter] for letter in ins),
        out_specs=tuple(specs[letter] for letter in outs),
        axis_names=split,  # axes of one device too: Mosaic wants all
        check_vma=False,  # pallas_call declares no varying axes of its results
    )(*arrays)


# What both kernels do with a tile


def _own_lanes(x_TE: jax.Array, head: int, static: Static) -> jax.Array:
    """`x_TE` with zeros in the lanes of other heads."""
    if static.heads == 1:
        return x_TE
    lane = jax.lax.broadcasted_iota(jnp.int32, x_TE.shape, 1)
    own = (lane >= head * static.head_size) & (lane < (head + 1) * static.head_size)
    return jnp.where(own, x_TE, jnp.zeros_like(x_TE))


def _rows(unit: Any, count: int = 1) -> Any:
    """Where `count` units lie from this one on."""
    return pl.ds(pl.multiple_of(unit * UNIT, UNIT), count * UNIT)


def _units(ref: Any, first: Any, count: int, rows: slice = slice(None)) -> jax.Array:
    """`count` units of a reference (units, rows, 128), side by side on the lanes."""
    return jnp.concatenate([ref[first + n, rows] for n in range(count)], axis=1)


def _put_units(ref: Any, first: Any, row: int, x_1T: jax.Array) -> None:
    for n in range(x_1T.shape[1] // UNIT):
        ref[first + n, pl.ds(row, 1)] = x_1T[:, n * UNIT : (n + 1) * UNIT]


def _add_units(ref: Any, first: Any, rows: slice, x: jax.Array) -> None:
    for n in range(x.shape[1] // UNIT):
        ref[first + n, rows] += x[:, n * UNIT : (n + 1) * UNIT]


def _allowed(static: Static, q_ids_1T: jax.Array, k_ids_1S: jax.Array, q_first: Any, k_first: Any) -> jax.Array:
    """Which keys (sublanes) the queries (lanes) of a tile see, (S, T)."""
    T, S = q_ids_1T.shape[1], k_ids_1S.shape[1]
    allowed_ST = jnp.broadcast_to(k_ids_1S, (T, S)).T == q_ids_1T
    if static.window is not None:
        s_ST, t_ST = (jax.lax.broadcasted_iota(jnp.int32, (S, T), axis) for axis in (0, 1))
        allowed_ST &= jnp.abs(s_ST - t_ST + (k_first - q_first)) <= static.window // 2
    return allowed_ST


def _walk(table: Any, step: Any, plan: visits.Plan, chunk: Any, tiles: Any) -> None:
    """Runs `chunk(first)` and `tiles(unit of the block, unit, how many)` along a step's entries.

    Units count from the major's. A unit's tiles besides the chunks stand in two runs, before and behind these.
    """
    base = table[step] * plan.major
    first, count = table[step + 1] - base, table[step + 2]

    @pl.loop(0, count)
    def _(n: Any) -> None:
        chunk(first + n * plan.chunk)

    @pl.loop(0, plan.block)
    def _(own: Any) -> None:
        start, others = table[step + 3 + 2 * own] - base, table[step + 4 + 2 * own]
        before, behind = visits.beside_chunks(first, count, start, others)
        next_start = start + before + count * plan.chunk
        pairs, odd = before >> 1, before & 1  # not // and %, which ask for a device: a compile may have none
        two = min(2, plan.major)  # a major of one unit has no pairs, and none could be read

        @pl.loop(0, pairs + (behind >> 1))
        def _(n: Any) -> None:
            tiles(own, jnp.where(n < pairs, start + 2 * n, next_start + 2 * (n - pairs)), two)

        @pl.loop(0, odd + (behind & 1))
        def _(n: Any) -> None:
            tiles(own, jnp.where(n < odd, start + before - 1, next_start + behind - 1), 1)


def _overlapped(items: list[Any], first: Any, second: Any) -> None:
    """`second(*item, first(*item))` of each, written so that the next one's `first` (matrix unit) hides behind it."""
    ready = first(*items[0])
    for item, after in zip(items, [*items[1:], None], strict=True):
        coming = None if after is None else first(*after)
        second(*item, ready)
        ready = coming


# Forward


def _forward_call(
    static: Static,
    q_BTE: jax.Array,
    k_BSE: jax.Array,
    v_BSE: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Output (B, T, E) and log2 of each row's sum, (B, E / 128, heads, T) float32."""
    (B, T, E), S = q_BTE.shape, k_BSE.shape[1]
    plan = visits.forward_plan(T, S, static.tiles)
    table = visits.table(*visits.needed(q_segment_ids_BT, k_segment_ids_BS, static.window), plan)
    grid = (B, E // LANES, *table.shape[1:3])
    block, major, heads = plan.block * UNIT, plan.major * UNIT, static.heads

    def loaded(b: Any, i: Any, j: Any, table: Any) -> Any:
        return table[((b * grid[2] + i) * grid[3] + j) * plan.entries]

    q_spec = pl.BlockSpec((None, block, LANES), lambda b, g, i, j, t: (b, i, g))
    k_spec = pl.BlockSpec((None, major, LANES), lambda b, g, i, j, t: (b, loaded(b, i, j, t), g))
    q_ids_spec = pl.BlockSpec((None, plan.block, 1, UNIT), lambda b, g, i, j, t: (b, i, 0, 0))
    k_ids_spec = pl.BlockSpec((None, plan.major, 1, UNIT), lambda b, g, i, j, t: (b, loaded(b, i, j, t), 0, 0))
    log_sum_spec = pl.BlockSpec((None, None, heads, block), lambda b, g, i, j, t: (b, g, 0, i))
    return pl.pallas_call(
        functools.partial(_forward_kernel, static, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[q_spec, k_spec, k_spec, q_ids_spec, k_ids_spec],
            out_specs=[q_spec, log_sum_spec],
            scratch_shapes=[
                pltpu.VMEM((heads, block, LANES), q_BTE.dtype),
                pltpu.VMEM((plan.major, LANES, UNIT), v_BSE.dtype),
                pltpu.VMEM((plan.block, 8, UNIT), jnp.float32),
                pltpu.VMEM((plan.block, LANES, UNIT), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((B, T, E), q_BTE.dtype),
            jax.ShapeDtypeStruct((B, E // LANES, heads, T), jnp.float32),
        ],
        compiler_params=_compiler_params(static),
        cost_estimate=_cost(static, q_BTE, S, products=2, arrays=4),  # q, k, v, out
        interpret=static.interpret,
        name="attention_forward",
    )(table.reshape(-1), q_BTE, k_BSE, v_BSE, _id_units(q_segment_ids_BT, 0), _id_units(k_segment_ids_BS, -1))


def _id_units(ids_BT: jax.Array, padding: int) -> jax.Array:
    """(B, T / 128, 1, 128); padding tokens get the id `padding`, which differs between queries and keys."""
    return jnp.where(ids_BT > 0, ids_BT, padding).reshape(ids_BT.shape[0], -1, 1, UNIT)


def _cost(static: Static, q_BTE: jax.Array, keys: int, products: int, arrays: int) -> pl.CostEstimate:
    """For the compiler's schedule and for counts of operations: as if every key within the window were visited."""
    (B, T, E), seen = q_BTE.shape, keys if static.window is None else min(keys, 2 * (static.window // 2) + 1)
    return pl.CostEstimate(
        flops=2 * products * B * T * seen * E,
        transcendentals=B * T * seen * (E // LANES) * static.heads,
        bytes_accessed=arrays * B * max(T, keys) * E * q_BTE.dtype.itemsize,
    )


def _compiler_params(static: Static) -> Any:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=static.tiles.vmem,
    )


def _forward_kernel(
    static: Static,
    plan: visits.Plan,
    table: Any,  # of all steps, in scalar memory
    q_TE: Any,
    k_SE: Any,
    v_SE: Any,
    q_ids: Any,  # (units, 1, 128)
    k_ids: Any,
    out_TE: Any,
    log_sum_HT: Any,
    own_q_HTE: Any,  # scratch: the queries, zero in the lanes of other heads
    v_units: Any,  # scratch: (units, 128, 128), each unit's vᵀ
    statistics: Any,  # scratch: (units, 8, 128), row h: the largest score of head h; row heads + h: its sum
    sums: Any,  # scratch: (units, 128, 128), the weighted values, transposed
) -> None:
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    step = ((b * pl.num_programs(2) + i) * pl.num_programs(3) + j) * plan.entries
    heads, H, factor = static.heads, static.head_size, static.scale * LOG2_E

    @pl.when(j == 0)
    def _() -> None:
        statistics[:, :heads] = jnp.full((plan.block, heads, UNIT), LEAST, jnp.float32)
        statistics[:, heads : 2 * heads] = jnp.zeros((plan.block, heads, UNIT), jnp.float32)
        sums[...] = jnp.zeros_like(sums)
        for head in range(heads):
            own_q_HTE[head] = _own_lanes(q_TE[...], head, static)

    @pl.when((i == 0) | (pl.num_programs(3) > 1))
    def _() -> None:
        @pl.loop(0, plan.major)
        def _(unit: Any) -> None:
            v_units[unit] = v_SE[_rows(unit)].T

    def update(units: list[Any], width: int, unit: Any, count: int, masked: bool) -> None:
        """`width` units of queries from each of these, and `count` units of keys."""
        k = k_SE[_rows(unit, count)]

        def scores(own: Any, head: int) -> jax.Array:
            q = own_q_HTE[head, _rows(own, width)]
            scores_ST = product(k, q, (1, 1)) * factor
            if not masked:
                return scores_ST
            q_first, k_first = (i * plan.block + own) * UNIT, (table[step] * plan.major + unit) * UNIT
            allowed_ST = _allowed(static, _units(q_ids, own, width), _units(k_ids, unit, count), q_first, k_first)
            return jnp.where(allowed_ST, scores_ST, MASKED)

        def add(own: Any, head: int, scores_ST: jax.Array) -> None:
            rows = slice(head * H, (head + 1) * H)
            largest = _units(statistics, own, width, slice(head, head + 1))
            total = _units(statistics, own, width, slice(heads + head, heads + head + 1))
            larger = jnp.maximum(largest, jnp.max(scores_ST, axis=0, keepdims=True))
            p_ST = jnp.exp2(scores_ST - larger)
            shrink = jnp.exp2(largest - larger)
            _put_units(statistics, own, head, larger)
            _put_units(statistics, own, heads + head, total * shrink + jnp.sum(p_ST, axis=0, keepdims=True))
            new = product(_units(v_units, unit, count, rows), p_ST.astype(v_SE.dtype), (1, 0))
            for n in range(width):
                columns = slice(n * UNIT, (n + 1) * UNIT)
                sums[own + n, rows] = sums[own + n, rows] * shrink[:, columns] + new[:, columns]

        _overlapped([(own, head) for own in units for head in range(heads)], scores, add)

    def chunk(first: Any) -> None:
        width = math.gcd(plan.block, static.tiles.width // UNIT)
        update(list(range(0, plan.block, width)), width, first, plan.chunk, masked=False)

    _walk(table, step, plan, chunk, lambda own, unit, count: update([own], 1, unit, count, masked=True))

    @pl.when(j == pl.num_programs(3) - 1)
    def _() -> None:
        for own in range(plan.block):
            columns = slice(own * UNIT, (own + 1) * UNIT)
            parts = []
            for head in range(heads):
                total = statistics[own, pl.ds(heads + head, 1)]
                parts.append(sums[own, slice(head * H, (head + 1) * H)] * jnp.where(total > 0, 1 / total, 0.0))
                # A query that sees no key: so large that every probability of the backward pass is 0.
                log_sum = statistics[own, pl.ds(head, 1)] + jnp.log2(total)
                log_sum_HT[pl.ds(head, 1), columns] = jnp.where(total > 0, log_sum, -MASKED)
            out_TE[columns] = jnp.concatenate(parts, axis=0).T.astype(out_TE.dtype)


# Backward


def _backward_call(
    static: Static,
    q_BTE: jax.Array,
    k_BSE: jax.Array,
    v_BSE: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    out_BTE: jax.Array,
    log_sum_BGHT: jax.Array,
    gradient_BTE: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """dq, dk, dv. Where a row has several majors of queries, each gives its part of dk and dv, in float32."""
    (B, T, E), S = q_BTE.shape, k_BSE.shape[1]
    plan = visits.backward_plan(T, S, static.tiles)
    visited, whole = visits.needed(q_segment_ids_BT, k_segment_ids_BS, static.window)
    # (B, blocks of keys, majors of queries, …)
    table = visits.table(visited.swapaxes(1, 2), whole.swapaxes(1, 2), plan)
    grid = (B, E // LANES, table.shape[2], table.shape[1])
    block, major, heads = plan.block * UNIT, plan.major * UNIT, static.heads
    q_spec = pl.BlockSpec((None, major, LANES), lambda b, g, j, i, t: (b, j, g))
    k_spec = pl.BlockSpec((None, block, LANES), lambda b, g, j, i, t: (b, i, g))
    part_spec = pl.BlockSpec((None, None, block, LANES), lambda b, g, j, i, t: (j, b, i, g))
    q_ids_spec = pl.BlockSpec((None, plan.major, 1, UNIT), lambda b, g, j, i, t: (b, j, 0, 0))
    k_ids_spec = pl.BlockSpec((None, plan.block, 1, UNIT), lambda b, g, j, i, t: (b, i, 0, 0))
    log_sum_spec = pl.BlockSpec((None, None, heads, major), lambda b, g, j, i, t: (b, g, 0, j))
    parts = jax.ShapeDtypeStruct((grid[2], B, S, E), k_BSE.dtype if grid[2] == 1 else jnp.float32)
    float32_units, own_units = (plan.major, LANES, UNIT), (plan.block, LANES, UNIT)
    dq_BTE, dk_JBSE, dv_JBSE = pl.pallas_call(
        functools.partial(_backward_kernel, static, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[q_spec, k_spec, k_spec, q_ids_spec, k_ids_spec, q_spec, log_sum_spec, q_spec],
            out_specs=[q_spec, part_spec, part_spec],
            scratch_shapes=[
                pltpu.VMEM((heads, block, LANES), k_BSE.dtype),
                pltpu.VMEM((heads, block, LANES), v_BSE.dtype),
                pltpu.VMEM(own_units, k_BSE.dtype),
                pltpu.VMEM(float32_units, q_BTE.dtype),
                pltpu.VMEM(float32_units, q_BTE.dtype),
                pltpu.VMEM((plan.major, 8, UNIT), jnp.float32),
                pltpu.VMEM(float32_units, jnp.float32),
                pltpu.VMEM(own_units, jnp.float32),
                pltpu.VMEM(own_units, jnp.float32),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct((B, T, E), q_BTE.dtype), parts, parts],
        compiler_params=_compiler_params(static),
        cost_estimate=_cost(static, q_BTE, S, products=5, arrays=8),  # scores again; q, k, v, out and four gradients
        interpret=static.interpret,
        name="attention_backward",
    )(
        table.reshape(-1),
        q_BTE,
        k_BSE,
        v_BSE,
        _id_units(q_segment_ids_BT, 0),
        _id_units(k_segment_ids_BS, -1),
        out_BTE,
        log_sum_BGHT,
        gradient_BTE,
    )
    if grid[2] == 1:
        return dq_BTE, dk_JBSE[0], dv_JBSE[0]
    return dq_BTE, *(jnp.sum(x, axis=0).astype(k_BSE.dtype) for x in (dk_JBSE, dv_JBSE))


def _backward_kernel(
    static: Static,
    plan: visits.Plan,
    table: Any,
    q_TE: Any,
    k_SE: Any,
    v_SE: Any,
    q_ids: Any,
    k_ids: Any,
    out_TE: Any,
    log_sum_HT: Any,
    gradient_TE: Any,
    dq_TE: Any,
    dk_SE: Any,
    dv_SE: Any,
    own_k_HSE: Any,  # scratch: keys and values, zero in the lanes of other heads
    own_v_HSE: Any,
    k_units: Any,  # scratch: (units, 128, 128), transposed, as the next two
    q_units: Any,
    gradient_units: Any,
    statistics: Any,  # scratch: (units, 8, 128), row h: head h's log of the sum; row heads + h: its gradient · output
    dq_units: Any,  # scratch: transposed sums, as the next two
    dk_units: Any,
    dv_units: Any,
) -> None:
    """With p the probabilities, g the gradient: dv = pᵀ g, ds = p (g vᵀ − g·o), dq = scale ds k, dk = scale dsᵀ q."""
    b, j, i = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    step = ((b * pl.num_programs(3) + i) * pl.num_programs(2) + j) * plan.entries
    heads, H, factor = static.heads, static.head_size, static.scale * LOG2_E

    @pl.when(i == 0)
    def _() -> None:
        dq_units[...] = jnp.zeros_like(dq_units)
        _read_queries(static, q_TE, gradient_TE, out_TE, log_sum_HT, q_units, gradient_units, statistics)

    dk_units[...], dv_units[...] = jnp.zeros_like(dk_units), jnp.zeros_like(dv_units)
    for head in range(heads):
        own_k_HSE[head], own_v_HSE[head] = (_own_lanes(x[...], head, static) for x in (k_SE, v_SE))
    for own in range(plan.block):
        k_units[own] = k_SE[pl.ds(own * UNIT, UNIT)].T

    def update(own: Any, count: int, units: list[Any], width: int, masked: bool) -> None:
        """`count` units of keys, and `width` units of queries from each of these."""
        keys = _rows(own, count)

        def products(unit: Any, head: int) -> tuple[jax.Array, jax.Array]:
            queries = _rows(unit, width)
            scores_ST = product(own_k_HSE[head, keys], q_TE[queries], (1, 1)) * factor
            dp_ST = product(own_v_HSE[head, keys], gradient_TE[queries], (1, 1))
            if masked:
                q_first, k_first = (table[step] * plan.major + unit) * UNIT, (i * plan.block + own) * UNIT
                allowed_ST = _allowed(static, _units(q_ids, unit, width), k_ids[own], q_first, k_first)
                scores_ST = jnp.where(allowed_ST, scores_ST, MASKED)
            return scores_ST, dp_ST

        def add(unit: Any, head: int, ready: tuple[jax.Array, jax.Array]) -> None:
            scores_ST, dp_ST = ready
            rows = slice(head * H, (head + 1) * H)
            log_sum, inner = (_units(statistics, unit, width, slice(n, n + 1)) for n in (head, heads + head))
            p_ST = jnp.exp2(scores_ST - log_sum)
            ds_ST = (p_ST * (dp_ST - inner)).astype(q_TE.dtype)
            p_ST, q, g = p_ST.astype(q_TE.dtype), *(_units(x, unit, width, rows) for x in (q_units, gradient_units))
            _add_units(dv_units, own, rows, product(g, p_ST, (1, 1)))
            _add_units(dk_units, own, rows, product(q, ds_ST, (1, 1)))
            _add_units(dq_units, unit, rows, product(_units(k_units, own, count, rows), ds_ST, (1, 0)))

        _overlapped([(unit, head) for unit in units for head in range(heads)], products, add)

    def chunk(first: Any) -> None:
        width = math.gcd(plan.chunk, static.tiles.width // UNIT)
        update(0, plan.block, [first + n for n in range(0, plan.chunk, width)], width, masked=False)

    _walk(table, step, plan, chunk, lambda own, unit, count: update(own, 1, [unit], count, masked=True))

    for own in range(plan.block):
        rows = pl.ds(own * UNIT, UNIT)
        dk_SE[rows] = (dk_units[own].T * static.scale).astype(dk_SE.dtype)
        dv_SE[rows] = dv_units[own].T.astype(dv_SE.dtype)

    @pl.when(i == pl.num_programs(3) - 1)
    def _() -> None:
        @pl.loop(0, plan.major)
        def _(unit: Any) -> None:
            dq_TE[_rows(unit)] = (dq_units[unit].T * static.scale).astype(dq_TE.dtype)


def _read_queries(
    static: Static,
    q_TE: Any,
    gradient_TE: Any,
    out_TE: Any,
    log_sum_HT: Any,
    q_units: Any,
    gradient_units: Any,
    statistics: Any,
) -> None:
    """Fills the backward kernel's last three from the first four: what it reads of queries, transposed."""
    heads, H = static.heads, static.head_size

    @pl.loop(0, q_units.shape[0])
    def _(unit: Any) -> None:
        rows = _rows(unit)
        q_units[unit], gradient_units[unit] = q_TE[rows].T, gradient_TE[rows].T
        inner = (gradient_TE[rows].astype(jnp.float32) * out_TE[rows].astype(jnp.float32)).T
        for head in range(heads):
            own = inner[head * H : (head + 1) * H]
            statistics[unit, pl.ds(heads + head, 1)] = jnp.sum(own, axis=0, keepdims=True)
            statistics[unit, pl.ds(head, 1)] = log_sum_HT[pl.ds(head, 1), rows]
