"""ConvBERT (Jiang et al. 2020, arXiv:2008.02496) whose answer does not depend on padding.

Names of parameters are those of transformers' ConvBertForMaskedLM, so the same weights load in both. That class masks
padding in the attention only: its convolutions read it, and with padding it answers otherwise than without. Here
`mask_mode="exact"` (the default) hides padding from the convolutions too; "reference" computes what that class does.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common import (
    ACTIVATIONS,
    BaseModel,
    Body,
    Embeddings,
    ForMaskedLM,
    ForSequenceClassification,
    ForTokenClassification,
    JaxbertConfig,
    Model,
    Transform,
    run,
)


class ConvBertConfig(JaxbertConfig):
    """Names and defaults of fields as in transformers' ConvBertConfig."""

    model_type = "jaxbert_convbert"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12  # as published: half of them attend, the other half convolve
    head_ratio: int = 2
    intermediate_size: int = 3072
    num_groups: int = 1  # of the feed-forward's block-diagonal products
    embedding_size: int = 768
    conv_kernel_size: int = 9
    type_vocab_size: int = 2
    attention_probs_dropout_prob: float = 0.1


class SpanKey(nn.Module):
    """The key that a kernel is made from: a convolution over each channel's K neighbours, then a dense layer."""

    def __init__(self, width: int, out: int, kernel_size: int):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width, bias=False)
        self.pointwise = nn.Conv1d(width, out, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(out, 1))

    def initialize(self, config: Any) -> None:
        """The convolution's scale is 1 / K, as in the published TensorFlow code."""
        nn.init.normal_(self.depthwise.weight, std=1 / config.conv_kernel_size)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, A)."""
        return (self.pointwise(self.depthwise(x.transpose(1, 2))) + self.bias).transpose(1, 2)


class MixedAttention(nn.Module):
    """N heads of attention, N heads of dynamic convolution, side by side."""

    def __init__(self, config: Any):
        super().__init__()
        if config.head_ratio != 2 or config.num_attention_heads % 2:
            raise ValueError("head_ratio must be 2 and num_attention_heads even")
        self.heads, width, taps = config.num_attention_heads // 2, config.hidden_size, config.conv_kernel_size
        half = width // 2
        self.query, self.key, self.value = (nn.Linear(width, half) for _ in range(3))
        self.key_conv_attn_layer = SpanKey(width, half, taps)
        self.conv_kernel_layer = nn.Linear(half, self.heads * taps)
        self.conv_out_layer = nn.Linear(width, half)
        self.taps, self.rate, self.exact = taps, config.attention_probs_dropout_prob, config.mask_mode == "exact"

    def split(self, x: Tensor) -> Tensor:
        """(B, T, N·C) → (B, T, N, C)."""
        return x.unflatten(-1, (self.heads, -1))

    def attend(self, q: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """softmax(q kᵀ / √H) v, (B, T, N, H); keys are the tokens that `mask` (B, T) shows."""
        q, k, v = (self.split(y).transpose(1, 2) for y in (q, self.key(x), self.value(x)))
        rate = self.rate if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], dropout_p=rate).transpose(1, 2)

    def convolve(self, q: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        """Each token's own kernel of K taps over its neighbours, (B, T, N, H)."""
        values = self.conv_out_layer(x)
        if self.exact:
            x, values = x * mask[..., None], values * mask[..., None]  # padding is as empty as what lies past the row
        kernel = self.split(self.conv_kernel_layer(self.key_conv_attn_layer(x) * q)).softmax(-1)
        half = self.taps // 2
        near = F.pad(self.split(values), (0, 0, 0, 0, half, half)).unfold(1, self.taps, 1)
        return torch.einsum("btnhk,btnk->btnh", near, kernel)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) and the mask (B, T), True: a token → (B, T, D)."""
        q = self.query(x)
        return torch.cat([self.attend(q, x, mask), self.convolve(q, x, mask)], dim=2).flatten(2)


class GroupedLinear(nn.Module):
    """A dense layer whose matrix is block-diagonal: part g of the input makes part g of the output."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(groups, inputs // groups, outputs // groups))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def initialize(self, config: Any) -> None:
        """As a dense layer's."""
        nn.init.normal_(self.weight, std=config.initializer_range)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, inputs) → (B, T, outputs)."""
        x = x.unflatten(-1, self.weight.shape[:2])
        return torch.einsum("btgi,gio->btgo", x, self.weight).flatten(2) + self.bias


class Output(nn.Module):
    """Dense, dropout, residual, norm."""

    def __init__(self, config: Any, dense: nn.Module):
        super().__init__()
        self.dense = dense
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """What the dense layer reads, and the residual (B, T, D) → (B, T, D)."""
        return self.LayerNorm(self.dropout(self.dense(y)) + x)


class Block(nn.Module):
    """Mixed attention and feed-forward."""

    def __init__(self, config: Any):
        super().__init__()
        width, wide, groups = config.hidden_size, config.intermediate_size, config.num_groups
        linear = nn.Linear if groups == 1 else lambda inputs, outputs: GroupedLinear(inputs, outputs, groups)
        self.attention: Any = nn.Module()
        self.intermediate: Any = nn.Module()
        self.attention.add_module("self", MixedAttention(config))
        self.attention.output = Output(config, nn.Linear(width, width))
        self.intermediate.dense = linear(width, wide)
        self.output = Output(config, linear(wide, width))
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) and the mask (B, T) → (B, T, D)."""
        x = self.attention.output(self.attention.self(x, mask), x)
        return self.output(self.activation(self.intermediate.dense(x)), x)


class ConvBertBody(Body):
    """Embeddings, projection where the tables are narrower than the encoder, blocks."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.embeddings = Embeddings(config, config.embedding_size)
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)
        self.encoder: Any = nn.Module()
        self.encoder.layer = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, output_hidden_states: bool = False
    ) -> tuple[Tensor, list[Tensor] | None]:
        """As `common.Body`."""
        x = self.embeddings(input_ids, token_type_ids)
        if self.config.embedding_size != self.config.hidden_size:
            x = self.embeddings_project(x)
        return run(self.encoder.layer, x, attention_mask, output_hidden_states=output_hidden_states)


class Base(BaseModel):
    """What the four classes share."""

    config_class, body_class, base_model_prefix = ConvBertConfig, ConvBertBody, "convbert"


class ConvBertModel(Base, Model):
    """The encoder alone."""


class ConvBertForMaskedLM(Base, ForMaskedLM):
    """With the masked-LM head: ELECTRA's generator head, under the published names."""

    decoder_name = "generator_lm_head"

    def add_head(self, config: Any) -> None:
        """Add `generator_predictions` and `generator_lm_head`."""
        self.generator_predictions = Transform(config, config.embedding_size)
        self.generator_lm_head = nn.Linear(config.embedding_size, config.vocab_size)

    def predict(self, x: Tensor) -> Tensor:
        """(B, T, D) → logits (B, T, V)."""
        return self.generator_lm_head(self.generator_predictions(x))


class ConvBertForSequenceClassification(Base, ForSequenceClassification):
    """With scores of a whole text."""


class ConvBertForTokenClassification(Base, ForTokenClassification):
    """With scores of every token."""
