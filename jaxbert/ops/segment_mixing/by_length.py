"""The mixing of rows that hold several documents, for accelerators: one document of every row at a time, longest first.

A document's sum is an (H, F) matrix a head, more than all of a short document's states: the sums of all documents of a
row must not stand in memory at once. So a loop takes the longest document of every row, then the second longest, and
so on, for as many turns as the fullest row has documents; a turn goes through its documents' tokens in blocks, as many
as the longest of them needs. Both counts are the batch's own, nothing is bounded ahead. The r-th longest document of
a row of T tokens has at most T / r, so all turns together see at most T (1 + 1/2 + … + 1/n) tokens a row, where a turn
for the n-th document of every row over whole rows would see T n. The backward pass takes the same turns and computes
each sum again, so that what is kept is the arguments alone.

No accelerator has run this; on two CPU cores by_document.py is about twice as fast (tools/bench_segment_mixing.py).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Activation = Callable[[jax.Array], jax.Array]


def segment_mixing(
    v_NBSH: jax.Array,
    first_NBSF: jax.Array,
    second_NBTF: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    activation: Activation,
    block: int | None = None,
) -> jax.Array:
    """As reference.py; segment ids are at most S. Memory: one (H, F) sum a row and head.

    `block`: tokens of a block; None: `block_for`. The result is named "mixed" for rematerialisation policies.
    """
    block = block or block_for(k_segment_ids_BS.shape[1])
    arrays = v_NBSH, first_NBSF, second_NBTF, q_segment_ids_BT, k_segment_ids_BS
    return checkpoint_name(_mix(activation, block, *arrays), "mixed")


def block_for(length: int) -> int:
    """Tokens of a block in rows of `length`: a quarter, from 32 to 128."""
    return min(128, max(32, length // 4))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mix(activation: Activation, block: int, *arrays: jax.Array) -> jax.Array:
    return _forward(activation, block, *arrays)[0]


def _forward(
    activation: Activation,
    block: int,
    v_NBSH: jax.Array,
    first_NBSF: jax.Array,
    second_NBTF: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The result, and what the backward pass needs: the arguments."""
    inputs, outputs, turns = _by_length(q_segment_ids_BT, k_segment_ids_BS)

    def turn(r: jax.Array, y_NBTH: jax.Array) -> jax.Array:
        a_NBHF = activation(_sum(v_NBSH, first_NBSF, inputs, r, block)).astype(v_NBSH.dtype)

        def write(j: jax.Array, y_NBTH: jax.Array) -> jax.Array:
            index_BC = outputs.places(r, j, block)
            return _put(y_NBTH, index_BC, jnp.einsum("NBCF,NBHF->NBCH", _take(second_NBTF, index_BC), a_NBHF))

        return jax.lax.fori_loop(0, outputs.blocks(r, block), write, y_NBTH)

    y_NBTH = jnp.zeros((*second_NBTF.shape[:3], v_NBSH.shape[3]), v_NBSH.dtype)
    y_NBTH = jax.lax.fori_loop(0, turns, turn, y_NBTH)
    return y_NBTH, (v_NBSH, first_NBSF, second_NBTF, q_segment_ids_BT, k_segment_ids_BS)


