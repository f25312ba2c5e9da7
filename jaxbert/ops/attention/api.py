"""Attention within segments: one call, several implementations; `reference.py` is what all of them compute."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxbert.ops.attention import gpu, reference, xla_chunked
from jaxbert.ops.platform import target
from jaxbert.sharding import BATCH_AXES, LETTERS

SegmentIds = jax.Array | tuple[jax.Array, jax.Array] | None


@dataclasses.dataclass(frozen=True)
class Call:
    """What a choice is made from: one call of `dot_product_attention`, and the devices that it is traced for."""

    T: int  # queries
    S: int  # keys
    N: int = 12  # heads, of all devices
    H: int = 64  # size of a head
    B: int = 1  # rows, of all devices
    dtype: str = "float32"
    window: int | None = None
    dropout: bool = False  # whether probabilities are dropped
    platform: str = "cpu"  # ops.platform.Target's
    kind: str = "cpu"
    heads_split: int = 1  # parts that the mesh splits heads into
    rows_split: int = 1


def _xla_lacks(call: Call) -> str | None:
    return None


def _pallas_tpu_lacks(call: Call) -> str | None:
    if call.platform != "tpu":
        return f"implementation: it needs a TPU, and this is traced for {call.platform}"
    if call.dropout:
        return "dropout_rate: it drops no probabilities; 'reference' and 'xla_chunked' do"
    if call.H not in (64, 128):
        return f"q_BTNH: heads of {call.H}; it has tiles for 64 and 128"
    if call.dtype not in ("bfloat16", "float32"):
        return f"q_BTNH: {call.dtype}; it computes bfloat16 and float32"
    if call.N % call.heads_split:
        return f"q_BTNH: {call.N} heads do not divide among the mesh's {LETTERS['N']} = {call.heads_split}"
    if call.N // call.heads_split * call.H % 128:
        return f"q_BTNH: {call.N // call.heads_split} heads of 64 on a device; it takes two together"
    if call.B % call.rows_split:
        return f"q_BTNH: {call.B} rows do not divide among the mesh's {' × '.join(BATCH_AXES)} = {call.rows_split}"
    return None


def _cudnn_lacks(call: Call) -> str | None:
    if call.platform != "gpu":
        return f"implementation: it needs a GPU, and this is traced for {call.platform}"
    if call.dropout:
        return "dropout_rate: it would draw other bits on another mesh; 'reference' and 'xla_chunked' do not"
    if call.H % 8 or call.H > 128:
        return f"q_BTNH: heads of {call.H}; it takes multiples of 8 up to 128"
    if call.dtype not in ("bfloat16", "float16"):
        return f"q_BTNH: {call.dtype}; it computes bfloat16 and float16"
    return gpu.without_cudnn()


def _pallas_tpu(*arrays: jax.Array, **static: Any) -> jax.Array:
    from jaxbert.ops.attention import pallas_tpu  # with Pallas, which only a TPU needs

    return pallas_tpu.attention(*arrays, **static)


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A way to compute attention."""

    compute: Callable[..., jax.Array]  # as reference.attention
    lacks: Callable[[Call], str | None] = _xla_lacks  # "ARGUMENT: what it would need", or None: it serves the call


# Tokens of a row from which the TPU kernel wins by 20 % over XLA's two in a training step, in static cycles of a v5e.
# Four layers of BERT-large, 8 × 512 tokens, forward and backward: 10.4 ms against the reference's 15.8, which keeps the
# scores of every layer (python tools/layer_cycles.py --attention=pallas_tpu, and reference). Attention alone, where
# nothing is kept for other layers, heads of 64, 4,096 tokens (docs/plans.md): dense 317 k against 300 k at 512, 489 k
# against 1,785 k at 1,024; packed 338 k against 300 k, 371 k against 1,785 k. Heads of 128 and other generations take
# the same.
KERNEL_FROM = 512

IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation(reference.attention),
    "xla_chunked": Implementation(xla_chunked.attention),
    "pallas_tpu": Implementation(_pallas_tpu, _pallas_tpu_lacks),
    "cudnn": Implementation(gpu.cudnn, _cudnn_lacks),
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
      implementation: "reference" (keeps T × S scores), "xla_chunked" (memory linear in T), "pallas_tpu" (the same, and
        tiles between documents cost nothing; heads of 64 or 128), "cudnn" (NVIDIA, bfloat16); None: `choose`.

    Returns:
      (B, T, N, H) in the dtype of `q_BTNH`. Raises ValueError for shapes, dtypes and numbers that do not fit together,
      and for an implementation that does not exist or cannot serve the call.
    """
    q_segment_ids_BT, k_segment_ids_BS = _checked(q_BTNH, k_BSNH, v_BSNH, segment_ids, window, dropout_rate, key)
    call = _call(q_BTNH, k_BSNH, window, dropout_rate)
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

    On TPUs the kernel from KERNEL_FROM on, on GPUs cuDNN, where they serve the call; else one of XLA's, of which the
    reference up to 1,024 tokens: keeping the scores is as fast or faster (tools/bench_attention.py, two cores with
    AVX-512: chunks have 0.95 × its throughput at 512, 0.9 × at 1,024; with dropout 1.0 × and 0.67 ×). Beyond, their
    memory decides: alone, chunks have 0.95 × (0.7 ×) at 2,048, in a training step 1.28 × (tools/bench_encoders.py).
    """
    scores = call.T * call.S
    if not _pallas_tpu_lacks(call) and scores >= KERNEL_FROM**2:
        return "pallas_tpu"
    if not _cudnn_lacks(call):
        return "cudnn"
    return "reference" if scores <= 1024 * 1024 else "xla_chunked"


def _call(q_BTNH: jax.Array, k_BSNH: jax.Array, window: int | None, dropout_rate: float) -> Call:
    (B, T, N, H), S, devices = q_BTNH.shape, k_BSNH.shape[1], target()
    mesh = jax.sharding.get_abstract_mesh()
    rows, heads = (
        math.prod(mesh.shape[axis] for axis in axes if axis in mesh.auto_axes) for axes in (BATCH_AXES, (LETTERS["N"],))
    )
    return Call(T, S, N, H, B, q_BTNH.dtype.name, window, dropout_rate > 0, devices.platform, devices.kind, heads, rows)


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
