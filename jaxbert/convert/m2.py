"""M2-BERT ↔ our PyTorch class, whose tensors have the published names (HazyResearch/m2, bert/src).

Published weights come as a Composer checkpoint or as a Hugging Face bin; both hold the names below, behind prefixes
that `published_names` takes off.
"""

from collections.abc import Iterable
from typing import Any

from jaxbert.convert.bert import ACTIVATIONS
from jaxbert.convert.hf_config import ACTIVATIONS as ACTIVATIONS_IN
from jaxbert.convert.hf_config import auto_map, nearest_size, translate
from jaxbert.convert.key_map import Row, dense, norm
from jaxbert.errors import BadInput
from jaxbert.models.m2 import SHORT, SIZES, Config

HF_CLASS = "M2ForMaskedLM"
MODELING = "modeling_m2.py"
# What a source may hold in vain: tables that follow from the configuration, and other heads.
IGNORE = ("*.position_ids", "*.pos_emb.t", "*.modulation.deltas", "bert.pooler.*", "classifier.*")

FIELDS = {  # their name → ours, and what the published code takes where config.json has no such field
    "hidden_size": ("hidden_size", 768),
    "num_hidden_layers": ("num_layers", 12),
    "intermediate_size": ("feed_forward_size", 3072),
    "hidden_act": ("activation", "gelu"),
    "hidden_dropout_prob": ("hidden_dropout", 0.1),
    "long_conv_l_max": ("max_positions", 128),
    "type_vocab_size": ("type_vocab_size", 2),
    "initializer_range": ("initializer_range", 0.02),
    "layer_norm_eps": ("norm_epsilon", 1e-12),
    "hyena_filter_order": ("filter_order", 64),
    "hyena_emb_dim": ("filter_features", 5),
    "hyena_w": ("sine_frequency", 10.0),
    "monarch_mlp_nblocks": ("blocks", 4),
    "hyena_training_additions": ("training_additions", False),
    "mask_mode": ("mask_mode", "exact"),
}
FIXED = {
    "monarch_mixer_sequence_mixing": (True,),
    "bidirectional": (True,),
    "residual_long_conv": (True,),
    "use_positional_encodings": (True,),
    "use_glu_mlp": (True,),
    "use_monarch_mlp": (True,),
    "use_learnable_monarch": (False,),
    "hyena_w_mod": (1,),
    "use_flash_mm": (False,),  # its short convolution has another width
    "sequence_token_planting": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
# Of attention, which there is none of; of kernels; of training, where the published code loses most of them; of how a
# text's vector is made from the final states; of how a table of positions was made longer before it was saved.
_WITHOUT_EFFECT = frozenset(
    """
    num_attention_heads attention_probs_dropout_prob alibi_starting_size position_embedding_type
    use_flash_fft precision
    hyena_filter_dropout hyena_wd hyena_lr_pos_emb long_conv_kernel_learning_rate pretrained_checkpoint
    pool_all attention_pooling use_cls_token gather_sentence_embeddings use_normalized_embeddings
    performing_BEIR_evaluation expand_positional_embeddings
    """.split()
)

_LAYER = "bert.encoder.layer.{}."
_MIXER = _LAYER + "attention."
_MLP = _LAYER + "mlp."


def _network(ours: str, theirs: str) -> list[Row]:
    return [
        *dense(f"{ours}/first_GE", f"{ours}/first_bias_E", f"{theirs}.0"),
        *dense(f"{ours}/second_EE", f"{ours}/second_bias_E", f"{theirs}.2"),
        *dense(f"{ours}/third_EE", f"{ours}/third_bias_E", f"{theirs}.4"),
        Row(f"{ours}/output_ED", f"{theirs}.6.weight", "transpose"),
    ]


def _long_convolution(ours: str, theirs: str) -> list[Row]:
    network, reverse = f"{theirs}.implicit_filter", f"{theirs}.implicit_filter_rev"
    frequency, *aliases = [f"{part}.{place}.freq" for part in (network, reverse) for place in (1, 3, 5)]
    return [
        Row(f"{ours}/bias_D", f"{theirs}.bias"),
        Row(f"{ours}/features_TG", f"{theirs}.pos_emb.z"),
        Row(f"{ours}/frequency_E", frequency, aliases=tuple(aliases)),  # all six sines have the same
        *_network(f"{ours}/forward", network),
        *_network(f"{ours}/backward", reverse),
    ]


def masked_lm(config: Config) -> list[Row]:
    """The key map of the encoder with its masked-LM head."""
    block = "encoder/blocks/"
    return [
        Row(
            "encoder/embeddings/word_VD",
            "bert.embeddings.word_embeddings.weight",
            "vocabulary",
            aliases=("cls.predictions.decoder.weight",),
        ),
        Row("encoder/embeddings/position_TD", "bert.embeddings.position_embeddings.weight"),
        Row("encoder/embeddings/type_GD", "bert.embeddings.token_type_embeddings.weight"),
        *norm("encoder/embedding_norm", "bert.embeddings.LayerNorm"),
        *(norm(block + "mixer_norm", _MIXER + "layernorm") if config.training_additions else []),
        *dense(block + "input_DGD", block + "input_bias_GD", _MIXER + "in_linear"),
        Row(block + "short_GDK", _MIXER + "short_filter.weight"),
        Row(block + "short_bias_GD", _MIXER + "short_filter.bias"),
        *_long_convolution(block + "mixing", _MIXER + "filter_fn"),
        *_long_convolution(block + "residual", _MIXER + "filter_fn2"),
        *dense(block + "output_DD", block + "output_bias_D", _MIXER + "out_linear"),
        Row(block + "gated_GFD", _MLP + "gated_layers.weight"),
        Row(block + "down_GDF", _MLP + "wo.weight"),
        Row(block + "down_bias_D", _MLP + "wo.bias"),
        *norm(block + "feed_forward_norm", _MLP + "layernorm"),
        *dense("head/transform_DE", "head/transform_bias_E", "cls.predictions.transform.dense"),
        *norm("head/norm", "cls.predictions.transform.LayerNorm"),
        Row("head/bias_V", "cls.predictions.decoder.bias", "vocabulary"),
    ]


def torch_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that PyTorch stores with other axes than ours, by name with "{}" for the layer."""
    D, positions = config.hidden_size, config.max_positions
    shapes: dict[str, tuple[int, ...]] = {
        _MIXER + "in_linear.weight": (3 * D, D),
        _MIXER + "in_linear.bias": (3 * D,),
        _MIXER + "short_filter.weight": (3 * D, 1, SHORT),
        _MIXER + "short_filter.bias": (3 * D,),
    }
    for name in ("filter_fn", "filter_fn2"):
        shapes[f"{_MIXER}{name}.pos_emb.z"] = (1, positions, config.filter_features)
        shapes[f"{_MIXER}{name}.implicit_filter.1.freq"] = (1, config.filter_order)
    return shapes


def published_names(state: Iterable[str]) -> dict[str, str]:
    """Each name of a published file → its name in the key map; prefixes that wrappers put in front are taken off.

    A Composer checkpoint has its parameters under state["state"]["model"], by names that begin with "model.".
    """
    return {name: name.removeprefix("model.").removeprefix("module.") for name in state}


def from_hf_config(given: dict[str, Any]) -> Config:
    """Our configuration for a config.json, published or of our export, every field given.

    A config.json without mask_mode is read as "exact"; the import command then takes "reference", with which published
    weights were trained (convert/__main__.py). Raises BadInput naming fields that we do not support.
    """
    if "long_conv_l_max" not in given:
        raise BadInput("config.json: has no long_conv_l_max, the length of the filters: it is not that of an M2-BERT")
    positions, length = given.get("max_position_embeddings", 512), given["long_conv_l_max"]
    if positions != length:
        raise BadInput(f"config.json: max_position_embeddings={positions} is not long_conv_l_max={length}")
    read = {name: value for name, value in given.items() if name not in {"max_position_embeddings", *_WITHOUT_EFFECT}}
    modes = {"hidden_act": ACTIVATIONS_IN, "mask_mode": {"exact": "exact", "reference": "reference"}}
    fields = translate(read, FIELDS, values=modes, fixed=FIXED)
    return Config(name=nearest_size(SIZES, fields), **fields)


def to_hf_config(config: Config, vocab_size: int, pad_token_id: int) -> dict[str, Any]:
    """config.json of torch_models/modeling_m2.py for a resolved configuration, in the published fields."""
    return {
        "architectures": [HF_CLASS],
        "model_type": "jaxbert_m2",
        "auto_map": auto_map(MODELING, "M2"),
        "vocab_size": vocab_size,
        **{theirs: getattr(config, ours) for theirs, (ours, _) in FIELDS.items()},
        "hidden_act": ACTIVATIONS[config.activation],
        "max_position_embeddings": config.max_positions,
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
