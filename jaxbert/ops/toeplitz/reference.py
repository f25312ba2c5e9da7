"""The Toeplitz product as it is defined: the specification of the others."""

import jax
import jax.numpy as jnp


def toeplitz_product(weights_O: jax.Array, v_BTC: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """y[b, t] = Σ_s w[n − 1 + s − t] v[b, s] over the positions s of t's own segment.

    Args:
      weights_O: 2n − 1 floating-point weights, of the offsets s − t from −(n − 1) to n − 1; beyond them all are 0.
      v_BTC: floating point.
      segment_ids_BT: integers, 0 is padding. What y holds at padding is not defined: no caller reads it.

    Returns:
      (B, T, C) in the dtype of `v_BTC`.
    """
    largest, place_T = weights_O.shape[0] // 2, jnp.arange(v_BTC.shape[1])
    offset_TS = place_T[None, :] - place_T[:, None]
    matrix_TS = jnp.where(abs(offset_TS) <= largest, weights_O[jnp.clip(offset_TS + largest, 0, 2 * largest)], 0.0)
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return jnp.einsum("BTS,BSC->BTC", jnp.where(same_BTS, matrix_TS, 0.0).astype(v_BTC.dtype), v_BTC)
