"""Encoders through the attention api: whichever implementation serves it, training is the reference's."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbert.models import layers
from jaxbert.ops.attention import api
from tests.models.test_encoders import packed, random_model, texts

STEPS, RATE = 3, 0.01
D, N, H, F, LAYERS, WINDOW = 32, 2, 16, 48, 4, 8

Loss = Callable[[Any], jax.Array]


class Block(nnx.Module):
    """ModernBERT's shape (Warner et al. 2024, arXiv:2412.13663): pre-norm, local or global; without rotary places."""

    def __init__(self, *, rngs: nnx.Rngs):
        kernels = ((D, N, H), (D, N, H), (D, N, H), (N, H, D), (D, F), (F, D))
        self.query_DNH, self.key_DNH, self.value_DNH, self.output_NHD, self.up_DF, self.down_FD = (
            layers.truncated_normal(rngs.params(), shape, 0.1) for shape in kernels
        )
        self.norm, self.feed_forward_norm = (layers.LayerNorm(D, epsilon=1e-5) for _ in range(2))

    def __call__(self, x_BTD: jax.Array, segment_ids_BT: jax.Array, window: int | None) -> jax.Array:
        y_BTD = self.norm(x_BTD)
        q, k, v = (jnp.einsum("BTD,DNH->BTNH", y_BTD, w[...]) for w in (self.query_DNH, self.key_DNH, self.value_DNH))
        a_BTNH = api.dot_product_attention(q, k, v, segment_ids=segment_ids_BT, window=window)
        x_BTD = x_BTD + jnp.einsum("BTNH,NHD->BTD", a_BTNH, self.output_NHD[...])
        y_BTD = layers.gelu(self.feed_forward_norm(x_BTD) @ self.up_DF[...])
        return x_BTD + y_BTD @ self.down_FD[...]


def modern_stack() -> tuple[Any, Loss]:
    """Every third layer global, the others local; rows of several documents and padding."""
    keys = jax.random.split(jax.random.key(0), LAYERS + 2)
    blocks = nnx.List([Block(rngs=nnx.Rngs(key)) for key in keys[:LAYERS]])
    x_BTD, target_BTD = (jax.random.normal(key, (2, 50, D)) for key in keys[LAYERS:])
    ids_BT = np.zeros((2, 50), np.int32)
    ids_BT[0, :30], ids_BT[0, 30:], ids_BT[1, :37] = 1, 2, 1

    def loss(blocks: Any) -> jax.Array:
        y_BTD = x_BTD
        for layer, block in enumerate(blocks):
            y_BTD = block(y_BTD, ids_BT, None if layer % 3 == 0 else WINDOW)
        return jnp.sum(jnp.where(ids_BT[:, :, None] > 0, (y_BTD - target_BTD) ** 2, 0.0)) / (ids_BT > 0).sum()

    return blocks, loss


def bert() -> tuple[Any, Loss]:
    model, row = random_model("bert"), packed(texts(30, 17, 12), 64)
    positions_BP = jnp.arange(0, 59, 3)[None]
    return model, lambda m: jnp.mean(jnp.logaddexp.reduce(m(row, positions_BP), axis=-1)) * 0.01


def trained(make: Callable[[], tuple[Any, Loss]]) -> tuple[list[float], list[np.ndarray]]:
    """Losses before each step and the last gradients."""
    model, loss = make()
    step, losses, gradients = jax.jit(jax.value_and_grad(loss)), [], None
    for _ in range(STEPS):
        value, gradients = step(model)
        losses.append(float(value))
        model = jax.tree.map(lambda p, g: p - RATE * g, model, gradients)
    return losses, [np.asarray(leaf) for leaf in jax.tree.leaves(gradients)]


@pytest.mark.parametrize("make", [modern_stack, pytest.param(bert, marks=pytest.mark.slow)])
def test_a_stack_trains_in_blocks_as_with_the_reference(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    chunked = api.IMPLEMENTATIONS["xla_chunked"]
    small = dataclasses.replace(chunked, compute=lambda *a, **k: chunked.compute(*a, **k, block=16))
    found = {}
    for name, implementation in (("reference", api.IMPLEMENTATIONS["reference"]), ("xla_chunked", small)):
        calls = []

        def spied(*arrays: Any, calls: list = calls, compute: Any = implementation.compute, **static: Any) -> Any:
            calls.append(static["window"])
            return compute(*arrays, **static)

        monkeypatch.setitem(api.IMPLEMENTATIONS, name, api.Implementation(spied))
        monkeypatch.setattr(api, "choose", lambda call, name=name: name)
        found[name] = trained(make)
        assert calls
        if make is modern_stack:
            assert calls == [None, WINDOW, WINDOW, None]
    (losses, gradients), (ours, our_gradients) = found["reference"], found["xla_chunked"]
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(ours, losses, rtol=1e-5)
    for a, b in zip(our_gradients, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, np.abs(b).max()))
