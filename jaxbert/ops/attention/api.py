"""Attention within segments: one call, several implementations; `reference.py` is what all of them compute."""

from collections.abc import Callable

import jax

from jaxbert.ops.attention import reference, xla_chunked

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "reference": reference.attention,
    "xla_chunked": xla_chunked.attention,
}


def dot_product_attention(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """softmax(q kᵀ / √H) v over the keys of the query's own segment (Vaswani et al. 2017, §3.2.1; packing: segments).

    Args:
      q_BTNH, k_BSNH, v_BSNH: floating point, of one dtype; scores and softmax run in at least float32.
      q_segment_ids_BT, k_segment_ids_BS: integers ≥ 0. A query sees the keys with its own id, so padding (0) sees only
        padding and no row of the softmax is empty.
      dropout_rate: of the probabilities, applied when `key` is given. Implementations draw different bits.
      implementation: "reference" (keeps T × S scores), "xla_chunked" (memory linear in T); None: `choose(T, S)`.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`. Raises ValueError for an implementation that does not exist.
    """
    implementation = implementation or choose(q_BTNH.shape[1], k_BSNH.shape[1])
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"no implementation {implementation!r} of attention; there are {', '.join(IMPLEMENTATIONS)}")
    compute = IMPLEMENTATIONS[implementation]
    return compute(q_BTNH, k_BSNH, v_BSNH, q_segment_ids_BT, k_segment_ids_BS, dropout_rate=dropout_rate, key=key)


def choose(T: int, S: int) -> str:
    """The implementation for T queries and S keys.

    Up to 1,024 tokens keeping the scores is as fast or faster (tools/bench_attention.py, two cores with AVX-512: chunks
    have 0.95 × its throughput at 512, 0.9 × at 1,024; with dropout 1.0 × and 0.67 ×). Beyond, their memory decides:
    alone, chunks have 0.95 × (0.7 ×) at 2,048, in a training step 1.28 × (tools/bench_encoders.py).
    """
    return "reference" if T * S <= 1024 * 1024 else "xla_chunked"
