"""The encoder protocol: what heads, objectives and the loop see of every encoder."""

from typing import Any, ClassVar

import jax
from flax import nnx

from jaxbert.models import stack
from jaxbert.ops.dropout import dropout

Batch = dict[str, jax.Array]


class Encoder(nnx.Module):
    """Embeddings and equal blocks. A family makes them in its `__init__(config, vocab_size, *, rngs)`, which raises
    BadInput for fields that do not fit together, and replaces those of the methods in which it differs.
    """

    embeddings: Any
    embedding_norm: Any
    blocks: Any  # stack.stacked
    config: Any  # resolved: every size is given
    vocab_size: int  # the true one; the table is padded

    packs: ClassVar[bool]  # whether rows may hold several documents
    reference_reads_padding: ClassVar[bool]  # whether mask_mode "reference" differs from "exact"
    MaskedLMHead: ClassVar[type[nnx.Module]]  # what masked language modelling puts on it

    def prepare(self, batch: Batch, dtype: Any) -> Batch:
        """The batch with what all blocks read of it, computed once. Raises BadInput for rows it cannot read."""
        return batch

    def embed(self, batch: Batch, dtype: Any, key: jax.Array | None) -> jax.Array:
        """The first block's input, (B, T, D) in `dtype`."""
        return dropout(self.embedding_norm(self.embeddings(batch, dtype)), self.config.hidden_dropout, key)

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """The final states of the last block's output."""
        return x_BTD

    @property
    def embedding_VD(self) -> jax.Array:
        """The word table with its padded rows, (V, D); ConvBERT's may be narrower than its states."""
        return self.embeddings.word_VD[...]

    def __call__(
        self,
        batch: Batch,
        *,
        key: jax.Array | None = None,
        dtype: Any = None,
        collect: tuple[str, ...] = (),
        positions_BP: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Final states (B, T, D) in `dtype` (None: the parameters'), and what `collect` names.

        The batch holds input_ids_BT, segment_ids_BT (0: padding), position_ids_BT and, for rows of one document,
        length_B; int32. With `positions_BP` the final states are those of these positions, (B, P, D).
        `collect=("hidden_states",)` gives (layers + 1, B, T, D): the first block's input, then each block's output.
        `key` None: deterministic. Raises BadInput for rows that the encoder cannot read.
        """
        dtype = dtype or self.embedding_VD.dtype
        batch = self.prepare(batch, dtype)
        embedding_key, blocks_key = (None, None) if key is None else jax.random.split(key)
        x_BTD = self.embed(batch, dtype, embedding_key)
        x_BTD, extras = stack.run(
            self.blocks, x_BTD, batch, self.config, key=blocks_key, collect=collect, positions_BP=positions_BP
        )
        return self.finish(x_BTD), extras
