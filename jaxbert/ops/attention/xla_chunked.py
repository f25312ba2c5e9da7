"""Attention block by block in plain jnp: memory grows with T and not with T², on any backend.

Forward: for each block of queries an online softmax over blocks of keys (Milakov & Gimelshein 2018, arXiv:1805.02867;
Rabe & Staats 2021, arXiv:2112.05682). Backward: each block of scores is computed again from the saved logarithm of its
row's sum (Dao et al. 2022, arXiv:2205.14135, §3.1), so that what is kept is linear in T too.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxbert.ops.dropout import random_uint16

BLOCK = 512  # queries and keys of a block, at most; tools/bench_attention.py --block
PADDING = -1  # segment of the rows that fill the last block

Sums = tuple[jax.Array, jax.Array, jax.Array]  # of a row over the keys so far: largest score, total, weighted values


def attention(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    block: int = BLOCK,
) -> jax.Array:
    """softmax(q kᵀ / √H) v over the keys of the query's own segment, as `reference.attention`; any lengths T and S.

    Args:
      q_BTNH, k_BSNH, v_BSNH: floating point, of one dtype; scores, softmax and sums run in at least float32.
      q_segment_ids_BT, k_segment_ids_BS: integers ≥ 0. A query whose id no key has gets finite numbers.
      dropout_rate: of the probabilities, applied when `key` is given. The bits of a block follow from the key, the
        block's numbers and the place in the global batch: they depend on `block`, not on the mesh.
      block: the most queries and keys that one block of scores has.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`. Named "mixed" for rematerialisation policies, the row sums "statistics".
    """
    if dropout_rate == 0.0:
        key = None
    return _attention(dropout_rate, block, q_BTNH, k_BSNH, v_BSNH, q_segment_ids_BT, k_segment_ids_BS, key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(rate: float, block: int, *arrays: Any) -> jax.Array:
    return _forward(rate, block, *arrays)[0]


def _forward(
    rate: float,
    block: int,
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    key: jax.Array | None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """The result, and what the backward pass needs: the arguments, the result, the log of each row's sum (B, T, N)."""
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q_IBNTH, q_segment_ids_IBT = _blocks(_scaled(q_BTNH), block), _segment_blocks(q_segment_ids_BT, block)
    k_JBNSH, v_JBNSH = _blocks(k_BSNH, block), _blocks(v_BSNH, block)
    k_segment_ids_JBS = _segment_blocks(k_segment_ids_BS, block)

    def query_block(query: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        i, q_BNTH, q_segment_ids_BT = query

        def key_block(carry: Sums, keys: tuple[jax.Array, ...]) -> tuple[Sums, None]:
            largest_BNT, total_BNT, sum_BNTH = carry
            j, k_BNSH, v_BNSH, k_segment_ids_BS = keys
            scores_BNTS = _scores(q_BNTH, k_BNSH, q_segment_ids_BT, k_segment_ids_BS)
            larger_BNT = jnp.maximum(largest_BNT, jnp.max(scores_BNTS, axis=-1))
            p_BNTS = jnp.exp(scores_BNTS - larger_BNT[..., None])
            shrink_BNT = jnp.exp(largest_BNT - larger_BNT)
            total_BNT = total_BNT * shrink_BNT + jnp.sum(p_BNTS, axis=-1)
            p_BNTS = _drop(p_BNTS, rate, key, i, j).astype(v_BNSH.dtype)
            new_BNTH = jnp.einsum("BNTS,BNSH->BNTH", p_BNTS, v_BNSH, preferred_element_type=dtype)
            return (larger_BNT, total_BNT, sum_BNTH * shrink_BNT[..., None] + new_BNTH), None

        # The least finite number, not −∞: a row that has met only other segments' keys must not make a NaN.
        nothing_BNT = jnp.full(q_BNTH.shape[:3], jnp.finfo(dtype).min, dtype)
        start = nothing_BNT, jnp.zeros_like(nothing_BNT), jnp.zeros(q_BNTH.shape, dtype)
        (largest_BNT, total_BNT, sum_BNTH), _ = jax.lax.scan(
            key_block, start, (jnp.arange(len(k_JBNSH)), k_JBNSH, v_JBNSH, k_segment_ids_JBS)
        )
        return (sum_BNTH / total_BNT[..., None]).astype(q_BNTH.dtype), largest_BNT + jnp.log(total_BNT)

    out_IBNTH, log_sum_IBNT = jax.lax.map(query_block, (jnp.arange(len(q_IBNTH)), q_IBNTH, q_segment_ids_IBT))
    out_BTNH = checkpoint_name(_joined(out_IBNTH, q_BTNH.shape[1]), "mixed")
    log_sum_BTN = checkpoint_name(_joined(log_sum_IBNT[..., None], q_BTNH.shape[1])[..., 0], "statistics")
    return out_BTNH, (q_BTNH, k_BSNH, v_BSNH, q_segment_ids_BT, k_segment_ids_BS, key, out_BTNH, log_sum_BTN)


def _backward(rate: float, block: int, saved: tuple[Any, ...], gradient_BTNH: jax.Array) -> tuple[Any, ...]:
    """For each block of queries all blocks of keys; gradients of keys and values add up over the former.

    With P the probabilities, Z the dropout mask over (1 − rate), g the gradient of the result o = (Z P) v:
    dv = (Z P)ᵀ g, dP = Z (g vᵀ), and the softmax's dS = P (dP − P·dP), where the row's sum P·dP equals g·o.
    """
    q_BTNH, k_BSNH, v_BSNH, q_segment_ids_BT, k_segment_ids_BS, key, out_BTNH, log_sum_BTN = saved
    dtype, (T, S) = jnp.promote_types(q_BTNH.dtype, jnp.float32), (q_BTNH.shape[1], k_BSNH.shape[1])
    product = functools.partial(jnp.einsum, preferred_element_type=dtype)
    inner_BTN1 = jnp.sum(gradient_BTNH.astype(dtype) * out_BTNH.astype(dtype), axis=-1, keepdims=True)
    queries = (
        _blocks(_scaled(q_BTNH), block),
        _segment_blocks(q_segment_ids_BT, block),
        _blocks(gradient_BTNH, block),
        _blocks(log_sum_BTN[..., None], block),
        _blocks(inner_BTN1, block),
    )
    k_JBNSH, v_JBNSH = _blocks(k_BSNH, block), _blocks(v_BSNH, block)
    k_segment_ids_JBS = _segment_blocks(k_segment_ids_BS, block)

    def query_block(
        sums: tuple[jax.Array, jax.Array], query: tuple[Any, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        i, (q_BNTH, q_segment_ids_BT, g_BNTH, log_sum_BNT1, inner_BNT1) = query

        def key_block(dq_BNTH: jax.Array, keys: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            j, k_BNSH, v_BNSH, k_segment_ids_BS, dk_BNSH, dv_BNSH = keys
            p_BNTS = jnp.exp(_scores(q_BNTH, k_BNSH, q_segment_ids_BT, k_segment_ids_BS) - log_sum_BNT1)
            dp_BNTS = _drop(product("BNTH,BNSH->BNTS", g_BNTH, v_BNSH), rate, key, i, j)
            ds_BNTS = (p_BNTS * (dp_BNTS - inner_BNT1)).astype(q_BNTH.dtype)
            dropped_BNTS = _drop(p_BNTS, rate, key, i, j).astype(v_BNSH.dtype)
            dv_BNSH = dv_BNSH + product("BNTS,BNTH->BNSH", dropped_BNTS, g_BNTH)
            dk_BNSH = dk_BNSH + product("BNTS,BNTH->BNSH", ds_BNTS, q_BNTH)
            return dq_BNTH + product("BNTS,BNSH->BNTH", ds_BNTS, k_BNSH), (dk_BNSH, dv_BNSH)

        dq_BNTH, sums = jax.lax.scan(
            key_block,
            jnp.zeros(q_BNTH.shape, dtype),
            (jnp.arange(len(k_JBNSH)), k_JBNSH, v_JBNSH, k_segment_ids_JBS, *sums),
        )
        return sums, dq_BNTH

    zeros_JBNSH = jnp.zeros(k_JBNSH.shape, dtype)
    numbers_I = jnp.arange(len(queries[0]))
    (dk_JBNSH, dv_JBNSH), dq_IBNTH = jax.lax.scan(query_block, (zeros_JBNSH, zeros_JBNSH), (numbers_I, queries))
    dq_BTNH = _scaled(_joined(dq_IBNTH, T)).astype(q_BTNH.dtype)
    dk_BSNH, dv_BSNH = _joined(dk_JBNSH, S).astype(k_BSNH.dtype), _joined(dv_JBNSH, S).astype(v_BSNH.dtype)
    return dq_BTNH, dk_BSNH, dv_BSNH, None, None, None


_attention.defvjp(_forward, _backward)


def _scaled(q_BTNH: jax.Array) -> jax.Array:
    return q_BTNH * (1.0 / math.sqrt(q_BTNH.shape[-1]))


def _scores(
    q_BNTH: jax.Array, k_BNSH: jax.Array, q_segment_ids_BT: jax.Array, k_segment_ids_BS: jax.Array
) -> jax.Array:
    """Scores of one block in at least float32, (B, N, T, S); another segment's are the least finite number."""
    dtype = jnp.promote_types(q_BNTH.dtype, jnp.float32)
    scores_BNTS = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k_BNSH, preferred_element_type=dtype)
    visible_B1TS = (q_segment_ids_BT[:, :, None] == k_segment_ids_BS[:, None, :])[:, None]
    return jnp.where(visible_B1TS, scores_BNTS, jnp.finfo(dtype).min)


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
    """(B, T) → (I, B, t); rows behind the last have an id of their own."""
    B, T = segment_ids_BT.shape
    size = _block_size(T, block)
    padded = jnp.pad(segment_ids_BT, ((0, 0), (0, -T % size)), constant_values=PADDING)
    return padded.reshape(B, -1, size).transpose(1, 0, 2)


def _joined(x_IBNTH: jax.Array, length: int) -> jax.Array:
    """The inverse of `_blocks`: (I, B, N, t, H) → (B, T, N, H)."""
    _, B, N, _, H = x_IBNTH.shape
    return x_IBNTH.transpose(1, 0, 3, 2, 4).reshape(B, -1, N, H)[:, :length]
