"""Attention as the BERT paper writes it, restricted to each token's own segment: the specification of any kernel."""

import math

import jax
import jax.numpy as jnp

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
    q_BTNH = q_BTNH * (1.0 / math.sqrt(q_BTNH.shape[-1]))
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH, preferred_element_type=dtype)
    visible_B1TS = (q_segment_ids_BT[:, :, None] == k_segment_ids_BS[:, None, :])[:, None]
    scores_BNTS = jnp.where(visible_B1TS, scores_BNTS, jnp.finfo(dtype).min)
    probabilities_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(v_BSNH.dtype)
    probabilities_BNTS = dropout(probabilities_BNTS, dropout_rate, key)
    return jnp.einsum("BNTS,BSNH->BTNH", probabilities_BNTS, v_BSNH)
