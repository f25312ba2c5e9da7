"""The Toeplitz product as a matrix product: the fastest for short rows, and the one that several documents need."""

import jax
import jax.numpy as jnp


def toeplitz_product(
    weights_O: jax.Array, v_BTC: jax.Array, segment_ids_BT: jax.Array, *, one_document: bool
) -> jax.Array:
    """As reference.py. Memory: one (T, T) matrix; (B, T, T) where a row may hold several documents."""
    matrix_TS = toeplitz_matrix(weights_O, v_BTC.shape[1]).astype(v_BTC.dtype)
    if one_document:  # zeros at padding do what the mask does, with one matrix for all rows
        v_BTC = jnp.where(segment_ids_BT[:, :, None] > 0, v_BTC, 0.0)
        return jnp.einsum("TS,BSC->BTC", matrix_TS, v_BTC)
    # Within a segment positions differ as places in the row do: the matrix is every row's, only the mask is its own.
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return jnp.einsum("BTS,BSC->BTC", jnp.where(same_BTS, matrix_TS, 0.0), v_BTC)


def toeplitz_matrix(weights_O: jax.Array, length: int) -> jax.Array:
    """(T, S) with w[n − 1 + s − t] at (t, s), and 0 beyond the offsets that `weights_O` holds; T = S = `length`.

    By tiling: 2T weights repeated and read in rows of 2T − 1 move one place a row (as the paper's snippet does). Its
    transpose is a sum over rows; that of a gather by index would be a scatter of T² elements.
    """
    size, extra = weights_O.shape[0] // 2 + 1, length - weights_O.shape[0] // 2 - 1
    weights_O = jnp.pad(weights_O, extra) if extra >= 0 else weights_O[size - length : size + length - 1]
    rows = jnp.tile(jnp.append(weights_O, 0.0), length)[: length * (2 * length - 1)].reshape(length, 2 * length - 1)
    return rows[:, length - 1 :]
