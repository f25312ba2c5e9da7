"""The loss at masked tokens: cross-entropy and z-loss against plain ones in float64 (value, gradient), and the sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert import config
from jaxbert.objectives.mlm import MaskedLanguageModelling, cross_entropy

V, B, T, P = 300, 3, 12, 4


def plain(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]


def logits_and_labels(padding: int = 0) -> tuple[jax.Array, jax.Array]:
    logits = 3 * jax.random.normal(jax.random.key(0), (B, P, V), jnp.float64)
    labels = jax.random.randint(jax.random.key(1), (B, P), 0, V)
    return jnp.pad(logits, ((0, 0), (0, 0), (0, padding)), constant_values=-jnp.inf), labels


@pytest.mark.parametrize("padding", [0, 84])
def test_cross_entropy_and_its_gradient_are_the_plain_ones(padding: int) -> None:
    with jax.enable_x64(True):
        logits, labels = logits_and_labels(padding)
        weights = jnp.linspace(0, 2, B * P).reshape(B, P)
        ours, theirs = (
            jax.value_and_grad(lambda x, f=f: jnp.sum(f(x) * weights))(logits)
            for f in (lambda x: cross_entropy(x, labels)[0], lambda x: plain(x, labels))
        )
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-13)
        np.testing.assert_allclose(ours[1][..., :V], theirs[1][..., :V], atol=1e-14)
        assert np.all(np.asarray(ours[1][..., V:]) == 0)  # padded entries of the vocabulary get no gradient


@pytest.mark.parametrize("padding", [0, 84])
def test_z_loss_and_its_gradient_are_palms(padding: int) -> None:
    # arXiv:2204.02311, §5: "an auxiliary loss of z_loss = 10⁻⁴ · log² Z", here with a weight that shows.
    with jax.enable_x64(True):
        logits, labels = logits_and_labels(padding)
        weights = jnp.linspace(0, 2, B * P).reshape(B, P)

        def ours(x: jax.Array) -> jax.Array:
            nll, _, log_z = cross_entropy(x, labels)
            return jnp.sum((nll + 0.3 * log_z**2) * weights)

        def palms(x: jax.Array) -> jax.Array:
            z = jnp.sum(jnp.exp(x[..., :V]), axis=-1)
            return jnp.sum((plain(x, labels) + 0.3 * jnp.log(z) ** 2) * weights)

        found, expected = (jax.value_and_grad(f)(logits) for f in (ours, palms))
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-13)
        np.testing.assert_allclose(found[1][..., :V], expected[1][..., :V], atol=1e-13)
        assert np.all(np.asarray(found[1][..., V:]) == 0)


def test_a_hit_is_a_label_with_the_largest_logit() -> None:
    with jax.enable_x64(True):
        logits, labels = logits_and_labels()
        labels = labels.at[0].set(jnp.argmax(logits[0], axis=-1))
        hits = cross_entropy(logits, labels)[1]
        np.testing.assert_array_equal(hits, jnp.argmax(logits, axis=-1) == labels)


def test_large_logits_do_not_overflow() -> None:
    logits = jnp.array([[1e4, -1e4, 0.0]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([2]))[0], [1e4])
    assert np.all(np.isfinite(jax.grad(lambda x: cross_entropy(x, jnp.array([2]))[0].sum())(logits)))


@pytest.fixture(scope="module")
def objective() -> MaskedLanguageModelling:
    model = config.named_model("bert_tiny", hidden_size=32, num_heads=2, feed_forward_size=64, max_positions=T)
    recipe = config.resolve(config.Config(model=model, train=config.Train(steps=1)))
    return MaskedLanguageModelling(recipe, vocab_size=V, mask_id=4, special_ids=frozenset(range(5)))


def batch_of(weights_BP: np.ndarray) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "input_ids_BT": random.integers(5, V, (B, T)).astype(np.int32),
        "segment_ids_BT": np.ones((B, T), np.int32),
        "position_ids_BT": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "positions_BP": np.tile(np.array([1, 3, 5, 8], np.int32), (B, 1)),
        "labels_BP": random.integers(5, V, (B, P)).astype(np.int32),
        "weights_BP": weights_BP.astype(np.float32),
    }


def test_the_loss_is_a_sum_over_real_predictions(objective: MaskedLanguageModelling) -> None:
    model, weights = jax.jit(objective.init)(jax.random.key(0)), np.ones((B, P))
    weights[1, 2:] = 0
    batch = batch_of(weights)
    total, count, _ = jax.jit(objective.loss)(model, batch, None)
    logits = jax.jit(lambda m: m(batch, batch["positions_BP"]))(model)
    nll = plain(logits[..., :V], batch["labels_BP"])
    np.testing.assert_allclose(total, np.sum(nll * weights), rtol=1e-5)
    assert count == B * P - 2


def test_z_loss_is_minimised_and_told_beside_the_loss_which_stays_cross_entropy(
    objective: MaskedLanguageModelling,
) -> None:
    settings = dataclasses.replace(objective.config, objective=config.Objective(z_loss=1e-2))
    regularized = MaskedLanguageModelling(settings, vocab_size=V, mask_id=4, special_ids=frozenset(range(5)))
    model, batch = jax.jit(objective.init)(jax.random.key(0)), batch_of(np.ones((B, P)))
    total, count, metrics = jax.jit(regularized.loss)(model, batch, None)
    log_z = jax.jit(lambda m: jax.nn.logsumexp(m(batch, batch["positions_BP"])[..., :V], axis=-1))(model)
    np.testing.assert_allclose(metrics["z_loss"], 1e-2 * np.sum(log_z**2), rtol=1e-5)
    np.testing.assert_allclose(total, metrics["loss"] + metrics["z_loss"], rtol=1e-6)
    off, same_count, told = jax.jit(objective.loss)(model, batch, None)
    assert metrics["loss"] == off and count == same_count and set(told) == {"accuracy"}
    assert jax.jit(regularized.score)(model, batch)["loss"] == off


def test_filling_changes_neither_loss_nor_gradient(objective: MaskedLanguageModelling) -> None:
    weights = np.ones((B, P))
    weights[:, 3] = 0
    batch = batch_of(weights)
    other = {**batch, "labels_BP": batch["labels_BP"].copy()}
    other["labels_BP"][:, 3] = 7
    model = jax.jit(objective.init)(jax.random.key(0))
    value_and_grad = jax.jit(jax.value_and_grad(lambda m, b: objective.loss(m, b, None)[0]))
    one, two = (value_and_grad(model, b) for b in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_dropout_happens_with_a_key_and_not_without(objective: MaskedLanguageModelling) -> None:
    model, batch = jax.jit(objective.init)(jax.random.key(0)), batch_of(np.ones((B, P)))
    loss = jax.jit(objective.loss)
    losses = [float(loss(model, batch, key)[0]) for key in (None, None, jax.random.key(1), jax.random.key(2))]
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_a_fresh_model_starts_at_the_logarithm_of_the_vocabulary(objective: MaskedLanguageModelling) -> None:
    model, batch = jax.jit(objective.init)(jax.random.key(0)), batch_of(np.ones((B, P)))
    total, count, _ = jax.jit(objective.loss)(model, batch, None)
    assert abs(total / count - objective.initial_loss) < 0.1


class FakeRows:
    """Three rows of one document each, of 5, 9 and 12 tokens."""

    one_document: bool = True
    row_length, first = T, 7

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        segment_BT = (np.arange(T) < np.array([5, 9, 12])[row_B][:, None]).astype(np.int32)
        return 10 * segment_BT + row_B[:, None].astype(np.int32), segment_BT > 0, segment_BT


def test_rows_of_one_document_say_their_lengths_and_a_number_past_the_last_row_is_an_empty_row(
    objective: MaskedLanguageModelling,
) -> None:
    batch = objective.make_batch(FakeRows(), np.zeros(4, int), np.array([2, 3, 0, 3]), seed=1)
    np.testing.assert_array_equal(batch["length_B"], [12, 0, 5, 0])
    np.testing.assert_array_equal(batch["tokens_B"], [12, 0, 5, 0])
    np.testing.assert_array_equal(batch["weights_BP"].sum(1) > 0, [True, False, True, False])
    assert (batch["segment_ids_BT"][[1, 3]] == 0).all()


@pytest.mark.parametrize("one_document", [True, False])
def test_the_shapes_of_a_batch_are_known_without_rows(objective: MaskedLanguageModelling, one_document: bool) -> None:
    rows = FakeRows()
    rows.one_document = one_document
    batch = objective.make_batch(rows, np.zeros(4, int), np.arange(4) % 3, seed=1)
    shapes = objective.batch_shapes(4, T, one_document=one_document)
    assert {n: (s.shape, s.dtype) for n, s in shapes.items()} == {n: (a.shape, a.dtype) for n, a in batch.items()}
