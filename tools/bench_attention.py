"""Speed and memory of attention, forward and backward, by length: where `choose` should pass from one to the other.

    python tools/bench_attention.py [--lengths 128 512 2048] [--dropout=0.1] [--block 256 512] [--json=FILE]
    python tools/bench_attention.py --topology=v5e:2x2 [--lengths 512 2048] [--window=128] [--json=FILE]
    python tools/bench_attention.py --rows data/gl/rows_128 … [--window=128]

The second form runs nothing: it compiles for one device of a topology and prints static cycles (attention_cycles.py).
The third counts what the TPU kernel computes of rows that `jaxbert.prepare` packed: score entries over those of the
128 × 128 tiles that hold a pair of tokens which see each other (goal 1.3). The first runs here:

Every implementation of ours, and jax.nn.dot_product_attention (without dropout, which it lacks), on full rows of one
document. A batch holds the same number of tokens at every length. Contestants take turns, a call each; tokens a second
are the median of these, ratios are taken call by call. Memory is what the compiled program holds beside its arguments.
"""

import argparse
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attention_cycles
import jax
import jax.numpy as jnp
import numpy as np
from bench_train import machine, measure, show

from jaxbert.allocator import computes_on_cpu, keep_freed_memory
from jaxbert.data.source import Rows
from jaxbert.ops.attention import api, pallas_tpu, xla_chunked
from jaxbert.ops.attention.visits import UNIT

HEADS, HEAD_SIZE = 4, 64
XLA = ("reference", "xla_chunked")
LENGTHS = [128, 256, 512, 1024, 2048, 4096, 8192]


def contestants(dropout: float, window: int | None, blocks: list[int]) -> dict[str, Callable[..., jax.Array]]:
    """By name: functions of (q, k, v, segment ids of both) as in `api`."""
    arguments: dict[str, Any] = {"scale": 1.0 / math.sqrt(HEAD_SIZE), "window": window}
    if dropout:
        arguments |= {"dropout_rate": dropout, "key": jax.random.key(0)}
    named = {name: functools.partial(api.IMPLEMENTATIONS[name].compute, **arguments) for name in XLA}
    for block in blocks:
        named[f"xla_chunked {block}"] = functools.partial(xla_chunked.attention, block=block, **arguments)
    if not dropout and window is None:
        named["jax.nn"] = lambda q, k, v, q_ids, k_ids: jax.nn.dot_product_attention(
            q, k, v, mask=(q_ids[:, :, None] == k_ids[:, None, :])[:, None], implementation="xla"
        )
    return named


def compiled(attention: Callable[..., jax.Array], batch: int, length: int, dtype: str) -> tuple[Any, Any]:
    """Forward and backward of it, and its arguments."""
    keys = jax.random.split(jax.random.key(1), 4)
    q, k, v, g = (jax.random.normal(key, (batch, length, HEADS, HEAD_SIZE), dtype) for key in keys)
    ids = jnp.ones((batch, length), jnp.int32)

    def both(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array, ids: jax.Array) -> Any:
        output, pull = jax.vjp(lambda q, k, v: attention(q, k, v, ids, ids), q, k, v)
        return output, pull(g)

    arguments = (q, k, v, g, ids)
    return jax.jit(both).lower(*arguments).compile(), arguments


