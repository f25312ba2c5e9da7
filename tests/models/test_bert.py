"""BERT: published sizes. What it shares with every encoder is tested in test_encoders.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxbert.errors import BadInput
from jaxbert.models import bert
from jaxbert.models.heads import MaskedLM, NextSentenceHead, Pooler
from jaxbert.step import count_parameters

KEY = jax.random.key(0)


def sized(name: str, **fields) -> bert.Config:
    return dataclasses.replace(bert.Config(name=name, **bert.SIZES[name]), **fields)


# Parameters of transformers' BertForPreTraining, BertModel and BertForMaskedLM with 30,522 tokens and 512 positions.
PUBLISHED = {
    "bert_tiny": (4_433_468, 4_385_920, 4_416_698),
    "bert_mini": (11_267_900, 11_170_560, 11_201_594),
    "bert_small": (29_058_876, 28_763_648, 28_795_194),
    "bert_medium": (41_668_412, 41_373_184, 41_404_730),
    "bert_base": (110_106_428, 109_482_240, 109_514_298),
    "bert_large": (336_226_108, 335_141_888, 335_174_458),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    config, vocab_size = sized(name), 30_522
    model = jax.eval_shape(lambda: MaskedLM(bert.Bert, config, vocab_size, KEY))
    pooler = jax.eval_shape(lambda: Pooler(config, rngs=nnx.Rngs(KEY)))
    nsp = jax.eval_shape(lambda: NextSentenceHead(config, rngs=nnx.Rngs(KEY)))
    masked_lm, encoder, pool, next_sentence = (
        count_parameters(part, vocab_size) for part in (model, model.encoder, pooler, nsp)
    )
    assert (masked_lm + pool + next_sentence, encoder + pool, masked_lm) == PUBLISHED[name]


def test_all_24_released_sizes_have_names() -> None:
    grid = [(n, d) for n in (2, 4, 6, 8, 10, 12) for d in (128, 256, 512, 768)]
    for layers, width in grid:
        size = bert.SIZES[f"bert_L{layers}_D{width}"]
        assert size == {
            "num_layers": layers,
            "hidden_size": width,
            "num_heads": width // 64,
            "feed_forward_size": 4 * width,
        }


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(BadInput, match="model.num_heads: 3 does not divide model.hidden_size 128"):
        bert.Bert(sized("bert_tiny", num_heads=3), 100, rngs=nnx.Rngs(KEY))


def test_a_local_start_scores_a_token_by_its_distance() -> None:
    encoder = bert.Bert(sized("bert_tiny", attention_start="local", max_positions=64), 100, rngs=nnx.Rngs(KEY))
    row = {"input_ids_BT": np.full((1, 64), 7), "position_ids_BT": np.arange(64)[None]}
    x_TD = encoder.embedding_norm(encoder.embeddings(row, jnp.float32))[0]
    for kernels in zip(encoder.blocks.query_DNH[...], encoder.blocks.key_DNH[...], strict=True):
        q_TNH, k_TNH = (jnp.einsum("TD,DNH->TNH", x_TD, kernel) for kernel in kernels)
        scores_TT = np.asarray(jnp.einsum("TNH,SNH->TS", q_TNH, k_TNH))
        by_distance = [np.diagonal(scores_TT, distance).mean() for distance in range(8)]
        assert by_distance == sorted(by_distance, reverse=True) and by_distance[0] > 1.05 * by_distance[7]
