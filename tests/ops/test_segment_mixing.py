"""HyperMixer's mixing: every implementation against the reference, values and gradients, and what reference means."""

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.models.layers import gelu
from jaxbert.ops.segment_mixing import by_document, by_length
from jaxbert.ops.segment_mixing.api import choose, segment_mixing

N, H, F = 2, 3, 5
TOLERANCE = {"float64": 1e-12, "float32": 5e-6}  # of the largest value
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)
PACKED = ["by_document", "by_length"]
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


def value_and_gradients(compute: Callable[..., jax.Array], arrays: list[jax.Array], *ids: Any) -> list[np.ndarray]:
    """y, and the gradients of a sum that weighs each of its elements differently."""
    return [np.asarray(x) for x in _value_and_gradients(compute, arrays, *ids)]


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradients(compute: Callable[..., jax.Array], arrays: list[jax.Array], *ids: Any) -> list[jax.Array]:
    y, pull = jax.vjp(lambda *arrays: compute(*arrays, *ids), *arrays)
    slope = np.random.default_rng(5).normal(size=y.shape)
    return [y, *pull(jnp.asarray(slope, y.dtype))]


def assert_same(found: list[np.ndarray], wanted: list[np.ndarray], dtype: str) -> None:
    for x, reference in zip(found, wanted, strict=True):
        assert x.dtype == dtype
        assert np.abs(x - reference).max() <= TOLERANCE[dtype] * max(1.0, np.abs(reference).max())


@functools.cache  # one function for each, so that jit knows it again
def mixing(implementation: str, one_document: bool = False) -> Callable[..., jax.Array]:
    """Of v, W₁, W₂ and the ids of outputs and inputs."""
    options = {"activation": gelu, "one_document": one_document, "implementation": implementation}
    return functools.partial(segment_mixing, **options)


def test_the_reference_is_an_mlp_over_the_tokens_of_each_document() -> None:
    ids = segments([[4, 6], [10]], 12)
    v, first, second = (np.asarray(x) for x in operands(ids, 12))
    y = np.asarray(mixing("reference")(v, first, second, ids, ids))
    for row, part in [(0, slice(0, 4)), (0, slice(4, 10)), (1, slice(0, 10))]:
        for head in range(N):
            a = np.asarray(gelu(jnp.asarray(v[head, row, part].T @ first[head, row, part])))
            np.testing.assert_allclose(y[head, row, part], second[head, row, part] @ a.T, rtol=1e-4, atol=1e-5)
    assert (y[:, ids == 0] == 0).all()


@DTYPES
@pytest.mark.parametrize("rows", REAL_ROWS, ids=str)
@pytest.mark.parametrize(
    "packed",
    [
        functools.partial(by_length.segment_mixing, activation=gelu, block=4),
        functools.partial(by_length.segment_mixing, activation=gelu, block=64),
        functools.partial(by_document.segment_mixing, activation=gelu, slices=(8, 3)),
        functools.partial(by_document.segment_mixing, activation=gelu, slices=(64, 64)),
    ],
    ids=["by_length-4", "by_length-64", "by_document-8-3", "by_document-64"],
)
def test_documents_of_a_row_give_the_references_values_and_gradients(
    dtype: str, rows: list[list[int]], packed: Callable[..., jax.Array]
) -> None:
    ids = segments(rows)
    with jax.enable_x64(dtype == "float64"):
        arrays = operands(ids, 23, dtype)
        wanted, found = (value_and_gradients(compute, arrays, ids, ids) for compute in (mixing("reference"), packed))
        assert_same(found, wanted, dtype)


@DTYPES
@pytest.mark.parametrize("lengths", [[23, 9], [1, 22], [0, 7]], ids=str)
def test_one_document_a_row_gives_the_references_values_and_gradients(dtype: str, lengths: list[int]) -> None:
    ids = segments([[length] for length in lengths])
    with jax.enable_x64(dtype == "float64"):
        arrays = operands(ids, 23, dtype)
        wanted, found = (
            value_and_gradients(mixing(name, one_document=True), arrays, ids, ids) for name in ("reference", "products")
        )
    assert_same(found, wanted, dtype)


