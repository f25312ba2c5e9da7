"""The bidirectional long convolution: its definition, and that every implementation computes it."""

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.ops.long_conv import api, pallas_tpu
from jaxbert.ops.platform import Target

ROWS, WIDTH = 3, 5
# The kernels are slow where they are interpreted: there each line of a matrix is turned by itself.
FASTER = pytest.mark.parametrize(
    "implementation", ["direct", "fft", pytest.param("pallas_tpu", marks=pytest.mark.slow)]
)
LENGTHS = pytest.mark.parametrize(
    "length", [1, 2, 3, 33, 100, *(pytest.param(length, marks=pytest.mark.slow) for length in (7, 16))]
)
DTYPES = pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])


def arguments(length: int, dtype: str = "float32") -> tuple[np.ndarray, ...]:
    """A row, both filters and the bias."""
    random = np.random.default_rng(length)
    shapes = (ROWS, length, WIDTH), (length, WIDTH), (length, WIDTH), (WIDTH,)
    return tuple(random.normal(size=shape).astype(dtype) for shape in shapes)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The TPU kernels on the CPU."""
    on_cpu = functools.partial(pallas_tpu.long_conv, interpret=True)
    monkeypatch.setitem(api.IMPLEMENTATIONS, "pallas_tpu", on_cpu)


def convolve(implementation: str | None, *given: Any) -> jax.Array:
    return api.long_conv(*map(jnp.asarray, given), implementation=implementation)


def close(found: Any, wanted: Any, tolerance: float) -> None:
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * max(1.0, np.abs(wanted).max()))


def in_dtype(dtype: str, compute: Callable[[], Any]) -> Any:
    with jax.enable_x64(dtype == "float64"):
        return compute()


def test_the_reference_is_the_sum_over_tokens_before_and_after() -> None:
    x, forward, backward, bias = arguments(6, "float64")
    wanted = bias * x
    for t in range(6):
        for s in range(6):
            wanted[:, t] += x[:, s] * (forward[t - s] if s <= t else backward[s - t - 1])
    close(in_dtype("float64", lambda: convolve("reference", x, forward, backward, bias)), wanted, 1e-13)


@FASTER
@LENGTHS
@DTYPES
def test_values_and_gradients_are_the_references(
    implementation: str, length: int, dtype: str, tolerance: float
) -> None:
    if implementation == "pallas_tpu" and dtype == "float64":
        with pytest.raises(ValueError, match="float64"):
            in_dtype(dtype, lambda: convolve(implementation, *arguments(length, dtype)))
        return
    given, weight = arguments(length, dtype), arguments(length + 1, dtype)[0][:, :length]

    def value_and_gradients(name: str) -> tuple[jax.Array, ...]:
        def loss(*given: jax.Array) -> tuple[jax.Array, jax.Array]:
            value = convolve(name, *given)
            return jnp.sum(weight * value), value

        gradients, value = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))(*given)
        return value, *gradients

    found, wanted = (in_dtype(dtype, lambda n=name: value_and_gradients(n)) for name in (implementation, "reference"))
    for x, reference in zip(found, wanted, strict=True):
        assert x.dtype == dtype
        close(x, reference, tolerance)


@pytest.mark.parametrize("implementation", api.IMPLEMENTATIONS)
def test_bfloat16_rows_are_summed_in_float32(implementation: str) -> None:
    x, *filters = arguments(40)
    row = jnp.asarray(x, jnp.bfloat16)
    found = convolve(implementation, row, *filters)
    assert found.dtype == jnp.bfloat16
    wanted = convolve("reference", row.astype(jnp.float32), *filters)
    close(found.astype(jnp.float32), wanted, 2.0**-8)


def test_the_tpu_kernels_serve_rows_that_fill_their_matrices() -> None:
    given, loss = arguments(128), lambda name, *given: jnp.sum(jnp.sin(convolve(name, *given)))
    found, wanted = (
        jax.jit(jax.grad(functools.partial(loss, name), argnums=(0, 1, 2, 3)))(*given)
        for name in ("pallas_tpu", "reference")
    )
    for x, reference in zip(found, wanted, strict=True):
        close(x, reference, 1e-5)
    with pytest.raises(ValueError, match="cannot serve this call: x_BTD has rows of 129 tokens"):
        convolve("pallas_tpu", *arguments(129))


@pytest.mark.parametrize("implementation", api.IMPLEMENTATIONS)
def test_the_last_backward_value_reaches_nothing(implementation: str) -> None:
    x, forward, backward, bias = arguments(9)
    other = backward.copy()
    other[-1] = 1e6
    given = (convolve(implementation, x, forward, each, bias) for each in (backward, other))
    np.testing.assert_array_equal(*given)


def test_by_default_it_is_what_choose_says() -> None:
    rows = [jax.ShapeDtypeStruct((ROWS, length, WIDTH), "float32") for length in (1, 16, 1024, 32768)]
    names = [api.choose(row) for row in rows]
    assert names[0] == "direct" and names[-1] == "fft"
    given = arguments(16)
    np.testing.assert_array_equal(convolve(None, *given), convolve(names[1], *given))


@pytest.mark.parametrize(
    ("length", "dtype", "target", "missing"),
    [
        (128, "bfloat16", Target("tpu", "TPU v6 lite"), None),
        (129, "bfloat16", Target("tpu", "TPU v5 lite"), "rows of 129 tokens; it takes at most 128"),
        (128, "bfloat16", Target("tpu", "TPU v4"), "from v5e on, not on TPU v4"),
        (128, "bfloat16", Target("cpu", "cpu"), "not on cpu"),
        (128, "float64", Target("tpu", "TPU v5"), "float64; it computes in float32"),
    ],
)
def test_what_the_tpu_kernel_lacks_is_named(length: int, dtype: str, target: Target, missing: str | None) -> None:
    with jax.enable_x64(True):
        lacks = pallas_tpu.lacks(jax.ShapeDtypeStruct((ROWS, length, WIDTH), dtype), target)
    assert missing in lacks if missing else lacks is None


def test_operations_count_matrix_products_and_transforms() -> None:
    assert api.flops(4) == 2 * 4 * 4
    assert api.flops(4096) == 2 * 2.5 * 8192 * 13 + 6 * 4096


SHARDED = """
import re, sys
import jax; jax.config.update('jax_num_cpu_devices', 4)
import jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxbert.config import Sharding
from jaxbert.ops.long_conv.api import long_conv
from jaxbert.sharding import batch_sharding, make_mesh
random = np.random.default_rng(0)
arrays = [random.normal(size=shape).astype("float32") for shape in ((8, 40, 6), (40, 6), (40, 6), (6,))]

