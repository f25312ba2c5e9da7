"""HyperMixer in PyTorch, as jaxbert trains it (Mai et al. 2023, arXiv:2203.03691; jaxbert/models/hypermixer.py).

A padded row gives what it gives alone if `attention_mask` says what is padding (on the right). config.mask_mode changes
nothing here: the published module masks all that it sums.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common import (
    ACTIVATIONS,
    BaseModel,
    Body,
    ForMaskedLM,
    ForSequenceClassification,
    ForTokenClassification,
    JaxbertConfig,
    Model,
    run,
)


class HypermixerConfig(JaxbertConfig):
    """`hypernet_size` is k of all heads together."""

    model_type = "jaxbert_hypermixer"
    num_heads: int = 2
    hypernet_size: int = 1024
    intermediate_size: int = 1024
    tied: bool = False  # the second hypernetwork is the first
    hypernet_bias: bool = False
    hypernet_gain: float = math.sqrt(2.0)  # of a fresh hypernetwork's weights
    position_table: str = "standard"  # or "idiap"
    layer_norm_eps: float = 1e-6


class Hypernetwork(nn.Module):
    """For each head an MLP from a token to its row of a token-mixing weight."""

    def __init__(self, config: HypermixerConfig):
        super().__init__()
        heads = config.num_heads
        width, hidden = config.hidden_size // heads, config.hypernet_size // heads
        self.fc1_weights = nn.Parameter(torch.empty(heads, width, width))  # (head, out, in)
        self.fc2_weights = nn.Parameter(torch.empty(heads, hidden, width))
        if config.hypernet_bias:
            self.fc1_biases = nn.Parameter(torch.empty(heads, width))
            self.fc2_biases = nn.Parameter(torch.empty(heads, hidden))
        self.has_biases = config.hypernet_bias

    def initialize(self, config: HypermixerConfig) -> None:
        """Xavier's rule with each head's own fans; the first layer smaller by what its input is multiplied by."""
        for weights, scale in ((self.fc1_weights, multiplier(config)), (self.fc2_weights, 1.0)):
            bound = config.hypernet_gain * math.sqrt(6.0 / (weights.shape[1] + weights.shape[2])) / scale
            nn.init.uniform_(weights, -bound, bound)
        if self.has_biases:
            nn.init.zeros_(self.fc1_biases)
            nn.init.zeros_(self.fc2_biases)

    def forward(self, e: Tensor) -> Tensor:
        """(B, heads, T, D / heads) → (B, heads, T, k / heads)."""
        h = e @ self.fc1_weights.transpose(1, 2)
        if self.has_biases:
            h = h + self.fc1_biases[:, None]
        y = F.gelu(h) @ self.fc2_weights.transpose(1, 2)
        return y + self.fc2_biases[:, None] if self.has_biases else y


class Hypernetworks(nn.Module):
    """The one that makes W1 and, where they are not tied, the one that makes W2."""

    def __init__(self, config: HypermixerConfig):
        super().__init__()
        self.w1_gen = Hypernetwork(config)
        self.w2_gen = None if config.tied else Hypernetwork(config)

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """(B, heads, T, D / heads) → W1 and W2, (B, heads, T, k / heads) each."""
        w1 = self.w1_gen(e)
        return w1, w1 if self.w2_gen is None else self.w2_gen(e)


class HyperMixing(nn.Module):
    """An MLP over the tokens of a text, gelu(xᵀ W1) W2ᵀ, whose weights are made from the tokens; then a norm."""

    def __init__(self, config: HypermixerConfig):
        super().__init__()
        self.hyper = Hypernetworks(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-5)
        self.heads, self.multiplier = config.num_heads, multiplier(config)

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """(B, T, D), bool (B, T) and (T, D) → (B, T, D)."""
        w1, w2 = self.hyper(self.split(x * self.multiplier + positions))
        hidden = mask[:, None, :, None].logical_not()
        v, w1 = self.split(x).masked_fill(hidden, 0.0), w1.masked_fill(hidden, 0.0)
        y = w2 @ F.gelu(v.transpose(2, 3) @ w1).transpose(2, 3)
        return self.layer_norm(y.masked_fill(hidden, 0.0).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, heads, T, D / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def multiplier(config: HypermixerConfig) -> float:
    """What x is multiplied by before positions are added."""
    return math.sqrt(config.hidden_size) if config.position_table == "idiap" else 1.0


def sinusoids(config: HypermixerConfig, length: int) -> Tensor:
    """The position table, (T, D) in float64 on the CPU.

    "standard": sine and cosine of t / 10000^(2i/D) in channels 2i and 2i + 1, t from 0. "idiap": channel c has the
    exponent 2c/D and t counts from 1.
    """
    channel = torch.arange(config.hidden_size, device="cpu")
    place = torch.arange(length, dtype=torch.float64, device="cpu")
    if config.position_table == "idiap":
        place, exponent = place + 1, 2 * channel.double() / config.hidden_size
    else:
        exponent = 2 * (channel // 2).double() / config.hidden_size
    angle = place[:, None] / 10_000.0**exponent
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())


class Block(nn.Module):
    """Mixing and feed-forward, each after a norm and before dropout and the residual."""

    def __init__(self, config: HypermixerConfig):
        super().__init__()
        width = config.hidden_size
        self.mixing_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mixing = HyperMixing(config)
        self.feed_forward_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.up = nn.Linear(width, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """(B, T, D), bool (B, T) and (T, D) → (B, T, D)."""
        x = x + self.dropout(self.mixing(self.mixing_norm(x), mask, positions))
        return x + self.dropout(self.down(self.activation(self.up(self.feed_forward_norm(x)))))


class HypermixerBody(Body):
    """Word embeddings and a norm (the blocks know positions; no types), blocks, a norm."""

    def __init__(self, config: HypermixerConfig):
        super().__init__(config)
        width, epsilon = config.hidden_size, config.layer_norm_eps
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.embedding_norm = nn.LayerNorm(width, eps=epsilon)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, eps=epsilon)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, output_hidden_states: bool = False
    ) -> tuple[Tensor, list[Tensor] | None]:
        """As Body's; the final states are after the norm, the hidden states before it."""
        x = self.dropout(self.embedding_norm(self.word_embeddings(input_ids)))
        positions = sinusoids(self.config, input_ids.shape[1]).to(x)
        x, states = run(self.layers, x, attention_mask, positions, output_hidden_states=output_hidden_states)
        return self.norm(x), states


class HypermixerBase(BaseModel):
    """What the four classes share."""

    config_class, body_class, base_model_prefix = HypermixerConfig, HypermixerBody, "hypermixer"
    word_embeddings_name = "word_embeddings"


class HypermixerModel(HypermixerBase, Model):
    """The encoder alone."""


class HypermixerForMaskedLM(HypermixerBase, ForMaskedLM):
    """With BERT's head on the word table."""


class HypermixerForSequenceClassification(HypermixerBase, ForSequenceClassification):
    """With scores of a whole text."""


class HypermixerForTokenClassification(HypermixerBase, ForTokenClassification):
    """With scores of every token."""
