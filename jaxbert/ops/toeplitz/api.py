"""The Toeplitz product, by whichever implementation is fastest for the call."""

from typing import Literal

import jax

from jaxbert.ops.platform import target
from jaxbert.ops.toeplitz import fft, gathered, reference

Implementation = Literal["reference", "gathered", "fft"]
# Tokens of a row, by backend. The CPU's is measured (tools/bench_toeplitz.py on two cores with AVX-512: transforms have
# 0.4 × the throughput of the matrix at 256 tokens, 0.78 × at 512, 1.9 × at 1,024, 16 × at 8,192). Matrix units shift it
# far up: the other is an estimate that nobody has measured, where the matrix's products would take as long as the
# transforms' way through memory.
FFT_FROM, FFT_FROM_ELSEWHERE = {"cpu": 1024}, 8192


def toeplitz_product(
    weights_O: jax.Array,
    v_BTC: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    one_document: bool,
    implementation: Implementation | None = None,
) -> jax.Array:
    """y[b, t] = Σ_s w[n − 1 + s − t] v[b, s] over the positions s of t's own segment; offsets beyond ±(n − 1) are 0.

    The spatial product of gMLP (Liu et al. 2021, arXiv:2105.08050), whose matrix all channels share.

    Args:
      weights_O: 2n − 1 floating-point weights, of the offsets s − t from −(n − 1) to n − 1.
      v_BTC: floating point; T may be shorter or longer than n.
      segment_ids_BT: integers, 0 is padding. What y holds at padding is not defined: no caller reads it.
      one_document: the promise that every row holds one document, from its first position on.
      implementation: None takes what `choose` says.

    Returns:
      (B, T, C) in the dtype of `v_BTC`.

    Raises:
      ValueError: a number of weights that is not odd; an implementation that is unknown or cannot serve the call.
    """
    if weights_O.ndim != 1 or weights_O.shape[0] % 2 == 0:
        raise ValueError(f"toeplitz_product: weights_O has the shape {weights_O.shape}; it must be (2n − 1,)")
    implementation = implementation or choose(v_BTC.shape[1], one_document)
    if implementation == "reference":
        return reference.toeplitz_product(weights_O, v_BTC, segment_ids_BT)
    if implementation == "gathered":
        return gathered.toeplitz_product(weights_O, v_BTC, segment_ids_BT, one_document=one_document)
    if implementation != "fft":
        raise ValueError(f"toeplitz_product: no implementation {implementation!r}; there are reference, gathered, fft")
    if not one_document:
        raise ValueError("toeplitz_product: 'fft' cannot tell documents of a row apart; 'gathered' can")
    return fft.toeplitz_product(weights_O, v_BTC, segment_ids_BT)


def choose(length: int, one_document: bool) -> Implementation:
    """The fastest implementation for rows of `length` tokens on the devices that this is traced for."""
    least = FFT_FROM.get(target().platform, FFT_FROM_ELSEWHERE)
    return "fft" if one_document and length >= least else "gathered"
