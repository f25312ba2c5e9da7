"""The bidirectional long convolution as it is defined: the specification of the others."""

import jax
import jax.numpy as jnp


def long_conv(x_BTD: jax.Array, forward_TD: jax.Array, backward_TD: jax.Array, bias_D: jax.Array) -> jax.Array:
    """As api.py. One (T, S) matrix a channel, the same for every row: T² D numbers."""
    dtype = jnp.promote_types(x_BTD.dtype, jnp.float32)
    place_T = jnp.arange(x_BTD.shape[1])
    lag_TS = place_T[:, None] - place_T
    # An index beyond the filter's ends is never the one that `where` takes.
    kernel_TSD = jnp.where((lag_TS >= 0)[:, :, None], forward_TD[lag_TS], backward_TD[-lag_TS - 1]).astype(dtype)
    x = x_BTD.astype(dtype)
    return (jnp.einsum("TSD,BSD->BTD", kernel_TSD, x) + bias_D.astype(dtype) * x).astype(x_BTD.dtype)
