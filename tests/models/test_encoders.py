"""What every encoder promises: the same answer padded, packed or alone, and choices of a recipe that change no result.

Runs over tests/models/encoders.py; what only one encoder has is in its own test file.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbert.config import family
from jaxbert.errors import BadInput
from jaxbert.models.heads import MaskedLM, SequenceHead, TokenHead
from jaxbert.objectives.mlm import cross_entropy
from jaxbert.sharding import parameter_name
from tests.models.encoders import POSITIONS, SMALL, VOCABULARY

KEY = jax.random.key(0)
PACKING = [name for name, config in SMALL.items() if family(config.name).Encoder.packs]
slow = partial(pytest.param, marks=pytest.mark.slow)
DTYPES = pytest.mark.parametrize("dtype", ["float64", slow("float32")])
EVERY = pytest.mark.parametrize("name", SMALL)
FIRST = {family(config.name).Encoder: name for name, config in reversed(SMALL.items())}  # of each encoder's forms
EVERY_OTHERS_SLOW = pytest.mark.parametrize("name", [name if name in FIRST.values() else slow(name) for name in SMALL])


def fresh(name: str) -> MaskedLM:
    return jax.jit(lambda key: masked_lm(name, key))(KEY)


def masked_lm(name: str, key: jax.Array, **fields: Any) -> MaskedLM:
    config = dataclasses.replace(SMALL[name], **fields)
    return MaskedLM(family(config.name).Encoder, config, VOCABULARY, key)


def random_model(name: str, dtype: str = "float32", **fields: Any) -> MaskedLM:
    """Every parameter random, norms and biases too: initial zeros would hide what they multiply."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda: masked_lm(name, KEY, **fields)))
    random = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [jnp.asarray(random.normal(0, 0.2, x.shape), dtype) for x in leaves])


def texts(*lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(5, VOCABULARY, length).astype(np.int32) for length in lengths]


def padded(documents: list[np.ndarray], row: int, padding_id: int = 0) -> dict[str, np.ndarray]:
    """One document a row, which `length_B` promises."""
    length_B = np.array([len(document) for document in documents], np.int32)
    real_BT = np.arange(row) < length_B[:, None]
    ids_BT = np.full(real_BT.shape, padding_id, np.int32)
    ids_BT[real_BT] = np.concatenate(documents)
    position_BT = np.where(real_BT, np.arange(row), 0).astype(np.int32)
    segment_BT = real_BT.astype(np.int32)
    return {"input_ids_BT": ids_BT, "segment_ids_BT": segment_BT, "position_ids_BT": position_BT, "length_B": length_B}


def packed(documents: list[np.ndarray], row: int, padding_id: int = 0) -> dict[str, np.ndarray]:
    """All documents in one row."""
    free = row - sum(map(len, documents))
    ids_T = np.concatenate([*documents, np.full(free, padding_id)])
    segment_T = np.concatenate([*(np.full(len(d), i) for i, d in enumerate(documents, 1)), np.zeros(free)])
    position_T = np.concatenate([*(np.arange(len(d)) for d in documents), np.zeros(free)])
    arrays = {"input_ids_BT": ids_T, "segment_ids_BT": segment_T, "position_ids_BT": position_T}
    return {name: array[None].astype(np.int32) for name, array in arrays.items()}


def states(model: MaskedLM, batch: dict[str, np.ndarray]) -> np.ndarray:
    """(B, T, D), computed in the parameters' dtype."""
    return np.asarray(_states(model, batch))


@jax.jit
def _states(model: MaskedLM, batch: dict[str, np.ndarray]) -> jax.Array:
    return model.encoder(batch)[0]


def states_alone(model: MaskedLM, documents: list[np.ndarray]) -> list[np.ndarray]:
    return [states(model, padded([document], len(document)))[0] for document in documents]


def tolerance(name: str, dtype: str) -> float:
    """Of the largest value. The sum of a Fourier transform has a larger error in float32."""
    return 1e-11 if dtype == "float64" else 1e-4 if name.startswith("m2") else 2e-5


# The same answer padded, packed or alone


@EVERY
@DTYPES
@pytest.mark.parametrize("lengths", [[1, 17, 23], slow([23, 9]), slow([7, 11])], ids=str)
def test_a_padded_document_gives_what_it_gives_alone(name: str, dtype: str, lengths: list[int]) -> None:
    with jax.enable_x64(dtype == "float64"):
        model, documents = random_model(name, dtype), texts(*lengths)
        alone, rows = states_alone(model, documents), states(model, padded(documents, 23))
    scale = max(np.abs(x).max() for x in alone)
    for row, x in zip(rows, alone, strict=True):
        assert np.abs(row[: len(x)] - x).max() <= tolerance(name, dtype) * scale


