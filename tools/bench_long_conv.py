"""Where the long convolution by Fourier transforms overtakes matrix products: what `ops.long_conv.api.choose` rests on.

    python tools/bench_long_conv.py [--lengths 16 64 1024] [--channels=256] [--rows=0] [--dtype=float32] [--json=FILE]

A measure is the convolution with its gradients, of a batch with the same number of tokens at every length, or of so
many rows: matrices are made once for all of them. Contestants take turns, a call each; tokens a second are the median
of these, ratios are taken call by call. Memory is what the compiled program holds beside its arguments. Matrix forms
are left out where their matrices would take over a gigabyte. On a CPU freed memory is kept, as in training.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from bench_train import machine, measure, show  # a tool beside this one

from jaxbert.allocator import computes_on_cpu, keep_freed_memory
from jaxbert.ops.long_conv import api, pallas_tpu
from jaxbert.ops.platform import target

LENGTHS = (8, 16, 32, 64, 128, 256, 512, 2048, 8192)
LARGEST_MATRICES = 2**30  # bytes


def compiled(convolve: Callable[..., jax.Array], rows: int, length: int, channels: int, dtype: str) -> tuple[Any, Any]:
    """Forward and backward of it, and its arguments."""
    keys = jax.random.split(jax.random.key(0), 5)
    x, g = (jax.random.normal(key, (rows, length, channels), dtype) for key in keys[:2])
    forward, backward = (jax.random.normal(key, (length, channels)) for key in keys[2:4])
    arguments = (x, forward, backward, jax.random.normal(keys[4], (channels,)), g)

    def both(*arguments: jax.Array) -> Any:
        output, pull = jax.vjp(convolve, *arguments[:4])
        return output, pull(arguments[4])

    return jax.jit(both).lower(*arguments).compile(), arguments


def bench(length: int, flags: argparse.Namespace) -> list[dict[str, Any]]:
    """One length: tokens a second and memory of each, and how much slower than the other of ours the chosen one is."""
    rows = flags.rows or max(1, flags.tokens // length)
    contestants = dict(api.IMPLEMENTATIONS)
    row = jax.ShapeDtypeStruct((rows, length, flags.channels), flags.dtype)
    chosen = api.choose(row)
    if pallas_tpu.lacks(row, target()):
        del contestants["pallas_tpu"]
    if 4 * length * length * flags.channels > LARGEST_MATRICES:
        contestants = {"fft": contestants["fft"]}
    programs = {name: compiled(call, rows, length, flags.channels, flags.dtype) for name, call in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(flags.calls + 1):
        for name, (program, arguments) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            if turn:  # the first call warms up
                seconds[name].append(time.perf_counter() - start)
    lines = []
    for name, (program, _) in programs.items():
        lines.append(measure(f"T={length}: {name}", [rows * length / s for s in seconds[name]], "tokens/s"))
        memory = program.memory_analysis().temp_size_in_bytes / 2**20
        lines.append(measure(f"T={length}: {name}, temporaries", [memory], "MiB"))
    if "direct" in seconds:
        other = "fft" if chosen == "direct" else "direct"
        ratio = [theirs / mine for mine, theirs in zip(seconds[chosen], seconds[other], strict=True)]
        lines.append(measure(f"T={length}: chosen ({chosen}) / {other}", ratio, "ratio", 0.9))
    return lines


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=8192, help="of all rows together; at least one row")
    parser.add_argument("--rows", type=int, default=0, help="of a batch, whatever the length; 0: as --tokens says")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--calls", type=int, default=7)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if computes_on_cpu():
        keep_freed_memory()
    results: list[dict[str, Any]] = []
    batch = f"{flags.rows} rows" if flags.rows else f"{flags.tokens} tokens"
    print(f"{jax.devices()[0].device_kind}, {flags.channels} channels, {batch}, {flags.dtype}, forward and backward")
    print(f"{'':70s} {'median':>10s}  {'low':>10s}  {'high':>10s}")
    for length in flags.lengths:
        lines = bench(length, flags)
        show(lines)
        results += lines
    print(f"choose: fft from {api.FFT_FROM} tokens on")
    if flags.json:
        flags.json.write_text(json.dumps({**machine(), "measures": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
