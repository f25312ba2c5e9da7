"""Static cycles of attention on a TPU that is not attached: ours, plain XLA's and what libraries offer.

`bench_attention.py --topology=…` prints them. Every contestant gets what projections produce and returns what the next
one takes, (B, T, N · H): transposes and copies that it needs are part of its program. Nothing runs: cycles are those of
jaxbert/cycles.py, which rank and are no speed.
"""

import dataclasses
import importlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert import cycles
from jaxbert.chips import open_topology

HEADS, HEAD_SIZE = 8, 64
TOKENS = 4096  # of a batch: rows × length, at least one row; one row of 512 alone would keep its scores in VMEM
LIBRARY_TILES = (256, 512, 1024)  # beside the 128 that flash ships with
DOCUMENTS = 16, 400  # tokens of a packed row's documents, uniformly


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A function of (q, k, v: (B, T, N, H), ids (B, T)), and the trips of its loops that depend on data."""

    name: str
    call: Callable[..., Any]
    kernel: bool = False  # ours: its trips follow from the ids
    chunked: bool = False  # XLA's blocks: theirs too


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a whole program: cycles of one TensorCore, summed over programs; temporaries in bytes."""

    least: float  # sum of each program's largest of the next three
    bundles: float
    matrix: float
    hbm: float
    spills: float  # slots
    temporaries: int


def rows_of(length: int) -> int:
    """Rows of a batch."""
    return max(1, TOKENS // length)


def packed(length: int) -> np.ndarray:
    """Segment ids of rows that documents of random lengths fill, the same ones every time; (rows, length) int32."""
    random, ids = np.random.default_rng(0), np.zeros((rows_of(length), length), np.int32)
    for row in ids:
        start, document = 0, 0
        while start < length:
            document, size = document + 1, int(random.integers(*DOCUMENTS))
            row[start : start + size] = document
            start += size
    return ids


def contestants(length: int, window: int | None) -> Iterator[Contestant]:
    """Ours, then the libraries' at every tile size that the length allows. Libraries see no window."""
    from jaxbert.ops.attention import pallas_tpu, reference, xla_chunked

    scale = 1.0 / math.sqrt(HEAD_SIZE)

    def of(compute: Callable[..., Any]) -> Callable[..., Any]:
        return lambda q, k, v, ids: compute(q, k, v, ids, ids, scale=scale, window=window)

    yield Contestant("pallas_tpu", of(pallas_tpu.attention), kernel=True)
    yield Contestant("reference", of(reference.attention))
    yield Contestant("xla_chunked", of(xla_chunked.attention), chunked=True)
    if window is None:
        sizes = [size for size in LIBRARY_TILES if length % size == 0]
        yield Contestant("jax flash, its default", flash(None, scale))
        yield from (Contestant(f"jax flash, tiles {size}", flash(size, scale)) for size in sizes)
        yield from (Contestant(f"jax splash, tiles {size}", splash(_SPLASH, size, length, scale)) for size in sizes)
        if importlib.util.find_spec("tokamax"):
            yield from (
                Contestant(f"tokamax splash, tiles {size}", splash(_TOKAMAX, size, length, scale)) for size in sizes
            )


def flash(size: int | None, scale: float) -> Callable[..., Any]:
    """JAX's flash attention with square tiles."""
    from jax.experimental.pallas.ops.tpu import flash_attention as module

    sizes = None
    if size is not None:
        fields = [field.name for field in dataclasses.fields(module.BlockSizes)]
        sizes = module.BlockSizes(**{name: 1 if name == "block_b" else size for name in fields})

    def call(q: Any, k: Any, v: Any, ids: Any) -> Any:
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        segments = module.SegmentIds(q=ids, kv=ids)
        out = module.flash_attention(q, k, v, segment_ids=segments, sm_scale=scale, block_sizes=sizes)
        return out.transpose(0, 2, 1, 3)

    return call


_SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention"
_TOKAMAX = "tokamax._src.ops.experimental.tpu.splash_attention"


def splash(package: str, size: int, length: int, scale: float) -> Callable[..., Any]:
    """Splash attention, JAX's or tokamax's (which continues it), with square tiles and the fused backward pass."""
    import jax

    kernels, masks = (importlib.import_module(f"{package}.splash_attention_{part}") for part in ("kernel", "mask"))
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    tiles = dict.fromkeys(names, size)
    if package == _SPLASH:
        mask = masks.MultiHeadMask([masks.FullMask((length, length))] * HEADS)
        sizes = kernels.BlockSizes(**tiles, use_fused_bwd_kernel=True)
        kernel = kernels.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    else:
        config = kernels.SplashConfig(**tiles, use_base2_exp=True)
        kernel = kernels.make_splash_mha_single_device(masks.FullMask((length, length)), config=config)

    def call(q: Any, k: Any, v: Any, ids: Any) -> Any:
        q, k, v = ((x * factor).transpose(0, 2, 1, 3) for x, factor in ((q, scale), (k, 1), (v, 1)))
        segments = kernels.SegmentIds(q=ids, kv=ids)
        return jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=s))(q, k, v, segments).transpose(0, 2, 1, 3)

    return call


