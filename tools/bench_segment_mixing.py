"""What packing costs HyperMixer's mixing: several documents a row beside one, forward and backward.

    python tools/bench_segment_mixing.py [--length=512] [--width=256] [--tokens=8192] [--documents 1 2 4 8 16]
                                         [--layers=4] [--json=FILE]

Contestants, at the same number of real tokens: rows filled by one document ("products", the least that mixing costs);
rows of so many documents of random lengths, by each implementation for those; and the same documents one a row, each
padded to the shortest of the lengths T, T/2, T/4, T/8 that holds it, as rows of one document are read. They take turns;
tokens a second are medians, ratios are taken turn by turn. k is four times the width, two heads. `--layers`: beside it
a whole training step of an encoder of that width and so many blocks, on rows of so many documents and on full rows of
one (0: not).
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_encoders import compile_step, made_up_batch, recipe
from bench_train import machine, measure, show

from jaxbert.allocator import computes_on_cpu, keep_freed_memory
from jaxbert.data.source import position_ids
from jaxbert.models.layers import gelu
from jaxbert.ops.segment_mixing.api import IMPLEMENTATIONS

HEADS, BUCKETS = 2, 4


def program(mixing: Callable[..., jax.Array], ids_BT: np.ndarray, width: int, dtype: str) -> Callable[[], Any]:
    """A compiled call of the mixing and its three gradients on random operands."""
    H, F, (B, T) = width // HEADS, 4 * width // HEADS, ids_BT.shape
    random = np.random.default_rng(0)
    v, first, second, slope = (jnp.asarray(random.normal(size=(HEADS, B, T, size)), dtype) for size in (H, F, F, H))
    ids = jnp.asarray(ids_BT)

    def step(ids: jax.Array, slope: jax.Array, *arrays: jax.Array) -> Any:
        y, pull = jax.vjp(lambda *a: mixing(*a, ids, ids, activation=gelu), *arrays)
        return y, pull(slope)

    arguments = (ids, slope, v, first, second)
    compiled = jax.jit(step).lower(*arguments).compile()
    return functools.partial(compiled, *arguments)


def lengths_of(documents: int, rows: int, length: int) -> list[np.ndarray]:
    """For each row the lengths of its documents, which fill it."""
    random = np.random.default_rng(documents)
    cuts = [np.sort(random.choice(np.arange(1, length), documents - 1, replace=False)) for _ in range(rows)]
    return [np.diff(np.concatenate([[0], cut, [length]])) for cut in cuts]


def packed_ids(lengths: list[np.ndarray]) -> np.ndarray:
    """(B, T) segment ids."""
    return np.stack([np.repeat(np.arange(1, len(row) + 1), row) for row in lengths]).astype(np.int32)


def single_ids(lengths: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Segment ids of the same documents one a row, an array for each bucket that has any."""
    buckets = [length >> shift for shift in reversed(range(BUCKETS))]
    by_bucket: dict[int, list[int]] = {bucket: [] for bucket in buckets}
    for tokens in np.concatenate(lengths).tolist():
        by_bucket[next(bucket for bucket in buckets if bucket >= tokens)].append(tokens)
    return [
        (np.arange(bucket) < np.array(found)[:, None]).astype(np.int32) for bucket, found in by_bucket.items() if found
    ]


def race(contestants: dict[str, Callable[[], Any]], turns: int, tokens: int) -> dict[str, list[float]]:
    """Tokens a second of each, turn by turn."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, call in contestants.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:  # the first warms up
                speeds[name].append(tokens / (time.perf_counter() - start))
    return speeds


def ratio(title: str, speeds: dict[str, list[float]], mine: str, other: str) -> dict[str, Any]:
    """A line of the table."""
    ratios = [a / b for a, b in zip(speeds[mine], speeds[other], strict=True)]
    return measure(f"{title}: {mine} / {other}", ratios, "ratio")


def bench(documents: int, flags: argparse.Namespace) -> list[dict[str, Any]]:
    """One number of documents a row: tokens a second of every contestant, and what packing costs."""
    rows, T = max(1, flags.tokens // flags.length), flags.length
    lengths, title = lengths_of(documents, rows, T), f"{documents} documents in {T}"
    make = functools.partial(program, width=flags.width, dtype=flags.dtype)
    singles = [make(IMPLEMENTATIONS["products"], ids) for ids in single_ids(lengths, T)]
    contestants: dict[str, Callable[[], Any]] = {
        "one of T": make(IMPLEMENTATIONS["products"], np.ones((rows, T), np.int32)),
        "one a row": lambda: [call() for call in singles],
    }
    for name in ("by_document", "by_length"):
        contestants[f"packed, {name}"] = make(IMPLEMENTATIONS[name], packed_ids(lengths))
    speeds = race(contestants, flags.turns, rows * T)
    lines = [measure(f"{title}: {name}", values, "tokens/s") for name, values in speeds.items()]
    for packed in [name for name in speeds if name.startswith("packed")]:
        lines += [ratio(title, speeds, packed, other) for other in ("one of T", "one a row")]
    return lines


def bench_step(documents: int, flags: argparse.Namespace) -> list[dict[str, Any]]:
    """A training step on rows of so many documents beside one on full rows of one."""
    T, title = flags.length, f"step, {documents} documents in {flags.length}"
    flags = argparse.Namespace(**vars(flags), vocabulary=8192)
    settings = recipe("hypermixer", flags.width, flags.layers, T, flags)
    batch = made_up_batch(settings)
    ids_BT = packed_ids(lengths_of(documents, settings.train.batch_size, T))
    packed = {name: array for name, array in batch.items() if name != "length_B"}
    packed |= {"segment_ids_BT": jnp.asarray(ids_BT)[None], "position_ids_BT": jnp.asarray(position_ids(ids_BT))[None]}
    steps = {"packed": compile_step(settings, batch=packed), "one of T": compile_step(settings, batch=batch)}
    speeds = race({name: step.run for name, step in steps.items()}, flags.turns, ids_BT.size)
    lines = [measure(f"{title}: {name}", values, "tokens/s") for name, values in speeds.items()]
    return [*lines, ratio(title, speeds, "packed", "one of T")]


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=512, help="T, of a row")
    parser.add_argument("--width", type=int, default=256, help="D")
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch")
    parser.add_argument("--documents", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="of a row")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if computes_on_cpu():  # as the loop does
        keep_freed_memory()
    results: list[dict[str, Any]] = []
    print(f"{jax.devices()[0].device_kind}, width {flags.width}, {flags.tokens} tokens, {flags.dtype}")
    print(f"{'mixing and gradients':70s} {'median':>10s}  {'low':>10s}  {'high':>10s}")
    for documents in flags.documents:
        lines = bench(documents, flags) + (bench_step(documents, flags) if flags.layers else [])
        show(lines)
        results += lines
    if flags.json:
        flags.json.write_text(json.dumps({**machine(), "measures": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
