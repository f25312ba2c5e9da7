"""The TPU kernel of attention, on the CPU: Pallas interprets it; what it computes, what it skips, where it works."""

import functools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from jaxbert.models.stack import REMATERIALIZE
from jaxbert.ops.attention import pallas_tpu, reference, visits
from jaxbert.ops.attention.tiles import Tiles

# Two units of 128 in every loop that has an end, so that a small program is interpreted.
SMALL = Tiles(q_block=256, k_chunk=128, k_major=256, k_block=256, q_chunk=128, q_major=256)
kernel = functools.partial(pallas_tpu.attention, interpret=True, tiles=SMALL)
published_sizes = functools.partial(pallas_tpu.attention, interpret=True)


def segments(length: int, *lengths: int, rows: int = 1) -> np.ndarray:
    """Documents of these lengths one behind the other, then padding."""
    ids = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)[:length]
    return np.tile(np.pad(ids, (0, length - len(ids))), (rows, 1))


def random_numbers(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(attention: Callable[..., jax.Array], window: int | None, q, k, v, g, q_ids, k_ids) -> Any:
    call = lambda q, k, v: attention(q, k, v, q_ids, k_ids, scale=q.shape[-1] ** -0.5, window=window)  # noqa: E731
    output, pull = jax.vjp(call, q, k, v)
    return output, *pull(g)


def assert_as_exact_as_plain(
    q_ids: np.ndarray,
    k_ids: np.ndarray,
    *,
    heads: int = 2,
    head_size: int = 64,
    window: int | None = None,
    dtype: str = "float32",
    attention: Callable[..., jax.Array] = kernel,
) -> None:
    """Errors against float64, of the result and all gradients, are at most 1.5 × those of plain XLA in the dtype.

    Root mean squares are compared: the largest of few numbers is chance.
    """
    (B, T), S = q_ids.shape, k_ids.shape[1]
    shapes = [(B, length, heads, head_size) for length in (T, S, S, T)]
    arrays = [random_numbers(*shape, seed=seed).astype(dtype) for seed, shape in enumerate(shapes)]
    ids = jnp.asarray(q_ids), jnp.asarray(k_ids)
    plain = value_and_gradients(reference.attention, window, *arrays, *ids)
    ours = value_and_gradients(attention, window, *arrays, *ids)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x.astype("float32")), "float64") for x in arrays]
        exact = value_and_gradients(reference.attention, window, *exact, *ids)
    # What float32 cannot tell apart: two orders of the same sum.
    least = 2e-7 if dtype == "float32" else 1e-3
    for name, e, p, o in zip(("output", "dq", "dk", "dv"), exact, plain, ours, strict=True):
        assert o.dtype == dtype and o.shape == e.shape
        e, p, o = (np.asarray(x, np.float64) for x in (e, p, o))
        error, allowed = (np.sqrt(np.mean((x - e) ** 2)) for x in (o, p))
        size = np.sqrt(np.mean(e**2))  # about 0 where there is one key: no gradient reaches scores
        assert error <= max(1.5 * allowed, least * (size if size > 1e-12 else 1.0)), (name, error, allowed)


# What it computes


EXACT = [("float32", 4, 64, None), ("bfloat16", 2, 64, 128), ("bfloat16", 1, 128, None), ("float32", 1, 128, 128)]


@pytest.mark.parametrize("dtype, heads, head_size, window", EXACT)
def test_errors_are_those_of_plain_xla(dtype: str, heads: int, head_size: int, window: int | None) -> None:
    ids = np.concatenate([segments(512, 130, 200, 20, 60), segments(512, 512)])
    assert_as_exact_as_plain(ids, ids, heads=heads, head_size=head_size, window=window, dtype=dtype)


# Beside the chunks lie a pair of tiles and a single one: of a unit that sees 832 tokens behind four units, of a block
# of four units before and behind those that its window wholly covers. A unit that sees 960 tokens has two pairs.
CHUNKS_OF_FOUR = Tiles(q_block=128, k_chunk=512, k_major=1024, k_block=128, q_chunk=512, q_major=1024)
RUNS = [
    ((832, 192), None, CHUNKS_OF_FOUR),
    ((960, 64), None, CHUNKS_OF_FOUR),
    ((1024,), 1280, Tiles(q_block=512, k_chunk=128, k_major=1024, k_block=512, q_chunk=128, q_major=1024)),
]


