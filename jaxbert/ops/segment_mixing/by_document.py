"""The mixing of rows that hold several documents, for processors: one document at a time.

A document's sum is an (H, F) matrix a head, more than all of a short document's states: the sums of all documents must
not stand in memory at once. So a loop takes one document after another and goes through its tokens in slices, long ones
as far as they go and short ones for the rest, and the backward pass does the same and computes each sum again, so that
what is kept is the arguments alone. Work is that of the tokens there are, but for what the last slice lacks. Copying
a slice costs a processor little, and a product of one slice keeps it busy; an accelerator it would not (by_length.py
takes a document of every row at a time).

What packing costs (tools/bench_segment_mixing.py --documents 1 4 16, and --length=128 --documents 1 3 8; D = 256, two
heads, two cores with AVX-512, nothing beside it): the mixing with its gradients takes 2.5 times as long as on rows of
one document where rows of 512 hold one, 3.0 times where they hold four and 5.8 times where they hold sixteen; in rows
of 128 2.3, 3.3 (three documents) and 5.8 times (eight). Short documents cost most: every one has the activation of a
sum, and the same documents one a row, padded, take 3.4 of the 5.8 times. A training step of four layers takes 1.08, 1.3
and 1.9 times as long, in rows of 128 1.1, 1.6 and 2.2 times. by_length.py takes about twice as long as this.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxbert.sharding import BATCH_AXES, LETTERS, local_axes

SLICES = (128, 32)  # tokens of a long slice and of a short one
Activation = Callable[[jax.Array], jax.Array]


def segment_mixing(
    v_NBSH: jax.Array,
    first_NBSF: jax.Array,
    second_NBTF: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
    *,
    activation: Activation,
    slices: tuple[int, int] = SLICES,
) -> jax.Array:
    """As reference.py; segment ids are at most S. Memory: one (H, F) sum a head. Each device does its own rows.

    The result is named "mixed" for rematerialisation policies.
    """
    heads = local_axes(v_NBSH.shape[0], (LETTERS["N"],))
    rows = local_axes(v_NBSH.shape[1], BATCH_AXES)
    mix = functools.partial(_mix_rows, activation, slices)
    if heads or rows:
        arrays, ids = PartitionSpec(heads, rows), PartitionSpec(rows)
        mix = jax.shard_map(
            mix,
            in_specs=(arrays, arrays, arrays, ids, ids),
            out_specs=arrays,
            axis_names={*heads, *rows},
            check_vma=False,  # of loops' first values, which are zeros on every device
        )
    return checkpoint_name(mix(v_NBSH, first_NBSF, second_NBTF, q_segment_ids_BT, k_segment_ids_BS), "mixed")


def _mix_rows(
    activation: Activation,
    slices: tuple[int, int],
    v_NBSH: jax.Array,
    first_NBSF: jax.Array,
    second_NBTF: jax.Array,
    q_segment_ids_BT: jax.Array,
    k_segment_ids_BS: jax.Array,
) -> jax.Array:
    """Brings the tokens of every document together, in one long row, and its results back to their places."""
    order_S, order_T, documents = _documents(q_segment_ids_BT, k_segment_ids_BS)

    def line_up(x_NBTH: jax.Array, order_T: jax.Array) -> jax.Array:
        x_NTH = jnp.take(x_NBTH.reshape(len(x_NBTH), -1, x_NBTH.shape[3]), order_T, axis=1)
        return jnp.pad(x_NTH, ((0, 0), (0, slices[0]), (0, 0)))  # where a slice at the end stops

    arrays = line_up(v_NBSH, order_S), line_up(first_NBSF, order_S), line_up(second_NBTF, order_T)
    y_NTH = jnp.take(_mix(activation, slices, *arrays, documents), jnp.argsort(order_T), axis=1)
    return y_NTH.reshape(*second_NBTF.shape[:3], -1)  # padding, which no document writes, stays 0


class Documents(NamedTuple):
    """Where the documents stand in the long row, in the order of rows; those past `number` are none."""

    number: jax.Array
    input_G: jax.Array  # the first of its inputs
    inputs_G: jax.Array  # how many
    output_G: jax.Array
    outputs_G: jax.Array


def _documents(q_segment_ids_BT: jax.Array, k_segment_ids_BS: jax.Array) -> tuple[jax.Array, jax.Array, Documents]:
    """The places of inputs and of outputs, document by document and padding last, and where each document stands."""
    B, S = k_segment_ids_BS.shape
    padding = B * (S + 1)

    def sort(segment_ids_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys_BT = jnp.where(segment_ids_BT > 0, jnp.arange(B)[:, None] * (S + 1) + segment_ids_BT, padding)
        order_T = jnp.argsort(keys_BT.reshape(-1), stable=True)
        return order_T, keys_BT.reshape(-1)[order_T]

    (order_S, keys_S), (order_T, keys_T) = sort(k_segment_ids_BS), sort(q_segment_ids_BT)
    first_S = (keys_S < padding) & (keys_S != jnp.roll(keys_S, 1)).at[0].set(True)
    (input_G,) = jnp.nonzero(first_S, size=B * S, fill_value=0)
    documents_G = keys_S[input_G]
    output_G = jnp.searchsorted(keys_T, documents_G)
    inputs_G, outputs_G = (
        jnp.searchsorted(keys, documents_G, side="right") - first
        for keys, first in ((keys_S, input_G), (keys_T, output_G))
    )
    return order_S, order_T, Documents(jnp.sum(first_S), input_G, inputs_G, output_G, outputs_G)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _mix(activation: Activation, slices: tuple[int, int], *arrays: Any) -> jax.Array:
    return _forward(activation, slices, *arrays)[0]


def _forward(
    activation: Activation,
    slices: tuple[int, int],
    v_NSH: jax.Array,
    first_NSF: jax.Array,
    second_NTF: jax.Array,
    documents: Documents,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """The result, and what the backward pass needs: the arguments."""

    def mix(g: jax.Array, y_NTH: jax.Array) -> jax.Array:
        a_NHF = activation(_sum(slices, v_NSH, first_NSF, documents, g)).astype(v_NSH.dtype)

        def write(part: "Slice", y_NTH: jax.Array) -> jax.Array:
            return part.put(y_NTH, jnp.einsum("NCF,NHF->NCH", part.take(second_NTF), a_NHF))

        return _in_slices(slices, documents.output_G[g], documents.outputs_G[g], write, y_NTH)

    y_NTH = jnp.zeros((*second_NTF.shape[:2], v_NSH.shape[2]), v_NSH.dtype)
    y_NTH = jax.lax.fori_loop(0, documents.number, mix, y_NTH)
    return y_NTH, (v_NSH, first_NSF, second_NTF, documents)


def _backward(
    activation: Activation, slices: tuple[int, int], saved: tuple[Any, ...], slope_NTH: jax.Array
) -> tuple[Any, ...]:
    """Of each document, with g the gradient of y: dW₂ = g a, da = gᵀ W₂, ds = activation′(s) da of the sum s, and then
    dv = W₁ dsᵀ, dW₁ = v ds. A place belongs to one document, so every gradient is written once."""
    v_NSH, first_NSF, second_NTF, documents = saved
    dtype = jnp.promote_types(v_NSH.dtype, jnp.float32)

    def mix(g: jax.Array, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        v_bar_NSH, first_bar_NSF, second_bar_NTF = gradients
        a_NHF, pull = jax.vjp(activation, _sum(slices, v_NSH, first_NSF, documents, g))
        a_bar_NHF, a_NHF = jnp.zeros_like(a_NHF), a_NHF.astype(v_NSH.dtype)

        def of_outputs(part: Slice, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            a_bar_NHF, second_bar_NTF = carry
            slope_NCH, second_NCF = part.take(slope_NTH), part.take(second_NTF)
            a_bar_NHF += jnp.einsum("NCH,NCF->NHF", slope_NCH, second_NCF, preferred_element_type=dtype)
            return a_bar_NHF, part.put(second_bar_NTF, jnp.einsum("NCH,NHF->NCF", slope_NCH, a_NHF))

        a_bar_NHF, second_bar_NTF = _in_slices(
            slices, documents.output_G[g], documents.outputs_G[g], of_outputs, (a_bar_NHF, second_bar_NTF)
        )
        sum_bar_NHF = pull(a_bar_NHF)[0].astype(v_NSH.dtype)

        def of_inputs(part: Slice, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            v_bar_NSH, first_bar_NSF = carry
            v_bar_NCH = jnp.einsum("NCF,NHF->NCH", part.take(first_NSF), sum_bar_NHF)
            first_bar_NCF = jnp.einsum("NCH,NHF->NCF", part.take(v_NSH), sum_bar_NHF)
            return part.put(v_bar_NSH, v_bar_NCH), part.put(first_bar_NSF, first_bar_NCF)

        v_bar_NSH, first_bar_NSF = _in_slices(
            slices, documents.input_G[g], documents.inputs_G[g], of_inputs, (v_bar_NSH, first_bar_NSF)
        )
        return v_bar_NSH, first_bar_NSF, second_bar_NTF

    zeros = tuple(jnp.zeros_like(x) for x in (v_NSH, first_NSF, second_NTF))
    return *jax.lax.fori_loop(0, documents.number, mix, zeros), None


_mix.defvjp(_forward, _backward)


def _sum(
    slices: tuple[int, int], v_NSH: jax.Array, first_NSF: jax.Array, documents: Documents, g: jax.Array
) -> jax.Array:
    """Σ_s v[s] ⊗ W₁[s] over document g, (N, H, F) in at least float32."""
    dtype = jnp.promote_types(v_NSH.dtype, jnp.float32)

    def add(part: Slice, sum_NHF: jax.Array) -> jax.Array:
        v_NCH, first_NCF = part.take(v_NSH), part.take(first_NSF)
        return sum_NHF + jnp.einsum("NCH,NCF->NHF", v_NCH, first_NCF, preferred_element_type=dtype)

    zeros_NHF = jnp.zeros((len(v_NSH), v_NSH.shape[2], first_NSF.shape[2]), dtype)
    return _in_slices(slices, documents.input_G[g], documents.inputs_G[g], add, zeros_NHF)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Neighbouring places of the long row, the first `count` of which are a document's."""

    start: jax.Array
    size: int
    count: jax.Array

    def take(self, x_NTH: jax.Array) -> jax.Array:
        """The document's part of these places, (N, C, H); zeros in the others."""
        x_NCH = jax.lax.dynamic_slice_in_dim(x_NTH, self.start, self.size, axis=1)
        return jnp.where((jnp.arange(self.size) < self.count)[:, None], x_NCH, 0)

    def put(self, x_NTH: jax.Array, part_NCH: jax.Array) -> jax.Array:
        """`x_NTH` with these places replaced: behind the document by what is then replaced by the next, or by zeros."""
        return jax.lax.dynamic_update_slice_in_dim(x_NTH, part_NCH.astype(x_NTH.dtype), self.start, axis=1)


def _in_slices(
    slices: tuple[int, int],
    start: jax.Array,
    count: jax.Array,
    body: Callable[[Slice, Any], Any],
    carry: Any,
) -> Any:
    """`body` for every slice of the `count` places from `start` on."""
    long, short = slices
    whole = count // long

    def run(size: int, first: jax.Array, j: jax.Array, carry: Any) -> Any:
        place = first + j * size
        return body(Slice(place, size, start + count - place), carry)

    carry = jax.lax.fori_loop(0, whole, functools.partial(run, long, start), carry)
    rest = start + whole * long
    return jax.lax.fori_loop(0, -(-(count - whole * long) // short), functools.partial(run, short, rest), carry)
