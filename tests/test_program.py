"""What jaxbert/program.py and collectives.py count in compiled programs, against counts by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxbert import collectives, program, step

SAMPLES = Path(__file__).parent / "program"
Shapes = list[tuple[int, ...]]


def stack(x_BD: jax.Array, w_LDD: jax.Array) -> jax.Array:
    return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_BD, w_LDD)[0])


def convolve(x: jax.Array, w: jax.Array, stride: int = 2, **more: int) -> jax.Array:
    return jax.lax.conv_general_dilated(x, w, (stride,), [(1, 2)], dimension_numbers=("NWC", "WIO", "NWC"), **more)


LAYER = 2 * 128 * 256 * 256
# Of 32 outputs with 5 taps and a stride of 2 the first misses one tap and the last two: they meet padding alone. Of 63
# with a stride of 1 the first misses one, the last but one another, the last two.
TAPS, TAPS_OF_STRIDE_1 = 32 * 5 - 3, 63 * 5 - 4
CASES: dict[str, tuple[Callable[..., Any], Shapes, float]] = {
    "a product": (lambda x, w: x @ w, [(256, 512), (512, 384)], 2 * 256 * 512 * 384),
    "a scanned stack": (stack, [(128, 256), (6, 256, 256)], 6 * LAYER),
    "its gradient": (jax.grad(stack, (0, 1)), [(128, 256), (6, 256, 256)], 3 * 6 * LAYER),
    "scores": (
        lambda q, k: jnp.einsum("BNTH,BNSH->BNTS", q, k),
        [(4, 3, 64, 32), (4, 3, 80, 32)],
        2 * 4 * 3 * 64 * 80 * 32,
    ),
    # Eight rows: a TPU compiler cuts fewer into pieces, whose last is too long, and computes that too.
    "a convolution": (
        lambda x, w: convolve(x, w, 1),
        [(8, 64, 128), (5, 128, 128)],
        2 * 8 * TAPS_OF_STRIDE_1 * 128 * 128,
    ),
    "a convolution in groups": (
        lambda x, w: convolve(x, w, feature_group_count=4),
        [(2, 64, 32), (5, 8, 16)],
        2 * 2 * TAPS * 8 * 16,
    ),
    "a convolution in batch groups": (
        lambda x, w: convolve(x, w, batch_group_count=2),
        [(2, 64, 32), (5, 32, 16)],
        2 * 1 * TAPS * 32 * 16,
    ),
}


def compiled(f: Callable[..., Any], shapes: Shapes, device: Any, dtype: Any = jnp.float32) -> program.Program:
    place = jax.sharding.SingleDeviceSharding(device)
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape in shapes]
    return program.parse(jax.jit(f).lower(*arguments).compile().as_text())


@pytest.fixture(scope="module")
def v5e() -> Any:
    pytest.importorskip("libtpu", reason="compiles for a TPU that is not attached")
    from jaxbert.chips import open_topology

    return open_topology("v5e:2x2")[1][0]


@pytest.mark.parametrize("case", CASES)
def test_flops_on_a_cpu_are_those_counted_by_hand(case: str) -> None:
    f, shapes, flops = CASES[case]
    assert compiled(f, shapes, jax.devices("cpu")[0]).flops() == flops


@pytest.mark.parametrize("case", CASES)
def test_flops_on_a_tpu_which_makes_convolutions_of_dots_are_those_counted_by_hand(case: str, v5e: Any) -> None:
    f, shapes, flops = CASES[case]
    assert compiled(f, shapes, v5e).flops() == flops


@pytest.mark.parametrize("trips", [1, 3, 7])
def test_a_loop_in_a_loop_counts_trips_times_trips(trips: int) -> None:
    def nested(x: jax.Array, w: jax.Array) -> jax.Array:
        inner = lambda x: jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ w), x)  # noqa: E731
        return jax.lax.fori_loop(0, trips, lambda _, x: inner(x) + 1.0, x)

    found = compiled(nested, [(64, 64), (64, 64)], jax.devices("cpu")[0])
    assert found.flops() == trips * 5 * 2 * 64**3
    assert not found.unknown_trips


def test_a_loop_whose_trips_depend_on_data_is_named_and_counted_once() -> None:
    def until_large(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100.0, lambda x: jnp.tanh(x @ w) + x, x)

    found = compiled(until_large, [(64, 64), (64, 64)], jax.devices("cpu")[0])
    assert len(found.unknown_trips) == 1
    assert found.flops() == 2 * 64**3


def test_products_say_which_line_they_come_from() -> None:
    (row,) = compiled(stack, [(128, 256), (6, 256, 256)], jax.devices("cpu")[0]).products()
    file, line = row.source.rsplit(":", 1)
    assert Path(file).name == "test_program.py" and "scan" in Path(file).read_text().splitlines()[int(line) - 1]
    assert row.op_name.endswith("dot_general") and row.executions == 6


def test_a_scan_reads_one_layer_of_its_weights_at_a_time() -> None:
    layer = 4 * 256 * 256
    found = compiled(stack, [(128, 256), (64, 256, 256)], jax.devices("cpu")[0])
    # Of each layer: the slice read and written, read again by the product; activations are an eighth of that each.
    assert 3 * 64 * layer <= found.hbm_bytes() <= 6 * 64 * layer


def test_what_lies_in_vmem_is_no_traffic() -> None:
    text = """HloModule m

