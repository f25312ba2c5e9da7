"""ConvBERT (Jiang et al. 2020, arXiv:2008.02496; code: yitu-opensource/ConvBert), exactly as published.

Half of each layer's heads attend, the other half are span-based dynamic convolutions, whose kernel of K taps each token
makes from its neighbourhood. The published code masks padding in the attention alone, so its convolutions read it. Here
(`mask_mode="exact"`) both convolutions stop where a token's own document ends: padding changes nothing, and documents
share rows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbert.config import Model
from jaxbert.errors import BadInput
from jaxbert.models import encoder, heads, layers, stack
from jaxbert.models.embeddings import Embeddings
from jaxbert.ops.attention.api import dot_product_attention
from jaxbert.ops.dropout import dropout


@dataclasses.dataclass(frozen=True)
class Config(Model):
    """Fields that are None take the named size's value."""

    name: str = "convbert_small"
    num_heads: int | None = None  # as published: of a layer of attention alone; half of them remain, half convolve
    head_ratio: int = 2  # no other is supported: the published code and transformers disagree on what it means
    kernel_size: int = 9  # taps of both convolutions, odd
    groups: int | None = None  # of the feed-forward: its products are block-diagonal with so many blocks
    embedding_size: int | None = None  # width of the tables; projected to `hidden_size` where it differs
    feed_forward_size: int | None = None
    max_positions: int = 512
    type_vocab_size: int = 2
    attention_dropout: float = 0.1  # of the attention's probabilities; the convolution's kernels have none


# Jiang et al. 2020, §4.1 and appendix A; yitu-opensource/ConvBert training_utils.py. Parameters with 30,522 tokens and
# the masked-LM head: 13.2, 17.6 and 106.3 million.
SIZES = {
    "convbert_small": {
        "num_layers": 12,
        "hidden_size": 256,
        "num_heads": 4,
        "groups": 1,
        "embedding_size": 128,
        "feed_forward_size": 1024,
    },
    "convbert_medium_small": {
        "num_layers": 12,
        "hidden_size": 384,
        "num_heads": 8,
        "groups": 2,
        "embedding_size": 128,
        "feed_forward_size": 1536,
    },
    "convbert_base": {
        "num_layers": 12,
        "hidden_size": 768,
        "num_heads": 12,
        "groups": 1,
        "embedding_size": 768,
        "feed_forward_size": 3072,
    },
}
INPUTS = ("token_type_ids_BT",)  # beyond input_ids_BT, segment_ids_BT and position_ids_BT; optional


def forward_flops(config: Config, row_length: int, predictions: int) -> float:
    """Floating-point operations of the products of one row's forward pass, convolutions included.

    Scores count the whole row: packed rows compute them all. Of the last layer what others read (keys, values, the
    convolutions' inputs) counts for every token; the rest is computed at the `predictions` positions alone.
    """
    D, F, T, P, K = config.hidden_size, config.feed_forward_size, row_length, predictions, config.kernel_size
    A, N = D // 2, config.num_heads // 2
    read = 3 * D * A + K * D  # keys, values, the convolution's values; the depthwise convolution
    made = 2 * D * A + A * N * K + K * A  # query, span key; kernels; the dynamic convolution
    token = made + 2 * T * A + D * D + 2 * D * F // config.groups
    projection = config.embedding_size * D if config.embedding_size != D else 0
    return 2.0 * (T * projection + config.num_layers * T * read + ((config.num_layers - 1) * T + P) * token)