@pytest.mark.parametrize("lengths, window, tiles", RUNS)
def test_runs_of_tiles_before_and_behind_the_chunks(lengths: tuple[int, ...], window: int | None, tiles: Tiles) -> None:
    ids = segments(1024, *lengths)
    assert_as_exact_as_plain(ids, ids, window=window, attention=functools.partial(published_sizes, tiles=tiles))


@pytest.mark.slow  # interpreting large tiles takes the compiler half a minute
@pytest.mark.parametrize("dtype, heads, head_size, window", EXACT)
@pytest.mark.parametrize("width", [128, 256])
def test_errors_in_large_tiles_are_those_of_plain_xla(
    width: int, dtype: str, heads: int, head_size: int, window: int | None
) -> None:
    ids = np.concatenate([segments(1024, 130, 600, 20, 60), segments(1024, 1024)])
    large = functools.partial(published_sizes, tiles=Tiles(width=width))
    shape = {"heads": heads, "head_size": head_size, "window": window}
    assert_as_exact_as_plain(ids, ids, **shape, dtype=dtype, attention=large)


@pytest.mark.parametrize("queries, keys", [(1, 1), (80, 300)])
def test_any_lengths(queries: int, keys: int) -> None:
    k_ids = segments(keys, keys // 2, keys - keys // 2, rows=2)
    q_ids = np.sort(np.random.default_rng(0).choice(k_ids[0], (2, queries)), axis=1)
    assert_as_exact_as_plain(q_ids, k_ids)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    window=st.sampled_from([None, 130]),  # each is a program
    in_order=st.booleans(),
)
def test_random_segments_and_windows(lengths: list[int], window: int | None, in_order: bool) -> None:
    ids = segments(512, *lengths)
    if not in_order:
        ids = np.random.default_rng(len(lengths)).permuted(ids, axis=1)
    assert_as_exact_as_plain(ids, ids, window=window)


def test_large_scores_neither_overflow_nor_vanish() -> None:
    ids = jnp.asarray(segments(128, 60, 40))
    q, k, v, g = (random_numbers(1, 128, 2, 64, seed=seed) for seed in range(4))
    for x in value_and_gradients(kernel, None, q * 1e3, k * 1e3, v, g, ids, ids):
        assert np.all(np.isfinite(x)) and np.any(x)


@pytest.mark.parametrize("q_ids, k_ids", [(segments(130), segments(130)), (segments(130, 130), segments(130) + 2)])
def test_queries_that_see_nothing_give_zeros_and_zero_gradients(q_ids: np.ndarray, k_ids: np.ndarray) -> None:
    arrays = [random_numbers(1, 130, 2, 64, seed=seed) for seed in range(4)]
    for x in value_and_gradients(kernel, None, *arrays, jnp.asarray(q_ids), jnp.asarray(k_ids)):
        assert np.all(np.asarray(x) == 0)


def test_what_padding_holds_reaches_nothing() -> None:
    ids = jnp.asarray(segments(200, 90, 60))
    arrays = [random_numbers(1, 200, 2, 64, seed=seed) for seed in range(4)]
    changed = [x.at[:, 150:].set(1e4) for x in arrays]
    for x, y in zip(*(value_and_gradients(kernel, None, *z, ids, ids) for z in (arrays, changed)), strict=True):
        np.testing.assert_array_equal(x[:, :150], y[:, :150])
        assert np.all(np.asarray(x[:, 150:]) == 0) and np.all(np.asarray(y[:, 150:]) == 0)


@pytest.mark.parametrize("window", [None, 128])
def test_no_memory_is_read_before_it_is_written(window: int | None) -> None:
    """This interpreter fills memory with NaN first."""
    interpreted = functools.partial(pallas_tpu.attention, interpret=pltpu.InterpretParams(), tiles=SMALL)
    assert_as_exact_as_plain(segments(300, 100, 150), segments(300, 100, 150), window=window, attention=interpreted)


# What it skips


