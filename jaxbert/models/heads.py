"""Heads. They see only the encoder protocol (encoder.py): final states x_BTD and the word table `embedding_VD`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbert.models import layers
from jaxbert.models.embeddings import padded, word_table
from jaxbert.ops.dropout import dropout


class MaskedLMHead(nnx.Module):
    """BERT's prediction head: dense, activation, norm, then the transposed word table (tied) and a bias.

    Source: google-research/bert run_pretraining.py, `get_masked_lm_output`. Where the table is narrower than the
    encoder (E < D), it is ELECTRA's generator head: the dense layer goes to the table's width.
    """

    def __init__(self, config: Any, vocab_size: int, width: int, *, rngs: nnx.Rngs):
        """`config` gives D, activation, norm epsilon and initial scale; `vocab_size` is the true one, `width` E."""
        self.transform_DE = layers.truncated_normal(
            rngs.params(), (config.hidden_size, width), config.initializer_range
        )
        self.transform_bias_E = layers.zeros(width)
        self.norm = layers.LayerNorm(width, epsilon=config.norm_epsilon)
        self.bias_V = layers.zeros(padded(vocab_size))
        self.activation = config.activation

    def __call__(self, x_BPD: jax.Array, embedding_VE: jax.Array, vocab_size: int) -> jax.Array:
        """(B, P, D) → logits (B, P, V) in at least float32; rows of the table past `vocab_size` get −inf."""
        t_BPE = layers.project(x_BPD, self.transform_DE, self.transform_bias_E)
        t_BPE = self.norm(layers.ACTIVATIONS[self.activation](t_BPE))
        return vocabulary_logits(t_BPE, embedding_VE, self.bias_V[...], vocab_size)


class LinearHead(nnx.Module):
    """The word table itself, or a table of its own with a bias: what gMLP's sizes and its public code predict with.

    `config.tied_head` chooses. Tied: logits = x Wᵀ, no parameter. Untied: a table of the word table's shape and a bias.
    """

    def __init__(self, config: Any, vocab_size: int, width: int, *, rngs: nnx.Rngs):
        """`config` gives `tied_head` and the initial scale; `vocab_size` is the true one, `width` the table's."""
        self.tied = config.tied_head
        if not self.tied:
            self.output_VD = word_table(vocab_size, width, stddev=config.initializer_range, rngs=rngs)
            self.bias_V = layers.zeros(padded(vocab_size))

    def __call__(self, x_BPD: jax.Array, embedding_VD: jax.Array, vocab_size: int) -> jax.Array:
        """(B, P, D) → logits (B, P, V) in at least float32; rows of the table past `vocab_size` get −inf."""
        if self.tied:
            return vocabulary_logits(x_BPD, embedding_VD, None, vocab_size)
        return vocabulary_logits(x_BPD, self.output_VD[...], self.bias_V[...], vocab_size)


def vocabulary_logits(x_BPE: jax.Array, table_VE: jax.Array, bias_V: jax.Array | None, vocab_size: int) -> jax.Array:
    """x Wᵀ + b in at least float32, (B, P, V); rows of the table past `vocab_size` get −inf."""
    logits_BPV = _table_product(x_BPE, table_VE.astype(x_BPE.dtype))
    bias_V = jnp.zeros((), logits_BPV.dtype) if bias_V is None else bias_V.astype(logits_BPV.dtype)
    return logits_BPV + jnp.where(jnp.arange(table_VE.shape[0]) < vocab_size, bias_V, -jnp.inf)


@jax.custom_vjp
def _table_product(x_BPE: jax.Array, table_VE: jax.Array) -> jax.Array:
    """x Wᵀ in at least float32. Its gradient goes back in the dtype of `x`, as those of all other products do: in
    float32 it would have the table gathered again, in float32, and what devices add up would be twice as large."""
    dtype = jnp.promote_types(x_BPE.dtype, jnp.float32)
    return jnp.einsum("BPE,VE->BPV", x_BPE, table_VE, preferred_element_type=dtype)


