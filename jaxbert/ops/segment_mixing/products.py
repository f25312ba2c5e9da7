"""The mixing of rows that hold one document each: two products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def segment_mixing(
    v_NBSH: jax.Array,
    first_NBSF: jax.Array,
    second_NBTF: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """As reference.py, for rows of one document. Memory: one (H, F) sum a row and head."""
    dtype = jnp.promote_types(v_NBSH.dtype, jnp.float32)
    real_1BS1 = (k_segment_ids_BS > 0)[None, :, :, None]
    # Both factors: what padding holds may be large, and 0 × infinity is no 0.
    v_NBSH, first_NBSF = (jnp.where(real_1BS1, x, 0.0) for x in (v_NBSH, first_NBSF))
    sum_NBHF = jnp.einsum("NBSH,NBSF->NBHF", v_NBSH, first_NBSF, preferred_element_type=dtype)
    a_NBHF = activation(sum_NBHF).astype(v_NBSH.dtype)
    y_NBTH = jnp.einsum("NBTF,NBHF->NBTH", second_NBTF, a_NBHF)
    return jnp.where((q_segment_ids_BT > 0)[None, :, :, None], y_NBTH, 0.0)
