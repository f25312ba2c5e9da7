"""What encoders share: norms, activations, initial values, projections.

A parameter's name ends in its axes (`query_DNH`), stacked layers add L in front: sharding, weight decay and key maps
read the name. Parameters are cast to the activation's dtype where they are used, so the compute dtype is the caller's.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxbert.errors import BadInput
from jaxbert.ops.platform import target
from jaxbert.sharding import LETTERS, local_axes

STATISTICS = "statistics"  # the name of row-wise sums: small, and kept under every rematerialisation policy but "full"
MIXED = "mixed"  # the name of what mixes tokens and is no product (FFTs): kept as products are


def truncated_normal(key: jax.Array, shape: tuple[int, ...], stddev: float) -> nnx.Param:
    """N(0, stddev²) cut at two standard deviations and not rescaled, float32, as TensorFlow's initializer in BERT."""
    return nnx.Param(stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32))


def zeros(*shape: int) -> nnx.Param:
    """A float32 parameter of zeros."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) by erf (Hendrycks & Gimpel 2016), as PyTorch computes it; jax.nn.gelu's erfc takes twice as long.

    On a TPU a bfloat16 takes a shorter way to Φ, which is as exact as it can show.
    """
    if _shortens(x):
        y = x.astype(jnp.float32)
        return (y * normal_cumulative_by_tanh(y)).astype(x.dtype)
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    if _shortens(x):
        y = x.astype(jnp.float32)
        slope = normal_cumulative_by_tanh(y) + y * _normal_density(y)
        return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)
    # The barrier keeps XLA's CPU backend from storing erf for this and for gelu(x) again: 1.02 × at BERT-mini.
    x = jax.lax.optimization_barrier(x)
    cumulative = 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
    return (gradient * (cumulative + x * _normal_density(x)),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _normal_density(x: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))


def _shortens(x: jax.Array) -> bool:
    """Whether `normal_cumulative_by_tanh` serves: in bfloat16, on a TPU, whose vector unit has tanh but no erf.

    Static slots of a v5e's vector ALU by register of 1,024 elements: gelu 14.5 in place of 43.8, its gradient 22.7 in
    place of 51.5. In BERT-large's step the four fusions of products with GELU fell from 17.6 to 13.0 ms of static time.
    """
    return x.dtype == jnp.bfloat16 and target().platform == "tpu"


# atanh(2 Φ(x) − 1) / x in powers of x², least largest error of Φ(x) / Φ(−x) in |x| ≤ 5
_ATANH_POWERS = (0.79630367, 0.037914029, -0.00049336774, 4.5165656e-06)


def normal_cumulative_by_tanh(x: jax.Array) -> jax.Array:
    """Φ(x), float32: within 1.3e-3 of it where x ≥ −3, a third of bfloat16's spacing, and within 2e-6 below."""
    square = jnp.minimum(x * x, 25.0)  # beyond |x| = 5 the last slope goes on; Φ(−5) is 3e-7
    first, second, third, fourth = _ATANH_POWERS
    slope = ((fourth * square + third) * square + second) * square + first
    return 0.5 + 0.5 * jnp.tanh(x * slope)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,  # as PyTorch checkpoints
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # google-research/bert's own
    "relu": jax.nn.relu,
}


def project(x: jax.Array, kernel: nnx.Param, bias: nnx.Param, *, axes: int = 1) -> jax.Array:
    """The product of the last `axes` axes of `x` with the first of `kernel`, plus `bias`, in the dtype of `x`.

    (…, D) with a kernel (D, N, H) and a bias (N, H) → (…, N, H); with `axes=2`, (…, N, H) with (N, H, D) → (…, D).
    """
    inputs, outputs = kernel.shape[:axes], kernel.shape[axes:]
    rows = x.reshape(-1, math.prod(inputs))
    y = rows @ kernel[...].astype(x.dtype).reshape(rows.shape[1], -1)
    # The bias before the heads part: else a TPU copies (…, N · H) for whoever reads it as that again (kernels do).
    return (y + bias[...].astype(x.dtype).reshape(-1)).reshape(*x.shape[: x.ndim - axes], *outputs)


def project_each(x_BTD: jax.Array, *parameters: tuple[nnx.Param, nnx.Param]) -> list[jax.Array]:
    """`project` of one input with each (kernel, bias), all of one shape, (D, N, H) and (N, H) or (D, F) and (F,).

    Where `tensor` splits N or F they are one product, so that a device adds up what its parts of all kernels send back
    to the input before the devices add up theirs: one sum over `tensor`, where each product would have its own.
    """
    if not local_axes(parameters[0][0].shape[1], (LETTERS["N"],)):
        return [project(x_BTD, kernel, bias) for kernel, bias in parameters]
    kernels, biases = ([p[...].astype(x_BTD.dtype) for p in column] for column in zip(*parameters, strict=True))
    y_BTGN = jnp.tensordot(x_BTD, jnp.stack(kernels, axis=1), axes=1) + jnp.stack(biases)
    return [y_BTGN[:, :, part] for part in range(len(parameters))]


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016), two-pass: E[(x − E x)²] does not cancel."""

    def __init__(self, width: int, *, epsilon: float):
        """Scale 1 and bias 0 of shape (width,), float32."""
        self.scale_D = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias_D = zeros(width)
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        """(…, D) → (…, D) in the dtype of `x`; statistics in at least float32."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        y = x.astype(dtype)
        y = y - checkpoint_name(jnp.mean(y, axis=-1, keepdims=True), STATISTICS)
        y = y * checkpoint_name(jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon), STATISTICS)
        return (y * self.scale_D[...].astype(dtype) + self.bias_D[...].astype(dtype)).astype(x.dtype)


def take_positions(x_BTD: jax.Array, positions_BP: jax.Array | None) -> jax.Array:
    """The states at `positions_BP`, (B, P, D); all of them, (B, T, D), if it is None."""
    return x_BTD if positions_BP is None else jnp.take_along_axis(x_BTD, positions_BP[:, :, None], axis=1)


def one_document(batch: dict[str, Any]) -> bool:
    """Whether every row of the batch holds one document from its first position on: what `length_B` promises."""
    return "length_B" in batch


def require_one_document(batch: dict[str, Any], why: str) -> None:
    """Raises BadInput unless `one_document(batch)`; `why` names what cannot read rows of several documents."""
    if not one_document(batch):
        raise BadInput(f"data.pack: {why}, so a row must hold one document; set data.pack=false")