class Compiler:
    """Compiles for one device of a topology and reads what libtpu dumped. To be made before jax starts a backend."""

    def __init__(self, topology: str):
        self.folder = Path(tempfile.mkdtemp(prefix="attention_cycles_"))
        os.environ.update(cycles.environment(self.folder))
        self.chip, devices = open_topology(topology)
        import jax

        from jaxbert.ops.attention.tiles import chosen

        self.mesh = jax.sharding.Mesh(np.array(devices[:1]), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        with jax.set_mesh(self.mesh):
            self.tiles = chosen(2)  # of our kernel, for bfloat16

    def compile(self, contestant: Contestant, length: int, backward: bool) -> tuple[list[cycles.Program], Any]:
        """Its machine programs and the executable."""
        import jax
        import jax.numpy as jnp

        rows = rows_of(length)

        def forward(q: Any, k: Any, v: Any, ids: Any) -> Any:
            q, k, v = (x.reshape(rows, length, HEADS, HEAD_SIZE) for x in (q, k, v))
            return contestant.call(q, k, v, ids).reshape(rows, length, HEADS * HEAD_SIZE)

        def both(q: Any, k: Any, v: Any, ids: Any, g: Any) -> Any:
            out, pull = jax.vjp(lambda q, k, v: forward(q, k, v, ids), q, k, v)
            return out, pull(g)

        place = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec())
        x = jax.ShapeDtypeStruct((rows, length, HEADS * HEAD_SIZE), jnp.bfloat16, sharding=place)
        ids = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=place)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        with jax.set_mesh(self.mesh):
            compiled = jax.jit(both if backward else forward).lower(x, x, x, ids, *([x] if backward else [])).compile()
        return cycles.read(self.folder, self.chip), compiled


def cost(
    compiler: Compiler,
    contestant: Contestant,
    programs: list[cycles.Program],
    compiled: Any,
    ids: np.ndarray,
    window: int | None,
) -> Cost:
    """Of a compiled program on a row of these segment ids."""
    executions = _in_loops(compiled.as_text(), *_block_visits(ids, window)) if contestant.chunked else None
    trips = _kernel_trips(compiler.tiles, ids, window) if contestant.kernel else {}

    def rows(*counts: int) -> dict[str, cycles.Row]:
        def supplied(program: cycles.Program, number: int) -> int:
            return counts[number] if any(name in program.name for name in trips) else 1

        ranked = cycles.rank(programs, compiler.chip, executions=executions, trips=supplied)
        return {row.program.name: row for row in ranked.rows}

    total, bare = np.zeros(5), rows(0, 0, 0)
    ones = [rows(*counts) if trips else bare for counts in np.eye(3, dtype=int).tolist()]
    for name, row in bare.items():
        # A program's cycles are linear in the trips of its loops, and means of trips are no integers.
        means = next((mean for kernel, mean in trips.items() if kernel in name), (0.0, 0.0, 0.0))
        parts = _parts(row) + sum(
            mean * (_parts(other[name]) - _parts(row)) for mean, other in zip(means, ones, strict=True)
        )
        total += [max(parts[:3]), *parts]
    return Cost(*total.tolist(), compiled.memory_analysis().temp_size_in_bytes)


