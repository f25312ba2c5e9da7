"""BERT's key map and configuration against transformers' own names, shapes and sizes."""

import math
import typing

import jax
import numpy as np
import pytest
from flax import nnx

from jaxbert import config
from jaxbert.convert import EXPORTERS, exporter
from jaxbert.convert import bert as convert
from jaxbert.convert.key_map import flatten, from_torch, to_torch
from jaxbert.errors import BadInput
from jaxbert.models import bert
from jaxbert.models.heads import MaskedLM, NextSentenceHead, Pooler

VOCAB = 203  # stored in 256 rows
PUBLISHED = {  # parameters with the masked-LM head and 30,522 tokens
    "bert_tiny": 4_416_698,
    "bert_mini": 11_201_594,
    "bert_small": 28_795_194,
    "bert_medium": 41_404_730,
    "bert_base": 109_514_298,
    "bert_large": 335_174_458,
}
FIELDS = {"num_layers": 3, "hidden_size": 32, "num_heads": 4, "feed_forward_size": 48, "max_positions": 40}


def settings(name="bert_tiny", **fields):
    return config.resolve(config.Config(model=config.named_model(name, **fields), train=config.Train(steps=1))).model


def small():
    return settings(**FIELDS, activation="gelu_tanh", type_vocab_size=3, norm_epsilon=1e-7)


def test_every_encoder_that_can_be_trained_has_an_exporter_or_says_so():
    assert exporter("bert_mini") is convert and set(EXPORTERS) <= set(config.FAMILIES)
    with pytest.raises(BadInput, match=r"model\.name: 'other_tiny' cannot be exported"):
        exporter("other_tiny")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_named_size_has_the_published_number_of_parameters(name):
    abstract = jax.eval_shape(lambda: MaskedLM(bert.Bert, settings(name), 30_522, jax.random.key(0)))
    tables = [row.ours for row in convert.MASKED_LM if row.transform == "vocabulary"]
    shapes = {leaf: array.shape for leaf, array in flatten(abstract).items()}
    count = sum(math.prod((30_522, *s[1:]) if leaf in tables else s) for leaf, s in shapes.items())
    assert count == PUBLISHED[name]


def test_names_and_shapes_are_those_of_transformers():
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    model = MaskedLM(bert.Bert, small(), VOCAB, jax.random.key(0))
    ours = to_torch(model, convert.MASKED_LM, VOCAB, convert.torch_shapes(small()))
    with torch.device("meta"):
        theirs = transformers.BertForMaskedLM(transformers.BertConfig(**convert.to_hf_config(small(), VOCAB, 0)))
    named = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}  # tied ones once
    assert {name: array.shape for name, array in ours.items()} == named


def test_export_and_import_change_no_bit_and_padded_rows_come_back_as_zeros():
    model = MaskedLM(bert.Bert, small(), VOCAB, jax.random.key(1))
    random = np.random.default_rng(0)
    model = jax.tree.map(lambda x: x + random.normal(size=x.shape).astype(x.dtype), model)
    for table in ("word_VD", "bias_V"):
        owner = model.encoder.embeddings if table == "word_VD" else model.head
        getattr(owner, table)[...] = getattr(owner, table)[...].at[VOCAB:].set(0.0)
    state = to_torch(model, convert.MASKED_LM, VOCAB, convert.torch_shapes(small()))
    back = from_torch(state, convert.MASKED_LM, jax.eval_shape(lambda: model))
    assert jax.tree.structure(back) == jax.tree.structure(model)
    for name, leaf in flatten(back).items():
        np.testing.assert_array_equal(leaf, np.asarray(flatten(model)[name]), strict=True, err_msg=name)
    again = to_torch(back, convert.MASKED_LM, VOCAB, convert.torch_shapes(small()))
    assert all((again[name] == array).all() for name, array in state.items())


@pytest.mark.parametrize("head, table", [(Pooler, convert.POOLER), (NextSentenceHead, convert.NEXT_SENTENCE)])
def test_the_sentence_heads_go_there_and_back(head, table):
    module = head(small(), rngs=nnx.Rngs(0))
    state = to_torch(module, table, VOCAB, {})
    back = from_torch(state, table, jax.eval_shape(lambda: module))
    assert all((leaf == np.asarray(flatten(module)[name])).all() for name, leaf in flatten(back).items())


@pytest.mark.parametrize("activation", convert.ACTIVATIONS)
def test_transformers_reads_every_field_of_config_json(activation):
    transformers = pytest.importorskip("transformers")
    given = convert.to_hf_config(settings(**FIELDS, activation=activation), VOCAB, 7)
    read = transformers.BertConfig(**given).to_dict()
    assert {name: read[name] for name in given} == given
    assert set(given) - set(transformers.BertConfig().to_dict()) == set()


def test_every_activation_of_a_recipe_has_a_name_in_transformers():
    assert set(convert.ACTIVATIONS) == set(typing.get_args(typing.get_type_hints(bert.Config)["activation"]))
