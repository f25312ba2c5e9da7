"""ConvBERT as a golden file describes it: sizes from the file's config, weights under transformers' names."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxbert.convert import convbert as convert
from jaxbert.convert.key_map import from_torch
from jaxbert.models import convbert
from jaxbert.models.heads import MaskedLM
from tests import published

PREFIXES = ("convbert_",)


def outputs(data: Mapping[str, np.ndarray], given: dict[str, Any], dtype: str, mask_mode: str) -> dict[str, jax.Array]:
    """Every output of the file, under its names."""
    full = given["full_config"]
    config = convbert.Config(
        num_layers=full["num_hidden_layers"],
        hidden_size=full["hidden_size"],
        num_heads=full["num_attention_heads"],
        head_ratio=full["head_ratio"],
        kernel_size=full["conv_kernel_size"],
        groups=full["num_groups"],
        embedding_size=full["embedding_size"],
        feed_forward_size=full["intermediate_size"],
        max_positions=full["max_position_embeddings"],
        type_vocab_size=full["type_vocab_size"],
        norm_epsilon=full["layer_norm_eps"],
        activation={"gelu": "gelu"}[full["hidden_act"]],
        mask_mode=mask_mode,
    )
    vocab_size = full["vocab_size"]
    abstract = jax.eval_shape(lambda: MaskedLM(convbert.ConvBert, config, vocab_size, jax.random.key(0)))
    state = published.parameters(data, dtype)
    model = from_torch(state, convert.masked_lm(config), abstract)
    return published.outputs_of(model, data, vocab_size)
