"""The Toeplitz product: every implementation against the reference, values and gradients, and what reference means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.ops.toeplitz.api import choose, toeplitz_product
from jaxbert.ops.transforms import fast_size

B, C = 2, 6  # rows longer and shorter than C
TOLERANCE = {"float64": 1e-13, "float32": 2e-6}  # of the largest value
FAST = pytest.mark.parametrize("implementation", ["gathered", "fft"])
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


def operands(n: int, length: int, dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
    random = np.random.default_rng(n * length)
    return jnp.asarray(random.normal(size=2 * n - 1), dtype), jnp.asarray(random.normal(size=(B, length, C)), dtype)


def segments(*lengths: int, padding: int = 0) -> jax.Array:
    ids = [i + 1 for i, length in enumerate(lengths) for _ in range(length)] + [0] * padding
    return jnp.tile(jnp.array(ids, jnp.int32), (B, 1))


def value_and_gradients(weights: jax.Array, v: jax.Array, ids: jax.Array, **chosen) -> list[np.ndarray]:
    """y, and the gradients of a sum over real positions that weighs each of them differently."""
    slope = jnp.asarray(np.random.default_rng(5).normal(size=v.shape), v.dtype) * (ids > 0)[:, :, None]

    def scalar(weights: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = toeplitz_product(weights, v, ids, **chosen)
        return jnp.sum(y * slope), jnp.where((ids > 0)[:, :, None], y, 0.0)

    gradients, y = jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))(weights, v)
    return [np.asarray(x) for x in (y, *gradients)]


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray], dtype: str) -> None:
    for x, reference in zip(found, wanted, strict=True):
        assert x.dtype == dtype
        assert np.abs(x - reference).max() <= TOLERANCE[dtype] * max(1.0, np.abs(reference).max())


def test_the_reference_is_the_sum_over_a_tokens_own_segment_and_offsets_beyond_n_are_zero() -> None:
    n, ids = 3, segments(5, 4, padding=1)
    weights, v = operands(n, 10)
    y = toeplitz_product(weights, v, ids, one_document=False, implementation="reference")
    for t in range(9):
        seen = [s for s in range(9) if ids[0, s] == ids[0, t] and abs(s - t) < n]
        expected = sum(float(weights[n - 1 + s - t]) * np.asarray(v[:, s]) for s in seen)
        np.testing.assert_allclose(y[:, t], expected, rtol=1e-5, atol=1e-6)


@FAST
@DTYPES
@pytest.mark.parametrize(
    "n, length",
    [
        *[(7, 7), (9, 4), (4, 13), (1, 5), (8, 1)],
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 1), (16, 31), (31, 16))),
    ],
)
def test_one_document_a_row_gives_the_references_values_and_gradients(
    implementation: str, dtype: str, n: int, length: int
) -> None:
    with jax.enable_x64(dtype == "float64"):
        weights, v = operands(n, length, dtype)
        ids = segments(length - length // 3, padding=length // 3)
        wanted, found = (
            value_and_gradients(weights, v, ids, one_document=True, implementation=name)
            for name in ("reference", implementation)
        )
    assert_same(found, wanted, dtype)


@DTYPES
@pytest.mark.parametrize("n", [4, 11, 40])
@pytest.mark.parametrize("lengths", [(11, 12), (1, 17, 1), (23,), (7, 7, 7)], ids=str)
def test_packed_rows_give_the_references_values_and_gradients(dtype: str, n: int, lengths: tuple[int, ...]) -> None:
    with jax.enable_x64(dtype == "float64"):
        weights, v = operands(n, 23, dtype)
        ids = segments(*lengths, padding=23 - sum(lengths))
        wanted, found = (
            value_and_gradients(weights, v, ids, one_document=False, implementation=name)
            for name in ("reference", "gathered")
        )
    assert_same(found, wanted, dtype)


@pytest.mark.parametrize("implementation", ["reference", "gathered"])
def test_gradients_across_segments_are_exactly_zero(implementation: str) -> None:
    weights, v = operands(6, 9)
    product = lambda v: toeplitz_product(  # noqa: E731
        weights, v, segments(4, 5), one_document=False, implementation=implementation
    )
    gradient = np.asarray(jax.grad(lambda v: jnp.sum(product(v)[:, :4] ** 2))(v))
    assert (gradient[:, 4:] == 0).all() and (gradient[:, :4] != 0).all()


@FAST
def test_what_padding_holds_changes_no_bit_of_a_real_output(implementation: str) -> None:
    weights, v = operands(6, 9)
    one, other = (
        toeplitz_product(weights, x, segments(6, padding=3), one_document=True, implementation=implementation)
        for x in (v, v.at[:, 6:].set(1e4))
    )
    np.testing.assert_array_equal(one[:, :6], other[:, :6])


def test_the_transform_computes_bfloat16_in_float32() -> None:
    weights, v = operands(40, 64)
    v = v.astype(jnp.bfloat16)
    exact = toeplitz_product(weights, v.astype(jnp.float32), segments(64), one_document=True, implementation="fft")
    found = toeplitz_product(weights, v, segments(64), one_document=True, implementation="fft")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


def test_the_weights_gradient_of_bfloat16_values_is_summed_in_float32() -> None:
    ones, ids = jnp.ones((B, 600, C), jnp.bfloat16), segments(600)
    for implementation in ("gathered", "fft"):
        product = lambda w, name=implementation: toeplitz_product(w, ones, ids, one_document=True, implementation=name)  # noqa: E731
        gradient = jax.grad(lambda w: jnp.sum(product(w).astype(jnp.float32)))(jnp.zeros(1))  # noqa: B023
        assert gradient.dtype == jnp.float32
        np.testing.assert_allclose(gradient, [600 * B * C], rtol=1e-6)  # bfloat16 would stop at 256 × its addend


def test_an_implementation_that_cannot_serve_the_call_says_why() -> None:
    weights, v = operands(4, 6)
    with pytest.raises(ValueError, match="'fft' cannot tell documents of a row apart; 'gathered' can"):
        toeplitz_product(weights, v, segments(2, 4), one_document=False, implementation="fft")
    with pytest.raises(ValueError, match="no implementation 'pallas'; there are reference, gathered, fft"):
        toeplitz_product(weights, v, segments(6), one_document=True, implementation="pallas")
    with pytest.raises(ValueError, match=r"weights_O has the shape \(6,\); it must be \(2n − 1,\)"):
        toeplitz_product(weights[1:], v, segments(6), one_document=True)


def test_packed_rows_never_choose_the_transform_and_long_documents_do() -> None:
    lengths = [2**k for k in range(18)]
    assert {choose(length, one_document=False) for length in lengths} == {"gathered"}
    chosen = [choose(length, one_document=True) for length in lengths]
    assert chosen[0] == "gathered" and chosen[-1] == "fft" and sorted(chosen, reverse=True) == chosen


def test_sizes_of_transforms_are_the_next_with_small_factors() -> None:
    smooth = sorted({2**a * 3**b * 5**c for a in range(12) for b in range(8) for c in range(6)})
    for least in range(1, 1500):
        assert fast_size(least) == next(size for size in smooth if size >= least)
