"""Dropout whose bits do not depend on the mesh and cost half of `jax.random.bernoulli`'s."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate` and scale the rest by 1 / (1 − rate) (Srivastava et al. 2014, §4).

    Args:
      x: any shape, floating point.
      rate: in [0, 1), rounded to a multiple of 2⁻¹⁶; the scale uses the rounded rate, so the expectation is exact.
      key: None returns `x` unchanged.

    Returns:
      Shape and dtype of `x`. Bits are threefry over the global array (jax_threefry_partitionable, jax's default), so a
      sharded run draws what one device draws. One 32-bit word serves two elements: threefry is the cost on a CPU.
    """
    if key is None or rate == 0.0:
        return x
    threshold = round(rate * 2**16)
    *front, last = x.shape
    words = jax.random.bits(key, (*front, (last + 1) // 2), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*front, -1)[..., :last]
    return jnp.where(halves >= threshold, x * (1.0 / (1.0 - threshold / 2**16)), jnp.zeros((), x.dtype))