@pytest.mark.parametrize("name", PACKING)
@DTYPES
@pytest.mark.parametrize("lengths", [[1, 17, 1], *map(slow, ([12, 11], [7, 11], [9, 9, 5]))], ids=str)
def test_documents_in_one_row_give_what_each_gives_alone(name: str, dtype: str, lengths: list[int]) -> None:
    with jax.enable_x64(dtype == "float64"):
        model, documents = random_model(name, dtype), texts(*lengths)
        alone, row = states_alone(model, documents), states(model, packed(documents, 23))[0]
    scale, start = max(np.abs(x).max() for x in alone), 0
    for x in alone:
        assert np.abs(row[start : start + len(x)] - x).max() <= tolerance(name, dtype) * scale
        start += len(x)


@EVERY
def test_padding_ids_change_no_bit_of_a_real_output(name: str) -> None:
    model, documents = random_model(name), texts(7, 11)
    layouts = [padded, packed] if name in PACKING else [padded]
    for layout in layouts:
        one, other = (states(model, layout(documents, 23, padding_id)) for padding_id in (0, VOCABULARY - 1))
        real = layout(documents, 23)["segment_ids_BT"] > 0
        np.testing.assert_array_equal(one[real], other[real])


@EVERY_OTHERS_SLOW
def test_the_first_token_sees_the_last_of_its_own_document_and_none_of_another(name: str) -> None:
    ids = np.arange(10, 30, dtype=np.int32)  # all different: a row of the table's gradient is a position
    documents = [ids[:9], ids[9:]]
    batch = packed(documents, 23) if name in PACKING else padded(documents, 13)

    def first_state(model: MaskedLM) -> jax.Array:
        return model.encoder(batch)[0][0, 0].sum()

    model = random_model(name)
    reached = jax.tree.leaves(jax.jit(jax.grad(first_state))(model).encoder.embeddings.word_VD)[0]
    reached_V = np.abs(np.asarray(reached)).sum(1)
    assert reached_V[10 + 8] > 0
    assert (reached_V[10 + 9 : 30] == 0).all()


def test_what_an_encoder_cannot_do_with_several_documents_a_row_is_refused() -> None:
    row = packed(texts(7, 11), 23)
    for name in SMALL:
        if name not in PACKING:
            with pytest.raises(BadInput, match=r"data\.pack"):
                random_model(name).encoder(row)
        elif family(SMALL[name].name).Encoder.reference_reads_padding:
            with pytest.raises(BadInput, match=r"mask_mode.*data\.pack=false"):
                random_model(name, mask_mode="reference").encoder(row)


# Choices that change no result


@EVERY_OTHERS_SLOW
def test_predicted_positions_alone_give_the_rows_of_the_whole(name: str) -> None:
    with jax.enable_x64(True):
        model, batch = random_model(name, "float64"), padded(texts(7, 11), 23)
        positions_BP = np.array([[1, 6, 0], [10, 3, 3]])
        whole = states(model, batch)
        some = np.asarray(jax.jit(lambda m: m.encoder(batch, positions_BP=jnp.asarray(positions_BP))[0])(model))
        np.testing.assert_allclose(some, np.take_along_axis(whole, positions_BP[:, :, None], 1), rtol=1e-10, atol=1e-10)


@EVERY
@pytest.mark.slow
def test_rematerialisation_and_unrolling_change_no_loss_and_no_gradient(name: str) -> None:
    choices: list[dict[str, Any]] = [{}, {"rematerialize": "dots"}, {"rematerialize": "full"}, {"unroll": 3}]
    with jax.enable_x64(True):
        batch = padded(texts(7, 11), 23)

        def loss(model: MaskedLM, key: jax.Array) -> jax.Array:
            return (model(batch, jnp.array([[1, 2], [3, 9]]), key=key)[..., :VOCABULARY] ** 2).sum()

        plain, *others = (
            jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(random_model(name, "float64", **c), jax.random.key(1)))
            for c in choices
        )
    for found, choice in zip(others, choices[1:], strict=True):
        for a, b in zip(found, plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(b).max()), err_msg=str(choice))


