"""HyperMixer's token mixing, by the implementation that the rows allow."""

from collections.abc import Callable
from typing import Literal

import jax

from jaxbert.ops.segment_mixing import by_length, products, reference

Implementation = Literal["reference", "products", "by_length"]


def segment_mixing(
    v_NBSH: jax.Array,
    first_NBSF: jax.Array,
    second_NBTF: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    activation: Callable[[jax.Array], jax.Array],
    one_document: bool,
    implementation: Implementation | None = None,
) -> jax.Array:
    """y[t] = a W₂[t] with a = activation(Σ_s v[s] ⊗ W₁[s]) over the positions s of t's own segment; padding gets 0.

    The token-mixing MLP of HyperMixer (Mai et al. 2023, arXiv:2203.03691, §3), whose two weights W₁ and W₂ have a row
    for every token: they say how it enters the F hidden units and leaves them again.

    Args:
      v_NBSH: what is mixed, floating point; heads in front, so that every product is a plain batched one.
      first_NBSF, second_NBTF: W₁ and W₂, of the same dtype. T may be fewer positions than S (the predicted ones).
      q_segment_ids_BT, k_segment_ids_BS: integers, 0 is padding, the documents of a row are numbered 1, 2, ….
      activation: elementwise; the sum that it gets and what it returns are in at least float32.
      one_document: the promise that every row holds one document.
      implementation: None: "products" for rows of one document, else "by_length", which costs more (see by_length.py).

    Returns:
      (N, B, T, H) in the dtype of `v_NBSH`. Raises ValueError for an implementation that is unknown or cannot serve.
    """
    implementation = implementation or choose(one_document)
    arrays = v_NBSH, first_NBSF, second_NBTF, q_segment_ids_BT, k_segment_ids_BS
    if implementation == "reference":
        return reference.segment_mixing(*arrays, activation=activation)
    if implementation == "by_length":
        return by_length.segment_mixing(*arrays, activation=activation)
    if implementation != "products":
        raise ValueError(
            f"segment_mixing: no implementation {implementation!r}; there are reference, products, by_length"
        )
    if not one_document:
        raise ValueError("segment_mixing: 'products' cannot tell documents of a row apart; 'by_length' can")
    return products.segment_mixing(*arrays, activation=activation)


def choose(one_document: bool) -> Implementation:
    """The fastest implementation that the rows allow."""
    return "products" if one_document else "by_length"
