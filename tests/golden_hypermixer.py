"""The published token mixing as a golden file describes it: sizes and flags from the file, x in, y out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbert.convert import hypermixer as convert
from jaxbert.convert.key_map import from_torch
from jaxbert.models import hypermixer
from tests import published

PREFIXES = ("hypermixing_",)


def outputs(data: Mapping[str, np.ndarray], given: dict[str, Any], dtype: str, mask_mode: str) -> dict[str, jax.Array]:
    """Every output of the file, under its names."""
    sizes = given["kwargs"]
    config = hypermixer.Config(
        hidden_size=sizes["input_output_dim"],
        num_heads=sizes["num_heads"],
        hypernet_size=sizes["hypernet_size"],
        tied=sizes["tied"],
        hypernet_bias=sizes.get("hypernetwork_bias", True),  # SpeechBrain's module has no such argument
        position_table={"hm": "idiap", "sb": "standard"}[given["kind"]],
        mask_mode=mask_mode,
    )
    state = published.parameters(data, dtype)
    module = jax.eval_shape(lambda: hypermixer.HyperMixing(config, rngs=nnx.Rngs(0)))
    module = from_torch(state, convert.mixing(config), module)
    mask_BT = data["attention_mask"]
    batch = {
        "segment_ids_BT": jnp.asarray(mask_BT, jnp.int32),
        "position_ids_BT": jnp.tile(jnp.arange(mask_BT.shape[1]), (mask_BT.shape[0], 1)),
    }
    if mask_mode == "reference":  # the two products; without the promise it is the loop over documents
        batch["length_B"] = jnp.asarray(mask_BT.sum(1), jnp.int32)
    batch["positions_BTD"] = hypermixer.sinusoids(config, batch, jnp.dtype(dtype))
    return {"y": module(jnp.asarray(data["x"].astype(dtype)), batch)}
