"""Token, position and type embeddings."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxbert.models import layers
from jaxbert.sharding import look_up, split_rows

VOCABULARY_MULTIPLE = 128  # stored rows; the lanes of a TPU's matrix unit


def padded(vocab_size: int) -> int:
    """Stored rows of a vocabulary of `vocab_size`: the next multiple of 128. Rows beyond it are zero and stay zero."""
    return math.ceil(vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def word_table(vocab_size: int, width: int, *, stddev: float, rngs: nnx.Rngs) -> nnx.Param:
    """A truncated-normal table of `padded(vocab_size)` rows, (V, D) float32; those past vocab_size are zero."""
    table_VD = layers.truncated_normal(rngs.params(), (padded(vocab_size), width), stddev)
    return nnx.Param(table_VD[...].at[vocab_size:].set(0.0))


def sinusoids(positions: int, width: int) -> np.ndarray:
    """sin(t / 10000^(2i/D)) and the cosine in channels 2i and 2i + 1 (Vaswani et al. 2017, §3.5); (T, D) float64."""
    channel_D = np.arange(width)
    angle_TD = np.arange(positions)[:, None] / 10_000.0 ** (2 * (channel_D // 2) / width)
    return np.where(channel_D % 2, np.cos(angle_TD), np.sin(angle_TD))


class Embeddings(nnx.Module):
    """The sum of word, position and token-type embeddings (Devlin et al. 2019, §3)."""

    def __init__(self, vocab_size: int, positions: int, types: int, width: int, *, stddev: float, rngs: nnx.Rngs):
        """Tables are truncated normal, of `padded(vocab_size)` words, `positions` and `types`."""
        self.word_VD = word_table(vocab_size, width, stddev=stddev, rngs=rngs)
        self.position_TD = layers.truncated_normal(rngs.params(), (positions, width), stddev)
        self.type_GD = layers.truncated_normal(rngs.params(), (types, width), stddev)

    def __call__(self, batch: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
        """(B, T) integers of a batch → (B, T, D) in `dtype`. Without `token_type_ids_BT` every type is 0."""
        x_BTD = look_up(self.word_VD[...], batch["input_ids_BT"], "VD")
        x_BTD = x_BTD + look_up(self.position_TD[...], batch["position_ids_BT"], "TD")
        if "token_type_ids_BT" in batch:
            x_BTD = x_BTD + look_up(self.type_GD[...], batch["token_type_ids_BT"], "GD")
        else:
            x_BTD = x_BTD + self.type_GD[0]
        return split_rows(x_BTD.astype(dtype))


class WordEmbeddings(nnx.Module):
    """The word table alone, for encoders whose blocks know positions by themselves."""

    def __init__(self, vocab_size: int, width: int, *, stddev: float, rngs: nnx.Rngs):
        """A truncated-normal table of `padded(vocab_size)` rows."""
        self.word_VD = word_table(vocab_size, width, stddev=stddev, rngs=rngs)

    def __call__(self, batch: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
        """(B, T) integers of a batch → (B, T, D) in `dtype`."""
        return split_rows(look_up(self.word_VD[...], batch["input_ids_BT"], "VD").astype(dtype))
