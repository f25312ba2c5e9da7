"""The Toeplitz product by fast Fourier transforms: O(T log T), for long rows that hold one document."""

import jax
import jax.numpy as jnp


def toeplitz_product(weights_O: jax.Array, v_BTC: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """As reference.py, for rows of one document that begins at the first position; in at least float32."""
    dtype, most = jnp.promote_types(v_BTC.dtype, jnp.float32), weights_O.shape[0] // 2
    reach = min(most, v_BTC.shape[1] - 1)
    weights_O = weights_O[most - reach : most + reach + 1]  # no larger offset meets two tokens
    # Transforms run along the last axis; zeros at padding do what a mask would.
    v_BCT = jnp.where(segment_ids_BT[:, :, None] > 0, v_BTC, 0.0).astype(dtype).transpose(0, 2, 1)
    return _correlate(weights_O.astype(dtype), v_BCT).astype(v_BTC.dtype).transpose(0, 2, 1)


def fast_size(least: int) -> int:
    """The smallest 2ᵃ 3ᵇ 5ᶜ that is at least `least`: sizes that every FFT library is fast at."""
    return min(
        odd << max(0, (-(-least // odd) - 1).bit_length())
        for odd in (3**b * 5**c for b in range(8) for c in range(6))
        if odd < 2 * least
    )


# In the frequency domain, with a[d mod m] = w of the offset d: ŷ = conj(â) v̂, v̄̂ = â ȳ̂, ā = Σ conj(ȳ̂) v̂. JAX's own
# transpose of a real transform is a complex one of the whole length, twice the work; and rows and channels are summed
# here before the weights' inverse transform.


def _transform(x: jax.Array, size: int) -> jax.Array:
    return jnp.fft.rfft(x, size, axis=-1)


def _circulant(weights_O: jax.Array, size: int) -> jax.Array:
    reach = weights_O.shape[0] // 2
    gap = jnp.zeros(size - weights_O.shape[0], weights_O.dtype)
    return jnp.concatenate([weights_O[reach:], gap, weights_O[:reach]])


def _size(weights_O: jax.Array, v_BCT: jax.Array) -> int:
    """Of the circle: the largest offset must not come round to the other end of the row."""
    return fast_size(v_BCT.shape[-1] + weights_O.shape[0] // 2)


@jax.custom_vjp
def _correlate(weights_O: jax.Array, v_BCT: jax.Array) -> jax.Array:
    """y[…, t] = Σ_d w[d] v[…, t + d]."""
    size = _size(weights_O, v_BCT)
    kernel_K = _transform(_circulant(weights_O, size), size).conj()
    return jnp.fft.irfft(kernel_K * _transform(v_BCT, size), size, axis=-1)[..., : v_BCT.shape[-1]]


def _backward(saved: tuple[jax.Array, jax.Array], y_bar_BCT: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights_O, v_BCT = saved
    size, reach = _size(weights_O, v_BCT), weights_O.shape[0] // 2
    y_bar_BCK = _transform(y_bar_BCT, size)
    v_bar_BCT = jnp.fft.irfft(_transform(_circulant(weights_O, size), size) * y_bar_BCK, size, axis=-1)
    circle = jnp.fft.irfft(jnp.sum(y_bar_BCK.conj() * _transform(v_BCT, size), axis=(0, 1)), size)
    w_bar_O = jnp.concatenate([circle[size - reach :], circle[: reach + 1]])
    return w_bar_O, v_bar_BCT[..., : v_BCT.shape[-1]]


_correlate.defvjp(lambda weights_O, v_BCT: (_correlate(weights_O, v_BCT), (weights_O, v_BCT)), _backward)
