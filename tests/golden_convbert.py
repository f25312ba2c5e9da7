"""ConvBERT as a golden file describes it: sizes from the file's config, weights under transformers' names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbert.convert import convbert as convert
from jaxbert.convert.key_map import from_torch
from jaxbert.models import convbert
from jaxbert.models.heads import MaskedLM

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
    state = {k.removeprefix("params/"): data[k].astype(dtype) for k in data if k.startswith("params/")}
    model = from_torch(state, convert.masked_lm(config), abstract)
    mask_BT = data["attention_mask"]
    batch = {
        "input_ids_BT": jnp.asarray(data["input_ids"], jnp.int32),
        "segment_ids_BT": jnp.asarray(mask_BT, jnp.int32),
        "position_ids_BT": jnp.tile(jnp.arange(mask_BT.shape[1]), (mask_BT.shape[0], 1)),
        "token_type_ids_BT": jnp.asarray(data["token_type_ids"], jnp.int32),
        "length_B": jnp.asarray(mask_BT.sum(axis=1), jnp.int32),
    }
    x_BTD, extras = model.encoder(batch, collect=("hidden_states",))
    return {
        "last_hidden_state": x_BTD,
        "mlm_logits": model.head(x_BTD, model.encoder.embedding_VD, vocab_size)[..., :vocab_size],
        **{f"hidden_states/{layer}": x for layer, x in enumerate(extras["hidden_states"])},
    }
