"""ConvBERT ↔ our PyTorch class, and transformers' `ConvBertForMaskedLM`: one key map serves both.

Names are transformers' (modeling_convbert.py; tests check them). That class reads padding, so an export carries ours,
torch_models/modeling_convbert.py, unless its own is asked for; on rows without padding the two are equal.
"""

from typing import Any

from jaxbert.convert.bert import ACTIVATIONS
from jaxbert.convert.hf_config import ACTIVATIONS as THEIR_ACTIVATIONS
from jaxbert.convert.hf_config import auto_map, nearest_size, translate
from jaxbert.convert.key_map import Row, dense, norm
from jaxbert.errors import BadInput
from jaxbert.models.convbert import SIZES, Config

HF_CLASS = "ConvBertForMaskedLM"  # the name of our class and of transformers' own
MODELING = "modeling_convbert.py"
IGNORE = ("*.position_ids", "*.token_type_ids")  # buffers of old files

_LAYER = "convbert.encoder.layer.{}."
_SELF = _LAYER + "attention.self."
_SPAN = _SELF + "key_conv_attn_layer."


def masked_lm(config: Config) -> list[Row]:
    """The key map of the encoder with its masked-LM head."""
    block = "encoder/blocks/"
    # With groups transformers stores (groups, in, out) as we do, without them a Linear's (out, in).
    up = Row(block + "up_GDF", _LAYER + "intermediate.dense.weight", "transpose" if config.groups == 1 else "copy")
    down = Row(block + "down_GFD", _LAYER + "output.dense.weight", "transpose" if config.groups == 1 else "copy")
    project = dense("encoder/project_ED", "encoder/project_bias_D", "convbert.embeddings_project")
    return [
        Row(
            "encoder/embeddings/word_VD",
            "convbert.embeddings.word_embeddings.weight",
            "vocabulary",
            aliases=("generator_lm_head.weight",),
        ),
        Row("encoder/embeddings/position_TD", "convbert.embeddings.position_embeddings.weight"),
        Row("encoder/embeddings/type_GD", "convbert.embeddings.token_type_embeddings.weight"),
        *norm("encoder/embedding_norm", "convbert.embeddings.LayerNorm"),
        *(project if config.embedding_size != config.hidden_size else []),
        *dense(block + "query_DNH", block + "query_bias_NH", _SELF + "query"),
        *dense(block + "key_DNH", block + "key_bias_NH", _SELF + "key"),
        *dense(block + "value_DNH", block + "value_bias_NH", _SELF + "value"),
        Row(block + "depthwise_KD", _SPAN + "depthwise.weight", "transpose"),
        Row(block + "span_DNH", _SPAN + "pointwise.weight", "transpose"),
        Row(block + "span_bias_NH", _SPAN + "bias"),
        *dense(block + "taps_NHNK", block + "taps_bias_NK", _SELF + "conv_kernel_layer"),
        *dense(block + "local_DNH", block + "local_bias_NH", _SELF + "conv_out_layer"),
        *dense(block + "output_NHD", block + "output_bias_D", _LAYER + "attention.output.dense"),
        *norm(block + "attention_norm", _LAYER + "attention.output.LayerNorm"),
        up,
        Row(block + "up_bias_F", _LAYER + "intermediate.dense.bias"),
        down,
        Row(block + "down_bias_D", _LAYER + "output.dense.bias"),
        *norm(block + "feed_forward_norm", _LAYER + "output.LayerNorm"),
        *dense("head/transform_DE", "head/transform_bias_E", "generator_predictions.dense"),
        *norm("head/norm", "generator_predictions.LayerNorm"),
        Row("head/bias_V", "generator_lm_head.bias", "vocabulary"),
    ]


