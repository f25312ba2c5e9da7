"""gMLP and aMLP ↔ our own PyTorch classes (torch_models/modeling_gmlp.py): transformers has none."""

from typing import Any

from jaxbert.convert.bert import ACTIVATIONS
from jaxbert.convert.hf_config import auto_map
from jaxbert.convert.key_map import Row, norm
from jaxbert.models.gmlp import Config

HF_CLASS = "GmlpForMaskedLM"
MODELING = "modeling_gmlp.py"

_BLOCKS, _LAYER = "encoder/blocks/", "gmlp.layers.{}."


def _dense(ours: str, theirs: str, letters: str) -> list[Row]:
    return [
        Row(f"{_BLOCKS}{ours}_{letters}", f"{_LAYER}{theirs}.weight", "transpose"),
        Row(f"{_BLOCKS}{ours}_bias_{letters[-1]}", f"{_LAYER}{theirs}.bias"),
    ]


def masked_lm(config: Config) -> list[Row]:
    """The key map of the encoder with its masked-LM head."""
    weights = "weights_O" if config.spatial == "toeplitz" else "weights_TS"
    rows = [
        Row("encoder/embeddings/word_VD", "gmlp.word_embeddings.weight", "vocabulary"),
        *norm(f"{_BLOCKS}norm", f"{_LAYER}norm"),
        *_dense("value", "value", "DF"),
        *_dense("gate", "gate", "DF"),
        *norm(f"{_BLOCKS}gate_norm", f"{_LAYER}gate_norm"),
        Row(f"{_BLOCKS}spatial/{weights}", f"{_LAYER}spatial.weight"),
        Row(f"{_BLOCKS}spatial/bias_T", f"{_LAYER}spatial.bias"),
        *_dense("output", "output", "FD"),
        *norm("encoder/norm", "gmlp.norm"),
    ]
    if config.attention_size:
        rows.append(Row(f"{_BLOCKS}attention/qkv_DGH", f"{_LAYER}attention.qkv.weight", "transpose"))
        rows += _dense("attention/output", "attention.output", "HF")
    if not config.tied_head:
        rows.append(Row("head/output_VD", "head.decoder.weight", "vocabulary"))
        rows.append(Row("head/bias_V", "head.decoder.bias", "vocabulary"))
    return rows


def torch_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The one tensor whose axes PyTorch joins: queries, keys and values, in this order."""
    if not config.attention_size:
        return {}
    return {f"{_LAYER}attention.qkv.weight": (3 * config.attention_size, config.hidden_size)}


def to_hf_config(config: Config, vocab_size: int, pad_token_id: int) -> dict[str, Any]:
    """config.json for a resolved configuration; `auto_map` names the classes in the file that travels with it."""
    return {
        "architectures": [HF_CLASS],
        "model_type": "jaxbert_gmlp",
        "auto_map": auto_map(MODELING, "Gmlp"),
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "intermediate_size": config.feed_forward_size,
        "attention_size": config.attention_size,
        "spatial": config.spatial,
        "hidden_act": ACTIVATIONS[config.activation],
        "hidden_dropout_prob": config.hidden_dropout,
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.norm_epsilon,
        "mask_mode": config.mask_mode,
        "pad_token_id": pad_token_id,
        "tie_word_embeddings": config.tied_head,
        "dtype": "float32",
    }
