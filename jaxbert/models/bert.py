"""BERT (Devlin et al. 2019, arXiv:1810.04805; code: google-research/bert modeling.py), exactly as published.

Post-norm blocks; the layers are stacked on a leading axis and scanned, so compile time does not grow with depth.

Initial values: `attention_start` "random" is the published one, every kernel and table truncated normal. Attention then
sees all tokens of a row alike, and a small model spends thousands of steps on finding out what positions mean. "local"
starts attention at a token's neighbours, where much of it ends up: positions start as sinusoids, of LOCAL_POSITIONS
times the words' scale, and a head's keys as its queries, of scale LOCAL_GAIN / √D, so that scores fall with the
distance of two tokens. After Trockman & Kolter 2023 (arXiv:2305.09828), who draw the products of queries and keys near
the identity, with sinusoids; the scales are ours.

On the demo (two layers of width 128) the held-out loss after half of its steps is 5.04, 4.79 and 4.80 in place of 6.02,
5.98 and 5.98 (three seeds), after all of them 3.75 in place of 5.77. Other scales, one seed each, half of the steps:
positions × 2 to × 4 with a gain of 1.4 to 1.7 4.7 to 5.1; with a gain of 2.8 5.5, of 0.6 5.9; positions × 1 6.0; random
positions 6.1. Four layers gain as much (configs/gl.py); larger models were not measured, so the published sizes start
at random.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbert.config import Model
from jaxbert.errors import BadInput
from jaxbert.models import encoder, heads, layers, stack
from jaxbert.models.embeddings import Embeddings, sinusoids
from jaxbert.ops.attention.api import dot_product_attention
from jaxbert.ops.dropout import dropout


@dataclasses.dataclass(frozen=True)
class Config(Model):
    """Fields that are None take the named size's value."""

    num_heads: int | None = None
    feed_forward_size: int | None = None
    max_positions: int = 512
    type_vocab_size: int = 2
    attention_dropout: float = 0.1
    attention_start: Literal["random", "local"] = "random"  # initial values: see the top of this file


def _size(num_layers: int, hidden_size: int, num_heads: int | None = None) -> dict[str, int]:
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_heads": num_heads or hidden_size // 64,
        "feed_forward_size": 4 * hidden_size,
    }


# Turc et al. 2019, arXiv:1908.08962, the 24 released models; base and large: Devlin et al. 2019, §3.
SIZES = {f"bert_L{n}_D{d}": _size(n, d) for n in (2, 4, 6, 8, 10, 12) for d in (128, 256, 512, 768)} | {
    "bert_tiny": _size(2, 128),
    "bert_mini": _size(4, 256),
    "bert_small": _size(4, 512),
    "bert_medium": _size(8, 512),
    "bert_base": _size(12, 768),
    "bert_large": _size(24, 1024),
}
LOCAL_POSITIONS, LOCAL_GAIN = 3.0, 1.4
INPUTS = ("token_type_ids_BT",)  # beyond input_ids_BT, segment_ids_BT and position_ids_BT; optional


def forward_flops(config: Config, row_length: int, predictions: int) -> float:
    """Floating-point operations of the products of one row's forward pass: projections, scores, values, feed-forward.

    Scores count the whole row: packed rows compute them all. Of the last layer only keys and values count for every
    token; the rest is computed at the `predictions` positions alone.
    """
    D, F, T, P = config.hidden_size, config.feed_forward_size, row_length, predictions
    keys_and_values, token = 2 * D * D, 2 * D * D + 2 * T * D + 2 * D * F
    return 2.0 * (config.num_layers * T * keys_and_values + ((config.num_layers - 1) * T + P) * token)