def _parts(row: cycles.Row) -> np.ndarray:
    return np.array([row.bundles, row.matrix, row.hbm, row.runs * row.work.slots["SPILL"]])


def _kernel_trips(tiles: Any, ids: np.ndarray, window: int | None) -> dict[str, tuple[float, float, float]]:
    """Kernel's name → mean trips of its loops that depend on data: chunks, a unit's pairs of tiles, its odd tiles."""
    from jaxbert.ops.attention import visits

    length = ids.shape[1]
    visited, whole = visits.needed(ids, ids, window)
    found = {}
    for name, plan in (
        ("attention_forward", visits.forward_plan),
        ("attention_backward", visits.backward_plan),
    ):
        table = np.asarray(visits.table(visited, whole, plan(length, length, tiles)))
        first, chunks, starts, others = table[..., 1:2], table[..., 2:3], table[..., 3::2], table[..., 4::2]
        runs = np.stack(visits.beside_chunks(first, chunks, starts, others))
        pairs, odd = np.sum(runs // 2, axis=0), np.sum(runs % 2, axis=0)
        found[name] = float(chunks.mean()), float(pairs.mean()), float(odd.mean())
    return found


def _block_visits(ids: np.ndarray, window: int | None) -> tuple[int, int]:
    """Blocks of queries that xla_chunked walks along, and blocks of scores that it computes."""
    from jaxbert.ops.attention import xla_chunked

    block = xla_chunked.BLOCK if window is None else xla_chunked.WINDOW_BLOCK
    blocks = xla_chunked._segment_blocks(ids, block)
    first, stop = xla_chunked._needed(blocks, blocks, window)
    return len(first), int(np.sum(stop - first))


def _in_loops(text: str, outer: int, inner: int) -> dict[str, int]:
    """Instruction → runs: once outside of loops, `outer` times in one, `inner` times in a loop within a loop."""
    bodies: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=\S)", text):
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(", block):
            bodies[head[1]] = block.splitlines()[1:]
    runs: dict[str, int] = {}

    def visit(name: str, depth: int) -> None:
        for line in bodies.get(name, ()):
            if found := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line):
                runs[found[1]] = (1, outer, inner)[depth]
            if " while(" in line:
                for called in re.findall(r"(?:body|condition)=%?([\w.\-]+)", line):
                    visit(called, depth + 1)

    visit(re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)[1], 0)
    return runs


def table(topology: str, lengths: list[int], window: int | None) -> Iterator[dict[str, Any]]:
    """A line for each length, pass, contestant and kind of row; libraries' lines hold for dense and packed rows."""
    compiler = Compiler(topology)
    for length in lengths:
        for backward in (False, True):
            for contestant in contestants(length, window):
                line = {"T": length, "pass": "both" if backward else "forward", "name": contestant.name}
                try:
                    programs, compiled = compiler.compile(contestant, length, backward)
                except Exception as error:  # a library's refusal is an answer
                    yield {**line, "refused": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}
                    continue
                depends = contestant.kernel or contestant.chunked
                rows = {
                    "dense": np.ones((rows_of(length), length), np.int32),
                    **({"packed": packed(length)} if depends else {}),
                }
                for kind, ids in rows.items():
                    found = cost(compiler, contestant, programs, compiled, ids, window)
                    yield {**line, "rows": kind if depends else "any", **dataclasses.asdict(found)}
    shutil.rmtree(compiler.folder, ignore_errors=True)
