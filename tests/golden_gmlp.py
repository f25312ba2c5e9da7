"""gMLP and aMLP as a golden file describes them: sizes from the file's arguments, weights under lucidrains' names."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxbert.convert.key_map import Row, from_torch
from jaxbert.models import gmlp
from jaxbert.models.heads import MaskedLM
from tests import published

PREFIXES = ("gmlp_", "amlp_")

BLOCKS, LAYER, INNER = "encoder/blocks/", "layers.{}.fn.", "layers.{}.fn.fn.fn."
ROWS = [
    Row("encoder/embeddings/word_VD", "to_embed.weight", "vocabulary"),
    Row(f"{BLOCKS}norm/scale_D", f"{LAYER}norm.weight"),
    Row(f"{BLOCKS}norm/bias_D", f"{LAYER}norm.bias"),
    Row(f"{BLOCKS}value_DF", f"{INNER}proj_in.0.weight/first", "transpose"),
    Row(f"{BLOCKS}value_bias_F", f"{INNER}proj_in.0.bias/first"),
    Row(f"{BLOCKS}gate_DF", f"{INNER}proj_in.0.weight/second", "transpose"),
    Row(f"{BLOCKS}gate_bias_F", f"{INNER}proj_in.0.bias/second"),
    Row(f"{BLOCKS}gate_norm/scale_D", f"{INNER}sgu.norm.weight"),
    Row(f"{BLOCKS}gate_norm/bias_D", f"{INNER}sgu.norm.bias"),
    Row(f"{BLOCKS}spatial/bias_T", f"{INNER}sgu.bias"),
    Row(f"{BLOCKS}output_FD", f"{INNER}proj_out.weight", "transpose"),
    Row(f"{BLOCKS}output_bias_D", f"{INNER}proj_out.bias"),
    Row("encoder/norm/scale_D", "to_logits.0.weight"),
    Row("encoder/norm/bias_D", "to_logits.0.bias"),
    Row("head/output_VD", "to_logits.1.weight", "vocabulary"),
    Row("head/bias_V", "to_logits.1.bias", "vocabulary"),
]
DENSE = [Row(f"{BLOCKS}spatial/weights_TS", f"{INNER}sgu.weight")]
TOEPLITZ = [Row(f"{BLOCKS}spatial/weights_O", "toeplitz_w/{}")]
ATTENTION = [
    Row(f"{BLOCKS}attention/qkv_DGH", f"{INNER}attn.to_qkv.weight", "transpose"),
    Row(f"{BLOCKS}attention/output_HF", f"{INNER}attn.to_out.weight", "transpose"),
    Row(f"{BLOCKS}attention/output_bias_F", f"{INNER}attn.to_out.bias"),
]


def outputs(data: Mapping[str, np.ndarray], given: dict[str, Any], dtype: str, mask_mode: str) -> dict[str, jax.Array]:
    """Every output of the file, under its names."""
    sizes, toeplitz = given["kwargs"], "toeplitz_w/0" in data
    config = gmlp.Config(
        num_layers=sizes["depth"],
        hidden_size=sizes["dim"],
        feed_forward_size=sizes["ff_mult"] * sizes["dim"],
        max_positions=sizes["seq_len"],
        attention_size=sizes["attn_dim"] or 0,
        spatial="toeplitz" if toeplitz else "dense",
        tied_head=False,
        mask_mode=mask_mode,
    )
    rows = ROWS + (TOEPLITZ if toeplitz else DENSE) + (ATTENTION if config.attention_size else [])
    state = {k.removeprefix("params/"): v.astype(dtype) for k, v in data.items() if k.startswith(("params/", "toep"))}
    for name in [name for name in state if ".proj_in.0." in name]:  # our halves are two parameters
        state[f"{name}/first"], state[f"{name}/second"] = np.split(state.pop(name), 2)
    if toeplitz:  # the same weights, expanded
        state = {name: array for name, array in state.items() if not name.endswith(".sgu.weight")}
    vocab_size = sizes["num_tokens"]
    model = from_torch(
        state, rows, jax.eval_shape(lambda: MaskedLM(gmlp.Encoder, config, vocab_size, jax.random.key(0)))
    )
    return published.outputs_of(model, data, vocab_size)
