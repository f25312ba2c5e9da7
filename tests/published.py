"""What the families' golden files have in common: their parameters, their batch, and an encoder's outputs on it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxbert.models.heads import MaskedLM

Data = Mapping[str, np.ndarray]


def parameters(data: Data, dtype: str) -> dict[str, np.ndarray]:
    """The file's parameters under the published names."""
    return {k.removeprefix("params/"): data[k].astype(dtype) for k in data if k.startswith("params/")}


def batch_of(data: Data) -> dict[str, jax.Array]:
    """The file's rows, one document each; with token types if it has them."""
    mask_BT = data["attention_mask"]
    batch = {
        "input_ids_BT": jnp.asarray(data["input_ids"], jnp.int32),
        "segment_ids_BT": jnp.asarray(mask_BT, jnp.int32),
        "position_ids_BT": jnp.tile(jnp.arange(mask_BT.shape[1]), (mask_BT.shape[0], 1)),
        "length_B": jnp.asarray(mask_BT.sum(axis=1), jnp.int32),
    }
    if "token_type_ids" in data:
        batch["token_type_ids_BT"] = jnp.asarray(data["token_type_ids"], jnp.int32)
    return batch


def outputs_of(model: MaskedLM, data: Data, vocab_size: int) -> dict[str, jax.Array]:
    """Final states, logits and hidden states by layer, under the file's names."""

    @jax.jit
    def outputs(model: MaskedLM, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        x_BTD, extras = model.encoder(batch, collect=("hidden_states",))
        return x_BTD, model.head(x_BTD, model.encoder.embedding_VD, vocab_size), extras["hidden_states"]

    x_BTD, logits_BTV, states_LBTD = outputs(model, batch_of(data))
    return {
        "last_hidden_state": x_BTD,
        "mlm_logits": logits_BTV[..., :vocab_size],
        **{f"hidden_states/{layer}": x for layer, x in enumerate(states_LBTD)},
    }
