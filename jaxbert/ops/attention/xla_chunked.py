"""Attention block by block in plain jnp: memory grows with T and not with T², on any backend.

Forward: for each block of queries an online softmax over blocks of keys (Milakov & Gimelshein 2018, arXiv:1805.02867;
Rabe & Staats 2021, arXiv:2112.05682). Backward: each block of scores is computed again from the saved logarithm of its
row's sum (Dao et al. 2022, arXiv:2205.14135, §3.1), so that what is kept is linear in T too. Blocks of keys before the
first and behind the last that some row of the batch needs, by its segments and the window, are not visited.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxbert.ops.attention.reference import UNSEEN
from jaxbert.ops.dropout import random_uint16

BLOCK = 512  # queries and keys of a block, at most; tools/bench_attention.py --block
WINDOW_BLOCK = 128  # the same with a window, of which a block of keys should hold little else; or the window's half

Sums = tuple[jax.Array, jax.Array, jax.Array]  # of a row over the keys so far: largest score, total, weighted values


def attention(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    block: int | None = None,
) -> jax.Array:
    """softmax(scale · q kᵀ) v over the keys that a query sees, as `reference.attention`; any lengths T and S.

    Args:
      q_BTNH, k_BSNH, v_BSNH: floating point, of one dtype; scores, softmax and sums run in at least float32.
      q_segment_ids_BT, k_segment_ids_BS: integers ≥ 0, 0 is padding.
      window: query t sees keys s with |t − s| ≤ window // 2 alone; then T = S. None: any distance.
      dropout_rate: of the probabilities, applied when `key` is given. The bits of a block follow from the key, the
        block's numbers and the place in the global batch: they depend on `block`, not on the mesh.
      block: the most queries and keys that one block of scores has; None: BLOCK, or by the window.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`. Named "mixed" for rematerialisation policies, the row sums "statistics".
    """
    if dropout_rate == 0.0:
        key = None
    if block is None:
        block = BLOCK if window is None else min(BLOCK, max(WINDOW_BLOCK, window // 2))
    static = Static(scale, window, dropout_rate, block)
    return _attention(static, q_BTNH, k_BSNH, v_BSNH, q_segment_ids_BT, k_segment_ids_BS, key)


class Static(NamedTuple):
    """What a program is compiled for, besides shapes; the arguments of `attention`."""

    scale: float
    window: int | None
    rate: float
    block: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: Static, *arrays: Any) -> jax.Array:
    return _forward(static, *arrays)[0]


def _forward(
    static: Static,
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    key: jax.Array | None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """The result, and what the backward pass needs: the arguments, the result, the log of each row's sum (B, T, N)."""
    dtype, block = jnp.promote_types(q_BTNH.dtype, jnp.float32), static.block
    q_IBNTH, q_segment_ids_IBT = _blocks(q_BTNH * static.scale, block), _segment_blocks(q_segment_ids_BT, block)
    k_JBNSH, v_JBNSH = _blocks(k_BSNH, block), _blocks(v_BSNH, block)
    k_segment_ids_JBS = _segment_blocks(k_segment_ids_BS, block)

    def query_block(query: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        i, first, stop, q_BNTH, q_segment_ids_BT = query

        def key_block(j: jax.Array, sums: Sums) -> Sums:
            largest_BNT, total_BNT, sum_BNTH = sums
            scores_BNTS = _scores(q_BNTH, k_JBNSH[j], q_segment_ids_BT, k_segment_ids_JBS[j], i, j, static.window)
            larger_BNT = jnp.maximum(largest_BNT, jnp.max(scores_BNTS, axis=-1))
            # Against 0 in place of the least finite number, the exponentials of a row that has seen no key are 0.
            p_BNTS = jnp.exp(scores_BNTS - jnp.where(larger_BNT > nothing, larger_BNT, 0.0)[..., None])
            shrink_BNT = jnp.exp(largest_BNT - larger_BNT)
            total_BNT = total_BNT * shrink_BNT + jnp.sum(p_BNTS, axis=-1)
            p_BNTS = _drop(p_BNTS, static.rate, key, i, j).astype(v_BSNH.dtype)
            new_BNTH = jnp.einsum("BNTS,BNSH->BNTH", p_BNTS, v_JBNSH[j], preferred_element_type=dtype)
            return larger_BNT, total_BNT, sum_BNTH * shrink_BNT[..., None] + new_BNTH

        nothing = jnp.finfo(dtype).min  # not −∞: its difference to itself is no NaN
        nothing_BNT = jnp.full(q_BNTH.shape[:3], nothing, dtype)
        start = nothing_BNT, jnp.zeros_like(nothing_BNT), jnp.zeros(q_BNTH.shape, dtype)
        largest_BNT, total_BNT, sum_BNTH = jax.lax.fori_loop(first, stop, key_block, start)
        seen_BNT = total_BNT > 0
        total_BNT = jnp.where(seen_BNT, total_BNT, 1.0)
        log_sum_BNT = jnp.where(seen_BNT, largest_BNT + jnp.log(total_BNT), 0.0)
        return (sum_BNTH / total_BNT[..., None]).astype(q_BNTH.dtype), log_sum_BNT

    needed = _needed(q_segment_ids_IBT, k_segment_ids_JBS, static.window)
    out_IBNTH, log_sum_IBNT = jax.lax.map(query_block, (np.arange(len(q_IBNTH)), *needed, q_IBNTH, q_segment_ids_IBT))
    out_BTNH = checkpoint_name(_joined(out_IBNTH, q_BTNH.shape[1]), "mixed")
    log_sum_BTN = checkpoint_name(_joined(log_sum_IBNT[..., None], q_BTNH.shape[1])[..., 0], "statistics")
    return out_BTNH, (q_BTNH, k_BSNH, v_BSNH, q_segment_ids_BT, k_segment_ids_BS, key, out_BTNH, log_sum_BTN)


def _backward(static: Static, saved: tuple[Any, ...], gradient_BTNH: jax.Array) -> tuple[Any, ...]:
    """For each block of queries its blocks of keys; gradients of keys and values add up over the former.

    With P the probabilities, Z the dropout mask over (1 − rate), g the gradient of the result o = (Z P) v:
    dv = (Z P)ᵀ g, dP = Z (g vᵀ), and the softmax's dS = P (dP − P·dP), where the row's sum P·dP equals g·o.
    """
    q_BTNH, k_BSNH, v_BSNH, q_segment_ids_BT, k_segment_ids_BS, key, out_BTNH, log_sum_BTN = saved
    dtype, block = jnp.promote_types(q_BTNH.dtype, jnp.float32), static.block
    product = functools.partial(jnp.einsum, preferred_element_type=dtype)
    inner_BTN1 = jnp.sum(gradient_BTNH.astype(dtype) * out_BTNH.astype(dtype), axis=-1, keepdims=True)
    q_segment_ids_IBT = _segment_blocks(q_segment_ids_BT, block)
    k_JBNSH, v_JBNSH = _blocks(k_BSNH, block), _blocks(v_BSNH, block)
    k_segment_ids_JBS = _segment_blocks(k_segment_ids_BS, block)

    def query_block(
        sums: tuple[jax.Array, jax.Array], query: tuple[Any, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        i, first, stop, q_BNTH, q_segment_ids_BT, g_BNTH, log_sum_BNT1, inner_BNT1 = query

        def key_block(j: jax.Array, gradients: Sums) -> Sums:
            dq_BNTH, dk_JBNSH, dv_JBNSH = gradients
            scores_BNTS = _scores(q_BNTH, k_JBNSH[j], q_segment_ids_BT, k_segment_ids_JBS[j], i, j, static.window)
            p_BNTS = jnp.exp(scores_BNTS - log_sum_BNT1)
            dp_BNTS = _drop(product("BNTH,BNSH->BNTS", g_BNTH, v_JBNSH[j]), static.rate, key, i, j)
            ds_BNTS = (p_BNTS * (dp_BNTS - inner_BNT1)).astype(q_BNTH.dtype)
            dropped_BNTS = _drop(p_BNTS, static.rate, key, i, j).astype(v_BSNH.dtype)
            dv_JBNSH = dv_JBNSH.at[j].add(product("BNTS,BNTH->BNSH", dropped_BNTS, g_BNTH))
            dk_JBNSH = dk_JBNSH.at[j].add(product("BNTS,BNTH->BNSH", ds_BNTS, q_BNTH))
            return dq_BNTH + product("BNTS,BNSH->BNTH", ds_BNTS, k_JBNSH[j]), dk_JBNSH, dv_JBNSH

        zeros_BNTH = jnp.zeros(q_BNTH.shape, dtype)
        dq_BNTH, dk_JBNSH, dv_JBNSH = jax.lax.fori_loop(first, stop, key_block, (zeros_BNTH, *sums))
        return (dk_JBNSH, dv_JBNSH), dq_BNTH

    q_IBNTH = _blocks(q_BTNH * static.scale, block)
    queries = (
        np.arange(len(q_IBNTH)),
        *_needed(q_segment_ids_IBT, k_segment_ids_JBS, static.window),
        q_IBNTH,
        q_segment_ids_IBT,
        _blocks(gradient_BTNH, block),
        _blocks(log_sum_BTN[..., None], block),
        _blocks(inner_BTN1, block),
    )
    zeros_JBNSH = jnp.zeros(k_JBNSH.shape, dtype)
    (dk_JBNSH, dv_JBNSH), dq_IBNTH = jax.lax.scan(query_block, (zeros_JBNSH, zeros_JBNSH), queries)
    dq_BTNH = (_joined(dq_IBNTH, q_BTNH.shape[1]) * static.scale).astype(q_BTNH.dtype)
    dk_BSNH, dv_BSNH = (_joined(x_JBNSH, k_BSNH.shape[1]).astype(k_BSNH.dtype) for x_JBNSH in (dk_JBNSH, dv_JBNSH))
    return dq_BTNH, dk_BSNH, dv_BSNH, None, None, None


_attention.defvjp(_forward, _backward)


def _needed(
    q_segment_ids_IBT: jax.Array, k_segment_ids_JBS: jax.Array, window: int | None
) -> tuple[jax.Array, jax.Array]:
    """Of each block of queries the first block of keys that it may see and the one behind the last, (I,) int32 each.

    Blocks are told apart by their least and largest id, so ids that do not rise along a row cost time, not truth.
    """
    (q_least, q_largest), (k_least, k_largest) = map(_range_of_ids, (q_segment_ids_IBT, k_segment_ids_JBS))
    needed_IJ = jnp.any((q_least[:, None] <= k_largest) & (k_least <= q_largest[:, None]), axis=-1)
    I, J = needed_IJ.shape  # noqa: E741
    if window is not None:
        size = k_segment_ids_JBS.shape[-1]
        distance_IJ = np.abs(np.arange(I)[:, None] - np.arange(J)) * size - (size - 1)  # of their nearest tokens
        needed_IJ &= distance_IJ <= window // 2
    first_I = jnp.argmax(needed_IJ, axis=1)
    stop_I = jnp.where(jnp.any(needed_IJ, axis=1), J - jnp.argmax(needed_IJ[:, ::-1], axis=1), first_I)
    return first_I.astype(jnp.int32), stop_I.astype(jnp.int32)


def _range_of_ids(segment_ids_IBT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least and the largest id of each block's documents, (I, B) each; of padding alone an empty range."""
    none = jnp.iinfo(segment_ids_IBT.dtype).max
    return jnp.min(jnp.where(segment_ids_IBT > 0, segment_ids_IBT, none), axis=-1), jnp.max(segment_ids_IBT, axis=-1)


def _scores(
    q_BNTH: jax.Array,
    k_BNSH: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    i: jax.Array,
    j: jax.Array,
    window: int | None,
) -> jax.Array:
    """Scores of block (i, j) in at least float32, (B, N, T, S); the least finite number where a key is not seen."""
    dtype = jnp.promote_types(q_BNTH.dtype, jnp.float32)
    scores_BNTS = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k_BNSH, preferred_element_type=dtype)
    k_segment_ids_BS = jnp.where(k_segment_ids_BS > 0, k_segment_ids_BS, UNSEEN)
    visible_BTS = q_segment_ids_BT[:, :, None] == k_segment_ids_BS[:, None, :]
    if window is not None:  # then blocks of queries and of keys are of one size
        size = k_segment_ids_BS.shape[1]
        place = np.arange(size, dtype=np.int32)
        visible_BTS &= jnp.abs((i - j) * size + place[:, None] - place) <= window // 2
    return jnp.where(visible_BTS[:, None], scores_BNTS, jnp.finfo(dtype).min)


def _drop(x_BNTS: jax.Array, rate: float, key: jax.Array | None, i: jax.Array, j: jax.Array) -> jax.Array:
    """Dropout of block (i, j), as `ops.dropout.dropout` but with nothing to keep: the backward pass draws again."""
    if key is None:
        return x_BNTS
    threshold = round(rate * 2**16)
    keep_BNTS = random_uint16(jax.random.fold_in(jax.random.fold_in(key, i), j), x_BNTS.shape) >= threshold
    return jnp.where(keep_BNTS, x_BNTS * (1.0 / (1.0 - threshold / 2**16)), 0.0)


def _block_size(length: int, block: int) -> int:
    """Rows of a block: equal blocks, so that an odd length fills little, in multiples of 16."""
    count = math.ceil(length / block)
    return min(block, math.ceil(length / count / 16) * 16)


def _blocks(x_BTNH: jax.Array, block: int) -> jax.Array:
    """(B, T, N, H) → (I, B, N, t, H): blocks in front, heads before rows, zeros behind the last row."""
    B, T, N, H = x_BTNH.shape
    size = _block_size(T, block)
    x_BTNH = jnp.pad(x_BTNH, ((0, 0), (0, -T % size), (0, 0), (0, 0)))
    return x_BTNH.reshape(B, -1, size, N, H).transpose(1, 0, 3, 2, 4)


def _segment_blocks(segment_ids_BT: jax.Array, block: int) -> jax.Array:
    """(B, T) → (I, B, t); what is behind the last token is padding."""
    B, T = segment_ids_BT.shape
    size = _block_size(T, block)
    return jnp.pad(segment_ids_BT, ((0, 0), (0, -T % size))).reshape(B, -1, size).transpose(1, 0, 2)


def _joined(x_IBNTH: jax.Array, length: int) -> jax.Array:
    """The inverse of `_blocks`: (I, B, N, t, H) → (B, T, N, H)."""
    _, B, N, _, H = x_IBNTH.shape
    return x_IBNTH.transpose(1, 0, 3, 2, 4).reshape(B, -1, N, H)[:, :length]
