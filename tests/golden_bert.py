"""BERT as a golden file describes it: sizes from the file's config, weights under transformers' names."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxbert.convert import bert as convert
from jaxbert.convert.key_map import from_torch
from jaxbert.models import bert
from jaxbert.models.heads import MaskedLM, NextSentenceHead, Pooler
from tests import published

PREFIXES = ("bert_",)


def outputs(data: Mapping[str, np.ndarray], given: dict[str, Any], dtype: str, mask_mode: str) -> dict[str, jax.Array]:
    """Every output of the file, under its names."""
    full = given["full_config"]
    config = bert.Config(
        num_layers=full["num_hidden_layers"],
        hidden_size=full["hidden_size"],
        num_heads=full["num_attention_heads"],
        feed_forward_size=full["intermediate_size"],
        max_positions=full["max_position_embeddings"],
        type_vocab_size=full["type_vocab_size"],
        norm_epsilon=full["layer_norm_eps"],
        activation={"gelu": "gelu"}[full["hidden_act"]],
        mask_mode=mask_mode,
    )
    key, vocab_size = jax.random.key(0), full["vocab_size"]
    trees = (
        jax.eval_shape(lambda: MaskedLM(bert.Bert, config, vocab_size, key)),
        jax.eval_shape(lambda: Pooler(config, rngs=nnx.Rngs(key))),
        jax.eval_shape(lambda: NextSentenceHead(config, rngs=nnx.Rngs(key))),
    )
    tables = (convert.MASKED_LM, convert.POOLER, convert.NEXT_SENTENCE)
    state = published.parameters(data, dtype)
    # Each table reads its part of the file: the rest is no mistake.
    model, pooler, nsp = (from_torch(state, *pair, ignore=("*",)) for pair in zip(tables, trees, strict=True))
    found = published.outputs_of(model, data, vocab_size)
    pooled_BD = pooler(found["last_hidden_state"])
    return {**found, "pooler_output": pooled_BD, "nsp_logits": nsp(pooled_BD)}
