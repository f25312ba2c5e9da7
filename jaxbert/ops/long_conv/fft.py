"""The bidirectional long convolution by fast Fourier transforms: O(T log T)."""

import jax
import jax.numpy as jnp

from jaxbert.ops import transforms


def size_for(length: int) -> int:
    """Points of the transforms of rows of `length`: on so large a circle no two of the 2T − 1 lags meet."""
    return transforms.fast_size(max(2, 2 * length - 1))


def long_conv(x_BTD: jax.Array, forward_TD: jax.Array, backward_TD: jax.Array, bias_D: jax.Array) -> jax.Array:
    """As reference.py, in at least float32; both filters and the bias are one kernel on a circle.

    The derived gradient needs no more: three real transforms a row, of which one is the forward pass's own again if
    spectra are not kept.
    """
    dtype, T = jnp.promote_types(x_BTD.dtype, jnp.float32), x_BTD.shape[1]
    size = size_for(T)
    gap_CD = jnp.zeros((size - (2 * T - 1), bias_D.shape[0]), dtype)
    forward_TD = forward_TD.astype(dtype).at[0].add(bias_D.astype(dtype))
    circle_CD = jnp.concatenate([forward_TD, gap_CD, backward_TD[: T - 1][::-1].astype(dtype)])
    # Transforms run along the last axis.
    x_BDT = x_BTD.transpose(0, 2, 1).astype(dtype)
    y_BDC = transforms.irfft(jnp.fft.rfft(circle_CD.T) * transforms.rfft(x_BDT, size), size)
    return y_BDC[..., :T].astype(x_BTD.dtype).transpose(0, 2, 1)
