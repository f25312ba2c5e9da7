"""gMLP and aMLP (Liu, Dai, So & Le 2021, "Pay Attention to MLPs", arXiv:2105.08050).

No attention and no position embeddings: tokens mix through one matrix over positions a layer, in the gate of a gated
feed-forward block (pre-norm). aMLP adds a tiny single-head attention to the gate. The authors released no code; where
the paper is silent we follow lucidrains/g-mlp-pytorch, which the golden cases come from. Its numbers of parameters show
that the published language models hold a Toeplitz matrix (2n − 1 weights), 32,000 words and a tied head.

Padding: both public implementations read it (there is no mask). Here `mask_mode="exact"` keeps every product within the
token's own document, and "reference" reads padding as text.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxbert.config import Model
from jaxbert.errors import BadInput
from jaxbert.models import encoder, heads, layers, stack
from jaxbert.models.embeddings import WordEmbeddings
from jaxbert.ops.attention.api import dot_product_attention
from jaxbert.ops.dropout import dropout
from jaxbert.ops.toeplitz.api import toeplitz_product
from jaxbert.sharding import by_rows


@dataclasses.dataclass(frozen=True)
class Config(Model):
    """Fields that are None take the named size's value; `max_positions` is n of the matrix over positions.

    Rows longer than n: a Toeplitz matrix is 0 beyond its offsets and the last bias repeats; a dense one refuses them.
    """

    feed_forward_size: int | None = None  # F: both halves, the gated and the gate
    attention_size: int | None = None  # of aMLP's head; 0: no attention
    spatial: Literal["toeplitz", "dense"] = "toeplitz"
    tied_head: bool = True
    # Neither public implementation (lucidrains, timm) drops anything within a block. If set: of the embeddings and of
    # every block's output before the residual; the heads for texts and tokens read it too.
    hidden_dropout: float = 0.0
    # The paper gives none; PyTorch's own, which lucidrains uses everywhere and timm in gates.
    norm_epsilon: float = 1e-5

    @property
    def longest_row(self) -> int | None:
        """A dense matrix has no weights beyond n, a Toeplitz one is defined for any length."""
        return self.max_positions if self.spatial == "dense" else None


def _size(num_layers: int, hidden_size: int, feed_forward_size: int, attention_size: int, n: int) -> dict[str, int]:
    return {
        "num_layers": num_layers,
        "hidden_size": hidden_size,
        "feed_forward_size": feed_forward_size,
        "attention_size": attention_size,
        "max_positions": n,
    }


# §4: base to xlarge are the models that stand beside BERT; the L… are those of the ablations and of scaling in depth.
SIZES = {
    "gmlp_base": _size(48, 512, 3072, 0, 512),
    "gmlp_large": _size(96, 768, 3072, 0, 512),
    "gmlp_xlarge": _size(144, 1024, 4096, 0, 512),
    "amlp_base": _size(36, 512, 3072, 64, 512),
    "amlp_large": _size(72, 768, 3072, 128, 512),
    **{f"gmlp_L{n}": _size(n, 512, 3072, 0, 128) for n in (18, 36, 72, 144)},
}
INPUTS = ()


def forward_flops(config: Config, row_length: int, predictions: int) -> float:
    """Floating-point operations of the products of one row's forward pass.

    The spatial product counts T² F/2 products a layer, whatever computes it, and packed rows count whole. Of the last
    layer what crosses tokens counts for every token, the rest at the `predictions` positions alone.
    """
    D, H, T, P = config.hidden_size, config.feed_forward_size // 2, row_length, predictions
    A = config.attention_size
    mixing = D * H + T * H + 3 * D * A  # the gate's half, W v, queries with keys and values
    token = 2 * T * A + A * H + 2 * D * H  # scores and values, their projection, the gated half and the output
    return 2.0 * (config.num_layers * T * mixing + ((config.num_layers - 1) * T + P) * token)


class Spatial(nnx.Module):
    """W v + b over the positions of a document, W and b the same for all channels (§2.1)."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """W uniform in ±0.001 / n (lucidrains; "near zero" in the paper), b = 1: a block starts as a feed-forward."""
        n = config.max_positions
        shape = (2 * n - 1,) if config.spatial == "toeplitz" else (n, n)
        weights = nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -1e-3 / n, 1e-3 / n))
        if config.spatial == "toeplitz":
            self.weights_O = weights  # of the offsets s − t, −(n − 1) first
        else:
            self.weights_TS = weights
        self.bias_T = nnx.Param(jnp.ones((n,), jnp.float32))
        self.toeplitz = config.spatial == "toeplitz"

    def __call__(self, v_BTF: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        """(B, T, F/2) → (B, T, F/2). Raises BadInput if a dense W has no weights for rows of T tokens."""
        alone = layers.one_document(batch)
        if self.toeplitz:
            y_BTF = toeplitz_product(self.weights_O[...], v_BTF, batch["segment_ids_BT"], one_document=alone)
        else:
            y_BTF = _dense_product(self.weights_TS[...], v_BTF, batch)
        y_BTF = checkpoint_name(y_BTF, layers.MIXED)
        place_BT = jnp.arange(v_BTF.shape[1])[None] if alone else batch["position_ids_BT"]
        bias_BT = by_rows(_bias_at, (place_BT,), self.bias_T[...])
        return y_BTF + bias_BT[:, :, None].astype(y_BTF.dtype)


def _bias_at(place_BT: jax.Array, bias_T: jax.Array) -> jax.Array:
    return jnp.take(bias_T, place_BT, mode="clip")  # past n the last repeats


def _dense_product(weights_TS: jax.Array, v_BTF: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    """y[b, t] = Σ_s W[position of t, position of s] v[b, s] over the positions s of t's own segment."""
    (n, _), length, segment_ids_BT = weights_TS.shape, v_BTF.shape[1], batch["segment_ids_BT"]
    if length > n:
        raise BadInput(
            f"data.row_length: {length} is over model.max_positions {n}, and model.spatial=dense has no weights for it;"
            " shorten the rows, raise max_positions or set model.spatial=toeplitz"
        )
    weights_TS = weights_TS.astype(v_BTF.dtype)
    if layers.one_document(batch):
        v_BTF = jnp.where(segment_ids_BT[:, :, None] > 0, v_BTF, 0.0)
        return jnp.einsum("TS,BSF->BTF", weights_TS[:length, :length], v_BTF)
    place_BT = batch["position_ids_BT"]
    same_BTS = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    matrix_BTS = jnp.where(same_BTS, weights_TS[place_BT[:, :, None], place_BT[:, None, :]], 0.0)
    return jnp.einsum("BTS,BSF->BTF", matrix_BTS, v_BTF)


