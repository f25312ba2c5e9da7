"""The Toeplitz product as a matrix product: the fastest for short rows, and the one that several documents need."""

import functools

import jax
import jax.numpy as jnp

from jaxbert.sharding import by_rows


def toeplitz_product(
    weights_O: jax.Array, v_BTC: jax.Array, segment_ids_BT: jax.Array, *, one_document: bool
) -> jax.Array:
    """As reference.py. Memory: (B, T, T), and one (T, T) for rows of one document that are longer than C."""
    product = functools.partial(_product, one_document)
    return by_rows(product, (v_BTC, segment_ids_BT), weights_O)


def _product(one_document: bool, v_BTC: jax.Array, segment_ids_BT: jax.Array, weights_O: jax.Array) -> jax.Array:
    rows, length, channels = v_BTC.shape
    matrix_TS = toeplitz_matrix(weights_O, length).astype(v_BTC.dtype)
    if one_document and length > channels:  # zeros at padding do what the mask does, with one matrix for all rows
        # Tokens first, once: left to einsum's own order, the backward pass transposes again. Where the values are the
        # larger array, transposing them costs more than masking a matrix for each row (1.4 × at T = 128, C = 768).
        v_SBC = jnp.where(segment_ids_BT[:, :, None] > 0, v_BTC, 0.0).transpose(1, 0, 2)
        return jnp.einsum("TS,SBC->TBC", matrix_TS, v_SBC).transpose(1, 0, 2)
    # Within a segment positions differ as places in the row do: the matrix is every row's, only the mask is its own.
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return jnp.einsum("BTS,BSC->BTC", jnp.where(same_BTS, _for_every_row(matrix_TS, rows), 0.0), v_BTC)


def toeplitz_matrix(weights_O: jax.Array, length: int) -> jax.Array:
    """(T, S) with w[n − 1 + s − t] at (t, s), and 0 beyond the offsets that `weights_O` holds; T = S = `length`.

    By tiling: 2T weights repeated and read in rows of 2T − 1 move one place a row (as the paper's snippet does). Its
    transpose is a sum over rows; that of a gather by index would be a scatter of T² elements.
    """
    size, extra = weights_O.shape[0] // 2 + 1, length - weights_O.shape[0] // 2 - 1
    weights_O = jnp.pad(weights_O, extra) if extra >= 0 else weights_O[size - length : size + length - 1]
    rows = jnp.tile(jnp.append(weights_O, 0.0), length)[: length * (2 * length - 1)].reshape(length, 2 * length - 1)
    return rows[:, length - 1 :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _for_every_row(matrix_TS: jax.Array, rows: int) -> jax.Array:
    """(T, S) → (B, T, S), B = `rows`."""
    return jnp.broadcast_to(matrix_TS, (rows, *matrix_TS.shape))


def _sum_of_rows(rows: int, _: None, slope_BTS: jax.Array) -> tuple[jax.Array]:
    # A product with ones: XLA's CPU backend takes twenty times as long to sum over a leading axis.
    dtype = jnp.promote_types(slope_BTS.dtype, jnp.float32)
    ones_B = jnp.ones(rows, slope_BTS.dtype)
    return (jnp.einsum("B,BTS->TS", ones_B, slope_BTS, preferred_element_type=dtype).astype(slope_BTS.dtype),)


_for_every_row.defvjp(lambda matrix_TS, rows: (_for_every_row(matrix_TS, rows), None), _sum_of_rows)
