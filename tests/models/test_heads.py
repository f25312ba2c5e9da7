"""Heads: logits at predicted positions alone are those of the whole row, and padded entries of the table are out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert.models import bert
from jaxbert.models.heads import MaskedLM

V, B, T = 150, 3, 10
CONFIG = dataclasses.replace(
    bert.Config(num_layers=3, hidden_size=16, num_heads=2, feed_forward_size=32, max_positions=T),
    initializer_range=0.3,
)
POSITIONS_BP = np.array([[1, 4], [0, 9], [7, 7]], np.int32)


def model_and_batch(num_layers: int = 3) -> tuple[MaskedLM, dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    segments = np.tile(np.array([1] * 6 + [2] * 4, np.int32), (B, 1))
    batch = {
        "input_ids_BT": random.integers(5, V, (B, T)).astype(np.int32),
        "segment_ids_BT": segments,
        "position_ids_BT": np.tile(np.array([*range(6), *range(4)], np.int32), (B, 1)),
    }
    config = dataclasses.replace(CONFIG, num_layers=num_layers)
    return jax.jit(lambda key: MaskedLM(bert.Bert, config, V, key))(jax.random.key(0)), batch


def gathered(states_BTD: jax.Array) -> jax.Array:
    return jnp.take_along_axis(states_BTD, POSITIONS_BP[:, :, None], axis=1)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_states_at_positions_are_rows_of_all_states(num_layers: int) -> None:
    with jax.enable_x64(True):
        model, batch = model_and_batch(num_layers)
        model = jax.tree.map(lambda x: x.astype(jnp.float64), model)
        some = jax.jit(lambda m: m.encoder(batch, positions_BP=POSITIONS_BP)[0])(model)
        late = jax.jit(lambda m: gathered(m.encoder(batch)[0]))(model)
        np.testing.assert_allclose(some, late, atol=1e-13)


def test_gradients_at_positions_are_those_of_gathering_late() -> None:
    with jax.enable_x64(True):
        model, batch = model_and_batch()
        model = jax.tree.map(lambda x: x.astype(jnp.float64), model)
        early = jax.jit(jax.grad(lambda m: jnp.sum(m.encoder(batch, positions_BP=POSITIONS_BP)[0] ** 2)))(model)
        late = jax.jit(jax.grad(lambda m: jnp.sum(gathered(m.encoder(batch)[0]) ** 2)))(model)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), early, late)


def test_collected_states_are_whole_with_positions_too() -> None:
    model, batch = model_and_batch()
    collect = jax.jit(lambda m: m.encoder(batch, positions_BP=POSITIONS_BP, collect=("hidden_states",)))
    some, extras = collect(model)
    assert extras["hidden_states"].shape == (4, B, T, 16)
    np.testing.assert_allclose(some, gathered(extras["hidden_states"][-1]), atol=1e-6)


def test_padded_entries_of_the_vocabulary_are_minus_infinity_and_get_no_gradient() -> None:
    model, batch = model_and_batch()

    def loss(model: MaskedLM) -> tuple[jax.Array, jax.Array]:
        logits = model(batch, POSITIONS_BP)
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1)), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(model)
    assert logits.shape == (B, 2, 256)
    assert np.all(np.asarray(logits[..., V:]) == -np.inf) and np.all(np.isfinite(logits[..., :V]))
    assert np.all(np.asarray(gradient.encoder.embedding_VD[V:]) == 0)
    assert np.all(np.asarray(gradient.head.bias_V[...][V:]) == 0)