class TinyAttention(nnx.Module):
    """aMLP's single head, from the block's normed input to the gate's width (§4.3)."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """Queries, keys and values without bias (lucidrains), a projection with one."""
        D, H, F = config.hidden_size, config.attention_size, config.feed_forward_size // 2
        self.qkv_DGH = layers.truncated_normal(rngs.params(), (D, 3, H), config.initializer_range)
        self.output_HF = layers.truncated_normal(rngs.params(), (H, F), config.initializer_range)
        self.output_bias_F = layers.zeros(F)

    def __call__(
        self, h_BTD: jax.Array, batch: dict[str, jax.Array], positions_BP: jax.Array | None = None
    ) -> jax.Array:
        """(B, T, D) → (B, T, F/2), with `positions_BP` (B, P, F/2). A token sees its own document."""
        k_segment_ids_BS = batch["segment_ids_BT"]
        q_segment_ids_BT = layers.take_positions(k_segment_ids_BS[:, :, None], positions_BP)[:, :, 0]
        qkv_BTGH = jnp.einsum("BTD,DGH->BTGH", h_BTD, self.qkv_DGH[...].astype(h_BTD.dtype))
        q_BTNH, k_BSNH, v_BSNH = (qkv_BTGH[:, :, part, None] for part in range(3))  # N = 1
        if positions_BP is not None:
            q_BTNH = layers.take_positions(q_BTNH[:, :, 0], positions_BP)[:, :, None]
        a_BTNH = dot_product_attention(q_BTNH, k_BSNH, v_BSNH, segment_ids=(q_segment_ids_BT, k_segment_ids_BS))
        return layers.project(a_BTNH[:, :, 0], self.output_HF, self.output_bias_F)


class Block(nnx.Module):
    """x + (u ⊙ v) V, where [u, v] = gelu(norm(x) U) and v then mixes positions (§2).

    U is two kernels, one a half, so that a sharded F keeps u and v of a channel together; F below is one half's width.
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """Kernels truncated normal, biases 0, norms (1, 0), the spatial product near 0 with bias 1."""
        D, F = config.hidden_size, config.feed_forward_size // 2

        def kernel(*shape: int) -> nnx.Param:
            return layers.truncated_normal(rngs.params(), shape, config.initializer_range)

        self.norm = layers.LayerNorm(D, epsilon=config.norm_epsilon)
        self.value_DF, self.value_bias_F = kernel(D, F), layers.zeros(F)
        self.gate_DF, self.gate_bias_F = kernel(D, F), layers.zeros(F)
        self.gate_norm = layers.LayerNorm(F, epsilon=config.norm_epsilon)
        self.spatial = Spatial(config, rngs=rngs)
        self.attention = TinyAttention(config, rngs=rngs) if config.attention_size else None
        self.output_FD, self.output_bias_D = kernel(F, D), layers.zeros(D)
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
        gelu = layers.ACTIVATIONS[self.config.activation]
        h_BTD = self.norm(x_BTD)
        to_v, to_u = (self.gate_DF, self.gate_bias_F), (self.value_DF, self.value_bias_F)
        if positions_BP is None:
            v_BTF, u_BTF = layers.project_each(h_BTD, to_v, to_u)
        else:
            v_BTF = layers.project(h_BTD, *to_v)
        # Positions mix here; all that follows is each position's own, so T is P from here on if those are given.
        v_BTF = layers.take_positions(self.spatial(self.gate_norm(gelu(v_BTF)), batch), positions_BP)
        if self.attention is not None:
            v_BTF = v_BTF + self.attention(h_BTD, batch, positions_BP)
        if positions_BP is not None:
            x_BTD, h_BTD = (layers.take_positions(y_BTD, positions_BP) for y_BTD in (x_BTD, h_BTD))
            u_BTF = layers.project(h_BTD, *to_u)
        u_BTF = gelu(u_BTF)
        y_BTD = layers.project(u_BTF * v_BTF, self.output_FD, self.output_bias_D)
        return x_BTD + dropout(y_BTD, self.config.hidden_dropout, key)


