"""Dropout: rate, expectation, and bits that depend on the key and the global place alone."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from jaxbert.ops import dropout as module
from jaxbert.ops.dropout import dropout, random_uint16, threefry2x32
from jaxbert.ops.platform import Target

KEY = jax.random.key(7)


def test_threefry_is_jaxs() -> None:
    counter = np.arange(2000, dtype=np.uint32) * np.uint32(2654435761)
    words = threefry2x32(jax.random.key_data(KEY), jnp.asarray(counter[:1000]), jnp.asarray(counter[1000:]))
    np.testing.assert_array_equal(np.concatenate(words), threefry_2x32(jax.random.key_data(KEY), counter))


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (2, 3, 4, 129), (64, 256)])
def test_any_shape_is_filled(shape: tuple[int, ...]) -> None:
    bits = random_uint16(KEY, shape)
    assert bits.shape == shape and bits.dtype == jnp.uint16


def test_bits_are_uniform_and_no_element_repeats_another() -> None:
    bits = np.asarray(random_uint16(KEY, (512, 512)))
    counts = np.bincount(bits.ravel() >> 8, minlength=256)
    assert abs(counts / 1024 - 1).max() < 0.2  # 1024 expected in each of 256 bins; six standard deviations
    for lag in (1, 2, 128, 256, 384):
        for axis in (0, 1):
            assert abs(np.corrcoef(bits.ravel(), np.roll(bits, lag, axis).ravel())[0, 1]) < 0.012


@pytest.fixture
def on_a_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "target", lambda: Target("tpu", "TPU v5 lite"))


def test_on_a_tpu_the_rate_holds_in_every_quarter_and_none_repeats_another(on_a_tpu: None) -> None:
    y = np.asarray(dropout(jnp.ones((5, 402, 300)), 0.1, KEY), np.float64)  # 402 is no multiple of 4
    assert y.shape == (5, 402, 300) and abs(y.mean() - 1) < 2e-3
    dropped = y == 0
    quarters = [dropped[:, begin : begin + 99] for begin in range(0, 402, 101)]
    for number, quarter in enumerate(quarters):
        assert abs(quarter.mean() - 0.1) < 3e-3
        for other in quarters[:number]:
            assert abs((quarter & other).mean() - 0.01) < 1.5e-3
    assert 0.15 < (dropped != (np.asarray(dropout(jnp.ones(y.shape), 0.1, jax.random.key(8))) == 0)).mean() < 0.21


def test_on_a_tpu_few_axes_are_drawn_as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    x = jnp.ones((64, 256))  # its last axis but one may be the batch, which is split over devices
    elsewhere = dropout(x, 0.1, KEY)
    monkeypatch.setattr(module, "target", lambda: Target("tpu", "TPU v5 lite"))
    np.testing.assert_array_equal(dropout(x, 0.1, KEY), elsewhere)


def test_the_rate_is_the_one_asked_for_and_the_expectation_is_kept() -> None:
    y = np.asarray(dropout(jnp.ones((1000, 1000)), 0.1, KEY), np.float64)
    assert abs((y == 0).mean() - 0.1) < 1.5e-3
    assert abs(y.mean() - 1) < 2e-3
    assert len(np.unique(y)) == 2


def test_zeroed_elements_pass_no_gradient_and_kept_ones_the_scale() -> None:
    x = jnp.ones((40, 40))
    gradient = jax.grad(lambda x: dropout(x, 0.25, KEY).sum())(x)
    np.testing.assert_array_equal(gradient, dropout(x, 0.25, KEY))


@pytest.mark.parametrize("rate,key", [(0.1, None), (0.0, KEY)])
def test_without_a_key_or_a_rate_nothing_changes(rate: float, key: jax.Array | None) -> None:
    x = jnp.arange(6.0)
    assert dropout(x, rate, key) is x


def test_other_keys_draw_other_masks() -> None:
    masks = [np.asarray(dropout(jnp.ones(4000), 0.5, jax.random.fold_in(KEY, i))) == 0 for i in range(2)]
    assert 0.4 < (masks[0] != masks[1]).mean() < 0.6


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxbert import config, sharding
from jaxbert.ops import dropout as module
from jaxbert.ops.dropout import dropout
from jaxbert.ops.platform import Target
module.target = lambda: Target(sys.argv[1], "")
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
x, key = np.ones((8, 6, 40), np.float32), jax.random.key(3)
one = jax.jit(lambda x: dropout(x, 0.3, key))(x)
for axes in (("a",), ("a", "b"), (None, None, "b"), ("b", None, "a")):
    spec = PartitionSpec(*axes)
    many = jax.jit(lambda x: dropout(x, 0.3, key), out_shardings=NamedSharding(mesh, spec))(
        jax.device_put(x, NamedSharding(mesh, spec)))
    assert len(many.sharding.device_set) == 8
    np.testing.assert_array_equal(one, many)

mesh = sharding.make_mesh(config.Sharding(4, 2, 1), 8)
weights = np.random.default_rng(1).integers(1, 9, x.shape).astype(np.float32)  # sums are exact
def total(batch, scale):
    return jnp.sum(dropout(batch["x"][0] * scale, 0.5, key) * batch["weights"][0])
with jax.set_mesh(mesh):
    batch = {"x": x[None], "weights": weights[None]}
    placed = sharding.put_batch(batch, sharding.batch_sharding(mesh, leading=1))
    parts = jax.jit(lambda batch, scale: sharding.sum_over_data(total, np.float32, batch, scale))(placed, 1.0)
assert parts == total(batch, 1.0), (parts, total(batch, 1.0))
"""


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_mask_does_not_depend_on_the_sharding(platform: str) -> None:
    # A process of its own: the number of CPU devices is fixed when jax starts.
    code = f"import jax; jax.config.update('jax_num_cpu_devices', 8)\n{SHARDED}"
    subprocess.run([sys.executable, "-c", code, platform], check=True, timeout=120)
