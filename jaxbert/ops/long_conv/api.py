"""The bidirectional long convolution, by whichever implementation is fastest for the row's length."""

import math
from typing import Literal

import jax

from jaxbert.ops.long_conv import direct, fft, pallas_tpu, reference
from jaxbert.ops.platform import target

Implementation = Literal["reference", "direct", "fft", "pallas_tpu"]
IMPLEMENTATIONS = {
    "reference": reference.long_conv,
    "direct": direct.long_conv,
    "fft": fft.long_conv,
    "pallas_tpu": pallas_tpu.long_conv,
}
# Tokens: where tools/bench_long_conv.py sees them meet on two cores with AVX-512 (transforms / matrices: 0.7 to 0.9 at
# 128 tokens, 1.0 at 160, 1.2 at 192, 1.6 to 1.8 at 256). Compiled for a TPU v5e both move as many bytes at 128.
FFT_FROM = 160


def long_conv(
    x_BTD: jax.Array,
    forward_TD: jax.Array,
    backward_TD: jax.Array,
    bias_D: jax.Array,
    *,
    implementation: Implementation | None = None,
) -> jax.Array:
    """y[b, t] = Σ_{s ≤ t} forward[t − s] x[b, s] + Σ_{s > t} backward[s − t − 1] x[b, s] + bias x[b, t], each channel.

    The sequence mixer of Monarch Mixer BERT (Fu et al. 2023, arXiv:2310.12109; HazyResearch/m2). It runs over
    the whole row: a caller zeroes what is not to be read.

    Args:
      x_BTD: floating point.
      forward_TD: of the lags t − s = 0, 1, …, T − 1; floating point, of the length of the row.
      backward_TD: of the lags −1, −2, …; the last of its T rows is not used.
      bias_D: a second weight of lag 0.
      implementation: None takes what `choose` says.

    Returns:
      (B, T, D) in the dtype of `x_BTD`; sums run in at least float32.

    Raises:
      ValueError: filters or a bias of another length or width than the row's; an implementation that is unknown
        or cannot serve the call.
    """
    row = x_BTD.shape[1:]
    if forward_TD.shape != row or backward_TD.shape != row or bias_D.shape != row[1:]:
        raise ValueError(
            f"long_conv: rows of {row} need filters {row} and a bias {row[1:]}, not {forward_TD.shape}, "
            f"{backward_TD.shape} and {bias_D.shape}"
        )
    implementation = implementation or choose(x_BTD)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"long_conv: no implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[implementation](x_BTD, forward_TD, backward_TD, bias_D)


def choose(x_BTD: jax.Array) -> Implementation:
    """The fastest implementation for rows of this shape and dtype on the devices that the program is traced for."""
    if not pallas_tpu.lacks(x_BTD, target()):
        return "pallas_tpu"
    return "fft" if x_BTD.shape[1] >= FFT_FROM else "direct"


def flops(length: int) -> float:
    """Floating-point operations of one channel of one row by the implementation that `choose` takes, on any device.

    Matrix products: 2 T². Transforms of n points: one there and one back, at the 5/2 n log2 n that a real transform is
    commonly counted with (half the 5 n log2 n of a complex one), and n/2 complex products of 6. The filters' transform
    serves the whole batch and is not a row's.
    """
    if length < FFT_FROM:
        return 2.0 * length * length
    size = fft.size_for(length)
    return 2 * 2.5 * size * math.log2(size) + 6 * (size / 2)
