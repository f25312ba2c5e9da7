"""HyperMixer's mixing: every implementation against the reference, values and gradients, and what reference means."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.models.layers import gelu
from jaxbert.ops.segment_mixing import by_length
from jaxbert.ops.segment_mixing.api import choose, segment_mixing

N, H, F = 2, 3, 5
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}  # of the largest value
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
REAL_ROWS = [
    *([[7, 11, 5], [23]], [[1, 17, 1], [4, 4, 4, 4]], [[1] * 23, [22, 1]], [[12, 11], []]),
    *([[23], [23]], [[1], [2]], [[], []]),
]


def segments(rows: list[list[int]], row: int = 23) -> np.ndarray:
    """Ids of rows of documents of such lengths, padded to `row`."""
    ids = [np.repeat(np.arange(1, len(lengths) + 1), lengths) for lengths in rows]
    return np.stack([np.pad(row_ids, (0, row - len(row_ids))) for row_ids in ids]).astype(np.int32)


def operands(ids_BS: np.ndarray, outputs: int, dtype: str = "float32") -> list[jax.Array]:
    random, (B, S) = np.random.default_rng(0), ids_BS.shape
    return [jnp.asarray(random.normal(size=(N, B, *shape)), dtype) for shape in ((S, H), (S, F), (outputs, F))]


def value_and_gradients(arrays: list[jax.Array], compute: Callable[..., jax.Array]) -> list[np.ndarray]:
    """y, and the gradients of a sum that weighs each of its elements differently."""
    y, pull = jax.vjp(compute, *arrays)
    slope = np.random.default_rng(5).normal(size=y.shape)
    return [np.asarray(x) for x in (y, *pull(jnp.asarray(slope, y.dtype)))]


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray], dtype: str) -> None:
    for x, reference in zip(found, wanted, strict=True):
        assert x.dtype == dtype
        assert np.abs(x - reference).max() <= TOLERANCE[dtype] * max(1.0, np.abs(reference).max())


def mixing(q_ids: np.ndarray, k_ids: np.ndarray, implementation: str, one_document: bool = False) -> Callable:
    return lambda *arrays: segment_mixing(
        *arrays, q_ids, k_ids, activation=gelu, one_document=one_document, implementation=implementation
    )


def test_the_reference_is_an_mlp_over_the_tokens_of_each_document() -> None:
    ids = segments([[4, 6], [10]], 12)
    v, first, second = (np.asarray(x) for x in operands(ids, 12))
    y = np.asarray(mixing(ids, ids, "reference")(v, first, second))
    for row, part in [(0, slice(0, 4)), (0, slice(4, 10)), (1, slice(0, 10))]:
        for head in range(N):
            a = np.asarray(gelu(jnp.asarray(v[head, row, part].T @ first[head, row, part])))
            np.testing.assert_allclose(y[head, row, part], second[head, row, part] @ a.T, rtol=1e-4, atol=1e-5)
    assert (y[:, ids == 0] == 0).all()


@DTYPES
@pytest.mark.parametrize("rows", REAL_ROWS, ids=str)
@pytest.mark.parametrize("block", [4, 64])
def test_documents_of_a_row_give_the_references_values_and_gradients(
    dtype: str, rows: list[list[int]], block: int
) -> None:
    ids = segments(rows)
    with jax.enable_x64(dtype == "float64"):
        arrays = operands(ids, 23, dtype)
        wanted = value_and_gradients(arrays, mixing(ids, ids, "reference"))
        compute = lambda *a: by_length.segment_mixing(*a, ids, ids, activation=gelu, block=block)  # noqa: E731
        assert_same(value_and_gradients(arrays, compute), wanted, dtype)


@DTYPES
@pytest.mark.parametrize("lengths", [[23, 9], [1, 22], [0, 7]], ids=str)
def test_one_document_a_row_gives_the_references_values_and_gradients(dtype: str, lengths: list[int]) -> None:
    ids = segments([[length] for length in lengths])
    with jax.enable_x64(dtype == "float64"):
        arrays = operands(ids, 23, dtype)
        wanted, found = (
            value_and_gradients(arrays, mixing(ids, ids, name, one_document=True)) for name in ("reference", "products")
        )
    assert_same(found, wanted, dtype)


@pytest.mark.parametrize("implementation", ["reference", "products", "by_length"])
def test_some_outputs_alone_are_the_rows_of_the_whole(implementation: str) -> None:
    one = implementation == "products"
    ids = segments([[20], [23]] if one else [[7, 11, 5], [9, 9]])
    places = np.array([[19, 0, 7, 7, 22], [3, 20, 8, 9, 0]])
    v, first, second = operands(ids, 23)
    whole = mixing(ids, ids, implementation, one)(v, first, second)
    take = lambda x: jnp.take_along_axis(x, places[None, :, :, None], axis=2)  # noqa: E731
    some = mixing(np.take_along_axis(ids, places, 1), ids, implementation, one)(v, first, take(second))
    np.testing.assert_allclose(some, take(whole), rtol=1e-5, atol=1e-5)


def test_places_of_a_document_need_not_be_neighbours() -> None:
    ids = np.array([[2, 1, 0, 2, 3, 1, 2, 0, 3, 1]], np.int32)
    arrays = operands(ids, 10)
    wanted, found = (value_and_gradients(arrays, mixing(ids, ids, name)) for name in ("reference", "by_length"))
    assert_same(found, wanted, "float32")


@pytest.mark.parametrize("implementation", ["reference", "by_length"])
def test_gradients_across_documents_are_exactly_zero(implementation: str) -> None:
    ids = segments([[9, 5, 7], [7, 9, 5]])
    y, pull = jax.vjp(mixing(ids, ids, implementation), *operands(ids, 23))
    second = jnp.asarray(ids == 2)[None, ..., None]
    for gradient in pull(jnp.where(second, jnp.ones_like(y), 0.0)):
        gradient = np.asarray(gradient)
        assert (gradient[:, ids != 2] == 0).all() and (gradient[:, ids == 2] != 0).any(-1).all()


@pytest.mark.parametrize("implementation", ["products", "by_length"])
def test_what_padding_holds_changes_no_bit_and_it_gets_no_gradient(implementation: str) -> None:
    one, ids = implementation == "products", segments([[14], [20]])
    arrays, padding = operands(ids, 23), jnp.asarray(ids == 0)[None, ..., None]
    changed = [jnp.where(padding, jnp.inf, x) for x in arrays]
    found = [mixing(ids, ids, implementation, one)(*given) for given in (arrays, changed)]
    np.testing.assert_array_equal(*(np.asarray(y)[:, ids > 0] for y in found))
    for gradient in value_and_gradients(arrays, mixing(ids, ids, implementation, one))[1:]:
        assert (gradient[:, ids == 0] == 0).all()


@pytest.mark.parametrize("implementation", ["products", "by_length"])
def test_sums_of_bfloat16_run_in_float32(implementation: str) -> None:
    one, ids = implementation == "products", segments([[600], [600]], 600)
    v, first, second = (jnp.ones_like(x, jnp.bfloat16) for x in operands(ids, 600))
    y = mixing(ids, ids, implementation, one)(v, first, second)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.full_like(y, 600 * F))  # bfloat16 would stop at 256 × its addend


def test_memory_does_not_grow_with_the_number_of_documents() -> None:
    wide, length = 64, 256
    arrays = [jax.ShapeDtypeStruct((1, 1, length, size), jnp.float32) for size in (wide, wide, wide)]

    def gradients(ids: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(mixing(ids, ids, "by_length"), *arrays)
        return pull(y)

    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)  # whatever they are: as many documents as tokens, at most
    temporary = jax.jit(gradients).lower(ids, *arrays).compile().memory_analysis().temp_size_in_bytes
    states, sums = 4 * length * wide, 4 * wide * wide
    assert temporary < 12 * states + 8 * sums < length * sums


def test_an_implementation_that_cannot_serve_the_call_says_why() -> None:
    ids = segments([[4, 6]], 12)
    with pytest.raises(ValueError, match="'products' cannot tell documents of a row apart; 'by_length' can"):
        mixing(ids, ids, "products")(*operands(ids, 12))
    with pytest.raises(ValueError, match="no implementation 'pallas'; there are reference, products, by_length"):
        mixing(ids, ids, "pallas")(*operands(ids, 12))


def test_the_promise_of_one_document_chooses_the_two_products() -> None:
    assert (choose(one_document=True), choose(one_document=False)) == ("products", "by_length")
