"""Which tiles of scores hold a pair that attention needs: the lists that `pallas_tpu`'s kernels walk along.

Rows are cut into units of 128 tokens. A (unit of queries, unit of keys) tile is visited if the ranges of their segment
ids meet and, with a window, the band passes through it; it is whole if every pair in it is allowed, so that it needs no
mask. In a packed row ids increase, so what a unit visits is one run of units, and that is what a kernel is told: first
unit and count. Ids in any order are served too: a run then holds tiles between those that are needed.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxbert.ops.attention.tiles import Tiles

UNIT = 128  # lanes of a vector register


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one kernel walks: a grid step owns `block` units of one side (its rows) and sees `major` of the other side.

    Whole tiles are taken `chunk` units of the other side at a time with all of the block's units; others one by one.
    """

    block: int
    chunk: int
    major: int

    @property
    def entries(self) -> int:
        """int32 numbers of a grid step in the table: see `table`."""
        return 3 + 2 * self.block


def _dividing(length: int, limit: int) -> int:
    """Units of the largest part of at most `limit` tokens that divides `length`, a multiple of UNIT."""
    units = length // UNIT
    return next(size for size in range(min(units, max(1, limit // UNIT)), 0, -1) if units % size == 0)


def _plan(own: int, other: int, block: int, chunk: int, major: int) -> Plan:
    units = _dividing(other, major)
    return Plan(_dividing(own, block), min(max(1, chunk // UNIT), units), units)


def forward_plan(T: int, S: int, tiles: Tiles) -> Plan:
    """Of the forward kernel: blocks of queries, chunks and majors of keys."""
    return _plan(T, S, tiles.q_block, tiles.k_chunk, tiles.k_major)


def backward_plan(T: int, S: int, tiles: Tiles) -> Plan:
    """Of the backward kernel: blocks of keys, chunks and majors of queries."""
    return _plan(S, T, tiles.k_block, tiles.q_chunk, tiles.q_major)


def needed(q_segment_ids_BT: jax.Array, k_segment_ids_BS: jax.Array, window: int | None) -> tuple[jax.Array, jax.Array]:
    """Of the tiles of UNIT × UNIT pairs, (B, T / UNIT, S / UNIT) bool: visited, whole. UNIT divides T and S."""
    (q_low, q_high, q_one), (k_low, k_high, k_one) = (_ranges(ids) for ids in (q_segment_ids_BT, k_segment_ids_BS))
    visited = (q_low[:, :, None] <= k_high[:, None, :]) & (k_low[:, None, :] <= q_high[:, :, None])
    whole = visited & q_one[:, :, None] & k_one[:, None, :]
    if window is not None:
        apart = jnp.abs(jnp.arange(q_low.shape[1])[:, None] - jnp.arange(k_low.shape[1])) * UNIT
        visited &= apart - (UNIT - 1) <= window // 2
        whole &= apart + (UNIT - 1) <= window // 2
    return visited, whole


def _ranges(ids_BT: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each unit, (B, T / UNIT): smallest and largest id that is not padding, and whether all tokens have one id."""
    ids_BIU = ids_BT.reshape(ids_BT.shape[0], -1, UNIT)
    low = jnp.min(jnp.where(ids_BIU > 0, ids_BIU, jnp.iinfo(jnp.int32).max), axis=-1)
    high = jnp.max(ids_BIU, axis=-1)
    return low, high, (low == high) & jnp.all(ids_BIU > 0, axis=-1)


def table(visited_BIJ: jax.Array, whole_BIJ: jax.Array, plan: Plan) -> jax.Array:
    """What each grid step does, (B, blocks, majors, plan.entries) int32.

    A step's numbers: the major to have loaded (its own if it visits any tile of it, else the one loaded before), the
    first unit of whole chunks (of the whole axis J) and their count, then for each unit of the block the first visited
    unit and how many more are visited besides the chunks.
    """
    rows, owned, others = visited_BIJ.shape
    split = (rows, owned // plan.block, plan.block, others // plan.major, plan.major)
    visited = visited_BIJ.reshape(split).transpose(0, 1, 3, 2, 4)  # (B, blocks, majors, block, major)
    whole = jnp.all(whole_BIJ.reshape(split), axis=2)  # (B, blocks, majors, major)
    numbers = jnp.arange(plan.major, dtype=jnp.int32)
    first = jnp.min(jnp.where(visited, numbers, plan.major), axis=-1)
    end = jnp.max(jnp.where(visited, numbers + 1, 0), axis=-1)
    whole_first = jnp.min(jnp.where(whole, numbers, plan.major), axis=-1)
    # The run of whole units ends before the first that is none.
    whole_end = jnp.min(jnp.where(~whole & (numbers >= whole_first[..., None]), numbers, plan.major), axis=-1)
    chunks = jnp.maximum(whole_end - whole_first, 0) // plan.chunk
    rest = jnp.maximum(end - first, 0) - (chunks * plan.chunk)[..., None]
    offset = jnp.arange(split[3], dtype=jnp.int32) * plan.major
    used = jnp.any(visited, axis=(-2, -1))
    majors = jnp.arange(split[3], dtype=jnp.int32)
    loaded = jax.lax.cummax(jnp.where(used, majors, 0), axis=2)
    runs = jnp.stack([first + offset[:, None], rest], axis=-1).reshape(*loaded.shape, 2 * plan.block)
    head = jnp.stack([loaded, whole_first + offset, chunks], axis=-1)
    return jnp.concatenate([head, runs], axis=-1).astype(jnp.int32)


def beside_chunks(first: Any, count: Any, start: Any, others: Any) -> tuple[Any, Any]:
    """How many of a unit's tiles besides the chunks lie before these, and behind them; from a step's table entries."""
    before = jnp.where(count > 0, jnp.clip(first - start, 0, others), others)
    return before, others - before


def computed_entries(table_BIJE: jax.Array, plan: Plan) -> jax.Array:
    """Score entries that a kernel with this table computes for one head, () int32: what its loops' bounds add up to."""
    chunks, others = table_BIJE[..., 2], table_BIJE[..., 4::2]
    return (jnp.sum(chunks) * plan.block * plan.chunk + jnp.sum(others)) * UNIT**2
