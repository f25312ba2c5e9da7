"""Attention within segments: one call, several implementations; `reference.py` is what all of them compute."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxbert.ops.attention import reference, xla_chunked
from jaxbert.ops.platform import target

SegmentIds = jax.Array | tuple[jax.Array, jax.Array] | None


@dataclasses.dataclass(frozen=True)
class Call:
    """What a choice is made from: one call of `dot_product_attention`."""

    T: int  # queries
    S: int  # keys
    dropout: bool = False  # whether probabilities are dropped
    platform: str = "cpu"  # ops.platform.Target's


def _everything(call: Call) -> str | None:
    return None


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A way to compute attention."""

    compute: Callable[..., jax.Array]  # as reference.attention
    lacks: Callable[[Call], str | None] = _everything  # "ARGUMENT: what it would need", or None: it serves the call


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation(reference.attention),
    "xla_chunked": Implementation(xla_chunked.attention),
}


def dot_product_attention(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    *,
    segment_ids: SegmentIds = None,
    window: int | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    key: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """softmax(scale · q kᵀ) v over the keys that a query sees (Vaswani et al. 2017, §3.2.1; packing: segments).

    Query t sees key s if both have the same segment id, which is not 0, and |t − s| ≤ window // 2. Id 0 is padding: a
    padding query, and one whose id no key has, gets zeros and gives zero gradients; nobody sees a padding key.

    Args:
      q_BTNH, k_BSNH, v_BSNH: floating point, of one dtype and with equal heads; scores and softmax run in at least
        float32.
      segment_ids: integers ≥ 0, (B, T) for queries and keys, or the pair (B, T), (B, S). None: a row is one document.
      window: ModernBERT's local attention (Warner et al. 2024, arXiv:2412.13663, §2.1.1): 128 sees 64 tokens on either
        side. It needs T = S. None: any distance.
      scale: of the scores; None: 1 / √H.
      dropout_rate: of the probabilities, in [0, 1); above 0 it needs `key`. Only "reference" and "xla_chunked" drop, so
        a call with dropout goes to them, on every device. They draw different bits.
      implementation: "reference" (keeps T × S scores), "xla_chunked" (memory linear in T); None: `choose`.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`. Raises ValueError for shapes, dtypes and numbers that do not fit together,
      and for an implementation that does not exist or cannot serve the call.
    """
    q_segment_ids_BT, k_segment_ids_BS = _checked(q_BTNH, k_BSNH, v_BSNH, segment_ids, window, dropout_rate, key)
    call = Call(q_BTNH.shape[1], k_BSNH.shape[1], dropout_rate > 0, target().platform)
    implementation = implementation or choose(call)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"no implementation {implementation!r} of attention; there are {', '.join(IMPLEMENTATIONS)}")
    if missing := IMPLEMENTATIONS[implementation].lacks(call):
        raise ValueError(f"attention: {implementation!r} cannot serve this call: {missing}")
    return IMPLEMENTATIONS[implementation].compute(
        q_BTNH,
        k_BSNH,
        v_BSNH,
        q_segment_ids_BT,
        k_segment_ids_BS,
        scale=1.0 / math.sqrt(q_BTNH.shape[-1]) if scale is None else float(scale),
        window=window,
        **({"dropout_rate": dropout_rate, "key": key} if call.dropout else {}),
    )


def choose(call: Call) -> str:
    """The implementation for a call.

    Up to 1,024 tokens keeping the scores is as fast or faster (tools/bench_attention.py, two cores with AVX-512: chunks
    have 0.95 × its throughput at 512, 0.9 × at 1,024; with dropout 1.0 × and 0.67 ×). Beyond, their memory decides:
    alone, chunks have 0.95 × (0.7 ×) at 2,048, in a training step 1.28 × (tools/bench_encoders.py).
    """
    return "reference" if call.T * call.S <= 1024 * 1024 else "xla_chunked"


def _checked(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    segment_ids: SegmentIds,
    window: int | None,
    dropout_rate: float,
    key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The ids of queries and keys, int32; raises ValueError for what does not fit together."""
    given = {"q_BTNH": q_BTNH, "k_BSNH": k_BSNH, "v_BSNH": v_BSNH}
    for name, x in given.items():
        if x.ndim != 4 or x.dtype != q_BTNH.dtype or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"attention: {name} is {x.dtype}{list(x.shape)}; all three have four axes and one floating-point dtype"
            )
    (B, T, N, H), S = q_BTNH.shape, k_BSNH.shape[1]
    if not k_BSNH.shape[2] == v_BSNH.shape[2] == N:
        heads = f"{N}, {k_BSNH.shape[2]} and {v_BSNH.shape[2]}"
        raise ValueError(f"attention: q, k and v have {heads} heads; they must have equally many")
    if not k_BSNH.shape == v_BSNH.shape == (B, S, N, H):
        raise ValueError(
            f"attention: k_BSNH is {k_BSNH.shape} and v_BSNH {v_BSNH.shape}; with q_BTNH {q_BTNH.shape} both are "
            f"{(B, S, N, H)}"
        )
    if window is not None and window <= 0:
        raise ValueError(f"attention: window is {window}; it counts tokens, 1 or more, or is None: any distance")
    if window is not None and T != S:
        raise ValueError(f"attention: window is {window} with {T} queries and {S} keys; distances need T = S")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"attention: dropout_rate is {dropout_rate}; it lies in [0, 1)")
    if dropout_rate > 0 and key is None:
        raise ValueError(f"attention: dropout_rate is {dropout_rate} without a key; give one, or the rate 0")
    if segment_ids is None:
        return jnp.ones((B, T), jnp.int32), jnp.ones((B, S), jnp.int32)
    pair = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
    for ids, shape, of in zip(pair, ((B, T), (B, S)), ("queries", "keys"), strict=True):
        if ids.shape != shape or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"attention: segment_ids of the {of} are {ids.dtype}{list(ids.shape)}; they are integers {shape}"
            )
    return pair[0].astype(jnp.int32), pair[1].astype(jnp.int32)
