"""Our encoders against the published implementations' own numbers, read from a directory of .npz files."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbert.convert import bert as convert
from jaxbert.convert.key_map import from_torch
from jaxbert.models import bert
from jaxbert.models.heads import MaskedLM, NextSentenceHead, Pooler

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("bert_*.npz"))


def load(case: str, dtype: str) -> tuple[dict[str, np.ndarray], dict, dict[str, np.ndarray]]:
    data = np.load(GOLDEN / f"{case}.npz")
    state = {k.removeprefix("params/"): data[k].astype(dtype) for k in data if k.startswith("params/")}
    return state, json.loads(str(data["config"])), dict(data)


def models(state: dict[str, np.ndarray], given: dict) -> tuple[MaskedLM, Pooler, NextSentenceHead]:
    config = bert.Config(
        num_layers=given["num_hidden_layers"],
        hidden_size=given["hidden_size"],
        num_heads=given["num_attention_heads"],
        feed_forward_size=given["intermediate_size"],
        max_positions=given["max_position_embeddings"],
        type_vocab_size=given["type_vocab_size"],
        norm_epsilon=given["layer_norm_eps"],
        activation={"gelu": "gelu"}[given["hidden_act"]],
    )
    key, vocab_size = jax.random.key(0), given["vocab_size"]
    model = jax.eval_shape(lambda: MaskedLM(bert.Bert, config, vocab_size, key))
    pooler = jax.eval_shape(lambda: Pooler(config, rngs=nnx.Rngs(key)))
    nsp = jax.eval_shape(lambda: NextSentenceHead(config, rngs=nnx.Rngs(key)))
    tables = (convert.MASKED_LM, convert.POOLER, convert.NEXT_SENTENCE)
    return tuple(from_torch(state, table, tree) for table, tree in zip(tables, (model, pooler, nsp), strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-9), ("float32", None)])
def test_every_output_is_the_published_one(case: str, dtype: str, tolerance: float | None) -> None:
    state, given, data = load(case, dtype)
    if tolerance is None:
        tolerance = 10 * given["native_fp32_maxdiff"]
    mask_BT = data["attention_mask"].astype(bool)
    with jax.enable_x64(dtype == "float64"):
        model, pooler, nsp = models(state, given["full_config"])
        batch = {
            "input_ids_BT": jnp.asarray(data["input_ids"], jnp.int32),
            "segment_ids_BT": jnp.asarray(mask_BT, jnp.int32),
            "position_ids_BT": jnp.tile(jnp.arange(mask_BT.shape[1]), (mask_BT.shape[0], 1)),
        }
        if "token_type_ids" in data:
            batch["token_type_ids_BT"] = jnp.asarray(data["token_type_ids"], jnp.int32)
        x_BTD, extras = model.encoder(batch, collect=("hidden_states",))
        logits = model.head(x_BTD, model.encoder.embedding_VD, model.encoder.vocab_size)[
            ..., : model.encoder.vocab_size
        ]
        found = {"last_hidden_state": x_BTD, "mlm_logits": logits, "pooler_output": pooler(x_BTD)}
        found["nsp_logits"] = nsp(found["pooler_output"])
        found |= {f"hidden_states/{i}": x for i, x in enumerate(extras["hidden_states"])}
        assert x_BTD.dtype == dtype
    listed = [k for k in data if k in found or k.startswith("hidden_states/")]
    assert {"last_hidden_state", "mlm_logits", "pooler_output", "nsp_logits", "hidden_states/0"} <= set(listed)
    for name in listed:
        ours, theirs = np.asarray(found[name]), data[name]
        real = mask_BT if theirs.ndim == 3 else slice(None)
        assert np.abs(ours[real] - theirs[real]).max() <= tolerance, name