ENTRY %main (a: f32[8,128], b: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = f32[8,128]{1,0:T(8,128)S(1)} parameter(1)
  %c = f32[8,128]{1,0:T(8,128)S(1)} add(%a, %b)
  ROOT %d = f32[8,128]{1,0:T(8,128)} negate(%c)
}
"""
    assert program.parse(text).hbm_bytes() == 2 * 8 * 128 * 4


DUMPED = """HloModule m

%fetch (x: f32[64,128]) -> f32[8,128] {
  %x = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %slice = f32[8,128]{1,0:T(8,128)S(1)} slice(%x), slice={[0:8], [0:128]}
}

ENTRY %main (a: f32[64,128]) -> f32[8,128] {
  %a = f32[64,128]{1,0:T(8,128)} parameter(0)
  %start = ((f32[64,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) async-start(%a), calls=%fetch
  %done = f32[8,128]{1,0:T(8,128)S(1)} async-done(%start)
  ROOT %b = f32[8,128]{1,0:T(8,128)} negate(%done)
}
"""


def test_a_slice_that_runs_beside_others_reads_its_part_alone_as_jax_and_as_libtpu_write_it() -> None:
    shorter = DUMPED.replace("async-start(%a), calls=%fetch", "slice-start(%a), slice={[0:8], [0:128]}")
    shorter = shorter.replace("async-done", "slice-done")
    assert program.parse(DUMPED).hbm_bytes() == program.parse(shorter).hbm_bytes() == 2 * 8 * 128 * 4


def test_arrays_are_stored_in_whole_tiles() -> None:
    heads_last = program.Array("bf16", (8, 512, 64), (2, 1, 0), (8, 128))
    heads_before = program.Array("bf16", (8, 512, 64), (1, 2, 0), (8, 128))
    assert heads_last.stored == 2 * heads_last.bytes and heads_before.stored == heads_before.bytes


def test_the_largest_buffer_is_what_the_scan_keeps_for_the_backward_pass() -> None:
    found = compiled(jax.grad(stack, 1), [(128, 256), (6, 256, 256)], jax.devices("cpu")[0]).buffers(3)
    assert [(b.dtype, b.dims) for b in found][0] == ("f32", (6, 256, 256))
    assert ("f32", (6, 128, 256)) in [(b.dtype, b.dims) for b in found]


def test_text_without_an_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        program.parse("module @jit_f {}")


def test_a_kernel_is_listed_with_its_authors_estimate(v5e: Any) -> None:
    from jax.experimental import pallas as pl

    def double(x: jax.Array) -> jax.Array:
        def kernel(x_ref: Any, o_ref: Any) -> None:
            o_ref[...] = x_ref[...] * 2.0

        estimate = pl.CostEstimate(flops=12345, transcendentals=7, bytes_accessed=678)
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), cost_estimate=estimate)(x)

    (row,) = compiled(double, [(128, 128)], v5e).custom_calls()
    assert (row.target, row.flops, row.transcendentals, row.bytes) == ("tpu_custom_call", 12345, 7, 678)


def test_an_out_of_memory_message_gives_what_is_needed_and_what_there_is() -> None:
    found = step.out_of_memory((SAMPLES / "out_of_memory_v5e.txt").read_text())
    assert found == step.OutOfMemory(24.03 * 2**30, 15.75 * 2**30, "HBM: HLO temporaries")
    assert step.out_of_memory("INTERNAL: something else") is None


def test_collectives_of_a_stack_split_by_fsdp_on_four_chips() -> None:
    """The text: a scanned stack of six (1024, 1024) products in bfloat16, its float32 weights split, compiled for v5e;
    the weights are gathered once for each pass and layer, and their gradients reduced whole: nobody asked for parts."""
    found = collectives.collectives(
        program.parse((SAMPLES / "fsdp_v5e_2x2.hlo").read_text()), {"data": 1, "fsdp": 4, "tensor": 1}
    )
    whole = 2 * 1024 * 1024
    sent = collectives.totals(found)
    assert sent == {
        ("all-gather", ("fsdp",)): 2 * 6 * 3 / 4 * whole,
        ("all-reduce", ("fsdp",)): 6 * 2 * 3 / 4 * whole,
    }
    least = collectives.ideal(6 * 1024 * 1024, {"data": 1, "fsdp": 4}, compute_bytes=2, gradient_bytes=2)
    assert sent["all-gather", ("fsdp",)] == least["all-gather", ("fsdp",)]
    assert {c.overlapped for c in found if c.kind == "all-gather"} == {True, False}  # backward, forward


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("[4,2]<=[4,2]", ("tensor",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("[2,4]<=[8]", ("fsdp", "tensor")),
        ("mesh['a'=2,'b'=2,'c'=2] {'b'}", ("fsdp",)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','b'}", ("data", "fsdp")),
        ("{}", ("data", "fsdp", "tensor")),
    ],
)
def test_replica_groups_of_every_notation_become_mesh_axes(groups: str, axes: tuple[str, ...]) -> None:
    text = f"""HloModule m

ENTRY %main (a: f32[16]) -> f32[16] {{
  %a = f32[16]{{0}} parameter(0)
  ROOT %b = f32[16]{{0}} all-reduce(%a), channel_id=1, replica_groups={groups}, use_global_device_ids=true
}}
"""
    (found,) = collectives.collectives(program.parse(text), {"data": 2, "fsdp": 2, "tensor": 2})
    n = 2 ** len(axes)
    assert (found.axes, found.group, found.bytes) == (axes, n, 2 * (n - 1) / n * 64)


def test_the_ideal_of_fsdp_is_two_gathers_in_compute_dtype_and_a_scatter_in_gradient_dtype() -> None:
    found = collectives.ideal(1e6, {"data": 2, "fsdp": 4}, compute_bytes=2, gradient_bytes=4)
    assert found == {
        ("all-gather", ("fsdp",)): 2 * 0.75 * 2e6,
        ("reduce-scatter", ("fsdp",)): 0.75 * 4e6,
        ("all-reduce", ("data",)): 2 * 0.5 * 1e6,
    }
    again = collectives.ideal(1e6, {"fsdp": 4}, compute_bytes=2, gradient_bytes=4, rematerialized=True)
    assert again["all-gather", ("fsdp",)] == 3 * 0.75 * 2e6