@EVERY_OTHERS_SLOW
def test_dropout_follows_its_key_and_is_off_without_one(name: str) -> None:
    rate = {f.name: 0.3 for f in dataclasses.fields(SMALL[name]) if f.name.endswith("dropout")}
    model, batch = random_model(name, **rate), padded(texts(7, 11), 23)
    run = jax.jit(lambda m, key: m.encoder(batch, key=key)[0])
    with_key = [np.asarray(run(model, jax.random.key(k))) for k in (1, 1, 2)]
    np.testing.assert_array_equal(with_key[0], with_key[1])
    assert (with_key[0] != with_key[2]).any()
    assert (with_key[0] != states(model, batch)).any()
    np.testing.assert_array_equal(states(model, batch), states(model, batch))


@EVERY_OTHERS_SLOW
def test_bfloat16_computes_near_float32(name: str) -> None:
    model, batch = fresh(name), padded(texts(23, 11), 23)
    run = jax.jit(lambda m, dtype: m.encoder(batch, dtype=dtype)[0], static_argnums=1)
    half, full = (run(model, dtype) for dtype in (jnp.bfloat16, jnp.float32))
    assert half.dtype == jnp.bfloat16 and full.dtype == jnp.float32
    real = batch["segment_ids_BT"] > 0
    assert np.abs(np.asarray(half, np.float32)[real] - np.asarray(full)[real]).max() < 0.1 * np.abs(full[real]).max()


# What heads and the loop rely on


@EVERY_OTHERS_SLOW
def test_a_fresh_model_knows_nothing(name: str) -> None:
    documents = texts(23, 23, 23, 23)
    positions = jnp.tile(jnp.arange(23), (4, 1))
    logits = jax.jit(lambda m: m(padded(documents, 23), positions))(fresh(name))
    loss = float(cross_entropy(logits, jnp.asarray(np.stack(documents)))[0].mean())
    assert abs(loss - np.log(VOCABULARY)) < 0.5


@EVERY
def test_hidden_states_are_the_input_and_every_blocks_output(name: str) -> None:
    model = random_model(name)
    x_BTD, extras = jax.jit(lambda m: m.encoder(padded(texts(7, 11), 23), collect=("hidden_states",)))(model)
    assert extras["hidden_states"].shape == (SMALL[name].num_layers + 1, *x_BTD.shape)


@EVERY
def test_every_head_reads_the_final_states(name: str) -> None:
    x_BTD, rngs = _states(random_model(name), padded(texts(7, 11), 23)), nnx.Rngs(0)
    assert SequenceHead(SMALL[name], 5, rngs=rngs)(x_BTD).shape == (2, 5)
    assert TokenHead(SMALL[name], 2, rngs=rngs)(x_BTD).shape == (2, 23, 2)


@EVERY_OTHERS_SLOW
def test_padded_vocabulary_rows_are_zero_have_no_probability_and_no_gradient(name: str) -> None:
    model, batch, positions = fresh(name), padded(texts(7, 11), 23), jnp.array([[1, 2], [3, 9]])

    def loss(model: MaskedLM) -> tuple[jax.Array, jax.Array]:
        logits = model(batch, positions)
        return jax.nn.logsumexp(logits, axis=-1).sum(), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(model)
    tables = [
        (parameter_name(path), np.asarray(leaf), np.asarray(slope))
        for (path, leaf), slope in zip(
            jax.tree_util.tree_flatten_with_path(model)[0], jax.tree.leaves(gradient), strict=True
        )
        if "V" in parameter_name(path).rpartition("_")[2]
    ]
    assert tables
    for table_name, table, slope in tables:
        assert len(table) == 256 and (table[VOCABULARY:] == 0).all(), table_name
        assert (slope[VOCABULARY:] == 0).all() and (slope[:VOCABULARY] != 0).any(), table_name
    assert (logits[..., VOCABULARY:] == -jnp.inf).all()


@EVERY
def test_the_letters_of_a_parameters_name_are_its_axes(name: str) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(random_model(name))[0]:
        letters = parameter_name(path).rpartition("_")[2]
        stacked = "blocks" in jax.tree_util.keystr(path)
        assert letters.isupper() and len(letters) == leaf.ndim - stacked, (parameter_name(path), leaf.shape)


def test_the_table_covers_positions() -> None:
    assert all(getattr(config, "max_positions", POSITIONS) == POSITIONS for config in SMALL.values())
