"""What the PyTorch classes of jaxbert's encoders share: configuration, the four model classes, heads, embeddings.

This file and one `modeling_*.py` travel with an exported model; they need torch and transformers (4.57 or 5), nothing
else. A modeling file declares a configuration and a body, and names them in four short classes:

    from .common import Body, BaseModel, ForMaskedLM, JaxbertConfig, Model, …

    class ExampleConfig(JaxbertConfig):               # annotated fields with defaults; config.json fills them
        model_type = "jaxbert_example"
        kernel_size: int = 9

    class ExampleBody(Body): …

    class Base(BaseModel):
        config_class, body_class, base_model_prefix = ExampleConfig, ExampleBody, "example"

    class ExampleModel(Base, Model): …
    class ExampleForMaskedLM(Base, ForMaskedLM): …    # head_class, head_name
    class ExampleForSequenceClassification(Base, ForSequenceClassification): …
    class ExampleForTokenClassification(Base, ForTokenClassification): …

A model is made without memory (on the "meta" device) and then filled from the file, so a value that `__init__`
computes is lost: compute tables in `forward`, keep no buffers. A module with `nn.Parameter`s of its own defines
`initialize(config)`, which sets them through functions of `torch.nn.init`.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
WITHOUT_EFFECT = ("num_items_in_batch",)  # what a Trainer passes to any model


class JaxbertConfig(PretrainedConfig):
    """Fields of every encoder; a modeling file adds its own in the same way, annotated and with a default."""

    vocab_size: int = 32000
    hidden_size: int = 256
    num_hidden_layers: int = 4
    max_position_embeddings: int = 512  # the longest row
    hidden_act: str = "gelu"  # a name in ACTIVATIONS
    hidden_dropout_prob: float = 0.1
    classifier_dropout: float | None = None  # None: hidden_dropout_prob
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    mask_mode: str = "exact"  # "reference": reads padding where the published code does


# --- parts ---


class Embeddings(nn.Module):
    """BERT's: words, positions and token types, their sum, norm and dropout.

    `config` also has `type_vocab_size`. `width` (None: hidden_size): of an encoder whose tables are narrower.
    """

    def __init__(self, config: Any, width: int | None = None):
        super().__init__()
        width = width or config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """(B, T) token ids and types → (B, T, width); positions count from the start of each row."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(x + self.token_type_embeddings(token_type_ids)))


class Transform(nn.Module):
    """What a masked-LM head does before its decoder: dense to the word table's width, activation, norm."""

    def __init__(self, config: Any, width: int | None = None):
        super().__init__()
        width = width or config.hidden_size
        self.dense = nn.Linear(config.hidden_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """(…, hidden_size) → (…, width)."""
        return self.LayerNorm(self.activation(self.dense(x)))


class MaskedLMHead(nn.Module):
    """BERT's head: `transform.{dense,LayerNorm}`, then `decoder.{weight,bias}`, whose weight is the word table."""

    def __init__(self, config: Any, width: int | None = None):
        super().__init__()
        self.transform = Transform(config, width)
        self.decoder = nn.Linear(width or config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden_size) → logits (B, T, V)."""
        return self.decoder(self.transform(x))


class LinearHead(nn.Module):
    """`decoder` alone: the word table without a bias (config.tie_word_embeddings), or a table of its own with one."""

    def __init__(self, config: Any):
        super().__init__()
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=not config.tie_word_embeddings)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden_size) → logits (B, T, V)."""
        return self.decoder(x)


class Pooler(nn.Module):
    """tanh of a dense layer on the first token: BERT's vector of a text."""

    def __init__(self, config: Any):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden_size) → (B, hidden_size)."""
        return torch.tanh(self.dense(x[:, 0]))


class Body(nn.Module):
    """An encoder without a head; a modeling file writes `forward`."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, output_hidden_states: bool = False
    ) -> tuple[Tensor, list[Tensor] | None]:
        """Final states (B, T, D), and the hidden states if asked for: the embedding output, then each block's.

        Every input is (B, T) and given: token ids, bool (True: a token, False: padding on its right), types.
        """
        raise NotImplementedError


def run(
    blocks: Iterable[nn.Module], x: Tensor, *arguments: Any, output_hidden_states: bool = False
) -> tuple[Tensor, list[Tensor] | None]:
    """Every block in turn, `block(x, *arguments)` → x, and what a body returns as hidden states."""
    states = [x]
    for block in blocks:
        x = block(x, *arguments)
        if output_hidden_states:
            states.append(x)
    return x, states if output_hidden_states else None


# --- models ---


