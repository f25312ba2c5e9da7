"""BERT: published sizes, exactness under padding and packing, and the choices of a recipe that change no result."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbert.errors import BadInput
from jaxbert.models import bert
from jaxbert.models.heads import MaskedLM, NextSentenceHead, Pooler
from jaxbert.train import count_parameters

KEY = jax.random.key(0)


def sized(name: str, **fields) -> bert.Config:
    return dataclasses.replace(bert.Config(name=name, **bert.SIZES[name]), **fields)


# Parameters of transformers' BertForPreTraining, BertModel and BertForMaskedLM with 30,522 tokens and 512 positions.
PUBLISHED = {
    "bert_tiny": (4_433_468, 4_385_920, 4_416_698),
    "bert_mini": (11_267_900, 11_170_560, 11_201_594),
    "bert_small": (29_058_876, 28_763_648, 28_795_194),
    "bert_medium": (41_668_412, 41_373_184, 41_404_730),
    "bert_base": (110_106_428, 109_482_240, 109_514_298),
    "bert_large": (336_226_108, 335_141_888, 335_174_458),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    config, vocab_size = sized(name), 30_522
    model = jax.eval_shape(lambda: MaskedLM(bert.Bert, config, vocab_size, KEY))
    pooler = jax.eval_shape(lambda: Pooler(config, rngs=nnx.Rngs(KEY)))
    nsp = jax.eval_shape(lambda: NextSentenceHead(config, rngs=nnx.Rngs(KEY)))
    masked_lm, encoder, pool, next_sentence = (
        count_parameters(part, vocab_size) for part in (model, model.encoder, pooler, nsp)
    )
    assert (masked_lm + pool + next_sentence, encoder + pool, masked_lm) == PUBLISHED[name]


def test_all_24_released_sizes_have_names() -> None:
    grid = [(n, d) for n in (2, 4, 6, 8, 10, 12) for d in (128, 256, 512, 768)]
    for layers, width in grid:
        size = bert.SIZES[f"bert_L{layers}_D{width}"]
        assert size == {
            "num_layers": layers,
            "hidden_size": width,
            "num_heads": width // 64,
            "feed_forward_size": 4 * width,
        }


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(BadInput, match="model.num_heads: 3 does not divide model.hidden_size 128"):
        bert.Bert(sized("bert_tiny", num_heads=3), 100, rngs=nnx.Rngs(KEY))


SMALL = bert.Config(num_layers=3, hidden_size=24, num_heads=3, feed_forward_size=40, max_positions=40)


def model_and_batch(dtype: str, lengths: list[int], row: int) -> tuple[MaskedLM, dict]:
    """A model with every parameter random, and documents of `lengths`, each alone in a row of `row` tokens."""
    model = MaskedLM(bert.Bert, SMALL, 150, KEY)
    leaves, structure = jax.tree.flatten(model)
    random = np.random.default_rng(0)
    leaves = [jnp.asarray(random.normal(0, 0.2, leaf.shape), dtype) for leaf in leaves]
    ids = random.integers(5, 150, (len(lengths), row)).astype(np.int32)
    segments = (np.arange(row) < np.array(lengths)[:, None]).astype(np.int32)
    positions = np.tile(np.arange(row, dtype=np.int32), (len(lengths), 1))
    batch = {"input_ids_BT": ids, "segment_ids_BT": segments, "position_ids_BT": positions}
    return jax.tree.unflatten(structure, leaves), batch


def states(model: MaskedLM, batch: dict) -> np.ndarray:
    return np.asarray(model.encoder(batch)[0])


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-11), ("float32", 2e-5)])
@pytest.mark.parametrize("lengths", [[7, 11], [1, 17], [9, 9]])
def test_padded_packed_and_alone_give_the_same(dtype: str, tolerance: float, lengths: list[int]) -> None:
    with jax.enable_x64(dtype == "float64"):
        model, padded = model_and_batch(dtype, lengths, 23)
        alone = [
            states(model, {name: array[i : i + 1, :length] for name, array in padded.items()})[0]
            for i, length in enumerate(lengths)
        ]
        in_rows = states(model, padded)
        first, second = lengths
        packed = {
            name: np.concatenate([array[0, :first], array[1, :second], array[0, :5]])[None]
            for name, array in padded.items()
        }
        packed["segment_ids_BT"] = np.array([[1] * first + [2] * second + [0] * 5], np.int32)
        together = states(model, packed)[0]
    scale = max(np.abs(x).max() for x in alone)
    for i, (x, start) in enumerate(zip(alone, (0, first), strict=True)):
        assert np.abs(in_rows[i, : len(x)] - x).max() <= tolerance * scale
        assert np.abs(together[start : start + len(x)] - x).max() <= tolerance * scale


def test_padding_ids_change_no_bit_of_a_real_output() -> None:
    model, batch = model_and_batch("float32", [7, 11], 23)
    other = dict(batch, input_ids_BT=np.where(batch["segment_ids_BT"] > 0, batch["input_ids_BT"], 149))
    real = batch["segment_ids_BT"] > 0
    np.testing.assert_array_equal(states(model, batch)[real], states(model, other)[real])


def test_the_first_token_sees_the_last_of_its_own_document_and_none_of_another() -> None:
    model, batch = model_and_batch("float32", [20], 20)
    batch["segment_ids_BT"] = np.array([[1] * 9 + [2] * 11], np.int32)

    batch["input_ids_BT"] = np.arange(10, 30, dtype=np.int32)[None]  # all different: a gradient row is a position
    gradient = jax.grad(lambda model: model.encoder(batch)[0][0, 0].sum())(model).encoder.embedding_VD
    gradient = np.abs(np.asarray(gradient)).sum(1)
    assert gradient[18] > 0
    assert (gradient[19:30] == 0).all()


@pytest.mark.parametrize("fields", [{"rematerialize": "dots"}, {"rematerialize": "full"}, {"unroll": 3}])
def test_rematerialisation_and_unrolling_change_no_loss_and_no_gradient(fields: dict) -> None:
    with jax.enable_x64(True):
        model, batch = model_and_batch("float64", [7, 11], 23)

        def loss(model: MaskedLM, key: jax.Array) -> jax.Array:
            return (model(batch, jnp.array([[1, 2], [3, 9]]), key=key)[..., :150] ** 2).sum()

        found = []
        for config in (SMALL, dataclasses.replace(SMALL, **fields)):
            leaves = jax.tree.leaves(model)
            same = jax.tree.unflatten(jax.tree.structure(MaskedLM(bert.Bert, config, 150, KEY)), leaves)
            found.append(jax.value_and_grad(loss)(same, jax.random.key(1)))
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_padded_vocabulary_rows_are_zero_have_no_probability_and_no_gradient() -> None:
    model = MaskedLM(bert.Bert, SMALL, 150, KEY)
    _, batch = model_and_batch("float32", [7, 11], 23)
    positions = jnp.array([[1, 2], [3, 9]])
    assert model.encoder.embedding_VD.shape[0] == 256
    assert (model.encoder.embedding_VD[150:] == 0).all()
    assert (model(batch, positions)[..., 150:] == -jnp.inf).all()
    gradient = jax.grad(lambda m: jax.nn.logsumexp(m(batch, positions), axis=-1).sum())(model)
    assert (gradient.encoder.embedding_VD[150:] == 0).all() and (gradient.head.bias_V[150:] == 0).all()
    assert (gradient.encoder.embedding_VD[:150] != 0).any()


def test_dropout_follows_its_key_and_is_off_without_one() -> None:
    model, batch = model_and_batch("float32", [7, 11], 23)
    with_key = [np.asarray(model.encoder(batch, key=jax.random.key(k))[0]) for k in (1, 1, 2)]
    np.testing.assert_array_equal(with_key[0], with_key[1])
    assert (with_key[0] != with_key[2]).any()
    np.testing.assert_array_equal(states(model, batch), states(model, batch))
