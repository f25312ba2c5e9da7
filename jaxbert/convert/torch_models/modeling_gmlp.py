"""gMLP and aMLP in PyTorch, as jaxbert trains them (Liu et al. 2021, arXiv:2105.08050; jaxbert/models/gmlp.py).

A padded row gives what it gives alone if `attention_mask` says what is padding (on the right). config.mask_mode
"reference" reads padding as text, as the architecture's public code does.
"""

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
    LinearHead,
    Model,
    run,
)


class GmlpConfig(JaxbertConfig):
    """`max_position_embeddings` is n of the matrix over positions."""

    model_type = "jaxbert_gmlp"
    intermediate_size: int = 3072  # both halves, the gated and the gate
    attention_size: int = 0  # of aMLP's single head; 0: no attention
    spatial: str = "toeplitz"  # or "dense"
    hidden_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-5


class Spatial(nn.Module):
    """W v + b over positions. W is (n, n), or 2n − 1 weights of the offsets s − t, −(n − 1) first ("toeplitz")."""

    def __init__(self, config: GmlpConfig):
        super().__init__()
        self.n = config.max_position_embeddings
        self.toeplitz = config.spatial == "toeplitz"
        self.weight = nn.Parameter(torch.empty(2 * self.n - 1) if self.toeplitz else torch.empty(self.n, self.n))
        self.bias = nn.Parameter(torch.empty(self.n))

    def initialize(self, config: GmlpConfig) -> None:
        """W near 0 and b = 1: a block starts as a feed-forward."""
        nn.init.uniform_(self.weight, -1e-3 / self.n, 1e-3 / self.n)
        nn.init.ones_(self.bias)

    def matrix(self, length: int) -> Tensor:
        """(T, S). A Toeplitz matrix is 0 beyond its offsets; a dense one has no weights beyond n (ValueError)."""
        if not self.toeplitz:
            if length > self.n:
                raise ValueError(f"rows of {length} tokens are over max_position_embeddings {self.n}; shorten them")
            return self.weight[:length, :length]
        place = torch.arange(length, device=self.weight.device)
        offset = place[None, :] - place[:, None]
        weights = self.weight[(offset + self.n - 1).clamp(0, 2 * self.n - 2)]
        return weights.masked_fill(offset.abs() >= self.n, 0.0)

    def forward(self, v: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C) and bool (B, T) → (B, T, C): padding is left out; past n the last bias repeats."""
        length = v.shape[1]
        place = torch.arange(length, device=v.device).clamp(max=self.n - 1)
        return self.matrix(length) @ v.masked_fill(~mask[:, :, None], 0.0) + self.bias[place][:, None]


class TinyAttention(nn.Module):
    """aMLP's single head, from the block's normed input to the gate's width."""

    def __init__(self, config: GmlpConfig):
        super().__init__()
        self.qkv = nn.Linear(config.hidden_size, 3 * config.attention_size, bias=False)
        self.output = nn.Linear(config.attention_size, config.intermediate_size // 2)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) and bool (B, T) → (B, T, C). Tokens see tokens, padding sees padding: no row is empty."""
        query, key, value = self.qkv(h).chunk(3, dim=-1)
        same = mask[:, :, None] == mask[:, None, :]
        return self.output(F.scaled_dot_product_attention(query, key, value, attn_mask=same))


class Block(nn.Module):
    """x + output(u ⊙ v) with u = gelu(value(h)), v = spatial(norm(gelu(gate(h)))) and h = norm(x)."""

    def __init__(self, config: GmlpConfig):
        super().__init__()
        width, half = config.hidden_size, config.intermediate_size // 2
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.value = nn.Linear(width, half)
        self.gate = nn.Linear(width, half)
        self.gate_norm = nn.LayerNorm(half, eps=config.layer_norm_eps)
        self.spatial = Spatial(config)
        self.attention = TinyAttention(config) if config.attention_size else None
        self.output = nn.Linear(half, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) and bool (B, T) → (B, T, D)."""
        h = self.norm(x)
        v = self.spatial(self.gate_norm(self.activation(self.gate(h))), mask)
        if self.attention is not None:
            v = v + self.attention(h, mask)
        return x + self.dropout(self.output(self.activation(self.value(h)) * v))


class GmlpBody(Body):
    """Word embeddings (no positions, no types), blocks, a norm."""

    def __init__(self, config: GmlpConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, output_hidden_states: bool = False
    ) -> tuple[Tensor, list[Tensor] | None]:
        """As Body's; the final states are after the norm, the hidden states before it."""
        mask = torch.ones_like(attention_mask) if self.config.mask_mode == "reference" else attention_mask
        x = self.dropout(self.word_embeddings(input_ids))
        x, states = run(self.layers, x, mask, output_hidden_states=output_hidden_states)
        return self.norm(x), states


class GmlpBase(BaseModel):
    """What the four classes share."""

    config_class, body_class, base_model_prefix = GmlpConfig, GmlpBody, "gmlp"
    word_embeddings_name = "word_embeddings"


class GmlpModel(GmlpBase, Model):
    """The encoder alone."""


class GmlpForMaskedLM(GmlpBase, ForMaskedLM):
    """With the word table as its head, or a table of its own (config.tie_word_embeddings false)."""

    head_class = LinearHead


class GmlpForSequenceClassification(GmlpBase, ForSequenceClassification):
    """With scores of a whole text."""


class GmlpForTokenClassification(GmlpBase, ForTokenClassification):
    """With scores of every token."""
