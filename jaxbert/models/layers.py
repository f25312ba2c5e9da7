"""What encoders share: norms, activations, initial values, projections.

A parameter's name ends in its axes (`query_DNH`), stacked layers add L in front: sharding, weight decay and key maps
read the name. Parameters are cast to the activation's dtype where they are used, so the compute dtype is the caller's.

Gradients are written out where XLA's CPU backend makes poor programs of the derived ones: it fuses elementwise work
into the transposing copy in front of a weight's gradient, and shares a slow intermediate among readers that would each
compute it faster. `optimization_barrier` keeps those apart. The ratios beside them are of whole BERT-mini steps.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

STATISTICS = "statistics"  # the name of row-wise sums, small enough that no rematerialisation policy drops them


def truncated_normal(key: jax.Array, shape: tuple[int, ...], stddev: float) -> nnx.Param:
    """N(0, stddev²) cut at two standard deviations and not rescaled, float32, as TensorFlow's initializer in BERT."""
    return nnx.Param(stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32))


def zeros(*shape: int) -> nnx.Param:
    """A float32 parameter of zeros."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) by erf (Hendrycks & Gimpel 2016), as PyTorch computes it; jax.nn.gelu's erfc takes twice as long."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    x = jax.lax.optimization_barrier(x)  # 1.02 ×
    cumulative = 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))
    return (gradient * (cumulative + x * density),)


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
    y = _product(rows, kernel[...].astype(x.dtype).reshape(rows.shape[1], -1))
    return y.reshape(*x.shape[: x.ndim - axes], *outputs) + bias[...].astype(x.dtype)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _product_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    (x, kernel), gradient = jax.lax.optimization_barrier((saved, gradient))  # 1.06 ×
    return gradient @ kernel.T, x.T @ gradient


_product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)


@jax.custom_vjp
def add_bias(x: jax.Array, bias_V: jax.Array) -> jax.Array:
    """(…, V) + (V,). The bias's gradient is a product with ones: XLA sums a tall array's columns 20 times slower."""
    return x + bias_V


def _add_bias_backward(_: None, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = gradient.reshape(-1, gradient.shape[-1])
    return gradient, jnp.einsum("n,nv->v", jnp.ones(rows.shape[0], rows.dtype), rows, precision="highest")


add_bias.defvjp(lambda x, bias_V: (x + bias_V, None), _add_bias_backward)


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
        scale_D, bias_D = self.scale_D[...].astype(dtype), self.bias_D[...].astype(dtype)
        return _normalize(x.astype(dtype), scale_D, bias_D, self.epsilon).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
    return _normalize_forward(x, scale_D, bias_D, epsilon)[0]


def _normalize_forward(
    x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mean = checkpoint_name(jnp.mean(x, axis=-1, keepdims=True), STATISTICS)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    inverse = checkpoint_name(jax.lax.rsqrt(variance + epsilon), STATISTICS)
    return (x - mean) * inverse * scale_D + bias_D, (x, mean, inverse, scale_D)


def _normalize_backward(
    epsilon: float, saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    (x, mean, inverse, scale_D), gradient = jax.lax.optimization_barrier((saved, gradient))  # 1.04 ×
    y = (x - mean) * inverse
    dy, batch_axes = gradient * scale_D, tuple(range(x.ndim - 1))
    dx = inverse * (dy - jnp.mean(dy, axis=-1, keepdims=True) - y * jnp.mean(dy * y, axis=-1, keepdims=True))
    return dx, jnp.sum(gradient * y, axis=batch_axes), jnp.sum(gradient, axis=batch_axes)


_normalize.defvjp(_normalize_forward, _normalize_backward)