def torch_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that PyTorch stores with other axes than ours, by name with "{}" for the layer."""
    resolved: Any = config  # no field is None
    D, F, K, N = resolved.hidden_size, resolved.feed_forward_size, resolved.kernel_size, resolved.num_heads // 2
    A = D // 2
    shapes = {
        **{f"{_SELF}{name}.weight": (A, D) for name in ("query", "key", "value", "conv_out_layer")},
        **{f"{_SELF}{name}.bias": (A,) for name in ("query", "key", "value", "conv_out_layer")},
        _SPAN + "depthwise.weight": (D, 1, K),
        _SPAN + "pointwise.weight": (A, D, 1),
        _SPAN + "bias": (A, 1),
        _SELF + "conv_kernel_layer.weight": (N * K, A),
        _SELF + "conv_kernel_layer.bias": (N * K,),
        _LAYER + "attention.output.dense.weight": (D, D),
    }
    if config.groups == 1:
        shapes |= {_LAYER + "intermediate.dense.weight": (F, D), _LAYER + "output.dense.weight": (D, F)}
    return shapes


def to_hf_config(config: Config, vocab_size: int, pad_token_id: int) -> dict[str, Any]:
    """config.json for a resolved configuration; `auto_map` names the classes in the file that travels with it."""
    return {
        **_shared(config, vocab_size, pad_token_id),
        "model_type": "jaxbert_convbert",
        "auto_map": auto_map(MODELING, "ConvBert"),
        "mask_mode": config.mask_mode,
    }


def to_native_config(config: Config, vocab_size: int, pad_token_id: int) -> dict[str, Any]:
    """config.json of transformers' own class, which computes the same on rows without padding.

    Raises BadInput for an activation with which it does not: its head has gelu whatever the field says.
    """
    if config.activation != "gelu":
        raise BadInput(
            f"model.activation: {config.activation!r}; transformers' {HF_CLASS} predicts with gelu, so this model can "
            "only be exported with our own PyTorch class (without --native)"
        )
    return {**_shared(config, vocab_size, pad_token_id), "model_type": "convbert"}


def _shared(config: Config, vocab_size: int, pad_token_id: int) -> dict[str, Any]:
    return {
        "architectures": [HF_CLASS],
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "head_ratio": config.head_ratio,
        "conv_kernel_size": config.kernel_size,
        "num_groups": config.groups,
        "embedding_size": config.embedding_size,
        "intermediate_size": config.feed_forward_size,
        "hidden_act": ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.hidden_dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": config.type_vocab_size,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.norm_epsilon,
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }


FIELDS = {  # their name → ours, and what both classes take where config.json has no such field
    "hidden_size": ("hidden_size", 768),
    "num_hidden_layers": ("num_layers", 12),
    "num_attention_heads": ("num_heads", 12),
    "conv_kernel_size": ("kernel_size", 9),
    "num_groups": ("groups", 1),
    "embedding_size": ("embedding_size", 768),
    "intermediate_size": ("feed_forward_size", 3072),
    "hidden_act": ("activation", "gelu"),
    "hidden_dropout_prob": ("hidden_dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "max_position_embeddings": ("max_positions", 512),
    "type_vocab_size": ("type_vocab_size", 2),
    "initializer_range": ("initializer_range", 0.02),
    "layer_norm_eps": ("norm_epsilon", 1e-12),
    "mask_mode": ("mask_mode", "exact"),
}
FIXED = {
    "head_ratio": (2,),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def from_hf_config(given: dict[str, Any]) -> Config:
    """The configuration of config.json, of our class or of transformers' own, every field given.

    Where there is no mask_mode it is "exact", with which published weights answer as published on rows without padding.
    Raises BadInput naming fields that we do not support.
    """
    own = given.get("model_type") == "jaxbert_convbert"
    activations = THEIR_ACTIVATIONS if own else {"gelu": "gelu", "gelu_python": "gelu"}  # its head has no other
    values = {"hidden_act": activations, "mask_mode": {"exact": "exact", "reference": "reference"}}
    given = {name: value for name, value in given.items() if not name.startswith("summary_")}  # multiple choice
    fields = translate(given, FIELDS, values=values, fixed=FIXED)
    return Config(name=nearest_size(SIZES, fields), **fields)