def _backward(
    activation: Activation, block: int, saved: tuple[jax.Array, ...], slope_NBTH: jax.Array
) -> tuple[Any, ...]:
    """Of each document, with g the gradient of y: dW₂ = g a, da = gᵀ W₂, ds = activation′(s) da of the sum s, and then
    dv = W₁ dsᵀ, dW₁ = v ds. A position belongs to one document, so every gradient is written once."""
    v_NBSH, first_NBSF, second_NBTF, q_segment_ids_BT, k_segment_ids_BS = saved
    dtype = jnp.promote_types(v_NBSH.dtype, jnp.float32)
    inputs, outputs, turns = _by_length(q_segment_ids_BT, k_segment_ids_BS)

    def turn(r: jax.Array, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        v_bar_NBSH, first_bar_NBSF, second_bar_NBTF = gradients
        a_NBHF, pull = jax.vjp(activation, _sum(v_NBSH, first_NBSF, inputs, r, block))
        a_bar_NBHF, a_NBHF = jnp.zeros_like(a_NBHF), a_NBHF.astype(v_NBSH.dtype)

        def of_outputs(j: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            a_bar_NBHF, second_bar_NBTF = carry
            index_BC = outputs.places(r, j, block)
            slope_NBCH, second_NBCF = _take(slope_NBTH, index_BC), _take(second_NBTF, index_BC)
            a_bar_NBHF += jnp.einsum("NBCH,NBCF->NBHF", slope_NBCH, second_NBCF, preferred_element_type=dtype)
            second_bar_NBCF = jnp.einsum("NBCH,NBHF->NBCF", slope_NBCH, a_NBHF)
            return a_bar_NBHF, _put(second_bar_NBTF, index_BC, second_bar_NBCF)

        a_bar_NBHF, second_bar_NBTF = jax.lax.fori_loop(
            0, outputs.blocks(r, block), of_outputs, (a_bar_NBHF, second_bar_NBTF)
        )
        sum_bar_NBHF = pull(a_bar_NBHF)[0].astype(v_NBSH.dtype)

        def of_inputs(j: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            v_bar_NBSH, first_bar_NBSF = carry
            index_BC = inputs.places(r, j, block)
            v_bar_NBCH = jnp.einsum("NBCF,NBHF->NBCH", _take(first_NBSF, index_BC), sum_bar_NBHF)
            first_bar_NBCF = jnp.einsum("NBCH,NBHF->NBCF", _take(v_NBSH, index_BC), sum_bar_NBHF)
            return _put(v_bar_NBSH, index_BC, v_bar_NBCH), _put(first_bar_NBSF, index_BC, first_bar_NBCF)

        v_bar_NBSH, first_bar_NBSF = jax.lax.fori_loop(
            0, inputs.blocks(r, block), of_inputs, (v_bar_NBSH, first_bar_NBSF)
        )
        return v_bar_NBSH, first_bar_NBSF, second_bar_NBTF

    zeros = tuple(jnp.zeros_like(x) for x in (v_NBSH, first_NBSF, second_NBTF))
    return *jax.lax.fori_loop(0, turns, turn, zeros), None, None


_mix.defvjp(_forward, _backward)


class Documents(NamedTuple):
    """Where the tokens of each row's documents stand; G counts the documents, the one with most inputs first."""

    order_BT: jax.Array  # the row's places, document by document
    start_BG: jax.Array  # of each document in it
    count_BG: jax.Array  # of its tokens

    def blocks(self, r: jax.Array, block: int) -> jax.Array:
        """Blocks of the longest among every row's document r."""
        return -(-jnp.max(self.count_BG[:, r]) // block)

    def places(self, r: jax.Array, j: jax.Array, block: int) -> jax.Array:
        """The places of block j of every row's document r, (B, block); T where the document has ended."""
        length = self.order_BT.shape[1]
        place_1C = (j * block + jnp.arange(block))[None]
        in_order_BC = jnp.minimum(self.start_BG[:, r, None] + place_1C, length - 1)
        index_BC = jnp.take_along_axis(self.order_BT, in_order_BC, axis=1)
        return jnp.where(place_1C < self.count_BG[:, r, None], index_BC, length)


def _by_length(q_segment_ids_BT: jax.Array, k_segment_ids_BS: jax.Array) -> tuple[Documents, Documents, jax.Array]:
    """The documents' inputs, their outputs, both in the order of the number of inputs, and how many turns there are."""
    most = k_segment_ids_BS.shape[1]
    inputs, outputs = _documents(k_segment_ids_BS, most), _documents(q_segment_ids_BT, most)
    by_length_BG = jnp.argsort(-inputs.count_BG, axis=1, stable=True)

    def sort(documents: Documents) -> Documents:
        order_BT, *of_each = documents
        return Documents(order_BT, *(jnp.take_along_axis(x_BG, by_length_BG, axis=1) for x_BG in of_each))

    turns = jnp.max(jnp.sum(inputs.count_BG > 0, axis=1))
    return sort(inputs), sort(outputs), turns


def _documents(segment_ids_BT: jax.Array, most: int) -> Documents:
    """Documents 1 to `most` in the order of their ids. Places need not be neighbours."""
    order_BT = jnp.argsort(segment_ids_BT, axis=1, stable=True)
    ids_BT = jnp.take_along_axis(segment_ids_BT, order_BT, axis=1)
    edges_BG = jax.vmap(lambda ids_T: jnp.searchsorted(ids_T, jnp.arange(1, most + 2)))(ids_BT)
    return Documents(order_BT, edges_BG[:, :-1], jnp.diff(edges_BG, axis=1))


def _sum(v_NBSH: jax.Array, first_NBSF: jax.Array, inputs: Documents, r: jax.Array, block: int) -> jax.Array:
    """Σ_s v[s] ⊗ W₁[s] over every row's document r, (N, B, H, F) in at least float32."""
    dtype = jnp.promote_types(v_NBSH.dtype, jnp.float32)

    def add(j: jax.Array, sum_NBHF: jax.Array) -> jax.Array:
        index_BC = inputs.places(r, j, block)
        v_NBCH, first_NBCF = _take(v_NBSH, index_BC), _take(first_NBSF, index_BC)
        return sum_NBHF + jnp.einsum("NBCH,NBCF->NBHF", v_NBCH, first_NBCF, preferred_element_type=dtype)

    N, B, _, H = v_NBSH.shape
    zeros_NBHF = jnp.zeros((N, B, H, first_NBSF.shape[3]), dtype)
    return jax.lax.fori_loop(0, inputs.blocks(r, block), add, zeros_NBHF)


def _take(x_NBTH: jax.Array, index_BC: jax.Array) -> jax.Array:
    """The rows at `index_BC`, (N, B, C, H); zeros where the index is T."""
    take = lambda x_NTH, index_C: x_NTH.at[:, index_C].get(mode="fill", fill_value=0)  # noqa: E731
    return jax.vmap(take, in_axes=(1, 0), out_axes=1)(x_NBTH, index_BC)


def _put(x_NBTH: jax.Array, index_BC: jax.Array, rows_NBCH: jax.Array) -> jax.Array:
    """`x_NBTH` with rows replaced; those whose index is T are dropped."""
    put = lambda x_NTH, index_C, rows_NCH: x_NTH.at[:, index_C].set(rows_NCH, mode="drop")  # noqa: E731
    return jax.vmap(put, in_axes=(1, 0, 1), out_axes=1)(x_NBTH, index_BC, rows_NBCH)
