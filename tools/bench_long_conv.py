"""Where the long convolution by Fourier transforms overtakes matrix products: what `ops.long_conv.api.choose` rests on.

    python tools/bench_long_conv.py [--lengths 16 64 1024] [--channels=256] [--rows=0] [--dtype=float32] [--json=FILE]

A measure is the convolution with its gradients, of a batch with the same number of tokens at every length, or of so
many rows. Contestants take turns, a call each; tokens a second are the median of these, ratios are taken call by call.
Beside ours: the transforms with the gradient that JAX derives, and the reference, which gathers its matrices. Memory is
what the compiled program holds beside its arguments. Matrix forms are left out where their matrices would take over a
gigabyte.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from bench_train import machine, measure, show  # a tool beside this one

from jaxbert.ops.long_conv import api, fft

LENGTHS = (8, 16, 32, 64, 128, 256, 512, 2048, 8192)
LARGEST_MATRICES = 2**30  # bytes


def derived(x_BTD: Any, forward_TD: Any, backward_TD: Any, bias_D: Any) -> jax.Array:
    """fft.long_conv without its own backward pass."""
    T, dtype = x_BTD.shape[1], jnp.float32
    size = fft.size_for(T)
    gap = jnp.zeros((size - 2 * T + 1, *bias_D.shape), dtype)
    circle = jnp.concatenate([forward_TD.at[0].add(bias_D), gap, backward_TD[: T - 1][::-1]]).T
    spectrum = jnp.fft.rfft(circle) * jnp.fft.rfft(x_BTD.astype(dtype).transpose(0, 2, 1), size)
    return jnp.fft.irfft(spectrum, size)[..., :T].transpose(0, 2, 1).astype(x_BTD.dtype)


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
    contestants = {**api.IMPLEMENTATIONS, "fft, JAX's gradient": derived}
    if 4 * length * length * flags.channels > LARGEST_MATRICES:
        contestants = {name: call for name, call in contestants.items() if "fft" in name}
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

    def ratio(ours: str, theirs: str) -> list[float]:
        return [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]

    if "direct" in seconds:
        chosen = api.choose(length)
        other = "direct" if chosen == "fft" else "fft"
        lines.append(measure(f"T={length}: chosen ({chosen}) / {other}", ratio(chosen, other), "ratio", 0.9))
    lines.append(measure(f"T={length}: fft / with JAX's gradient", ratio("fft", "fft, JAX's gradient"), "ratio", 1.0))
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
