"""HyperMixer's token mixing, by the implementation that the rows and the device allow."""

from collections.abc import Callable

import jax

from jaxbert.ops.platform import target
from jaxbert.ops.segment_mixing import by_document, by_length, products, reference

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference.segment_mixing,
    "products": products.segment_mixing,
    "by_document": by_document.segment_mixing,
    "by_length": by_length.segment_mixing,
}


def segment_mixing(
    v_NBSH: jax.Array,
    first_NBSF: jax.Array,
    second_NBTF: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    activation: Callable[[jax.Array], jax.Array],
    one_document: bool,
    implementation: str | None = None,
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
      implementation: None: `choose(one_document, target().platform)`.

    Returns:
      (N, B, T, H) in the dtype of `v_NBSH`. Raises ValueError for an implementation that is unknown or cannot serve.
    """
    implementation = implementation or choose(one_document, target().platform)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"segment_mixing: no implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    if implementation == "products" and not one_document:
        raise ValueError("segment_mixing: 'products' cannot tell documents of a row apart; 'by_document' can")
    return IMPLEMENTATIONS[implementation](
        v_NBSH, first_NBSF, second_NBTF, q_segment_ids_BT, k_segment_ids_BS, activation=activation
    )


def choose(one_document: bool, platform: str) -> str:
    """The fastest implementation that the rows allow, on that platform; what packing costs: by_document.py."""
    if one_document:
        return "products"
    return "by_document" if platform == "cpu" else "by_length"
