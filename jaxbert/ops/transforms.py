"""Real Fourier transforms of rows, on each device those of its own rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxbert.sharding import BATCH_AXES, LETTERS, local_axes


def fast_size(least: int) -> int:
    """The smallest 2ᵃ 3ᵇ 5ᶜ that is at least `least`: sizes that every FFT library is fast at."""
    return min(
        odd << max(0, (-(-least // odd) - 1).bit_length())
        for odd in (3**b * 5**c for b in range(8) for c in range(6))
        if odd < 2 * least
    )


def rfft(x_BDT: jax.Array, size: int) -> jax.Array:
    """The spectra of rows cut or filled with zeros to `size` numbers, (B, D, size // 2 + 1) complex."""
    return _locally(lambda x: jnp.fft.rfft(x, size), x_BDT)


def irfft(x_BDF: jax.Array, size: int) -> jax.Array:
    """The rows of `size` numbers, (B, D, size), that have these spectra."""
    return _locally(lambda x: jnp.fft.irfft(x, size), x_BDF)


def _locally(transform: Callable[[jax.Array], jax.Array], x_BDT: jax.Array) -> jax.Array:
    """XLA gathers what it transforms: without this each device would compute the whole batch's (jax 0.10.2)."""
    rows, channels = local_axes(x_BDT.shape[0], BATCH_AXES), local_axes(x_BDT.shape[1], (LETTERS["N"],))
    if not rows and not channels:
        return transform(x_BDT)
    spec = PartitionSpec(rows, channels)
    return jax.shard_map(transform, in_specs=spec, out_specs=spec, axis_names={*rows, *channels})(x_BDT)