def _table_product_backward(saved: tuple[jax.Array, jax.Array], gradient_BPV: jax.Array) -> tuple[jax.Array, jax.Array]:
    (x_BPE, table_VE), gradient_BPV = saved, gradient_BPV.astype(saved[0].dtype)
    return (
        jnp.einsum("BPV,VE->BPE", gradient_BPV, table_VE),
        jnp.einsum("BPV,BPE->VE", gradient_BPV, x_BPE),
    )


_table_product.defvjp(
    lambda x_BPE, table_VE: (_table_product(x_BPE, table_VE), (x_BPE, table_VE)), _table_product_backward
)


class Pooler(nnx.Module):
    """tanh(x[:, 0] W + b), the sentence vector of BERT (Devlin et al. 2019, §3.1 "NSP")."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        """A (D, D) kernel and a bias."""
        self.kernel_DD = layers.truncated_normal(
            rngs.params(), (config.hidden_size, config.hidden_size), config.initializer_range
        )
        self.bias_D = layers.zeros(config.hidden_size)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) → (B, D), from the first position of each row."""
        return jnp.tanh(layers.project(x_BTD[:, 0], self.kernel_DD, self.bias_D))


class NextSentenceHead(nnx.Module):
    """Two logits from the pooled vector; 0 means "is the next sentence" (Devlin et al. 2019, §3.1)."""

    def __init__(self, config: Any, *, rngs: nnx.Rngs):
        """A (D, 2) kernel and a bias."""
        self.kernel_DG = layers.truncated_normal(rngs.params(), (config.hidden_size, 2), config.initializer_range)
        self.bias_G = layers.zeros(2)

    def __call__(self, pooled_BD: jax.Array) -> jax.Array:
        """(B, D) → (B, 2)."""
        return layers.project(pooled_BD, self.kernel_DG, self.bias_G)


class SequenceHead(nnx.Module):
    """Scores of a whole text: pooler, dropout, dense (Devlin et al. 2019, §4.1)."""

    def __init__(self, config: Any, labels: int, *, rngs: nnx.Rngs):
        """A pooler and a (D, labels) kernel with a bias."""
        self.pooler = Pooler(config, rngs=rngs)
        self.kernel_DG = layers.truncated_normal(rngs.params(), (config.hidden_size, labels), config.initializer_range)
        self.bias_G = layers.zeros(labels)
        self.rate = config.hidden_dropout

    def __call__(self, x_BTD: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """(B, T, D) → (B, labels); `key` None: no dropout."""
        return layers.project(dropout(self.pooler(x_BTD), self.rate, key), self.kernel_DG, self.bias_G)


class TokenHead(nnx.Module):
    """Scores of every token: dropout, dense (Devlin et al. 2019, §5.3); with two labels the start and end of an answer
    (§4.2)."""

    def __init__(self, config: Any, labels: int, *, rngs: nnx.Rngs):
        """A (D, labels) kernel and a bias."""
        self.kernel_DG = layers.truncated_normal(rngs.params(), (config.hidden_size, labels), config.initializer_range)
        self.bias_G = layers.zeros(labels)
        self.rate = config.hidden_dropout

    def __call__(self, x_BTD: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """(B, T, D) → (B, T, labels); `key` None: no dropout."""
        return layers.project(dropout(x_BTD, self.rate, key), self.kernel_DG, self.bias_G)


class MaskedLM(nnx.Module):
    """An encoder with a masked-LM head on its word table: one leaf, handed to the head at each call."""

    def __init__(self, encoder: Any, config: Any, vocab_size: int, key: jax.Array):
        """`encoder` is a class of the protocol, `config` its resolved configuration, `vocab_size` the true one."""
        rngs = nnx.Rngs(key)
        self.encoder = encoder(config, vocab_size, rngs=rngs)
        self.head = encoder.MaskedLMHead(config, vocab_size, self.encoder.embedding_VD.shape[1], rngs=rngs)

    def __call__(
        self,
        batch: dict[str, jax.Array],
        positions_BP: jax.Array,
        *,
        key: jax.Array | None = None,
        dtype: Any = None,
    ) -> jax.Array:
        """Logits (B, P, V) at the predicted positions only: neither the last layer nor the head sees the others."""
        x_BPD, _ = self.encoder(batch, key=key, dtype=dtype, positions_BP=positions_BP)
        return self.head(x_BPD, self.encoder.embedding_VD, self.encoder.vocab_size)