def least_entries(ids: np.ndarray, window: int | None) -> int:
    """Of the 128 × 128 tiles that hold an allowed pair."""
    return int(_allowed_tiles(ids, window).sum()) * 128**2


@functools.partial(jax.jit, static_argnums=1)
def _allowed_tiles(ids: jax.Array, window: int | None) -> jax.Array:
    allowed = reference.visible(ids, ids, window)
    B, T, _ = allowed.shape
    return allowed.reshape(B, T // 128, 128, T // 128, 128).any((2, 4))


def packed(length: int, rows: int, mean: int) -> np.ndarray:
    """Rows filled with documents of log-normal lengths, as corpora have them; the last row is padding alone."""
    random = np.random.default_rng(length)
    documents = [np.minimum(random.lognormal(np.log(mean), 0.9, length).astype(int) + 2, length) for _ in range(rows)]
    fitting = [lengths[np.cumsum(lengths) <= length] for lengths in documents]
    return np.concatenate([*(segments(length, *lengths) for lengths in fitting), segments(length)])


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("length", [512, 2048, pytest.param(8192, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mean", [60, 300, 2000])
def test_few_more_entries_are_computed_than_those_of_tiles_with_an_allowed_pair(
    length: int, mean: int, window: int | None
) -> None:
    ids = packed(length, 4, mean)
    for counted in pallas_tpu.computed_entries(ids, ids, window=window):
        assert counted <= 1.05 * least_entries(ids, window)


def test_padding_is_never_visited() -> None:
    assert pallas_tpu.computed_entries(segments(1024), segments(1024)) == (0, 0)
    alone = pallas_tpu.computed_entries(segments(128, 100), segments(128, 100))
    assert pallas_tpu.computed_entries(segments(1024, 100), segments(1024, 100)) == alone == (128**2, 128**2)


def test_a_row_of_one_document_is_taken_in_large_tiles_without_masks() -> None:
    ids = jnp.asarray(segments(2048, 2048))
    plan = visits.forward_plan(2048, 2048, Tiles())
    table = visits.table(*visits.needed(ids, ids, None), plan)
    assert np.all(table[..., 2] == 16 // plan.chunk) and np.all(table[..., 4::2] == 0)


@pytest.mark.parametrize("lengths", [(2048,), (900, 1000), (100, 200, 300, 400)])
def test_the_count_is_what_the_kernel_computes(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile adds its entries to a counter where the kernel would take its products."""
    counted = []
    walk = pallas_tpu._walk

    def counting(table: Any, step: Any, plan: visits.Plan, chunk: Any, tiles: Any) -> None:
        def count(units: int) -> None:
            jax.debug.callback(lambda: counted.append(units))

        walk(
            table,
            step,
            plan,
            lambda first: (count(plan.block * plan.chunk), chunk(first)),
            lambda own, unit, several: (count(several), tiles(own, unit, several)),
        )

    monkeypatch.setattr(pallas_tpu, "_walk", counting)
    ids = segments(2048, *lengths)
    x = random_numbers(1, 2048, 2, 64)
    published_sizes(x, x, x, jnp.asarray(ids), jnp.asarray(ids), scale=0.125)
    jax.effects_barrier()
    assert sum(counted) * 128**2 == pallas_tpu.computed_entries(ids, ids)[0]


# Where it works


def loss(q: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.sum(kernel(q, q * 0.5, q + 1.0, ids, ids, scale=0.125) ** 2)


def test_vmap_and_scan_give_what_calls_one_by_one_give() -> None:
    q_X = random_numbers(3, 2, 128, 2, 64)
    ids_X = jnp.asarray(np.stack([segments(128, 20 * n + 30, 40, rows=2) for n in range(3)]))
    gradient = jax.jit(jax.grad(loss))
    alone = np.stack([gradient(q, ids) for q, ids in zip(q_X, ids_X, strict=True)])
    np.testing.assert_allclose(jax.vmap(gradient)(q_X, ids_X), alone, atol=2e-5)
    scanned = jax.lax.scan(lambda _, x: (None, gradient(*x)), None, (q_X, ids_X))[1]
    np.testing.assert_allclose(scanned, alone, atol=2e-5)


@pytest.mark.parametrize("policy, kept", [("none", True), ("dots", True), ("full", False)])
def test_what_the_backward_kernel_reads_is_kept_unless_nothing_may_be(
    policy: str, kept: bool, capsys: pytest.CaptureFixture
) -> None:
    ids = jnp.asarray(segments(128, 100))
    saved = jax.checkpoint(loss, policy=REMATERIALIZE[policy])
    jax.ad_checkpoint.print_saved_residuals(saved, random_numbers(1, 128, 2, 64), ids)
    told = capsys.readouterr().out
    assert [f"named '{name}'" in told for name in ("mixed", "statistics")] == [kept, kept]


@pytest.mark.slow
def test_devices_share_rows_and_heads() -> None:
    program = """
        import jax, jax.numpy as jnp, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from jaxbert.ops.attention import pallas_tpu
        ids = jnp.asarray(np.repeat([[1, 2, 0]], 4, 0).repeat(40, 1), jnp.int32)
        q = jax.random.normal(jax.random.key(0), (4, 120, 4, 64))
        def loss(q):
            return jnp.sum(pallas_tpu.attention(q, 0.5 * q, q + 1, ids, ids, scale=0.125, interpret=True) ** 2)
        alone = jax.jit(jax.grad(loss))(q)
        mesh = jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
        with jax.set_mesh(mesh):
            lies = NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))
            compiled = jax.jit(jax.grad(loss), in_shardings=lies, out_shardings=lies).lower(q).compile()
            shared = compiled(jax.device_put(q, lies))
        np.testing.assert_allclose(shared, alone, atol=1e-5)
        assert "all-gather" not in compiled.as_text()
    """
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, env=environment)


@pytest.mark.parametrize(
    "heads, head_size, dtype, missing",
    [
        (2, 32, "float32", "head size 32; it takes 64 and 128"),
        (3, 64, "float32", "3 heads of size 64 on a device; two of 64 go together"),
        (2, 64, "float16", "float16; it takes bfloat16 and float32"),
    ],
)
def test_what_it_lacks_is_named(heads: int, head_size: int, dtype: str, missing: str) -> None:
    x, ids = jnp.zeros((1, 8, heads, head_size), dtype), jnp.ones((1, 8), jnp.int32)
    with pytest.raises(ValueError, match=missing):
        kernel(x, x, x, ids, ids, scale=1.0)


COMPILE = """
    from jaxbert.chips import open_topology
    _, devices = open_topology("v5e:2x2")
    import jax, jax.numpy as jnp
    from jaxbert.ops.attention import pallas_tpu
    T, D, N, H = 512, 256, 4, 64
    def block(x, w, o, ids):
        q, k, v = (jnp.einsum("BTD,DE->BTE", x, w[i]).reshape(2, T, N, H) for i in range(3))
        mixed = pallas_tpu.attention(q, k, v, ids, ids, scale=0.125).reshape(2, T, N * H)
        return jnp.einsum("BTE,ED->BTD", mixed, o)
    def step(x, w, o, ids):
        return jax.value_and_grad(lambda *a: jnp.sum(block(*a, ids).astype("float32") ** 2), argnums=(0, 1, 2))(x, w, o)
    lies = jax.sharding.SingleDeviceSharding(devices[0])
    array = lambda *shape, dtype="bfloat16": jax.ShapeDtypeStruct(shape, dtype, sharding=lies)
    arguments = array(2, T, D), array(3, D, N * H), array(N * H, D), array(2, T, dtype="int32")
    print(jax.jit(step).lower(*arguments).compile().as_text())
"""


def test_compiled_for_v5e_nothing_of_the_size_of_queries_is_copied_or_transposed() -> None:
    pytest.importorskip("libtpu", reason="compiles for a TPU")
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(COMPILE)], check=True, capture_output=True, text=True)
    calls = [line for line in run.stdout.splitlines() if "tpu_custom_call" in line]
    assert len(calls) == 2, "forward and backward"
    entry = run.stdout[run.stdout.index("ENTRY") :]
    moved = [line for line in entry.splitlines() if " copy(" in line or " transpose(" in line or "copy-start(" in line]
    assert not [line for line in moved if "bf16[2,512," in line.split("=", 1)[1].split("(", 1)[0]], moved
