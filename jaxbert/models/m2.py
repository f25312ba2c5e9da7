"""Monarch Mixer BERT (Fu et al. 2023, arXiv:2310.12109; code: HazyResearch/m2, bert/), exactly as published.

Tokens mix in two long convolutions over the row, whose filters small networks compute from the position; there is no
residual and no norm around that mixer. The feed-forward is gated and block-diagonal. No Monarch permutation is in the
published encoder.

One document a row (`packs = False`). A convolution weighs a pair of tokens by their distance alone, so it cannot tell
that two tokens are of different documents, as a mask over pairs can; documents of one row would take as many
convolutions of the whole row as there are documents, each reading one and blind to the rest. The cost of rows of one
document: padding up to the length of a row's bucket, and a compiled program for each bucket instead of one.

Of what the published code does by accident:
- it reads padding: only with `mask_mode="reference"`. By default both long convolutions get zeros there; the short one
  is causal, so padding, on the right, does not reach it;
- its short convolution is causal in a bidirectional model: kept, published weights need it;
- one learning rate and weight decay for everything, because the filters' own settings get lost: kept, published weights
  came from it (biases and norms do not decay here, as in every encoder);
- all layers start equal in what is not drawn by the dense layers' rule, because they are copies of one: not kept. The
  distributions are the same; nobody argues for equal draws;
- filters are computed in bfloat16 where the rest is: not kept. In at least float32, since sines of position need it.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxbert.config import Model
from jaxbert.errors import BadInput
from jaxbert.models import encoder, heads, layers, stack
from jaxbert.models.embeddings import Embeddings
from jaxbert.ops.dropout import dropout
from jaxbert.ops.long_conv import api

MIXER_EPSILON = 1e-5  # of the norm among the training additions
SHORT = 3  # taps of the short convolution
# The filters fade from 1 to TARGET over a share of `max_positions`, the share between these two by channel.
TARGET, FASTEST, SLOWEST = 0.01, 0.3, 1.5


@dataclasses.dataclass(frozen=True)
class Config(Model):
    """Fields that are None take the named size's value.

    `max_positions` is the length that the filters are computed for; shorter rows use their first values.
    """

    name: str = "m2_80M"
    feed_forward_size: int | None = None
    type_vocab_size: int = 2
    filter_order: int = 128  # width of the networks that compute the filters
    filter_features: int = 5  # of a position: itself, and cosines and sines of it
    sine_frequency: float = 10.0  # where the learned frequencies of the filters' sines start
    blocks: int = 4  # of the block-diagonal products
    training_additions: bool | None = None  # a norm before the mixer


def _size(hidden_size: int, *, max_positions: int = 128, training_additions: bool = False) -> dict[str, int | bool]:
    return {
        "num_layers": 12,
        "hidden_size": hidden_size,
        "feed_forward_size": 4 * hidden_size,
        "max_positions": max_positions,
        "training_additions": training_additions,
    }


# HazyResearch/m2, bert/yamls. With 30,528 tokens and the masked-LM head 80,285,760, 115,583,616, 259,133,760 and
# 341,038,144 parameters; the last three are the long-context retrieval models.
SIZES = {
    "m2_80M": _size(768, training_additions=True),
    "m2_110M": _size(960),
    "m2_260M": _size(1536),
    "m2_341M": _size(1792),
    "m2_80M_2k": _size(768, max_positions=2048),
    "m2_80M_8k": _size(768, max_positions=8192),
    "m2_80M_32k": _size(768, max_positions=32768),
}
INPUTS = ("token_type_ids_BT",)  # beyond input_ids_BT, segment_ids_BT, position_ids_BT and length_B; optional


def forward_flops(config: Config, row_length: int, predictions: int) -> float:
    """Floating-point operations of one row's forward pass: projections, feed-forward, long convolutions.

    The convolutions count as `long_conv.flops` does: transforms by the common 5/2 n log2 n, not what a library spends
    on them. The filters are left out: they are computed once a batch. The last layer mixes everything; its output
    projection and feed-forward count at the `predictions` positions alone.
    """
    D, F, T, P = config.hidden_size, config.feed_forward_size, row_length, predictions
    mixing, rest = 2.0 * 3 * D * D, 2.0 * (D * D + 3 * D * F / config.blocks)
    layers_tokens = (config.num_layers - 1) * T + P
    return config.num_layers * (T * mixing + 2 * D * api.flops(T)) + layers_tokens * rest


def normal(key: jax.Array, shape: tuple[int, ...], stddev: float) -> nnx.Param:
    """N(0, stddev²), float32."""
    return nnx.Param(stddev * jax.random.normal(key, shape, jnp.float32))


def uniform(key: jax.Array, shape: tuple[int, ...], bound: float) -> nnx.Param:
    """Uniform between −bound and bound, float32."""
    return nnx.Param(jax.random.uniform(key, shape, jnp.float32, -bound, bound))


class FilterNetwork(nnx.Module):
    """From a position's features to a filter's value in every channel: three layers of sines and a projection."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """Kernels normal, biases 0."""
        G, E, D, stddev = config.filter_features, config.filter_order, config.hidden_size, config.initializer_range
        self.first_GE, self.first_bias_E = normal(rngs.params(), (G, E), stddev), layers.zeros(E)
        self.second_EE, self.second_bias_E = normal(rngs.params(), (E, E), stddev), layers.zeros(E)
        self.third_EE, self.third_bias_E = normal(rngs.params(), (E, E), stddev), layers.zeros(E)
        self.output_ED = normal(rngs.params(), (E, D), stddev)

    def __call__(self, features_TG: jax.Array, frequency_E: jax.Array) -> jax.Array:
        """(T, G) → (T, D), in the dtype of the features."""
        h_TE = jnp.sin(frequency_E * layers.project(features_TG, self.first_GE, self.first_bias_E))
        h_TE = jnp.sin(frequency_E * layers.project(h_TE, self.second_EE, self.second_bias_E))
        h_TE = jnp.sin(frequency_E * layers.project(h_TE, self.third_EE, self.third_bias_E))
        return h_TE @ self.output_ED[...].astype(h_TE.dtype)


class LongConvolution(nnx.Module):
    """A long convolution and the filters that it computes, one a direction, of the same features and frequencies."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """Features of the published kind, to be learned; the weight of a token's own value is drawn from N(0, 1)."""
        self.features_TG = nnx.Param(positional_features(config.max_positions, config.filter_features))
        self.frequency_E = nnx.Param(jnp.full((config.filter_order,), config.sine_frequency, jnp.float32))
        self.forward, self.backward = FilterNetwork(config, rngs=rngs), FilterNetwork(config, rngs=rngs)
        self.bias_D = normal(rngs.params(), (config.hidden_size,), 1.0)

    def filters(self, length: int, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        """The first `length` values forward and backward, (T, D) each, in at least float32."""
        dtype = jnp.promote_types(dtype, jnp.float32)
        features_TG, frequency_E = self.features_TG[:length].astype(dtype), self.frequency_E[...].astype(dtype)
        decay_TD = fading(self.features_TG.shape[0], self.bias_D.shape[0], length, dtype)
        with jax.default_matmul_precision("float32"):  # a TPU rounds to bfloat16: 256 positions between 1 and 2
            forward_TD = self.forward(features_TG, frequency_E) * decay_TD
            return forward_TD, self.backward(features_TG, frequency_E) * decay_TD

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) → (B, T, D) in its dtype, over the whole row; the filters are computed once for all rows."""
        filters = self.filters(x_BTD.shape[1], x_BTD.dtype)
        return checkpoint_name(api.long_conv(x_BTD, *filters, self.bias_D[...]), layers.MIXED)


def positional_features(positions: int, features: int) -> jax.Array:
    """t / (Lm − 1), then cosines and negative sines of 2π f t / Lm for (features − 1) / 2 frequencies f; (T, G)."""
    place_T1 = jnp.arange(positions, dtype=jnp.float32)[:, None]
    frequencies = jnp.linspace(1e-4, (features - 1) // 2 - 1, (features - 1) // 2, dtype=jnp.float32)
    angle_TG = 2 * math.pi / positions * place_T1 * frequencies
    return jnp.concatenate([place_T1 / max(1, positions - 1), jnp.cos(angle_TG), -jnp.sin(angle_TG)], axis=1)


def fading(positions: int, width: int, length: int, dtype: jnp.dtype) -> jax.Array:
    """What the filters are multiplied with, (T, D): exp(−δ t / (Lm − 1)), a constant; δ falls with the channel."""
    rates = (math.log(TARGET) / SLOWEST, math.log(TARGET) / FASTEST)
    rate_D = jnp.abs(jnp.linspace(*rates, width, dtype=dtype))
    return jnp.exp(-jnp.arange(length, dtype=dtype)[:, None] / max(1, positions - 1) * rate_D)


def short_convolution(x_BTGD: jax.Array, taps_GDK: jax.Array, bias_GD: jax.Array) -> jax.Array:
    """Each channel's own causal convolution over tokens, in the dtype of `x`; the last tap is the token's own."""
    T, K = x_BTGD.shape[1], taps_GDK.shape[-1]
    past = jnp.pad(x_BTGD, ((0, 0), (K - 1, 0), (0, 0), (0, 0)))
    terms = [past[:, k : k + T] * taps_GDK[..., k].astype(x_BTGD.dtype) for k in range(K)]
    return sum(terms, start=bias_GD.astype(x_BTGD.dtype))


def block_products(x: jax.Array, kernel_GFD: jax.Array) -> list[jax.Array]:
    """A block-diagonal product, block by block: the g-th part of the last axis with the g-th kernel, G of (…, F)."""
    # Transposed once and not in each product, forward and backward: 1.05 × the step on a CPU.
    kernel_GDF = jax.lax.optimization_barrier(kernel_GFD.astype(x.dtype).transpose(0, 2, 1))
    parts = jnp.split(x.reshape(-1, x.shape[-1]), len(kernel_GDF), axis=-1)
    return [(part @ kernel).reshape(*x.shape[:-1], -1) for part, kernel in zip(parts, kernel_GDF, strict=True)]


class Block(nnx.Module):
    """A mixer without residual, then a gated feed-forward with residual and norm."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """Dense kernels normal and biases 0; the rest uniform within one over the square root of what a value sums."""
        D, F, G = config.hidden_size, config.feed_forward_size, config.blocks

        def bounded(*shape: int, inputs: float) -> nnx.Param:
            return uniform(rngs.params(), shape, 1 / math.sqrt(inputs))

        if config.training_additions:
            self.mixer_norm = layers.LayerNorm(D, epsilon=MIXER_EPSILON)
        self.input_DGD = normal(rngs.params(), (D, 3, D), config.initializer_range)  # the gate x2 is in the middle
        self.input_bias_GD = layers.zeros(3, D)
        self.short_GDK, self.short_bias_GD = bounded(3, D, SHORT, inputs=SHORT), bounded(3, D, inputs=SHORT)
        self.mixing, self.residual = LongConvolution(config, rngs=rngs), LongConvolution(config, rngs=rngs)
        self.output_DD = normal(rngs.params(), (D, D), config.initializer_range)
        self.output_bias_D = layers.zeros(D)
        self.gated_GFD = bounded(G, 2 * F // G, D // G, inputs=D / G)
        self.down_GDF, self.down_bias_D = bounded(G, D // G, F // G, inputs=F / G), bounded(D, inputs=D)
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
        y_BTD = layers.take_positions(self.mix(x_BTD, batch), positions_BP)
        a_BTD = layers.project(y_BTD, self.output_DD, self.output_bias_D)
        g_BTF = dropout(self.gate(a_BTD), self.config.hidden_dropout, key)
        f_BTD = jnp.concatenate(block_products(g_BTF, self.down_GDF[...]), axis=-1)
        f_BTD = f_BTD + self.down_bias_D[...].astype(f_BTD.dtype)
        return self.feed_forward_norm(f_BTD + a_BTD)

    def mix(self, x_BTD: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        """Tokens are mixed here and nowhere else, (B, T, D) → (B, T, D)."""
        u_BTD = self.mixer_norm(x_BTD) if self.config.training_additions else x_BTD
        p_BTGD = layers.project(u_BTD, self.input_DGD, self.input_bias_GD)
        p_BTGD = short_convolution(p_BTGD, self.short_GDK[...], self.short_bias_GD[...])
        first_BTD, gate_BTD, value_BTD = (p_BTGD[:, :, i] for i in range(3))
        v_BTD = value_BTD * first_BTD
        if self.config.mask_mode == "exact":
            real_BT1 = batch["segment_ids_BT"][:, :, None] > 0
            v_BTD, u_BTD = jnp.where(real_BT1, v_BTD, 0.0), jnp.where(real_BT1, u_BTD, 0.0)
        return self.mixing(v_BTD) * gate_BTD + self.residual(u_BTD)

    def gate(self, a_BTD: jax.Array) -> jax.Array:
        """(B, T, D) → (B, T, F), the activated first half of a block-diagonal product times its second half.

        The halves are cut after the product, so the first blocks of D make the gate and the last ones what it gates:
        with four blocks the output's first half pairs blocks 0 and 2, its second half 1 and 3.
        """
        products, pairs = block_products(a_BTD, self.gated_GFD[...]), self.config.blocks // 2
        activation = layers.ACTIVATIONS[self.config.activation]
        return jnp.concatenate(
            [activation(gate) * value for gate, value in zip(products[:pairs], products[pairs:], strict=True)], axis=-1
        )


class MonarchMixer(encoder.Encoder):
    """The encoder: embeddings, norm, `num_layers` equal blocks."""

    packs = False  # see the top of this file
    reference_reads_padding = True
    MaskedLMHead = heads.MaskedLMHead

    def __init__(self, config: Config, vocab_size: int, *, rngs: nnx.Rngs):
        """`config` resolved (every size given); `vocab_size` true, the table is padded to a multiple of 128.

        Raises BadInput for blocks that are odd or do not divide the widths, or features that are even or under 3.
        """
        D, F, G = config.hidden_size, config.feed_forward_size, config.blocks
        if G % 2 or D % G or F % G:
            raise BadInput(
                f"model.blocks: {G} must be even (half of them gate the others) and divide model.hidden_size {D} and "
                f"model.feed_forward_size {F}"
            )
        if config.filter_features < 3 or config.filter_features % 2 == 0:
            raise BadInput(
                f"model.filter_features: {config.filter_features}; it must be odd and at least 3: the position, then "
                "cosines and sines in pairs"
            )
        self.embeddings = Embeddings(
            vocab_size, config.max_positions, config.type_vocab_size, D, stddev=config.initializer_range, rngs=rngs
        )
        self.embedding_norm = layers.LayerNorm(D, epsilon=config.norm_epsilon)
        self.blocks = stack.stacked(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.config, self.vocab_size = config, vocab_size

    def prepare(self, batch: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
        """Raises BadInput if rows may hold several documents, or are over `max_positions`."""
        config, length = self.config, batch["input_ids_BT"].shape[1]
        layers.require_one_document(batch, "M2-BERT convolves the whole row (model.name m2_…)")
        if length > config.max_positions:
            raise BadInput(
                f"model.max_positions: {config.max_positions}, but rows have {length} tokens; the filters end there: "
                "shorten the rows or take a size for longer ones (m2_80M_2k, m2_80M_8k, m2_80M_32k)"
            )
        return batch


Encoder = MonarchMixer
