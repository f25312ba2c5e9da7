"""Attention on GPUs: cuDNN's fused kernel through `jax.nn`.

cuDNN's own sliding window is a causal one, so segments and window go in as a mask of T × S booleans a row. Compiled for
an H100, forward and backward, with and without window (jax 0.10.2, cuDNN 9); nobody has run it or measured it here.

tokamax's kernel is not offered: tokamax 0.0.12 pins typeguard 2.13.3, and tyro, which reads our command line, needs 4
or later, so that pip installs no environment with both. It would add float32 and read a window without a mask.
"""

import functools

import jax
import jax.numpy as jnp

from jaxbert.ops.attention.reference import visible


def cudnn(
    q_BTNH: jax.Array,
    k_BSNH: jax.Array,
    v_BSNH: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    scale: float,
    window: int | None = None,
) -> jax.Array:
    """As `reference.attention`, of bfloat16 or float16 and a head size that is a multiple of 8, up to 128.

    Keeps the mask, B × T × S, which cuDNN reads as a bias, and no scores.
    """
    visible_BTS = visible(q_segment_ids_BT, k_segment_ids_BS, window)
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH, k_BSNH, v_BSNH, mask=visible_BTS[:, None], scale=scale, implementation="cudnn"
    )
    # A row without a key is cuDNN's mean of all values; what is selected away gets no gradient either.
    return jnp.where(jnp.any(visible_BTS, axis=-1)[:, :, None, None], out_BTNH, 0)


@functools.cache
def without_cudnn() -> str | None:
    """Why no call can be traced where JAX finds no cuDNN: a host that compiles for GPUs may have none."""
    x_BTNH = jax.ShapeDtypeStruct((1, 64, 1, 64), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), x_BTNH, x_BTNH, x_BTNH)
    except RuntimeError as error:
        return f"implementation: JAX says {error}"
    return None