class Gmlp(encoder.Encoder):
    """The encoder: word embeddings, `num_layers` equal blocks, a norm."""

    packs = True  # every product stays within segments, and offsets and biases count from a segment's start
    reference_reads_padding = True
    MaskedLMHead = heads.LinearHead

    def __init__(self, config: Config, vocab_size: int, *, rngs: nnx.Rngs):
        """`config` resolved (every size given); `vocab_size` true, the table is padded to a multiple of 128.

        Raises BadInput if the feed-forward width has no two halves.
        """
        if config.feed_forward_size % 2:
            raise BadInput(f"model.feed_forward_size: {config.feed_forward_size} is odd; it must split in two halves")
        D, stddev = config.hidden_size, config.initializer_range
        self.embeddings = WordEmbeddings(vocab_size, D, stddev=stddev, rngs=rngs)
        self.blocks = stack.stacked(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.norm = layers.LayerNorm(D, epsilon=config.norm_epsilon)
        self.config, self.vocab_size = config, vocab_size

    def prepare(self, batch: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
        """In mask_mode "reference" padding is text: raises BadInput for several documents a row then."""
        if self.config.mask_mode == "exact":
            return batch
        layers.require_one_document(batch, "model.mask_mode=reference reads padding, as gMLP's public code does")
        return {**batch, "segment_ids_BT": jnp.ones_like(batch["segment_ids_BT"])}

    def embed(self, batch: dict[str, jax.Array], dtype: Any, key: jax.Array | None) -> jax.Array:
        """The words' embeddings, without a norm."""
        return dropout(self.embeddings(batch, dtype), self.config.hidden_dropout, key)

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """Normed."""
        return self.norm(x_BTD)


Encoder = Gmlp
