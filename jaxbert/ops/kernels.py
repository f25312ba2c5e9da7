"""What the Pallas kernels for TPUs share."""

import jax
import jax.numpy as jnp


def product(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    """a · b over one axis of each, two axes each → two, in float32; float32 operands are not rounded to bfloat16."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        a, b, (((contract[0],), (contract[1],)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )
