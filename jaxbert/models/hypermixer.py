"""HyperMixer (Mai et al. 2023, arXiv:2203.03691; code: idiap/hypermixing and the authors' copy in SpeechBrain).

Published is a token mixer: an MLP over the tokens of a text whose two weight matrices a hypernetwork makes, a row from
each token, so that it fits any length and its cost is linear in T. `HyperMixing` is that module exactly, its own layer
norm included. No encoder for language modelling was published with it, no size and no weights; what surrounds it is
ours:

- Blocks are pre-norm: x + mixing(norm(x)), then x + feed_forward(norm(x)), and a norm after the last. The mixing sums
  over tokens, so its output grows with T before the module's norm: behind that norm every block adds about one unit to
  the stream whatever T is. On the stream itself post-norm would put a second norm right behind the module's own. (500
  steps of the demo, two layers: 5.93 nats with either; BERT 6.26.)
- The embedding is the word table and a norm, which gives a token one unit beside the blocks' outputs. No position
  table: each block's hypernetwork adds sinusoids to its own input. No token types.
- `position_table` "standard" (SpeechBrain's) by default. "idiap" multiplies x by √D first, which was made for
  embeddings of scale 1/√D; here x comes out of a norm, and positions are 1/(2D + 1) of the input's variance. (The same
  500 steps with it: 5.90, one seed each.)
- The masked-LM head is BERT's.

Initial scale. The published code draws the hypernetworks with Xavier's rule on a stack of head matrices, of which
PyTorch takes the wrong axes for the fan: σ is 0.0039 and 0.0020 where the rule means 0.0625 and 0.0395 (D = 512, one
head, k = 2048). The mixed values then have a scale of 5e-4, 2e-3 and 4e-3 for 16, 128 and 512 tokens, and the norm
behind them, whose √ε is 3e-3, makes 0.16, 0.47 and 0.76 of them: what a text's tokens hear of each other depends on
its length. We draw what the rule means, each head's own fans and gain √2 (`hypernet_gain`), and divide the first
kernel by what x is multiplied by. W₁ and W₂ then have a scale of 1.1, the sums of 4, 14 and 38, the mixed values of
120, 430 and 1,090 (base size, 16, 128 and 512 tokens), all far above ε, and the module's output 1.00 at every length.
Over twelve layers the stream goes from 1 to about 3. (On the demo, two layers of width 128 and 128 tokens, where the
published draw is nearest to ours, 500 steps end at 5.93 with gains of √2 and 0.7 and at 5.92 with 0.1.)

Padding: both masks are always passed, so the published code reads none of it and the two mask modes are equal.

Packing: sums run over the token's own document (ops/segment_mixing, by_document.py says what that costs).
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbert.config import Model
from jaxbert.errors import BadInput
from jaxbert.models import embeddings, encoder, heads, layers, stack
from jaxbert.ops.dropout import dropout
from jaxbert.ops.segment_mixing.api import segment_mixing
from jaxbert.sharding import split_rows

MIXING_EPSILON = 1e-5  # of the module's own norm


@dataclasses.dataclass(frozen=True)
class Config(Model):
    """Fields that are None take the named size's value."""

    name: str = "hypermixer_small"
    num_heads: int | None = None  # each mixes its own part of the width, with a hypernetwork of its own
    hypernet_size: int | None = None  # k: hidden units of the MLP over tokens, of all heads together
    feed_forward_size: int | None = None
    tied: bool = False  # W₂ is W₁: one hypernetwork in place of two
    hypernet_bias: bool = False  # idiap's default; SpeechBrain's module always has them
    position_table: Literal["idiap", "standard"] = "standard"
    hypernet_gain: float = math.sqrt(2.0)  # of the hypernetworks' initial values, on Xavier's rule
    max_positions: int = 512
    norm_epsilon: float = 1e-6  # of the norms around the module, as in SpeechBrain's encoder


def _size(num_layers: int, hidden_size: int) -> dict[str, int]:
    # Two heads and k = 4D as in the module's published example (D = 128, k = 512, two heads), k being the feed-forward
    # width as in SpeechBrain: 13 D² weights a block, where BERT's has 12 D².
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "num_heads": 2,
        "hypernet_size": 4 * hidden_size,
        "feed_forward_size": 4 * hidden_size,
    }


# Ours, at the depths and widths of BERT's: nobody published a size of an encoder.
SIZES = {"hypermixer_tiny": _size(2, 128), "hypermixer_small": _size(4, 512), "hypermixer_base": _size(12, 768)}
INPUTS = ()


def forward_flops(config: Config, row_length: int, predictions: int) -> float:
    """Floating-point operations of the products of one row's forward pass, as for a row of one document.

    Linear in T: hypernetworks, v W₁, a W₂, feed-forward. Of the last layer W₁ and its product count for every token,
    the rest at the `predictions` positions alone.
    """
    D, N, K, F = config.hidden_size, config.num_heads, config.hypernet_size, config.feed_forward_size
    hypernetwork, product = D * (D + K) // N, D * K // N
    everywhere = hypernetwork + product
    token = (0 if config.tied else hypernetwork) + product + 2 * D * F
    T, P = row_length, predictions
    return 2.0 * (config.num_layers * T * everywhere + ((config.num_layers - 1) * T + P) * token)


class Hypernetwork(nnx.Module):
    """For each head an MLP from a token to its row of a token-mixing weight."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """Kernels (head, out, in) as published, uniform by Xavier's rule with each head's own fans; biases 0.

        Where the position table multiplies x by √D, the first kernel is smaller by as much.
        """
        N, H, F = config.num_heads, config.hidden_size // config.num_heads, config.hypernet_size // config.num_heads

        def kernel(outputs: int, scale: float = 1.0) -> nnx.Param:
            bound = config.hypernet_gain * math.sqrt(6.0 / (H + outputs)) / scale
            return nnx.Param(jax.random.uniform(rngs.params(), (N, outputs, H), jnp.float32, -bound, bound))

        self.hidden_NHH = kernel(H, scale=_multiplier(config))
        self.row_NFH = kernel(F)
        if config.hypernet_bias:
            self.hidden_bias_NH, self.row_bias_NF = layers.zeros(N, H), layers.zeros(N, F)
        self.has_bias = config.hypernet_bias

    def __call__(self, e_NBTH: jax.Array) -> jax.Array:
        """(N, B, T, H) → (N, B, T, F)."""
        h_NBTH = layers.gelu(_by_head(e_NBTH, self.hidden_NHH, self.hidden_bias_NH if self.has_bias else None))
        return _by_head(h_NBTH, self.row_NFH, self.row_bias_NF if self.has_bias else None)


def _by_head(x_NBTH: jax.Array, kernel_NFH: nnx.Param, bias_NF: nnx.Param | None) -> jax.Array:
    y_NBTF = jnp.einsum("NBTH,NFH->NBTF", x_NBTH, kernel_NFH[...].astype(x_NBTH.dtype))
    return y_NBTF if bias_NF is None else y_NBTF + bias_NF[...].astype(x_NBTH.dtype)[:, None, None]


class HyperMixing(nnx.Module):
    """The published module, for self-mixing (queries, keys and values are x): gelu(xᵀ W₁) W₂ᵀ, then its layer norm."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """One hypernetwork if `config.tied`, else two; the norm (1, 0)."""
        self.first = Hypernetwork(config, rngs=rngs)
        if not config.tied:
            self.second = Hypernetwork(config, rngs=rngs)
        self.norm = layers.LayerNorm(config.hidden_size, epsilon=MIXING_EPSILON)
        self.config = config

    def __call__(
        self, x_BTD: jax.Array, batch: dict[str, jax.Array], *, positions_BP: jax.Array | None = None
    ) -> jax.Array:
        """(B, T, D) → (B, T, D), with `positions_BP` only these positions, (B, P, D).

        `batch` also has "positions_BTD", from `sinusoids`.
        """
        config, k_segment_ids_BS = self.config, batch["segment_ids_BT"]
        q_segment_ids_BT = k_segment_ids_BS
        e_NBTH = self._heads(x_BTD * _multiplier(config) + batch["positions_BTD"])
        first_NBTF = self.first(e_NBTH)
        if positions_BP is not None:  # W₁ and the sums come from everywhere, W₂ from these rows: T is now P
            q_segment_ids_BT = jnp.take_along_axis(k_segment_ids_BS, positions_BP, axis=1)
        second_NBTF = self._at(first_NBTF, positions_BP) if config.tied else self.second(self._at(e_NBTH, positions_BP))
        y_NBTH = segment_mixing(
            self._heads(x_BTD),
            first_NBTF,
            second_NBTF,
            q_segment_ids_BT,
            k_segment_ids_BS,
            activation=layers.gelu,
            one_document=layers.one_document(batch),
        )
        N, B, T, H = y_NBTH.shape
        # Heads are split over `tensor` and are channels: without it all that follows would be split by channels.
        return self.norm(split_rows(y_NBTH.transpose(1, 2, 0, 3).reshape(B, T, N * H)))

    def _heads(self, x_BTD: jax.Array) -> jax.Array:
        """Contiguous channels belong to a head: (B, T, D) → (N, B, T, H)."""
        B, T, D = x_BTD.shape
        return x_BTD.reshape(B, T, self.config.num_heads, -1).transpose(2, 0, 1, 3)

    @staticmethod
    def _at(x_NBTH: jax.Array, positions_BP: jax.Array | None) -> jax.Array:
        return x_NBTH if positions_BP is None else jnp.take_along_axis(x_NBTH, positions_BP[None, :, :, None], axis=2)


def _multiplier(config: Config) -> float:
    """What x is multiplied by before positions are added."""
    return math.sqrt(config.hidden_size) if config.position_table == "idiap" else 1.0


@functools.cache
def _table(name: str, length: int, width: int) -> np.ndarray:
    if name == "standard":
        return embeddings.sinusoids(length, width)
    channel_D = np.arange(width)  # the exponent is twice the usual, a channel's own, and positions count from 1
    angle_TD = np.arange(1, length + 1)[:, None] / 10_000.0 ** (2 * channel_D / width)
    return np.where(channel_D % 2, np.cos(angle_TD), np.sin(angle_TD))


def sinusoids(config: Config, batch: dict[str, jax.Array], dtype: Any) -> jax.Array:
    """The position table at every token's place in its document: (B, T, D) in `dtype`, or (1, T, D) for all rows.

    "standard": sin(t / 10000^(2i/D)) and the cosine in channels 2i and 2i + 1, t from 0 (Vaswani et al. 2017, §3.5).
    "idiap": channel c has the exponent 2c/D, and t counts from 1. Computed in float64, no parameters.
    """
    table_TD = jnp.asarray(_table(config.position_table, batch["segment_ids_BT"].shape[1], config.hidden_size), dtype)
    return table_TD[None] if layers.one_document(batch) else jnp.take(table_TD, batch["position_ids_BT"], axis=0)


class Block(nnx.Module):
    """Mixing and feed-forward, each after a norm and before dropout and the residual."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """Feed-forward kernels truncated normal, biases 0, norms (1, 0); the mixing as its own class says."""
        D, F = config.hidden_size, config.feed_forward_size

        def kernel(*shape: int) -> nnx.Param:
            return layers.truncated_normal(rngs.params(), shape, config.initializer_range)

        self.mixing_norm = layers.LayerNorm(D, epsilon=config.norm_epsilon)
        self.mixing = HyperMixing(config, rngs=rngs)
        self.feed_forward_norm = layers.LayerNorm(D, epsilon=config.norm_epsilon)
        self.up_DF, self.up_bias_F = kernel(D, F), layers.zeros(F)
        self.down_FD, self.down_bias_D = kernel(F, D), layers.zeros(D)
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
        config = self.config
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        m_BTD = self.mixing(self.mixing_norm(x_BTD), batch, positions_BP=positions_BP)
        m_BTD = dropout(m_BTD, config.hidden_dropout, keys[0])
        # Split as the feed-forward kernels are, the last layer's norm had a wrong gradient on 2 × 2 × 2 (jax 0.10.2).
        x_BTD = split_rows(layers.take_positions(x_BTD, positions_BP) + m_BTD)
        f_BTF = layers.project(self.feed_forward_norm(x_BTD), self.up_DF, self.up_bias_F)
        f_BTD = layers.project(layers.ACTIVATIONS[config.activation](f_BTF), self.down_FD, self.down_bias_D)
        return x_BTD + dropout(f_BTD, config.hidden_dropout, keys[1])


class HyperMixer(encoder.Encoder):
    """The encoder: word embeddings, norm, `num_layers` equal blocks, norm."""

    packs = True  # sums stay within segments and positions restart, so several documents share a row
    reference_reads_padding = False  # both mask modes compute the same
    MaskedLMHead = heads.MaskedLMHead

    def __init__(self, config: Config, vocab_size: int, *, rngs: nnx.Rngs):
        """`config` resolved (every size given); `vocab_size` true, the table is padded to a multiple of 128.

        Raises BadInput if the number of heads does not divide both widths.
        """
        for name, size in (("hidden_size", config.hidden_size), ("hypernet_size", config.hypernet_size)):
            if size % config.num_heads:
                raise BadInput(f"model.num_heads: {config.num_heads} does not divide model.{name} {size}")
        D = config.hidden_size
        self.embeddings = embeddings.WordEmbeddings(vocab_size, D, stddev=config.initializer_range, rngs=rngs)
        self.embedding_norm = layers.LayerNorm(D, epsilon=config.norm_epsilon)
        self.blocks = stack.stacked(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.norm = layers.LayerNorm(D, epsilon=config.norm_epsilon)
        self.config, self.vocab_size = config, vocab_size

    def prepare(self, batch: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
        """With the positions' sinusoids."""
        return {**batch, "positions_BTD": sinusoids(self.config, batch, dtype)}

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """Normed."""
        return self.norm(x_BTD)


Encoder = HyperMixer
