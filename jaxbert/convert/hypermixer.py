"""HyperMixer ↔ our own PyTorch classes (torch_models/modeling_hypermixer.py): nobody else has an encoder of it.

The token mixing has the published module's names (idiap/hypermixing; SpeechBrain's are the same).
"""

from typing import Any

from jaxbert.convert.bert import ACTIVATIONS
from jaxbert.convert.hf_config import auto_map
from jaxbert.convert.key_map import Row, dense, norm
from jaxbert.models.hypermixer import Config

HF_CLASS = "HypermixerForMaskedLM"
MODELING = "modeling_hypermixer.py"

_BLOCKS, _LAYER = "encoder/blocks/", "hypermixer.layers.{}."


def mixing(config: Config, ours: str = "", theirs: str = "") -> list[Row]:
    """The key map of the published module alone; `ours` and `theirs` are what stands before its names."""
    rows = norm(f"{ours}norm", f"{theirs}layer_norm")
    for mine, published in [("first", "w1_gen"), ("second", "w2_gen")][: 1 if config.tied else 2]:
        rows.append(Row(f"{ours}{mine}/hidden_NHH", f"{theirs}hyper.{published}.fc1_weights"))
        rows.append(Row(f"{ours}{mine}/row_NFH", f"{theirs}hyper.{published}.fc2_weights"))
        if config.hypernet_bias:
            rows.append(Row(f"{ours}{mine}/hidden_bias_NH", f"{theirs}hyper.{published}.fc1_biases"))
            rows.append(Row(f"{ours}{mine}/row_bias_NF", f"{theirs}hyper.{published}.fc2_biases"))
    return rows


def masked_lm(config: Config) -> list[Row]:
    """The key map of the encoder with its masked-LM head."""
    return [
        Row("encoder/embeddings/word_VD", "hypermixer.word_embeddings.weight", "vocabulary"),
        *norm("encoder/embedding_norm", "hypermixer.embedding_norm"),
        *norm(f"{_BLOCKS}mixing_norm", f"{_LAYER}mixing_norm"),
        *mixing(config, f"{_BLOCKS}mixing/", f"{_LAYER}mixing."),
        *norm(f"{_BLOCKS}feed_forward_norm", f"{_LAYER}feed_forward_norm"),
        *dense(f"{_BLOCKS}up_DF", f"{_BLOCKS}up_bias_F", f"{_LAYER}up"),
        *dense(f"{_BLOCKS}down_FD", f"{_BLOCKS}down_bias_D", f"{_LAYER}down"),
        *norm("encoder/norm", "hypermixer.norm"),
        *dense("head/transform_DE", "head/transform_bias_E", "head.transform.dense"),
        *norm("head/norm", "head.transform.LayerNorm"),
        Row("head/bias_V", "head.decoder.bias", "vocabulary"),
    ]


def torch_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """None: no tensor's axes are joined."""
    return {}


def to_hf_config(config: Config, vocab_size: int, pad_token_id: int) -> dict[str, Any]:
    """config.json for a resolved configuration; `auto_map` names the classes in the file that travels with it."""
    return {
        "architectures": [HF_CLASS],
        "model_type": "jaxbert_hypermixer",
        "auto_map": auto_map(MODELING, "Hypermixer"),
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_heads": config.num_heads,
        "hypernet_size": config.hypernet_size,
        "intermediate_size": config.feed_forward_size,
        "tied": config.tied,
        "hypernet_bias": config.hypernet_bias,
        "hypernet_gain": config.hypernet_gain,
        "position_table": config.position_table,
        "hidden_act": ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.hidden_dropout,
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.norm_epsilon,
        "mask_mode": config.mask_mode,
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
