"""M2-BERT's key map and configurations against the published names, as golden files hold them."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxbert import config
from jaxbert.convert import m2 as convert
from jaxbert.convert.key_map import flatten, from_torch, to_torch
from jaxbert.errors import BadInput
from jaxbert.models import m2
from jaxbert.models.heads import MaskedLM
from tests.models.encoders import SMALL, VOCABULARY
from tests.models.test_encoders import random_model

GOLDEN = Path(__file__).parents[1] / "golden"
FORMS = pytest.mark.parametrize("form", ["m2", "m2_additions"])
CASES = pytest.mark.parametrize("case", ["m2_bert_T12_ragged", "m2_bert_additions_T16_full"])
FREQUENCY = "bert.encoder.layer.1.attention.filter_fn.implicit_filter_rev.5.freq"


def settings(name: str) -> m2.Config:
    recipe = config.Config(model=config.named_model(name), train=config.Train(steps=1))
    return config.resolve(recipe).model


def published(case: str) -> tuple[dict, dict[str, np.ndarray], dict[str, str]]:
    """config.json, every tensor of a state dict (buffers and tied names too) and which names are tied to which."""
    data = np.load(GOLDEN / f"{case}.npz")
    given, tied = json.loads(str(data["config"]))["full_config"], json.loads(str(data["tied"]))
    state = {name.partition("/")[2]: data[name] for name in data.files if name.startswith(("params/", "buffers/"))}
    return given, state | {alias: state[name] for alias, name in tied.items()}, tied


@CASES
def test_a_published_state_dict_is_read_whole_and_comes_out_under_its_own_names(case: str) -> None:
    given, state, tied = published(case)
    ours, vocab_size = convert.from_hf_config(given), given["vocab_size"]
    rows, shapes = convert.masked_lm(ours), convert.torch_shapes(ours)
    abstract = jax.eval_shape(lambda: MaskedLM(m2.Encoder, ours, vocab_size, jax.random.key(0)))
    tree = from_torch(state, rows, abstract, shapes, vocab_size=vocab_size, ignore=convert.IGNORE)
    again = to_torch(tree, rows, vocab_size, shapes)
    buffers = {name for name in state if name.endswith((".pos_emb.t", ".modulation.deltas"))}
    assert set(again) == set(state) - set(tied) - buffers
    for name, array in again.items():
        np.testing.assert_array_equal(array, state[name], strict=True, err_msg=name)


@CASES
def test_what_the_filters_fade_with_is_the_published_buffer(case: str) -> None:
    given, state, _ = published(case)
    deltas_D = np.abs(state["bert.encoder.layer.0.attention.filter_fn2.modulation.deltas"][0, 0])
    t_T = state["bert.encoder.layer.0.attention.filter_fn2.pos_emb.t"][0, :, 0]
    with jax.enable_x64(True):
        found_TD = m2.fading(given["long_conv_l_max"], given["hidden_size"], 12, np.float64)
    np.testing.assert_allclose(found_TD, np.exp(-t_T[:12, None] * deltas_D), rtol=1e-14)


def test_sines_whose_frequencies_differ_are_refused() -> None:
    given, state, _ = published("m2_bert_T12_ragged")
    ours = convert.from_hf_config(given)
    abstract = jax.eval_shape(lambda: MaskedLM(m2.Encoder, ours, given["vocab_size"], jax.random.key(0)))
    state[FREQUENCY] = state[FREQUENCY] + 1
    with pytest.raises(BadInput, match=r"layer\.1\.attention\.filter_fn\.implicit_filter\.1\.freq .*_rev\.5\.freq are"):
        from_torch(state, convert.masked_lm(ours), abstract, convert.torch_shapes(ours), ignore=convert.IGNORE)


@FORMS
def test_export_and_import_change_no_bit(form: str) -> None:
    model, ours = random_model(form), SMALL[form]
    names = flatten(model)
    cut = {name: names[name].at[VOCABULARY:].set(0) for name in ("encoder/embeddings/word_VD", "head/bias_V")}
    model = jax.tree.unflatten(jax.tree.structure(model), [cut.get(name, leaf) for name, leaf in names.items()])
    rows, shapes = convert.masked_lm(ours), convert.torch_shapes(ours)
    state = to_torch(model, rows, VOCABULARY, shapes)
    back = from_torch(state, rows, jax.eval_shape(lambda: model), shapes, vocab_size=VOCABULARY)
    for name, leaf in flatten(back).items():
        np.testing.assert_array_equal(leaf, flatten(model)[name], strict=True, err_msg=name)


@FORMS
def test_names_and_shapes_are_those_of_our_torch_class(form: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from jaxbert.convert.torch_models.modeling_m2 import M2Config, M2ForMaskedLM

    model = M2ForMaskedLM(M2Config(**convert.to_hf_config(SMALL[form], VOCABULARY, 0)))
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}  # tied ones once
    rows, shapes = convert.masked_lm(SMALL[form]), convert.torch_shapes(SMALL[form])
    assert {
        name: array.shape for name, array in to_torch(random_model(form), rows, VOCABULARY, shapes).items()
    } == theirs


def test_wrappers_prefixes_are_taken_off() -> None:
    names = ["model.bert.embeddings.LayerNorm.bias", "bert.embeddings.LayerNorm.weight"]
    assert list(convert.published_names(names).values()) == [
        "bert.embeddings.LayerNorm.bias",
        "bert.embeddings.LayerNorm.weight",
    ]


@pytest.mark.parametrize("name", m2.SIZES)
def test_a_configuration_goes_there_and_back(name: str) -> None:
    ours = settings(name)
    assert convert.from_hf_config(convert.to_hf_config(ours, VOCABULARY, 0)) == ours
    other = dataclasses.replace(ours, activation="relu", mask_mode="reference", filter_order=17, sine_frequency=3.5)
    assert convert.from_hf_config(convert.to_hf_config(other, VOCABULARY, 0)) == other


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"use_flash_mm": True}, "use_flash_mm=True"),
        ({"bidirectional": False, "hyena_w_mod": 2}, "bidirectional=False .*hyena_w_mod=2"),
        ({"residual_long_conv": False}, "residual_long_conv=False"),
        ({"use_monarch_mlp": False}, "use_monarch_mlp=False"),
        ({"use_glu_mlp": False}, "use_glu_mlp=False"),
        ({"monarch_mixer_sequence_mixing": False}, "monarch_mixer_sequence_mixing=False"),
        ({"use_positional_encodings": False}, "use_positional_encodings=False"),
        ({"sequence_token_planting": True}, "sequence_token_planting=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"hidden_act": "swish"}, "hidden_act='swish'"),
        ({"hyena_emb_dim": "five"}, "hyena_emb_dim='five' is no int"),
        ({"rotary": True}, "rotary=True"),
        ({"max_position_embeddings": 512}, "max_position_embeddings=512 is not long_conv_l_max=16"),
    ],
    ids=str,
)
def test_fields_that_are_not_supported_are_refused_by_name(fields: dict, message: str) -> None:
    given, _, _ = published("m2_bert_T12_ragged")
    with pytest.raises(BadInput, match=f"config.json: .*{message}"):
        convert.from_hf_config(given | fields)


def test_a_configuration_without_filters_is_refused() -> None:
    with pytest.raises(BadInput, match="config.json: has no long_conv_l_max"):
        convert.from_hf_config({"model_type": "bert", "hidden_size": 768})
