"""BERT ↔ transformers' `BertForMaskedLM` (names: transformers 5, modeling_bert.py; tests check them)."""

from typing import Any

from jaxbert.convert.hf_config import nearest_size, translate
from jaxbert.convert.key_map import Row, dense, norm
from jaxbert.models.bert import SIZES, Config

HF_CLASS = "BertForMaskedLM"
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}  # ours → theirs

_LAYER = "bert.encoder.layer.{}."


ENCODER = [
    Row(
        "encoder/embeddings/word_VD",
        "bert.embeddings.word_embeddings.weight",
        "vocabulary",
        aliases=("cls.predictions.decoder.weight",),
    ),
    Row("encoder/embeddings/position_TD", "bert.embeddings.position_embeddings.weight"),
    Row("encoder/embeddings/type_GD", "bert.embeddings.token_type_embeddings.weight"),
    *norm("encoder/embedding_norm", "bert.embeddings.LayerNorm"),
    *dense("encoder/blocks/query_DNH", "encoder/blocks/query_bias_NH", _LAYER + "attention.self.query"),
    *dense("encoder/blocks/key_DNH", "encoder/blocks/key_bias_NH", _LAYER + "attention.self.key"),
    *dense("encoder/blocks/value_DNH", "encoder/blocks/value_bias_NH", _LAYER + "attention.self.value"),
    *dense("encoder/blocks/output_NHD", "encoder/blocks/output_bias_D", _LAYER + "attention.output.dense"),
    *norm("encoder/blocks/attention_norm", _LAYER + "attention.output.LayerNorm"),
    *dense("encoder/blocks/up_DF", "encoder/blocks/up_bias_F", _LAYER + "intermediate.dense"),
    *dense("encoder/blocks/down_FD", "encoder/blocks/down_bias_D", _LAYER + "output.dense"),
    *norm("encoder/blocks/feed_forward_norm", _LAYER + "output.LayerNorm"),
]
MASKED_LM = [
    *ENCODER,
    *dense("head/transform_DE", "head/transform_bias_E", "cls.predictions.transform.dense"),
    *norm("head/norm", "cls.predictions.transform.LayerNorm"),
    Row("head/bias_V", "cls.predictions.bias", "vocabulary", aliases=("cls.predictions.decoder.bias",)),
]
POOLER = dense("kernel_DD", "bias_D", "bert.pooler.dense")
NEXT_SENTENCE = dense("kernel_DG", "bias_G", "cls.seq_relationship")


def masked_lm(config: Config) -> list[Row]:
    """The key map of the encoder with its masked-LM head."""
    return MASKED_LM


def torch_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors whose head axes PyTorch joins, by name with "{}" for the layer."""
    width: Any = config.hidden_size  # resolved: no longer None
    return {
        row.theirs: (width, width) if row.transform == "transpose" else (width,)
        for row in ENCODER
        if ".attention.self." in row.theirs or ".attention.output.dense." in row.theirs
    }


def to_hf_config(config: Config, vocab_size: int, pad_token_id: int) -> dict[str, Any]:
    """config.json of transformers for a resolved configuration."""
    return {
        "architectures": [HF_CLASS],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
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


FIELDS = {  # their name → ours, and what transformers takes where config.json has no such field
    "hidden_size": ("hidden_size", 768),
    "num_hidden_layers": ("num_layers", 12),
    "num_attention_heads": ("num_heads", 12),
    "intermediate_size": ("feed_forward_size", 3072),
    "hidden_act": ("activation", "gelu"),
    "hidden_dropout_prob": ("hidden_dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
    "max_position_embeddings": ("max_positions", 512),
    "type_vocab_size": ("type_vocab_size", 2),
    "initializer_range": ("initializer_range", 0.02),
    "layer_norm_eps": ("norm_epsilon", 1e-12),
}
FIXED = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}


def from_hf_config(given: dict[str, Any]) -> Config:
    """The configuration of config.json, every field given. Raises BadInput naming fields that we do not support."""
    fields = translate(given, FIELDS, fixed=FIXED)
    return Config(name=nearest_size(SIZES, fields), **fields)