@pytest.mark.parametrize("implementation", ["reference", "products", *PACKED])
def test_some_outputs_alone_are_the_rows_of_the_whole(implementation: str) -> None:
    one = implementation == "products"
    ids = segments([[20], [23]] if one else [[7, 11, 5], [9, 9]])
    places = np.array([[19, 0, 7, 7, 22], [3, 20, 8, 9, 0]])
    v, first, second = operands(ids, 23)
    whole = jax.jit(mixing(implementation, one))(v, first, second, ids, ids)
    take = lambda x: jnp.take_along_axis(x, places[None, :, :, None], axis=2)  # noqa: E731
    some = jax.jit(mixing(implementation, one))(v, first, take(second), np.take_along_axis(ids, places, 1), ids)
    np.testing.assert_allclose(some, take(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", PACKED)
def test_places_of_a_document_need_not_be_neighbours(implementation: str) -> None:
    ids = np.array([[2, 1, 0, 2, 3, 1, 2, 0, 3, 1]], np.int32)
    arrays = operands(ids, 10)
    wanted, found = (value_and_gradients(mixing(name), arrays, ids, ids) for name in ("reference", implementation))
    assert_same(found, wanted, "float32")


@pytest.mark.parametrize("implementation", ["reference", *PACKED])
def test_gradients_across_documents_are_exactly_zero(implementation: str) -> None:
    ids = segments([[9, 5, 7], [7, 9, 5]])
    y, pull = jax.vjp(jax.jit(lambda *a: mixing(implementation)(*a, ids, ids)), *operands(ids, 23))
    second = jnp.asarray(ids == 2)[None, ..., None]
    for gradient in pull(jnp.where(second, jnp.ones_like(y), 0.0)):
        gradient = np.asarray(gradient)
        assert (gradient[:, ids != 2] == 0).all() and (gradient[:, ids == 2] != 0).any(-1).all()


@pytest.mark.parametrize("implementation", ["products", *PACKED])
def test_what_padding_holds_changes_no_bit_and_it_gets_no_gradient(implementation: str) -> None:
    one, ids = implementation == "products", segments([[14], [20]])
    arrays, padding = operands(ids, 23), jnp.asarray(ids == 0)[None, ..., None]
    changed = [jnp.where(padding, jnp.inf, x) for x in arrays]
    found = [value_and_gradients(mixing(implementation, one), given, ids, ids) for given in (arrays, changed)]
    np.testing.assert_array_equal(*(y[:, ids > 0] for y, *_ in found))
    for gradient in found[0][1:]:
        assert (gradient[:, ids == 0] == 0).all()


@pytest.mark.parametrize("implementation", ["products", *PACKED])
def test_sums_of_bfloat16_run_in_float32(implementation: str) -> None:
    one, ids = implementation == "products", segments([[600], [600]], 600)
    v, first, second = (jnp.ones_like(x, jnp.bfloat16) for x in operands(ids, 600))
    y = jax.jit(mixing(implementation, one))(v, first, second, ids, ids)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.full_like(y, 600 * F))  # bfloat16 would stop at 256 × its addend


@pytest.mark.parametrize("implementation", PACKED)
def test_memory_does_not_grow_with_the_number_of_documents(implementation: str) -> None:
    wide, length = 64, 256
    arrays = [jax.ShapeDtypeStruct((1, 1, length, size), jnp.float32) for size in (wide, wide, wide)]

    def gradients(ids: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(lambda *a: mixing(implementation)(*a, ids, ids), *arrays)
        return pull(y)

    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)  # whatever they are: as many documents as tokens, at most
    temporary = jax.jit(gradients).lower(ids, *arrays).compile().memory_analysis().temp_size_in_bytes
    states, sums = 4 * length * wide, 4 * wide * wide
    assert temporary < 12 * states + 8 * sums < length * sums


def test_an_implementation_that_cannot_serve_the_call_says_why() -> None:
    ids = segments([[4, 6]], 12)
    with pytest.raises(ValueError, match="'products' cannot tell documents of a row apart; 'by_document' can"):
        mixing("products")(*operands(ids, 12), ids, ids)
    with pytest.raises(ValueError, match="no implementation 'pallas'; there are reference, products, by_document"):
        mixing("pallas")(*operands(ids, 12), ids, ids)


def test_the_promise_of_one_document_chooses_the_two_products() -> None:
    assert [choose(True, backend) for backend in ("cpu", "tpu")] == ["products", "products"]
    assert [choose(False, backend) for backend in ("cpu", "tpu")] == ["by_document", "by_length"]


SHARDED = """
import jax; jax.config.update('jax_num_cpu_devices', 4)
import jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxbert.config import Sharding
from jaxbert.models.layers import gelu
from jaxbert.ops.segment_mixing.api import segment_mixing
from jaxbert.sharding import make_mesh
random = np.random.default_rng(0)
ids = np.stack([np.repeat([1, 2, 3, 0], np.diff([0, *np.sort(random.integers(0, 41, 3)), 40])) for _ in range(8)])
arrays = [random.normal(size=(2, 8, 40, size)).astype("float32") for size in (4, 6, 6)]

def step_of(implementation):
    def loss(v, first, second, ids):
        options = dict(activation=gelu, one_document=implementation == "products", implementation=implementation)
        return jnp.sum(segment_mixing(v, first, second, ids, ids, **options) ** 2)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))

for implementation in ("products", "by_document", "by_length"):
    step = step_of(implementation)
    one = step(*arrays, ids)
    for sizes in ((2, 2, 1), (1, 2, 2)):
        mesh = make_mesh(Sharding(*sizes), 8)
        with jax.set_mesh(mesh):
            split = NamedSharding(mesh, PartitionSpec("tensor", ("data", "fsdp")))
            rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
            given = [*(jax.device_put(x, split) for x in arrays), jax.device_put(ids, rows)]
            compiled = step.lower(*given).compile()
            assert " all-gather(" not in compiled.as_text(), implementation
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(compiled(*given)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))
"""


@pytest.mark.slow
def test_devices_mix_their_own_rows_alone() -> None:
    # A process of its own: the number of CPU devices is fixed when jax starts.
    subprocess.run([sys.executable, "-c", SHARDED], check=True, timeout=300)
