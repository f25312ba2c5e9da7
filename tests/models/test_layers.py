"""Norms, activations, projections: against plain formulas in float64, values and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from jaxbert.models import layers
from jaxbert.ops.platform import Target

KEY = jax.random.key(0)


def test_gelu_is_x_times_the_normal_distribution() -> None:
    with jax.enable_x64(True):
        x = jnp.linspace(-8.0, 8.0, 401)
        assert x.dtype == jnp.float64
        expected = [value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in np.asarray(x)]
        np.testing.assert_allclose(layers.gelu(x), expected, atol=1e-14)


def test_the_gradient_of_gelu_is_its_derivative() -> None:
    with jax.enable_x64(True):
        x = jnp.linspace(-8.0, 8.0, 401)
        derived = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x)
        np.testing.assert_allclose(jax.vmap(jax.grad(layers.gelu))(x), derived, atol=1e-13)


def bfloat16s_up_to(limit: float) -> jax.Array:
    """Every bfloat16 in [−limit, limit]."""
    every = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16)
    return every[jnp.abs(every) <= limit]


def test_gelu_of_a_bfloat16_on_a_tpu_is_the_exact_one_to_its_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    x = bfloat16s_up_to(30.0)
    float64 = np.asarray(x, np.float64)
    cumulative = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in float64])
    density = np.exp(-(float64**2) / 2) / math.sqrt(2 * math.pi)
    monkeypatch.setattr(layers, "target", lambda: Target("tpu", "TPU v5 lite"))
    y, pull = jax.vjp(layers.gelu, x)
    (slope,) = pull(jnp.ones_like(x))
    assert y.dtype == slope.dtype == jnp.bfloat16
    # Half of a last place is the rounding, a third the shorter way; Φ is no better than 2e-6 far out, and the slope no
    # better than Φ where its two parts cancel.
    for ours, exact, least in ((y, float64 * cumulative, 1e-5), (slope, cumulative + float64 * density, 4e-4)):
        error = np.abs(np.asarray(ours, np.float64) - exact)
        assert np.all(error <= 0.9 * 2.0**-7 * np.abs(exact) + least)
    np.testing.assert_array_equal(y[x > 6], x[x > 6])
    assert jnp.isnan(layers.gelu(jnp.array(jnp.nan, jnp.bfloat16)))
    assert layers.gelu(jnp.array(jnp.inf, jnp.bfloat16)) == jnp.inf


def test_the_shorter_gelu_is_for_bfloat16_on_tpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def uses_erf(dtype: jnp.dtype, platform: str) -> bool:
        monkeypatch.setattr(layers, "target", lambda: Target(platform, ""))
        step = jax.make_jaxpr(lambda x: jax.vjp(layers.gelu, x)[1](x))
        return "erf" in str(step(jnp.ones(3, dtype)))

    assert not uses_erf(jnp.bfloat16, "tpu")
    assert uses_erf(jnp.float32, "tpu") and uses_erf(jnp.bfloat16, "cpu") and uses_erf(jnp.bfloat16, "gpu")


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activations_keep_dtype_and_shape(name: str) -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        y = layers.ACTIVATIONS[name](jnp.ones((2, 3), dtype))
        assert y.dtype == dtype and y.shape == (2, 3)


@pytest.mark.parametrize(
    "equation,x,kernel,axes",
    [("BTD,DNH->BTNH", (2, 3, 8), (8, 4, 5), 1), ("BTNH,NHD->BTD", (2, 3, 4, 5), (4, 5, 8), 2)],
)
def test_project_is_an_einsum_plus_bias(equation: str, x: tuple, kernel: tuple, axes: int) -> None:
    keys = jax.random.split(KEY, 3)
    x, kernel, bias = (jax.random.normal(k, s) for k, s in zip(keys, (x, kernel, kernel[axes:]), strict=True))
    y = layers.project(x, nnx.Param(kernel), nnx.Param(bias), axes=axes)
    np.testing.assert_allclose(y, jnp.einsum(equation, x, kernel) + bias, atol=1e-5)


def test_project_computes_in_the_dtype_of_its_input() -> None:
    kernel, bias = layers.truncated_normal(KEY, (4, 6), 0.02), layers.zeros(6)
    assert layers.project(jnp.ones((2, 4), jnp.bfloat16), kernel, bias).dtype == jnp.bfloat16


def test_layer_norm_has_mean_0_and_variance_1_then_scale_and_bias() -> None:
    with jax.enable_x64(True):
        norm = layers.LayerNorm(16, epsilon=1e-12)
        norm.scale_D, norm.bias_D = nnx.Param(jnp.arange(16.0)), nnx.Param(jnp.ones(16))
        x = np.asarray(5 + 3 * jax.random.normal(KEY, (4, 16), jnp.float64))
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * np.arange(16) + 1
        np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-12)
        check_grads(norm, (jnp.asarray(x),), order=1, modes=["rev"], atol=1e-5, rtol=1e-5)


def test_the_variance_does_not_cancel_far_from_zero() -> None:
    norm = layers.LayerNorm(64, epsilon=1e-12)
    x = jax.random.normal(KEY, (8, 64))
    np.testing.assert_allclose(norm(x + 4096.0), norm(x), atol=5e-3)  # one-pass: 4096² swallows a variance of 1


def test_layer_norm_of_bfloat16_sums_in_float32() -> None:
    x = (100 + jax.random.normal(KEY, (4, 512))).astype(jnp.bfloat16)
    norm = layers.LayerNorm(512, epsilon=1e-12)
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(norm(x).astype(jnp.float32), norm(x.astype(jnp.float32)), atol=0.02)


def test_truncated_normal_stays_within_two_deviations_and_is_not_rescaled() -> None:
    w = np.asarray(layers.truncated_normal(KEY, (400, 400), 0.02)[...])
    assert np.abs(w).max() <= 0.04
    assert abs(w.std() / 0.02 - 0.8796) < 0.01  # √(1 − 4 φ(2) / (2 Φ(2) − 1))