class Block(nnx.Module):
    """Mixed attention and (grouped) feed-forward, each followed by dropout, the residual and a layer norm."""

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        """Kernels truncated normal, biases 0, norms (1, 0).

        The depthwise kernel has σ = 1/K, as the published TensorFlow code (transformers draws it with 0.02): a sum of K
        inputs then keeps a third of their scale and not 0.06, so the span key is no smaller than other projections.
        """
        D, F, K, G = config.hidden_size, config.feed_forward_size, config.kernel_size, config.groups
        N, H = config.num_heads // 2, config.hidden_size // config.num_heads

        def kernel(*shape: int, stddev: float = config.initializer_range) -> nnx.Param:
            return layers.truncated_normal(rngs.params(), shape, stddev)

        self.query_DNH, self.query_bias_NH = kernel(D, N, H), layers.zeros(N, H)
        self.key_DNH, self.key_bias_NH = kernel(D, N, H), layers.zeros(N, H)
        self.value_DNH, self.value_bias_NH = kernel(D, N, H), layers.zeros(N, H)
        self.depthwise_KD = kernel(K, D, stddev=1 / K)
        self.span_DNH, self.span_bias_NH = kernel(D, N, H), layers.zeros(N, H)
        self.taps_NHNK, self.taps_bias_NK = kernel(N, H, N, K), layers.zeros(N, K)
        self.local_DNH, self.local_bias_NH = kernel(D, N, H), layers.zeros(N, H)
        self.output_NHD, self.output_bias_D = kernel(2 * N, H, D), layers.zeros(D)
        self.attention_norm = layers.LayerNorm(D, epsilon=config.norm_epsilon)
        self.up_GDF, self.up_bias_F = kernel(G, D // G, F // G), layers.zeros(F)
        self.down_GFD, self.down_bias_D = kernel(G, F // G, D // G), layers.zeros(D)
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
        """(B, T, D) → (B, T, D), with `positions_BP` only these positions, (B, P, D); `key` None: deterministic.

        `batch["visible_BTK"]`: which taps each token may read, from the encoder.
        """
        config, k_segment_ids_BS, visible_BTK = self.config, batch["segment_ids_BT"], batch["visible_BTK"]
        keys = (None, None, None) if key is None else tuple(jax.random.split(key, 3))
        to_q, to_k, to_v, to_u = (
            (self.query_DNH, self.query_bias_NH),
            (self.key_DNH, self.key_bias_NH),
            (self.value_DNH, self.value_bias_NH),
            (self.local_DNH, self.local_bias_NH),
        )
        near_BTD = depthwise(x_BTD, self.depthwise_KD[...], visible_BTK)
        q_segment_ids_BT = k_segment_ids_BS
        if config.mask_mode == "reference":  # padding attends to the document, and the next convolution reads padding
            q_segment_ids_BT = jnp.broadcast_to(k_segment_ids_BS[:, :1], k_segment_ids_BS.shape)
        if positions_BP is None:
            q_BTNH, k_BSNH, v_BSNH, u_BSNH = layers.project_each(x_BTD, to_q, to_k, to_v, to_u)
        else:  # what others read comes from everywhere, the rest from these rows: T is now P
            k_BSNH, v_BSNH, u_BSNH = layers.project_each(x_BTD, to_k, to_v, to_u)
            x_BTD, near_BTD, visible_BTK = (
                layers.take_positions(x, positions_BP) for x in (x_BTD, near_BTD, visible_BTK)
            )
            q_segment_ids_BT = jnp.take_along_axis(q_segment_ids_BT, positions_BP, axis=1)
            q_BTNH = layers.project(x_BTD, *to_q)
        span_BTNH = layers.project(near_BTD, self.span_DNH, self.span_bias_NH)
        taps_BTNK = layers.project(span_BTNH * q_BTNH, self.taps_NHNK, self.taps_bias_NK, axes=2)
        taps_BTNK = jax.nn.softmax(taps_BTNK.astype(jnp.promote_types(x_BTD.dtype, jnp.float32)), axis=-1)
        c_BTNH = dynamic_convolution(u_BSNH, taps_BTNK, visible_BTK, positions_BP)
        a_BTNH = dot_product_attention(
            q_BTNH,
            k_BSNH,
            v_BSNH,
            segment_ids=(q_segment_ids_BT, k_segment_ids_BS),
            dropout_rate=0.0 if key is None else config.attention_dropout,
            key=keys[0],
        )
        both_BTNH = jnp.concatenate([a_BTNH, c_BTNH], axis=2)
        a_BTD = layers.project(both_BTNH, self.output_NHD, self.output_bias_D, axes=2)
        x_BTD = self.attention_norm(x_BTD + dropout(a_BTD, config.hidden_dropout, keys[1]))
        f_BTF = layers.ACTIVATIONS[config.activation](grouped(x_BTD, self.up_GDF, self.up_bias_F))
        f_BTD = grouped(f_BTF, self.down_GFD, self.down_bias_D)
        return self.feed_forward_norm(x_BTD + dropout(f_BTD, config.hidden_dropout, keys[2]))


def visible_taps(segment_ids_BT: jax.Array, kernel_size: int, *, reads_padding: bool) -> jax.Array:
    """Which of the K tokens around each one its convolutions read, (B, T, K) bool: those of its own segment.

    `reads_padding`: every one, as the published code (outside the row there are zeros to read).
    """
    near_KBT = _neighbours(segment_ids_BT, kernel_size, outside=-1)
    return jnp.stack([(s_BT == segment_ids_BT) | (reads_padding & (s_BT >= 0)) for s_BT in near_KBT], axis=-1)


@jax.custom_vjp
def depthwise(x_BTD: jax.Array, kernel_KD: jax.Array, visible_BTK: jax.Array) -> jax.Array:
    """y[t] = Σ_j kernel[j] ⊙ x[t + j − K//2] over the visible taps, (B, T, D); sums in at least float32.

    K shifted products that fuse into one pass: on a CPU 0.5 ms where a grouped convolution takes 55 (4,096 tokens, 256
    channels). A token sees another where that one sees it, so the gradient of x is the same sum with the kernel turned.
    """
    dtype, near_KBTD = jnp.promote_types(x_BTD.dtype, jnp.float32), _neighbours(x_BTD, len(kernel_KD))
    terms = [
        jnp.where(visible_BTK[:, :, j, None], x_BTD.astype(dtype), 0.0) * kernel_KD[j].astype(dtype)
        for j, x_BTD in enumerate(near_KBTD)
    ]
    return sum(terms[1:], terms[0]).astype(x_BTD.dtype)


def _depthwise_backward(saved: tuple[jax.Array, ...], gradient_BTD: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x_BTD, kernel_KD, visible_BTK = saved
    K, dtype = len(kernel_KD), jnp.promote_types(x_BTD.dtype, jnp.float32)

    def reduced(x_BTD: jax.Array, gradient_BTD: jax.Array, visible_BTK: jax.Array) -> jax.Array:
        near_KBTD = [
            jnp.where(visible_BTK[:, :, j, None], x.astype(dtype), 0.0) for j, x in enumerate(_neighbours(x_BTD, K))
        ]
        return jnp.stack([jnp.sum(x_BTD * gradient_BTD.astype(dtype), axis=(0, 1)) for x_BTD in near_KBTD])

    def scanned(x_BTD: jax.Array, gradient_BTD: jax.Array, visible_BTK: jax.Array) -> jax.Array:
        """The same, a token of every row at a time: XLA's sums over tokens take 20 to 50 times as long on a CPU."""
        x_BTD = _framed(x_BTD, K)

        def step(sum_BKD: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            near_BKD = jax.lax.dynamic_slice_in_dim(x_BTD, t, K, axis=1).astype(dtype)
            gradient_BD, visible_BK = (a[:, t] for a in (gradient_BTD, visible_BTK))
            return sum_BKD + jnp.where(visible_BK[:, :, None], near_BKD, 0.0) * gradient_BD[:, None].astype(dtype), None

        B, T, D = gradient_BTD.shape
        return jnp.sum(jax.lax.scan(step, jnp.zeros((B, K, D), dtype), jnp.arange(T), unroll=4)[0], axis=0)

    dx_BTD = depthwise(gradient_BTD, kernel_KD[::-1], visible_BTK)
    dkernel_KD = jax.lax.platform_dependent(x_BTD, gradient_BTD, visible_BTK, cpu=scanned, default=reduced)
    return dx_BTD, dkernel_KD.astype(kernel_KD.dtype), None


depthwise.defvjp(lambda *arguments: (depthwise(*arguments), arguments), _depthwise_backward)


def dynamic_convolution(
    u_BSNH: jax.Array, taps_BTNK: jax.Array, visible_BTK: jax.Array, positions_BP: jax.Array | None = None
) -> jax.Array:
    """c[t] = Σ_j taps[t, j] u[t + j − K//2] over the visible taps, for each head (Jiang et al. 2020, §3.2).

    (B, S, N, H) and (B, T, N, K) → (B, T, N, H) in the dtype of `u`. The tokens t are `positions_BP`; None: all.
    """
    near_KBTNH = _neighbours(u_BSNH, taps_BTNK.shape[-1], positions_BP)
    return _weighted_sum(jnp.where(visible_BTK[:, :, None], taps_BTNK, 0.0), near_KBTNH)


@jax.custom_vjp
def _weighted_sum(taps_BTNK: jax.Array, near_KBTNH: list[jax.Array]) -> jax.Array:
    terms = [taps_BTNK[..., j, None] * u_BTNH.astype(taps_BTNK.dtype) for j, u_BTNH in enumerate(near_KBTNH)]
    return sum(terms[1:], terms[0]).astype(near_KBTNH[0].dtype)


def _weighted_sum_backward(
    saved: tuple[jax.Array, list[jax.Array]], gradient_BTNH: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
    taps_BTNK, near_KBTNH = saved
    gradient_BTNH = gradient_BTNH.astype(taps_BTNK.dtype)

    def halved(x_BTNH: jax.Array) -> jax.Array:
        """A sum over H by halves: on a CPU XLA adds one number after the other, which takes 3 to 13 times as long."""
        while x_BTNH.shape[-1] % 2 == 0:
            half = x_BTNH.shape[-1] // 2
            x_BTNH = x_BTNH[..., :half] + x_BTNH[..., half:]
        return jnp.sum(x_BTNH, axis=-1)

    def products(total: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
        return lambda gradient_BTNH, *near: jnp.stack([total(gradient_BTNH * u_BTNH) for u_BTNH in near], axis=-1)

    dtaps_BTNK = jax.lax.platform_dependent(
        gradient_BTNH, *near_KBTNH, cpu=products(halved), default=products(lambda x_BTNH: jnp.sum(x_BTNH, axis=-1))
    )
    near = [(taps_BTNK[..., j, None] * gradient_BTNH).astype(u_BTNH.dtype) for j, u_BTNH in enumerate(near_KBTNH)]
    return dtaps_BTNK, near


_weighted_sum.defvjp(lambda *arguments: (_weighted_sum(*arguments), arguments), _weighted_sum_backward)


def grouped(x_BTD: jax.Array, kernel_GDF: nnx.Param, bias_F: nnx.Param) -> jax.Array:
    """A block-diagonal product: the g-th part of the last axis with the g-th kernel, (B, T, D) → (B, T, F)."""
    parts = jnp.split(x_BTD, len(kernel_GDF[...]), axis=-1)
    y_BTF = [x @ kernel_DF.astype(x.dtype) for x, kernel_DF in zip(parts, kernel_GDF[...], strict=True)]
    return jnp.concatenate(y_BTF, axis=-1) + bias_F[...].astype(x_BTD.dtype)


def _neighbours(
    x_BT: jax.Array, size: int, positions_BP: jax.Array | None = None, *, outside: int = 0
) -> list[jax.Array]:
    """x at t − K//2, …, t + K//2: K arrays (B, T, …), `outside` beyond the row. With positions t is these alone."""
    T, x_BT = x_BT.shape[1], _framed(x_BT, size, outside)
    if positions_BP is None:
        return [x_BT[:, j : j + T] for j in range(size)]
    index_BP = positions_BP.reshape(*positions_BP.shape, *(1,) * (x_BT.ndim - 2))
    return [jnp.take_along_axis(x_BT, index_BP + j, axis=1) for j in range(size)]


def _framed(x_BT: jax.Array, size: int, outside: int = 0) -> jax.Array:
    """K//2 tokens of `outside` on each side of the row."""
    half = size // 2
    return jnp.pad(x_BT, ((0, 0), (half, half), *((0, 0),) * (x_BT.ndim - 2)), constant_values=outside)


class ConvBert(encoder.Encoder):
    """The encoder: embeddings, norm, projection where the tables are narrower, `num_layers` equal blocks."""

    packs = True  # attention and convolutions stay within segments and positions restart
    reference_reads_padding = True  # mask_mode "reference": the convolutions read what stands behind the document
    MaskedLMHead = heads.MaskedLMHead  # ELECTRA's generator head, as published

    def __init__(self, config: Config, vocab_size: int, *, rngs: nnx.Rngs):
        """`config` resolved (every size given); `vocab_size` true, the table is padded to a multiple of 128.

        Raises BadInput for heads, groups, a head ratio or a kernel that are not supported.
        """
        _check(config)
        E, D = config.embedding_size, config.hidden_size
        self.embeddings = Embeddings(
            vocab_size, config.max_positions, config.type_vocab_size, E, stddev=config.initializer_range, rngs=rngs
        )
        self.embedding_norm = layers.LayerNorm(E, epsilon=config.norm_epsilon)
        if E != D:
            self.project_ED = layers.truncated_normal(rngs.params(), (E, D), config.initializer_range)
            self.project_bias_D = layers.zeros(D)
        self.blocks = stack.stacked(lambda rngs: Block(config, rngs=rngs), config.num_layers, rngs)
        self.config, self.vocab_size = config, vocab_size

    def prepare(self, batch: dict[str, jax.Array], dtype: Any) -> dict[str, jax.Array]:
        """With the taps that each token sees. Raises BadInput for several documents a row in mask_mode "reference"."""
        reads_padding = self.config.mask_mode == "reference"
        if reads_padding:
            layers.require_one_document(batch, "model.mask_mode 'reference' reads padding as the published code does")
        visible_BTK = visible_taps(batch["segment_ids_BT"], self.config.kernel_size, reads_padding=reads_padding)
        return {**batch, "visible_BTK": visible_BTK}

    def embed(self, batch: dict[str, jax.Array], dtype: Any, key: jax.Array | None) -> jax.Array:
        """As the protocol's, then the projection."""
        x_BTE = super().embed(batch, dtype, key)
        if self.config.embedding_size == self.config.hidden_size:
            return x_BTE
        return layers.project(x_BTE, self.project_ED, self.project_bias_D)


def _check(config: Config) -> None:
    D, F, N, G = config.hidden_size, config.feed_forward_size, config.num_heads, config.groups
    if config.head_ratio != 2:
        raise BadInput(
            f"model.head_ratio: {config.head_ratio}; only 2 is supported, half of the heads attend and half convolve"
        )
    if N % 2 or D % N:
        raise BadInput(f"model.num_heads: {N} must be even and divide model.hidden_size {D}")
    if config.kernel_size % 2 == 0:
        raise BadInput(f"model.kernel_size: {config.kernel_size} must be odd, as many taps before a token as behind it")
    if D % G or F % G:
        raise BadInput(f"model.groups: {G} must divide model.hidden_size {D} and model.feed_forward_size {F}")


Encoder = ConvBert
