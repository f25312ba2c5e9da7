"""Monarch Mixer BERT in PyTorch, as jaxbert trains it (Fu et al. 2023, arXiv:2310.12109; jaxbert/models/m2.py).

Tensors have the names of the published weights (HazyResearch/m2). A padded row gives what it gives alone if
`attention_mask` says what is padding (on the right). config.mask_mode "reference" reads padding as text, as the
published code does.
"""

import math
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
    MaskedLMHead,
    Model,
    run,
)

SHORT = 3  # taps of the short convolution


class M2Config(JaxbertConfig):
    """Fields have the published names. `long_conv_l_max`: the length that filters are computed for."""

    model_type = "jaxbert_m2"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 128
    type_vocab_size: int = 2
    long_conv_l_max: int = 128
    hyena_filter_order: int = 128  # width of the networks that compute the filters
    hyena_emb_dim: int = 5  # features of a position
    hyena_w: float = 10.0  # where the frequencies of their sines start
    monarch_mlp_nblocks: int = 4
    hyena_training_additions: bool = False  # a norm before the mixer


class Positions(nn.Module):
    """Features of the positions, learned."""

    def __init__(self, config: M2Config):
        super().__init__()
        self.z = nn.Parameter(torch.empty(1, config.long_conv_l_max, config.hyena_emb_dim))

    def initialize(self, config: M2Config) -> None:
        """The position, then cosines and negative sines of it."""
        length, pairs = config.long_conv_l_max, (config.hyena_emb_dim - 1) // 2
        place = torch.arange(length, dtype=torch.float64)[:, None]
        angle = 2 * math.pi / length * place * torch.linspace(1e-4, pairs - 1, pairs, dtype=torch.float64)
        if not getattr(self.z, "_is_hf_initialized", False):  # torch.nn.init has no copy, which would ask for it
            with torch.no_grad():
                self.z.copy_(torch.cat([place / max(1, length - 1), angle.cos(), -angle.sin()], dim=1))


class Frequency(nn.Module):
    """What the sines of a filter's networks have in front of their argument: one vector for all six."""

    def __init__(self, config: M2Config):
        super().__init__()
        self.freq = nn.Parameter(torch.empty(1, config.hyena_filter_order))

    def initialize(self, config: M2Config) -> None:
        """All equal."""
        nn.init.constant_(self.freq, config.hyena_w)


class Network(nn.ModuleDict):
    """From a position's features to the filter's value in every channel. The published names count layers and sines."""

    def __init__(self, config: M2Config, frequency: Frequency | None = None):
        order = config.hyena_filter_order
        super().__init__({} if frequency is None else {"1": frequency})
        self["0"] = nn.Linear(config.hyena_emb_dim, order)
        self["2"] = nn.Linear(order, order)
        self["4"] = nn.Linear(order, order)
        self["6"] = nn.Linear(order, config.hidden_size, bias=False)

    def forward(self, z: Tensor, frequency: Tensor) -> Tensor:
        """(T, features) → (T, D) in the dtype of z; weights in bfloat16 are computed with in float32."""
        layers: list[Any] = [self[name] for name in ("0", "2", "4")]
        for layer in layers:
            z = torch.sin(frequency * F.linear(z, layer.weight.to(z.dtype), layer.bias.to(z.dtype)))
        last: Any = self["6"]
        return F.linear(z, last.weight.to(z.dtype))


class LongConvolution(nn.Module):
    """Of each channel, over the whole row, with one filter forward and one backward."""

    def __init__(self, config: M2Config):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(config.hidden_size))
        self.pos_emb = Positions(config)
        self.implicit_filter = Network(config, Frequency(config))
        self.implicit_filter_rev = Network(config)

    def initialize(self, config: M2Config) -> None:
        """N(0, 1)."""
        nn.init.normal_(self.bias)

    def filters(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The first `length` values forward (lags 0, 1, …) and backward (lags −1, −2, …), (T, D) each."""
        z, frequency = self.pos_emb.z[0, :length].to(dtype), self.implicit_filter["1"].freq.to(dtype)
        rates = (math.log(0.01) / 1.5, math.log(0.01) / 0.3)
        rate = torch.linspace(*rates, self.bias.shape[0], dtype=dtype, device=z.device).abs()
        place = torch.arange(length, dtype=dtype, device=z.device)[:, None] / max(1, self.pos_emb.z.shape[1] - 1)
        fading = torch.exp(-place * rate)
        return self.implicit_filter(z, frequency) * fading, self.implicit_filter_rev(z, frequency) * fading

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D) in its dtype, computed in at least float32."""
        dtype, length = torch.promote_types(x.dtype, torch.float32), x.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            forward, backward = self.filters(length, dtype)
            size = 2 * length  # a circle on which no two lags meet
            kernel = torch.cat([forward, torch.zeros_like(forward[:1]), backward[: length - 1].flip(0)])
            product = torch.fft.rfft(kernel, dim=0) * torch.fft.rfft(x.to(dtype), size, dim=1)
            y = torch.fft.irfft(product, size, dim=1)[:, :length]
            return (y + self.bias.to(dtype) * x.to(dtype)).to(x.dtype)


class ShortConvolution(nn.Module):
    """Each channel's own causal convolution over tokens."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, SHORT))
        self.bias = nn.Parameter(torch.empty(channels))

    def initialize(self, config: M2Config) -> None:
        """Uniform, as torch's Conv1d starts."""
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -1 / math.sqrt(SHORT), 1 / math.sqrt(SHORT))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        past = F.pad(x.transpose(1, 2), (SHORT - 1, 0))
        return F.conv1d(past, self.weight, self.bias, groups=x.shape[2]).transpose(1, 2)


