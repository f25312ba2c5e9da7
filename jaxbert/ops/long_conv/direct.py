"""The bidirectional long convolution as matrix products, for short rows: one (T, S) matrix a channel."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbert.sharding import BATCH_AXES, local_axes


def long_conv(x_BTD: jax.Array, forward_TD: jax.Array, backward_TD: jax.Array, bias_D: jax.Array) -> jax.Array:
    """As reference.py. The matrices are tiled from the filters, not gathered, so that the gradient is a sum over rows
    and not a scatter of T² D numbers. Each device does its own rows: else devices add up the matrices' gradients."""
    rows, whole = local_axes(x_BTD.shape[0], BATCH_AXES), PartitionSpec()
    if not rows:
        return _products(x_BTD, forward_TD, backward_TD, bias_D)
    return jax.shard_map(
        _products,
        in_specs=(PartitionSpec(rows), whole, whole, whole),
        out_specs=PartitionSpec(rows),
        axis_names={*rows},
        check_vma=False,  # with it devices add up where a filter first meets rows, which is as a matrix
    )(x_BTD, forward_TD, backward_TD, bias_D)


def _products(x_BTD: jax.Array, forward_TD: jax.Array, backward_TD: jax.Array, bias_D: jax.Array) -> jax.Array:
    dtype, T = jnp.promote_types(x_BTD.dtype, jnp.float32), x_BTD.shape[1]
    forward_DT, backward_DT = forward_TD.astype(dtype).T, backward_TD.astype(dtype).T
    forward_DT = forward_DT.at[:, 0].add(bias_D.astype(dtype))
    # Lags T − 1, …, −(T − 1), and a filler. 2T numbers, repeated and read in rows of 2T − 1, move one place a row.
    lags_DO = jnp.concatenate([forward_DT[:, ::-1], backward_DT], axis=1)
    rows = jnp.tile(lags_DO, (1, T))[:, : T * (2 * T - 1)].reshape(-1, T, 2 * T - 1)
    kernel_DTS = rows[:, :, T - 1 :]
    return jnp.einsum("DTS,BSD->BTD", kernel_DTS, x_BTD.astype(dtype)).astype(x_BTD.dtype)
