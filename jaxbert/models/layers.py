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

STATISTICS = "statistics"  # the name of row-wise sums: small, and kept under every rematerialisation policy but "full"
MIXED = "mixed"  # the name of what mixes tokens and is no product (FFTs): kept as products are


def truncated_normal(key: jax.Array, shape: tuple[int, ...], stddev: float) -> nnx.Param:
    """N(0, stddev²) cut at two standard deviations and not rescaled, float32, as TensorFlow's initializer in BERT."""
    return nnx.Param(stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32))


def zeros(*shape: int) -> nnx.Param:
    """A float32 parameter of zeros."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


# atanh(2 Φ(x) − 1) / x in powers of x², fitted to |x| ≤ 5 by the largest relative error of Φ, 1.3e-3 (the spacing of
# bfloat16 is 7.8e-3 to 3.9e-3); Φ(−5) is 3e-7, and beyond 5 the last slope goes on.
_ATANH_POWERS = (0.79630367, 0.037914029, -0.00049336774, 4.5165656e-06)


def _normal_cumulative(x: jax.Array) -> jax.Array:
    """Φ(x) by erf, in the dtype of `x`."""
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _normal_cumulative_by_tanh(x: jax.Array) -> jax.Array:
    """Φ(x), float32, to the precision of a bfloat16: a TPU has a unit for tanh, and erf takes 30 operations more."""
    square = jnp.minimum(x * x, 25.0)
    slope = jnp.full_like(x, _ATANH_POWERS[-1])
    for power in _ATANH_POWERS[-2::-1]:
        slope = slope * square + power
    return 0.5 + 0.5 * jnp.tanh(x * slope)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) by erf (Hendrycks & Gimpel 2016), as PyTorch computes it; jax.nn.gelu's erfc takes twice as long.

    On a TPU a bfloat16 takes a shorter way to Φ, which is exact to its precision.
    """
    exact = lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))  # noqa: E731
    if x.dtype != jnp.bfloat16:
        return exact(x)

    def short(x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        return (y * _normal_cumulative_by_tanh(y)).astype(x.dtype)

    return jax.lax.platform_dependent(x, tpu=short, default=exact)


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    def exact(x: jax.Array, gradient: jax.Array) -> jax.Array:
        # The barrier keeps XLA's CPU backend from storing erf for this and for gelu(x) again: 1.02 × at BERT-mini.
        x = jax.lax.optimization_barrier(x)
        return gradient * (_normal_cumulative(x) + x * _normal_density(x))

    if x.dtype != jnp.bfloat16:
        return (exact(x, gradient),)

    def short(x: jax.Array, gradient: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        slope = _normal_cumulative_by_tanh(y) + y * _normal_density(y)
        return (gradient.astype(jnp.float32) * slope).astype(x.dtype)

    return (jax.lax.platform_dependent(x, gradient, tpu=short, default=exact),)


def _normal_density(x: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)

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
    return y.reshape(*x.shape[: x.ndim - axes], *outputs) + bias[...].astype(x.dtype)


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