class Mixer(nn.Module):
    """Tokens are mixed here and nowhere else; no residual."""

    def __init__(self, config: M2Config):
        super().__init__()
        width = config.hidden_size
        self.layernorm = nn.LayerNorm(width, eps=1e-5) if config.hyena_training_additions else nn.Identity()
        self.in_linear = nn.Linear(width, 3 * width)
        self.short_filter = ShortConvolution(3 * width)
        self.filter_fn = LongConvolution(config)
        self.filter_fn2 = LongConvolution(config)
        self.out_linear = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) and bool (B, T) → (B, T, D): long convolutions read zeros where the mask is False."""
        u, padding = self.layernorm(x), ~mask[:, :, None]
        first, gate, value = self.short_filter(self.in_linear(u)).chunk(3, dim=-1)
        y = self.filter_fn((value * first).masked_fill(padding, 0.0)) * gate
        return self.out_linear(y + self.filter_fn2(u.masked_fill(padding, 0.0)))


class BlockDiagonal(nn.Module):
    """The g-th part of the last axis with the g-th of `blocks` matrices, and a bias if asked for."""

    def __init__(self, blocks: int, inputs: int, outputs: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(blocks, outputs // blocks, inputs // blocks))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def initialize(self, config: M2Config) -> None:
        """Uniform."""
        bound = 1 / math.sqrt(self.weight.shape[2])
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -1 / math.sqrt(self.bias.shape[0]), 1 / math.sqrt(self.bias.shape[0]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, inputs) → (B, T, outputs)."""
        y = torch.einsum("btgi,goi->btgo", x.unflatten(-1, (self.weight.shape[0], -1)), self.weight).flatten(2)
        return y if self.bias is None else y + self.bias


class Mlp(nn.Module):
    """A gated feed-forward of block-diagonal products, with residual and norm."""

    def __init__(self, config: M2Config):
        super().__init__()
        blocks, width, wide = config.monarch_mlp_nblocks, config.hidden_size, config.intermediate_size
        self.gated_layers = BlockDiagonal(blocks, width, 2 * wide, bias=False)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.wo = BlockDiagonal(blocks, wide, width, bias=True)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        gate, value = self.gated_layers(x).chunk(2, dim=-1)
        return self.layernorm(self.wo(self.dropout(self.activation(gate) * value)) + x)


class Layer(nn.Module):
    """A mixer (under the name that attention has in BERT) and a feed-forward."""

    def __init__(self, config: M2Config):
        super().__init__()
        self.attention = Mixer(config)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) and bool (B, T) → (B, T, D)."""
        return self.mlp(self.attention(x, mask))


class Encoder(nn.Module):
    """The layers, under their published name."""

    def __init__(self, config: M2Config):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))


class M2Body(Body):
    """Embeddings and layers."""

    def __init__(self, config: M2Config):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, output_hidden_states: bool = False
    ) -> tuple[Tensor, list[Tensor] | None]:
        """As Body's. Raises ValueError for rows longer than the filters."""
        if input_ids.shape[1] > self.config.long_conv_l_max:
            length = input_ids.shape[1]
            raise ValueError(f"rows of {length} tokens are over long_conv_l_max {self.config.long_conv_l_max}")
        mask = torch.ones_like(attention_mask) if self.config.mask_mode == "reference" else attention_mask
        x = self.embeddings(input_ids, token_type_ids)
        return run(self.encoder.layer, x, mask, output_hidden_states=output_hidden_states)


class M2Base(BaseModel):
    """What the four classes share."""

    config_class, body_class, base_model_prefix = M2Config, M2Body, "bert"


class M2Model(M2Base, Model):
    """The encoder alone."""


class M2ForMaskedLM(M2Base, ForMaskedLM):
    """With BERT's head on the word table."""

    head_class, head_name = MaskedLMHead, "cls.predictions"


class M2ForSequenceClassification(M2Base, ForSequenceClassification):
    """With scores of a whole text."""


class M2ForTokenClassification(M2Base, ForTokenClassification):
    """With scores of every token."""
