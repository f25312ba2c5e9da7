"""Attention as the BERT paper writes it, restricted to each token's own segment: the specification of any kernel."""

import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxbert.ops.dropout import dropout


def attention(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q kᵀ / √H) v over the keys of the query's own segment (Vaswani et al. 2017, §3.2.1; packing: segments).

    Args:
      q_BTNH, k_BSNH, v_BSNH: floating point, of one dtype; scores and softmax run in at least float32.
      q_segment_ids_BT, k_segment_ids_BS: integers. A query sees the keys with its own id, so padding (0) sees only
        padding and no row of the softmax is empty.
      dropout_rate: of the probabilities, applied when `key` is given.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`.
    """
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    # Heads first, once: left to einsum's own order, each of the six products of a step transposes (1.02 × the step).
    q_BNTH, k_BNSH, v_BNSH = (x.transpose(0, 2, 1, 3) for x in (q_BTNH, k_BSNH, v_BSNH))
    q_BNTH = q_BNTH * (1.0 / math.sqrt(q_BTNH.shape[-1]))
    scores_BNTS = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k_BNSH, preferred_element_type=dtype)
    visible_B1TS = (q_segment_ids_BT[:, :, None] == k_segment_ids_BS[:, None, :])[:, None]
    scores_BNTS = jnp.where(visible_B1TS, scores_BNTS, jnp.finfo(dtype).min)
    probabilities_BNTS = _softmax(scores_BNTS).astype(v_BSNH.dtype)
    probabilities_BNTS = dropout(probabilities_BNTS, dropout_rate, key)
    return jnp.einsum("BNTS,BNSH->BNTH", probabilities_BNTS, v_BNSH).transpose(0, 2, 1, 3)


def _softmax(scores_BNTS: jax.Array) -> jax.Array:
    """As jax.nn.softmax; the row's logarithm of the sum is named, so that recomputing takes one pass, not three."""
    largest_BNT1 = jax.lax.stop_gradient(jnp.max(scores_BNTS, axis=-1, keepdims=True))
    log_sum_BNT1 = largest_BNT1 + jnp.log(jnp.sum(jnp.exp(scores_BNTS - largest_BNT1), axis=-1, keepdims=True))
    return jnp.exp(scores_BNTS - checkpoint_name(log_sum_BNT1, "statistics"))
