"""Heads. They see only the encoder protocol: final states x_BTD and the table `embedding_VD`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbert.models import layers


class MaskedLMHead(nnx.Module):
    """BERT's prediction head: dense, activation, norm, then the transposed word table (tied) and a bias.

    Source: google-research/bert run_pretraining.py, `get_masked_lm_output`.
    """

    def __init__(self, config: Any, vocab_rows: int, *, rngs: nnx.Rngs):
        """`config` gives width, activation, norm epsilon and initial scale; the bias has `vocab_rows` entries."""
        width = config.hidden_size
        self.transform_DD = layers.truncated_normal(rngs.params(), (width, width), config.initializer_range)
        self.transform_bias_D = layers.zeros(width)
        self.norm = layers.LayerNorm(width, epsilon=config.norm_epsilon)
        self.bias_V = layers.zeros(vocab_rows)
        self.activation = config.activation

    def __call__(self, x_BPD: jax.Array, embedding_VD: jax.Array, vocab_size: int) -> jax.Array:
        """(B, P, D) → logits (B, P, V) in at least float32; rows of the table past `vocab_size` get −inf."""
        t_BPD = layers.project(x_BPD, self.transform_DD, self.transform_bias_D)
        t_BPD = self.norm(layers.ACTIVATIONS[self.activation](t_BPD))
        dtype = jnp.promote_types(x_BPD.dtype, jnp.float32)
        table_VD = embedding_VD.astype(x_BPD.dtype)
        logits_BPV = jnp.einsum("BPD,VD->BPV", t_BPD, table_VD, preferred_element_type=dtype)
        bias_V = jnp.where(jnp.arange(table_VD.shape[0]) < vocab_size, self.bias_V[...].astype(dtype), -jnp.inf)
        return logits_BPV + bias_V


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


class MaskedLM(nnx.Module):
    """An encoder with a masked-LM head on its word table: one leaf, handed to the head at each call."""

    def __init__(self, encoder: Any, config: Any, vocab_size: int, key: jax.Array):
        """`encoder` is a class of the protocol, `config` its resolved configuration, `vocab_size` the true one."""
        rngs = nnx.Rngs(key)
        self.encoder = encoder(config, vocab_size, rngs=rngs)
        self.head = MaskedLMHead(config, self.encoder.embedding_VD.shape[0], rngs=rngs)

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
