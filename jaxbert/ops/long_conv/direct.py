"""The bidirectional long convolution as matrix products, for short rows: one (T, S) matrix a channel."""

import jax
import jax.numpy as jnp

from jaxbert.sharding import by_rows


def long_conv(x_BTD: jax.Array, forward_TD: jax.Array, backward_TD: jax.Array, bias_D: jax.Array) -> jax.Array:
    """As reference.py. The matrices are tiled from the filters, not gathered, so that the gradient is a sum over rows
    and not a scatter of T² D numbers."""
    return by_rows(_products, (x_BTD,), forward_TD, backward_TD, bias_D)


def _products(x_BTD: jax.Array, forward_TD: jax.Array, backward_TD: jax.Array, bias_D: jax.Array) -> jax.Array:
    dtype, T = jnp.promote_types(x_BTD.dtype, jnp.float32), x_BTD.shape[1]
    forward_DT, backward_DT = forward_TD.astype(dtype).T, backward_TD.astype(dtype).T
    forward_DT = forward_DT.at[:, 0].add(bias_D.astype(dtype))
    # Lags T − 1, …, −(T − 1), and a filler. 2T numbers, repeated and read in rows of 2T − 1, move one place a row.
    lags_DO = jnp.concatenate([forward_DT[:, ::-1], backward_DT], axis=1)
    rows = jnp.tile(lags_DO, (1, T))[:, : T * (2 * T - 1)].reshape(-1, T, 2 * T - 1)
    kernel_DTS = rows[:, :, T - 1 :]
    return jnp.einsum("DTS,BSD->BTD", kernel_DTS, x_BTD.astype(dtype)).astype(x_BTD.dtype)