def bench(length: int, tokens: int, calls: int, dtype: str, named: dict[str, Any]) -> list[dict[str, Any]]:
    """One length: a line for each contestant, and how much slower than ours best the chosen one is."""
    batch = max(1, tokens // length)
    programs = {name: compiled(attention, batch, length, dtype) for name, attention in named.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(calls + 1):
        for name, (program, arguments) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            if turn:  # the first call warms up
                seconds[name].append(time.perf_counter() - start)
    lines = []
    for name, (program, _) in programs.items():
        lines.append(measure(f"T={length}: {name}", [batch * length / s for s in seconds[name]], "tokens/s"))
        memory = program.memory_analysis().temp_size_in_bytes / 2**20
        lines.append(measure(f"T={length}: {name}, temporaries", [memory], "MiB"))
    chosen, ours = api.choose(api.Call(length, length)), XLA
    best = min(ours, key=lambda name: sorted(seconds[name])[calls // 2])
    ratio = [theirs / mine for theirs, mine in zip(seconds[best], seconds[chosen], strict=True)]
    lines.append(measure(f"T={length}: chosen ({chosen}) / best of ours ({best})", ratio, "ratio", 0.9))
    return lines


def cycles_table(topology: str, lengths: list[int], window: int | None, json_file: Path | None) -> None:
    """Prints attention_cycles.table; `least` sums each program's largest of bundles, matrix unit and HBM."""
    lines = []
    names = ("least", "bundles", "matrix", "hbm", "spills")
    print(f"{topology}, cycles: they rank and are no speed")
    print(f"{'T':>6} {'pass':<8} {'':<28} {'rows':<7}" + "".join(f"{name:>12}" for name in names) + f"{'MiB':>8}")
    for line in attention_cycles.table(topology, lengths, window):
        lines.append(line)
        head = f"{line['T']:>6} {line['pass']:<8} {line['name']:<28}"
        if "refused" in line:
            print(f"{head} {line['refused']}", flush=True)
            continue
        numbers = "".join(f"{line[name]:>12,.0f}" for name in names)
        print(f"{head} {line['rows']:<7}{numbers}{line['temporaries'] / 2**20:>8.1f}", flush=True)
    if json_file:
        json_file.write_text(json.dumps({"topology": topology, "measures": lines}, indent=2) + "\n")


def counted(folder: Path, window: int | None, most: int = 64) -> str:
    """Of `most` packed rows, from all of them evenly: entries that the kernel computes over the least, as a line."""
    rows = Rows(folder)
    taken = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)
    least, found = 0, np.zeros(2)
    for number in taken:
        ids = np.pad(rows[[number]][2], ((0, 0), (0, -rows.row_length % UNIT)))
        row, places = ids[0], np.arange(ids.shape[1])
        sees = (row[:, None] == row) & (row > 0)
        if window is not None:
            sees &= np.abs(places[:, None] - places) <= window // 2
        tiles = sees.reshape(len(row) // UNIT, UNIT, -1, UNIT).any((1, 3))
        least += int(tiles.sum()) * UNIT**2
        found += pallas_tpu.computed_entries(ids, ids, window=window)
    forward, backward = found / least
    share = f"{len(taken)} rows, least {least / (len(taken) * rows.row_length**2):.1%} of all entries"
    return f"{folder}: {share}; forward {forward:.3f}, backward {backward:.3f} × the least"


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch")
    parser.add_argument("--calls", type=int, default=7)
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--window", type=int, help="local attention, as in the api")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--block", type=int, nargs="*", default=[], help="further sizes of xla_chunked's blocks")
    parser.add_argument("--topology", help="compile for it and count cycles: v5e:2x2, v6e:2x2, …")
    parser.add_argument("--rows", type=Path, nargs="+", help="folders of packed rows: count what the kernel computes")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if flags.rows:
        print(*(counted(folder, flags.window) for folder in flags.rows), sep="\n")
        return
    if flags.topology:
        cycles_table(flags.topology, flags.lengths or [512, 2048], flags.window, flags.json)
        return
    if computes_on_cpu():  # as the loop does
        keep_freed_memory()
    results: list[dict[str, Any]] = []
    print(f"{jax.devices()[0].device_kind}, {HEADS} heads of {HEAD_SIZE}, {flags.tokens} tokens, {flags.dtype}")
    print(f"{'':70s} {'median':>10s}  {'low':>10s}  {'high':>10s}")
    for dropout in flags.dropout:
        for length in flags.lengths or LENGTHS:
            lines = bench(
                length, flags.tokens, flags.calls, flags.dtype, contestants(dropout, flags.window, flags.block)
            )
            lines = [{**line, "name": f"dropout {dropout}, {line['name']}"} for line in lines]
            show(lines)
            results += lines
    if flags.json:
        flags.json.write_text(json.dumps({**machine(), "measures": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