class BaseModel(PreTrainedModel):
    """A body under the name `base_model_prefix`, the same in every class, so that each reads the others' files.

    A modeling file sets config_class, body_class, base_model_prefix, and the path of the word table in the body where
    it is another one.
    """

    config_class = JaxbertConfig
    body_class = Body
    base_model_prefix = "encoder"
    word_embeddings_name = "embeddings.word_embeddings"

    accepts_loss_kwargs = False  # so the Trainer divides the loss by its accumulation steps

    def __init__(self, config: Any):
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.body_class(config))
        self.add_head(config)
        self.post_init()

    def add_head(self, config: Any) -> None:
        """Add the modules beyond the body."""

    def get_input_embeddings(self) -> nn.Module:
        """The word table."""
        return getattr(self, self.base_model_prefix).get_submodule(self.word_embeddings_name)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word table."""
        parent, _, name = self.word_embeddings_name.rpartition(".")
        setattr(getattr(self, self.base_model_prefix).get_submodule(parent), name, value)

    def _init_weights(self, module: Any) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding, nn.Conv1d)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if (bias := getattr(module, "bias", None)) is not None:
                nn.init.zeros_(bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif hasattr(module, "initialize"):
            module.initialize(self.config)

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        output_hidden_states: bool | None,
        others: dict[str, Any],
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The body's output. Raises ValueError for an input that it would have to ignore."""
        given = [name for name, value in others.items() if value is not None and value is not False]
        if ignored := [name for name in given if name not in WITHOUT_EFFECT]:
            raise ValueError(f"{type(self).__name__} does not support {', '.join(ignored)}")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        body = getattr(self, self.base_model_prefix)
        x, states = body(input_ids, attention_mask.bool(), token_type_ids, bool(output_hidden_states))
        return x, None if states is None else tuple(states)

    def finish(self, output: Any, return_dict: bool | None) -> Any:
        """A ModelOutput, or a tuple of what it holds."""
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


class Model(BaseModel):
    """The encoder alone."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """(B, T) ids, mask (1: a token, 0: padding on its right; None: all tokens) and types → final states."""
        x, states = self.encode(input_ids, attention_mask, token_type_ids, output_hidden_states, others)
        return self.finish(BaseModelOutput(last_hidden_state=x, hidden_states=states), return_dict)


class ForMaskedLM(BaseModel):
    """The encoder with a masked-LM head.

    `head_class(config)` stands under the path `head_name` ("cls.predictions" makes a module `cls` around it) and has a
    `decoder`. An encoder whose published names have no such head overrides `add_head`, `predict` and `decoder_name`.
    """

    head_class: Any = MaskedLMHead
    head_name = "head"
    decoder_name = "head.decoder"

    def __init_subclass__(cls, **arguments: Any):
        super().__init_subclass__(**arguments)
        if "head_name" in cls.__dict__ and "decoder_name" not in cls.__dict__:
            cls.decoder_name = f"{cls.head_name}.decoder"
        # transformers 5 reads {tied: source}, 4.57 only the keys. Without config.tie_word_embeddings neither ties.
        table = f"{cls.base_model_prefix}.{cls.word_embeddings_name}.weight"
        cls._tied_weights_keys = {f"{cls.decoder_name}.weight": table}

    def add_head(self, config: Any) -> None:
        """Add `head_class` under `head_name`."""
        *parents, name = self.head_name.split(".")
        parent: nn.Module = self
        for part in parents:
            parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, self.head_class(config))

    def predict(self, x: Tensor) -> Tensor:
        """(B, T, D) → logits (B, T, V)."""
        return self.get_submodule(self.head_name)(x)

    def get_output_embeddings(self) -> nn.Module:
        """The decoder."""
        return self.get_submodule(self.decoder_name)

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder."""
        parent, _, name = self.decoder_name.rpartition(".")
        setattr(self.get_submodule(parent), name, value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """As Model's → logits (B, T, V) and, with labels (B, T; -100: not predicted), the mean cross-entropy."""
        x, states = self.encode(input_ids, attention_mask, token_type_ids, output_hidden_states, others)
        logits, loss = self.predict(x), None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return self.finish(MaskedLMOutput(loss=loss, logits=logits, hidden_states=states), return_dict)


class ForSequenceClassification(BaseModel):
    """The encoder with `pooler`, dropout and `classifier`: scores of a whole text."""

    def add_head(self, config: Any) -> None:
        """Add pooler and classifier."""
        self.pooler, self.dropout = Pooler(config), nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """As Model's → logits (B, labels) and, with labels, the loss that `text_loss` chooses."""
        x, states = self.encode(input_ids, attention_mask, token_type_ids, output_hidden_states, others)
        logits = self.classifier(self.dropout(self.pooler(x)))
        loss = None if labels is None else self.text_loss(logits.float(), labels)
        return self.finish(SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states), return_dict)

    def text_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Squared error of numbers, cross-entropy of classes (B,), or binary cross-entropy of sets of classes.

        By config.problem_type; if that is None by the labels, as transformers' own classes choose.
        """
        problem = self.config.problem_type
        if problem is None and self.config.num_labels == 1:
            problem = "regression"
        elif problem is None:
            problem = "multi_label_classification" if labels.is_floating_point() else "single_label_classification"
        if problem == "regression":
            return F.mse_loss(logits.squeeze(-1) if self.config.num_labels == 1 else logits, labels.to(logits.dtype))
        if problem == "single_label_classification":
            return F.cross_entropy(logits, labels.flatten())
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class ForTokenClassification(BaseModel):
    """The encoder with dropout and `classifier`: scores of every token."""

    def add_head(self, config: Any) -> None:
        """Add the classifier."""
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """As Model's → logits (B, T, labels) and, with labels (B, T; -100: left out), the mean cross-entropy."""
        x, states = self.encode(input_ids, attention_mask, token_type_ids, output_hidden_states, others)
        logits, loss = self.classifier(self.dropout(x)), None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return self.finish(TokenClassifierOutput(loss=loss, logits=logits, hidden_states=states), return_dict)


def _classifier_dropout(config: Any) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