class Block(nnx.Module):
    """Self-attention and feed-forward, each followed by dropout, the residual and a layer norm."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """Kernels truncated normal, biases 0, norms (1, 0)."""
        D, N, F = config.hidden_size, config.num_heads, config.feed_forward_size
        H = D // N

        def kernel(*shape: int) -> nnx.Param:
            return layers.truncated_normal(rngs.params(), shape, config.initializer_range)

        self.query_DNH, self.query_bias_NH = kernel(D, N, H), layers.zeros(N, H)
        self.key_DNH, self.key_bias_NH = kernel(D, N, H), layers.zeros(N, H)
        if config.attention_start == "local":
            self.query_DNH = layers.truncated_normal(rngs.params(), (D, N, H), LOCAL_GAIN / math.sqrt(D))
            self.key_DNH = nnx.Param(self.query_DNH[...])
        self.value_DNH, self.value_bias_NH = kernel(D, N, H), layers.zeros(N, H)
        self.output_NHD, self.output_bias_D = kernel(N, H, D), layers.zeros(D)
        self.attention_norm = layers.LayerNorm(D, epsilon=config.norm_epsilon)
        self.up_DF, self.up_bias_F = kernel(D, F), layers.zeros(F)
        self.down_FD, self.down_bias_D = kernel(F, D), layers.zeros(D)
        self.feed_forward_norm = layers.LayerNorm(D, epsilon=config.norm_epsilon)
        self.config = config

    def __call__(
        self,
        x_BTD: jax.Array,
        batch: dict[str, jax.Array],
        *,
        key: jax.Array | None = None,
        positions_BP: jax.Array | None = None,
    ) -> jax.Array:
        """(B, T, D) → (B, T, D), with `positions_BP` only these positions, (B, P, D); `key` None: deterministic."""
        config, k_segment_ids_BS = self.config, batch["segment_ids_BT"]
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        to_q, to_k, to_v = (
            (self.query_DNH, self.query_bias_NH),
            (self.key_DNH, self.key_bias_NH),
            (self.value_DNH, self.value_bias_NH),
        )
        q_segment_ids_BT = k_segment_ids_BS
        if positions_BP is None:
            q_BTNH, k_BSNH, v_BSNH = layers.project_each(x_BTD, to_q, to_k, to_v)
        else:  # keys and values come from everywhere, all the rest from these rows: T is now P
            k_BSNH, v_BSNH = layers.project_each(x_BTD, to_k, to_v)
            x_BTD = layers.take_positions(x_BTD, positions_BP)
            q_segment_ids_BT = jnp.take_along_axis(k_segment_ids_BS, positions_BP, axis=1)
            q_BTNH = layers.project(x_BTD, *to_q)
        a_BTNH = dot_product_attention(
            q_BTNH,
            k_BSNH,
            v_BSNH,
            segment_ids=(q_segment_ids_BT, k_segment_ids_BS),
            dropout_rate=0.0 if key is None else config.attention_dropout,
            key=keys[0],
        )
        a_BTD = layers.project(a_BTNH, self.output_NHD, self.output_bias_D, axes=2)
        x_BTD = self.attention_norm(x_BTD + dropout(a_BTD, config.hidden_dropout, keys[1]))
        f_BTF = layers.ACTIVATIONS[config.activation](layers.project(x_BTD, self.up_DF, self.up_bias_F))
        f_BTD = layers.project(f_BTF, self.down_FD, self.down_bias_D)
        return self.feed_forward_norm(x_BTD + dropout(f_BTD, config.hidden_dropout, keys[2]))


class Bert(encoder.Encoder):
    """The encoder: embeddings, norm, `num_layers` equal blocks."""

    packs = True  # attention stays within segments and positions restart, so several documents share a row
    reference_reads_padding = False  # both mask modes compute the same
    MaskedLMHead = heads.MaskedLMHead

    def __init__(self, config: Config, vocab_size: int, *, rngs: nnx.Rngs):
        """`config` resolved (every size given); `vocab_size` true, the table is padded to a multiple of 128.

        Raises BadInput if the number of heads does not divide the width.
        """
        if config.hidden_size % config.num_heads:
            raise BadInput(
                f"model.num_heads: {config.num_heads} does not divide model.hidden_size {config.hidden_size}"
            )
        self.embeddings = Embeddings(
            vocab_size,
            config.max_positions,
            config.type_vocab_size,
            config.hidden_size,
            stddev=config.initializer_range,
            rngs=rngs,
        )
        if config.attention_start == "local":
            scale = LOCAL_POSITIONS * config.initializer_range * math.sqrt(2.0)  # a sinusoid's own is 1/√2
            table_TD = scale * sinusoids(config.max_positions, config.hidden_size)
            self.embeddings.position_TD = nnx.Param(jnp.asarray(table_TD, jnp.float32))
        self.embedding_norm = layers.LayerNorm(config.hidden_size, epsilon=config.norm_epsilon)
        self.blocks = stack.stacked(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.config, self.vocab_size = config, vocab_size


Encoder = Bert
