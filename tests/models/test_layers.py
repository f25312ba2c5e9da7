"""Norms, activations, projections: against plain formulas in float64, values and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from jaxbert.models import layers

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
