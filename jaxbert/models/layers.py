"""What encoders share: norms, activations, initial values, projections.

A parameter's name ends in its axes (`query_DNH`), stacked layers add L in front: sharding, weight decay and key maps
read the name. Parameters are cast to the activation's dtype where they are used, so the compute dtype is the caller's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),  # erf, as PyTorch checkpoints
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),  # google-research/bert's own
    "relu": jax.nn.relu,
}


def truncated_normal(key: jax.Array, shape: tuple[int, ...], stddev: float) -> nnx.Param:
    """N(0, stddev²) cut at two standard deviations and not rescaled, float32, as TensorFlow's initializer in BERT."""
    return nnx.Param(stddev * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32))


def zeros(*shape: int) -> nnx.Param:
    """A float32 parameter of zeros."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def project(equation: str, x: jax.Array, kernel: nnx.Param, bias: nnx.Param) -> jax.Array:
    """`einsum(equation, x, kernel) + bias`, in the dtype of `x`; the bias has the output's trailing axes."""
    return jnp.einsum(equation, x, kernel[...].astype(x.dtype)) + bias[...].astype(x.dtype)


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
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        return (y * self.scale_D[...].astype(dtype) + self.bias_D[...].astype(dtype)).astype(x.dtype)