def loss(*given):
    return jnp.sum(long_conv(*given, implementation=sys.argv[1]) ** 2)

one = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(*arrays)
for sizes in ((2, 2, 1), (1, 2, 2)):
    mesh = make_mesh(Sharding(*sizes), 8)
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, PartitionSpec())
        split = [jax.device_put(x, batch_sharding(mesh) if x.ndim == 3 else whole) for x in arrays]
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3))).lower(*split).compile()
        if sizes[2] == 1:
            assert " all-gather(" not in step.as_text()
        sent = re.findall(r"= .*all-reduce\\(", step.as_text())
        numbers = [np.prod([*map(int, d.split(","))]) for d in re.findall(r"(?:f32|c64)\\[([\\d,]+)\\]", str(sent))]
        assert 40 * 3 <= max(numbers) <= 81 * 6, sent  # filters or their spectra, no T × T matrices
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(step(*split)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(a).max()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["fft", "direct"])
def test_devices_convolve_their_own_rows_alone_and_add_up_no_matrices(implementation: str) -> None:
    # A process of its own: the number of CPU devices is fixed when jax starts.
    subprocess.run([sys.executable, "-c", SHARDED, implementation], check=True, timeout=300)


def test_what_does_not_fit_the_row_is_refused() -> None:
    x, forward, backward, bias = arguments(8)
    for given in (
        (x, forward[:7], backward, bias),
        (x, forward, backward[:, :4], bias),
        (x, forward, backward, bias[:4]),
    ):
        with pytest.raises(ValueError, match=r"rows of \(8, 5\) need filters"):
            api.long_conv(*given)
    with pytest.raises(ValueError, match="no implementation 'fast'; there are reference, direct, fft"):
        convolve("fast", x, forward, backward, bias)
