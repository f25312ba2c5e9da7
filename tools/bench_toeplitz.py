"""Where the Toeplitz product by Fourier transforms overtakes the matrix: what `ops.toeplitz.api.choose` rests on.

    python tools/bench_toeplitz.py [--channels=768] [--tokens=8192] [--positions=512] [--dtype=float32] [--json=FILE]

A measure is the product with its gradients, of rows of one document: so many tokens in all, the same number of channels
at every length. `positions` is n: longer rows have weights of zero beyond it. Both implementations are timed in turn;
ratios are of throughput, transforms / matrix, round by round, median of five. The matrix of packed rows stands beside
them: there it is the only one.
"""

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_train import machine, measure, show  # a tool beside this one

from jaxbert.allocator import computes_on_cpu, keep_freed_memory
from jaxbert.ops.toeplitz.api import choose, toeplitz_product

LENGTHS, ROUNDS = (128, 256, 512, 1024, 2048, 4096, 8192), 5
CONTESTANTS = {
    "gathered": {"one_document": True, "implementation": "gathered"},
    "fft": {"one_document": True, "implementation": "fft"},
    "gathered, packed": {"one_document": False, "implementation": "gathered"},
}


@functools.partial(jax.jit, static_argnames=("one_document", "implementation"))
def step(weights_O: Any, v_BTC: Any, ids_BT: Any, slope_BTC: Any, **chosen: Any) -> Any:
    """The product and both gradients; as in our encoders, the forward pass keeps its result and no spectrum."""
    product = jax.checkpoint(lambda w, v: toeplitz_product(w, v, ids_BT, **chosen))
    y_BTC, pull = jax.vjp(product, weights_O, v_BTC)
    return y_BTC, pull(slope_BTC)


def seconds(operands: tuple[Any, ...], repeats: int, chosen: dict[str, Any]) -> float:
    """Of one step, from so many."""
    start = time.perf_counter()
    for _ in range(repeats):
        result = step(*operands, **chosen)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def bench(length: int, channels: int, tokens: int, positions: int, dtype: str) -> list[dict[str, Any]]:
    """Tokens a second of each, and transforms / matrix."""
    rows, random = max(1, tokens // length), np.random.default_rng(0)
    v_BTC, slope_BTC = (jnp.asarray(random.normal(size=(rows, length, channels)), dtype) for _ in range(2))
    weights_O = jnp.asarray(random.normal(size=2 * positions - 1), jnp.float32)
    operands = (weights_O, v_BTC, jnp.ones((rows, length), jnp.int32), slope_BTC)
    for chosen in CONTESTANTS.values():
        seconds(operands, 1, chosen)  # compiles
    repeats = {name: max(1, round(0.3 / seconds(operands, 1, chosen))) for name, chosen in CONTESTANTS.items()}
    speeds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(ROUNDS):
        for name, chosen in CONTESTANTS.items():
            speeds[name].append(rows * length / seconds(operands, repeats[name], chosen))
    ratios = [fft / matrix for fft, matrix in zip(speeds["fft"], speeds["gathered"], strict=True)]
    # The one that `choose` takes must not be the slower by more than a tenth.
    better = choose(length, one_document=True)
    chosen_ratios = ratios if better == "fft" else [1 / ratio for ratio in ratios]
    return [
        *(measure(f"T={length}: {name}", values, "tokens/s") for name, values in speeds.items()),
        measure(f"T={length}: fft / gathered", ratios, "ratio"),
        measure(f"T={length}: chosen ({better}) / the other", chosen_ratios, "ratio", 0.9),
    ]


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=8192, help="of all rows together; at least one row")
    parser.add_argument("--positions", type=int, default=512, help="n")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if computes_on_cpu():  # as in training
        keep_freed_memory()
    lines: list[dict[str, Any]] = []
    print(f"{'product and gradients':70s} {'median':>10s}  {'low':>10s}  {'high':>10s}")
    for length in flags.lengths:
        found = bench(length, flags.channels, flags.tokens, flags.positions, flags.dtype)
        show(found)
        lines += found
    if flags.json:
        about = machine()
        about["machine"]["device"] = jax.devices()[0].device_kind
        settings = {"channels": flags.channels, "tokens": flags.tokens, "n": flags.positions, "dtype": flags.dtype}
        flags.json.write_text(json.dumps({**about, "settings": settings, "measures": lines}, indent=1))


if __name__ == "__main__":
    main()
