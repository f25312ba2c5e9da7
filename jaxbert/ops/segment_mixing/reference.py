"""The mixing as it is defined: the specification of the others."""

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
    """y[t] = a W₂[t] with a = activation(Σ_s v[s] ⊗ W₁[s]) over the positions s of t's own segment; padding gets 0.

    Args and result: as in api.py. Every output position has a sum of its own here, so memory is T H F a row and head.
    """
    dtype = jnp.promote_types(v_NBSH.dtype, jnp.float32)
    same_BTS = (q_segment_ids_BT[:, :, None] == k_segment_ids_BS[:, None, :]) & (k_segment_ids_BS > 0)[:, None, :]
    v_NBTSH = jnp.where(same_BTS[None, ..., None], v_NBSH[:, :, None], 0.0)
    sum_NBTHF = jnp.einsum("NBTSH,NBSF->NBTHF", v_NBTSH, first_NBSF, preferred_element_type=dtype)
    a_NBTHF = activation(sum_NBTHF).astype(v_NBSH.dtype)
    y_NBTH = jnp.einsum("NBTHF,NBTF->NBTH", a_NBTHF, second_NBTF, preferred_element_type=dtype)
    return jnp.where((q_segment_ids_BT > 0)[None, ..., None], y_NBTH, 0.0).astype(v_NBSH.dtype)
