"""The Toeplitz product by fast Fourier transforms: O(T log T), for long rows that hold one document."""

import jax
import jax.numpy as jnp

from jaxbert.ops import transforms


def toeplitz_product(weights_O: jax.Array, v_BTC: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """As reference.py, for rows of one document that begins at the first position; in at least float32.

    The derived gradient needs no more: three real transforms a row, of which one is the forward pass's own again if
    spectra are not kept, and rows and channels are summed before the weights' inverse transform.
    """
    dtype, length, most = jnp.promote_types(v_BTC.dtype, jnp.float32), v_BTC.shape[1], weights_O.shape[0] // 2
    reach = min(most, length - 1)  # no larger offset meets two tokens
    size = transforms.fast_size(length + reach)  # on so large a circle it does not come round to the row's other end
    weights_O = weights_O[most - reach : most + reach + 1].astype(dtype)
    gap = jnp.zeros(size - weights_O.shape[0], dtype)
    circle = jnp.concatenate([weights_O[reach:], gap, weights_O[:reach]])  # the weight of offset d stands at d mod size
    # Transforms run along the last axis; zeros at padding do what a mask would.
    v_BCT = jnp.where(segment_ids_BT[:, :, None] > 0, v_BTC, 0.0).astype(dtype).transpose(0, 2, 1)
    # Conjugate, because y[t] takes v[t + d]: a correlation.
    y_BCT = transforms.irfft(jnp.fft.rfft(circle).conj() * transforms.rfft(v_BCT, size), size)
    return y_BCT[..., :length].astype(v_BTC.dtype).transpose(0, 2, 1)
