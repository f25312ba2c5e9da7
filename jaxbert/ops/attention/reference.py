"""Attention as the BERT paper writes it, restricted to each token's own segment: the specification of any kernel."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxbert.ops.dropout import dropout

UNSEEN = -1  # the segment of a key that no query has


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
) -> jax.Array:
    """softmax(scale · q kᵀ) v over the keys that a query sees (Vaswani et al. 2017, §3.2.1; packing: segments).

    Query t sees key s if both have the same id, which is not 0 (padding), and |t − s| ≤ window // 2. A query that sees
    no key gets zeros and gives no gradient.

    Args:
      q_BTNH, k_BSNH, v_BSNH: floating point, of one dtype; scores and softmax run in at least float32.
      q_segment_ids_BT, k_segment_ids_BS: integers ≥ 0.
      window: None: any distance; otherwise T = S.
      dropout_rate: of the probabilities, applied when `key` is given.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`.
    """
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    # Heads first, once: left to einsum's own order, each of the six products of a step transposes (1.02 × the step).
    q_BNTH, k_BNSH, v_BNSH = (x.transpose(0, 2, 1, 3) for x in (q_BTNH, k_BSNH, v_BSNH))
    scores_BNTS = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH * scale, k_BNSH, preferred_element_type=dtype)
    visible_B1TS = visible(q_segment_ids_BT, k_segment_ids_BS, window)[:, None]
    scores_BNTS = jnp.where(visible_B1TS, scores_BNTS, jnp.finfo(dtype).min)
    probabilities_BNTS = _softmax(scores_BNTS).astype(v_BSNH.dtype)
    probabilities_BNTS = dropout(probabilities_BNTS, dropout_rate, key)
    return jnp.einsum("BNTS,BNSH->BNTH", probabilities_BNTS, v_BNSH).transpose(0, 2, 1, 3)


def visible(q_segment_ids_BT: jax.Array, k_segment_ids_BS: jax.Array, window: int | None = None) -> jax.Array:
    """Which keys each query sees, (B, T, S) bool; the rule is `attention`'s."""
    k_segment_ids_BS = jnp.where(k_segment_ids_BS > 0, k_segment_ids_BS, UNSEEN)
    visible_BTS = q_segment_ids_BT[:, :, None] == k_segment_ids_BS[:, None, :]
    if window is not None:
        t_T, s_S = (jnp.arange(ids.shape[1]) for ids in (q_segment_ids_BT, k_segment_ids_BS))
        visible_BTS &= jnp.abs(t_T[:, None] - s_S) <= window // 2
    return visible_BTS


def _softmax(scores_BNTS: jax.Array) -> jax.Array:
    """As jax.nn.softmax, but zeros in a row that is the least finite number throughout: of a query that sees no key.

    The row's logarithm of the sum is named, so that recomputing takes one pass, not three.
    """
    largest_BNT1 = jax.lax.stop_gradient(jnp.max(scores_BNTS, axis=-1, keepdims=True))
    log_sum_BNT1 = largest_BNT1 + jnp.log(jnp.sum(jnp.exp(scores_BNTS - largest_BNT1), axis=-1, keepdims=True))
    # Against 0 in place of its sum, such a row's exponentials are 0, and with them all that is derived from them.
    log_sum_BNT1 = jnp.where(largest_BNT1 > jnp.finfo(scores_BNTS.dtype).min, log_sum_BNT1, 0.0)
    return jnp.exp(scores_BNTS - checkpoint_name(log_sum_BNT1, "statistics"))
