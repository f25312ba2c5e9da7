"""The bidirectional long convolution by fast Fourier transforms: O(T log T)."""

import jax
import jax.numpy as jnp

from jaxbert.ops.toeplitz.fft import fast_size


def size_for(length: int) -> int:
    """Points of the transforms of rows of `length`: on so large a circle no two of the 2T − 1 lags meet."""
    return fast_size(max(2, 2 * length - 1))


def long_conv(x_BTD: jax.Array, forward_TD: jax.Array, backward_TD: jax.Array, bias_D: jax.Array) -> jax.Array:
    """As reference.py, in at least float32; both filters and the bias are one kernel on a circle."""
    dtype, T = jnp.promote_types(x_BTD.dtype, jnp.float32), x_BTD.shape[1]
    gap_CD = jnp.zeros((size_for(T) - (2 * T - 1), bias_D.shape[0]), dtype)
    forward_TD = forward_TD.astype(dtype).at[0].add(bias_D.astype(dtype))
    circle_CD = jnp.concatenate([forward_TD, gap_CD, backward_TD[: T - 1][::-1].astype(dtype)])
    # Transforms run along the last axis.
    return _convolve(circle_CD.T, x_BTD.transpose(0, 2, 1)).transpose(0, 2, 1)


# In the frequency domain ŷ = ĉ x̂, so x̄̂ = conj(ĉ) ȳ̂ and c̄̂ = Σ_B conj(x̂) ȳ̂. JAX's own transpose of a real transform is
# a complex one of the whole circle, twice the work. No spectrum is kept: one is as large as four rows of bfloat16.


def _spectrum(x_DT: jax.Array, size: int, dtype: jnp.dtype) -> jax.Array:
    return jnp.fft.rfft(x_DT.astype(dtype), size, axis=-1)


@jax.custom_vjp
def _convolve(circle_DC: jax.Array, x_BDT: jax.Array) -> jax.Array:
    """y[…, t] = Σ_s c[(t − s) mod C] x[…, s], in the dtype of `x_BDT`."""
    size, dtype = circle_DC.shape[-1], circle_DC.dtype
    y_BDC = jnp.fft.irfft(_spectrum(circle_DC, size, dtype) * _spectrum(x_BDT, size, dtype), size, axis=-1)
    return y_BDC[..., : x_BDT.shape[-1]].astype(x_BDT.dtype)


def _backward(saved: tuple[jax.Array, jax.Array], y_bar_BDT: jax.Array) -> tuple[jax.Array, jax.Array]:
    circle_DC, x_BDT = saved
    size, dtype = circle_DC.shape[-1], circle_DC.dtype
    y_bar_BDF = _spectrum(y_bar_BDT, size, dtype)
    x_bar_BDC = jnp.fft.irfft(_spectrum(circle_DC, size, dtype).conj() * y_bar_BDF, size, axis=-1)
    circle_bar_DF = jnp.sum(_spectrum(x_BDT, size, dtype).conj() * y_bar_BDF, axis=0)
    circle_bar_DC = jnp.fft.irfft(circle_bar_DF, size, axis=-1)
    return circle_bar_DC, x_bar_BDC[..., : x_BDT.shape[-1]].astype(x_BDT.dtype)


_convolve.defvjp(lambda circle_DC, x_BDT: (_convolve(circle_DC, x_BDT), (circle_DC, x_BDT)), _backward)
