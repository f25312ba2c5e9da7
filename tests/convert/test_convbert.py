"""ConvBERT's key map and configurations against transformers' own class and against ours."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbert import config
from jaxbert.convert import convbert as convert
from jaxbert.convert.bert import ACTIVATIONS
from jaxbert.convert.key_map import flatten, from_torch, to_torch
from jaxbert.errors import BadInput
from jaxbert.models import convbert
from tests.models.encoders import SMALL
from tests.models.test_encoders import padded, random_model, texts

VOCAB = 150
FORMS = pytest.mark.parametrize("form", ["convbert", pytest.param("convbert_grouped", marks=pytest.mark.slow)])


def native_model(form: str, **fields):
    """transformers' class, float64, on one thread."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    given = convert.to_native_config(dataclasses.replace(SMALL[form], **fields), VOCAB, 0)
    torch.manual_seed(0)
    model = transformers.ConvBertForMaskedLM(transformers.ConvBertConfig(**given)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def settings(name: str) -> convbert.Config:
    recipe = config.Config(model=config.named_model(name), train=config.Train(steps=1))
    return config.resolve(recipe).model


def changed(tree):
    """Every parameter random; rows past the vocabulary are zero."""
    random = np.random.default_rng(0)
    names = flatten(tree)
    leaves = {name: random.normal(size=x.shape).astype("float32") for name, x in names.items()}
    for name in ("encoder/embeddings/word_VD", "head/bias_V"):
        leaves[name][VOCAB:] = 0.0
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in names])


@FORMS
def test_names_and_shapes_are_those_of_transformers(form: str) -> None:
    theirs = {name: tuple(p.shape) for name, p in native_model(form).named_parameters()}  # tied ones once
    shapes = convert.torch_shapes(SMALL[form])
    ours = to_torch(random_model(form), convert.masked_lm(SMALL[form]), VOCAB, shapes)
    assert {name: array.shape for name, array in ours.items()} == theirs


@FORMS
@pytest.mark.parametrize("mask_mode", [pytest.param("exact", marks=pytest.mark.slow), "reference"])
def test_rows_without_padding_give_what_transformers_gives(form: str, mask_mode: str) -> None:
    torch = pytest.importorskip("torch")
    theirs = native_model(form)
    state = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    with jax.enable_x64(True):
        abstract = jax.eval_shape(lambda: random_model(form, "float64", mask_mode=mask_mode))
        ours = jax.tree.map(jnp.asarray, from_torch(state, convert.masked_lm(SMALL[form]), abstract))
        for length in (1, 3, 11, 40):
            (ids,) = texts(length)
            types = np.arange(length, dtype=np.int32)[None] % 2
            batch = {**padded([ids], length), "token_type_ids_BT": types}
            logits = np.asarray(ours(batch, jnp.arange(length)[None]))[..., :VOCAB]
            with torch.inference_mode():
                expected = theirs(
                    input_ids=torch.from_numpy(ids[None]).long(), token_type_ids=torch.from_numpy(types).long()
                ).logits.numpy()
            assert np.abs(logits - expected).max() <= 1e-9


@FORMS
def test_export_and_import_change_no_bit(form: str) -> None:
    model, rows, shapes = changed(random_model(form)), convert.masked_lm(SMALL[form]), convert.torch_shapes(SMALL[form])
    state = to_torch(model, rows, VOCAB, shapes)
    back = from_torch(state, rows, jax.eval_shape(lambda: model), shapes, vocab_size=VOCAB)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    for name, leaf in flatten(back).items():
        np.testing.assert_array_equal(leaf, flatten(model)[name], strict=True, err_msg=name)
    again = to_torch(back, rows, VOCAB, shapes)
    assert set(again) == set(state) and all((again[name] == array).all() for name, array in state.items())


@FORMS
def test_the_tied_decoder_may_be_stored_too_and_must_be_equal(form: str) -> None:
    rows, model = convert.masked_lm(SMALL[form]), random_model(form)
    state = to_torch(model, rows, VOCAB, convert.torch_shapes(SMALL[form]))
    table = state["convbert.embeddings.word_embeddings.weight"]
    abstract = jax.eval_shape(lambda: model)
    from_torch(state | {"generator_lm_head.weight": table}, rows, abstract)
    with pytest.raises(BadInput, match=r"generator_lm_head\.weight are tied"):
        from_torch(state | {"generator_lm_head.weight": table + 1}, rows, abstract)


def test_transformers_reads_every_field_of_the_native_configuration() -> None:
    transformers = pytest.importorskip("transformers")
    for name in convbert.SIZES:
        given = convert.to_native_config(settings(name), VOCAB, 7)
        read = transformers.ConvBertConfig(**given).to_dict()
        assert {field: read[field] for field in given} == given
        assert set(given) - set(transformers.ConvBertConfig().to_dict()) == set()


@pytest.mark.parametrize("name", convbert.SIZES)
def test_a_configuration_goes_there_and_back(name: str) -> None:
    ours = settings(name)
    for to_config in (convert.to_hf_config, convert.to_native_config):
        assert convert.from_hf_config(to_config(ours, VOCAB, 0)) == ours
    other = dataclasses.replace(ours, activation="relu", mask_mode="reference", hidden_dropout=0.0, kernel_size=5)
    assert convert.from_hf_config(convert.to_hf_config(other, VOCAB, 0)) == other


def test_an_empty_configuration_means_transformers_defaults() -> None:
    transformers = pytest.importorskip("transformers")
    assert convert.from_hf_config({}) == convert.from_hf_config(transformers.ConvBertConfig().to_dict())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"head_ratio": 3}, "head_ratio=3 "),
        ({"hidden_act": "relu"}, "hidden_act='relu' "),
        ({"hidden_act": "swish", "is_decoder": True}, "hidden_act='swish' .*is_decoder=True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"num_groups": "two"}, "num_groups='two' is no int"),
        ({"sparse_attention": True}, "sparse_attention=True"),
        ({"mask_mode": "causal"}, "mask_mode='causal'"),
    ],
    ids=str,
)
def test_fields_that_are_not_supported_are_refused_by_name(fields: dict, message: str) -> None:
    given = {**convert.to_native_config(settings("convbert_small"), VOCAB, 0), **fields}
    with pytest.raises(BadInput, match=f"config.json: not supported: {message}"):
        convert.from_hf_config(given)


def test_fields_of_other_heads_are_left_alone() -> None:
    given = {"classifier_dropout": 0.2, "summary_type": "first", "summary_use_proj": True}
    assert convert.from_hf_config(given) == convert.from_hf_config({})


def test_a_head_that_transformers_class_lacks_is_not_exported_to_it() -> None:
    for activation in set(ACTIVATIONS) - {"gelu"}:
        with pytest.raises(BadInput, match=rf"model\.activation: '{activation}'.*without --native"):
            convert.to_native_config(dataclasses.replace(SMALL["convbert"], activation=activation), VOCAB, 0)


def test_every_activation_of_a_recipe_has_a_name_there_and_back() -> None:
    for activation in typing.get_args(typing.get_type_hints(convbert.Config)["activation"]):
        ours = dataclasses.replace(settings("convbert_small"), activation=activation)
        assert convert.from_hf_config(convert.to_hf_config(ours, VOCAB, 0)).activation == activation
