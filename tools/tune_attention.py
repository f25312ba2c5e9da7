"""Tile sizes of the TPU kernel of attention by static cycles: what `jaxbert/ops/attention/tiles.py` was filled from.

    python tools/tune_attention.py --chip=v6e:2x2 [--length=2048] [--heads=8] [--head-size=64] [--dtype=bfloat16]

For each candidate the whole program, forward alone and forward with backward, of one row that is one document, compiled
for a chip that need not be attached; one process a compile, because libtpu dumps into one folder. Trips that depend on
data are those of such a row: whole chunks alone. Cycles rank; they are not a speed.
"""

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile

from jaxbert import cycles
from jaxbert.chips import open_topology
from jaxbert.plan import kernel_trips

BLOCKS, CHUNKS, WIDTHS = (512, 1024), (512, 1024), (128, 256)


def measure(arguments: argparse.Namespace, sizes: dict[str, int], backward: bool) -> float:
    """Static cycles of the program with these sizes of `Tiles`; for a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(cycles.environment(folder))
        chip, devices = open_topology(arguments.chip)
        import jax
        import jax.numpy as jnp

        from jaxbert.ops.attention import pallas_tpu
        from jaxbert.ops.attention.tiles import Tiles

        T, N, H, tiles = arguments.length, arguments.heads, arguments.head_size, Tiles(**sizes)
        lies = jax.sharding.SingleDeviceSharding(devices[0])
        x_BTE = jax.ShapeDtypeStruct((1, T, N * H), arguments.dtype, sharding=lies)
        ids_BT = jax.ShapeDtypeStruct((1, T), "int32", sharding=lies)

        def attention(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
            heads = (x.reshape(1, T, N, H) for x in (q, k, v))
            return pallas_tpu.attention(*heads, ids, ids, scale=H**-0.5, tiles=tiles).reshape(1, T, N * H)

        def both(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, g: jax.Array) -> object:
            output, pull = jax.vjp(lambda q, k, v: attention(q, k, v, ids), q, k, v)
            return output, pull(g) if backward else jnp.zeros(())

        jax.jit(both).lower(x_BTE, x_BTE, x_BTE, ids_BT, x_BTE).compile()
        trips = functools.partial(kernel_trips, tiles, T)
        return sum(row.cycles for row in cycles.rank(cycles.read(folder, chip), chip, trips=trips).rows)


def main() -> None:
    """Prints a line for each candidate, the best of both last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", default="v5e:2x2")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # JSON of [sizes, backward]: of a child
    arguments = parser.parse_args()
    if arguments.one:
        print(measure(arguments, *json.loads(arguments.one)))
        return
    best: dict[str, tuple[float, dict[str, int]]] = {}
    for block, chunk, width in itertools.product(BLOCKS, CHUNKS, WIDTHS):
        forward = {"q_block": block, "k_chunk": chunk, "width": width}
        backward = {"k_block": block, "q_chunk": chunk, "width": width}
        for name, sizes in (("forward", forward), ("forward and backward", forward | backward)):
            command = [sys.executable, *sys.argv, f"--one={json.dumps([sizes, name != 'forward'])}"]
            child = subprocess.run(command, capture_output=True, text=True)
            if child.returncode:  # too large for the chip's VMEM, most likely
                print(f"{name:<21} {sizes}: {(child.stderr.strip().splitlines() or ['failed'])[-1][:100]}", flush=True)
                continue
            found = float(child.stdout.split()[-1])
            print(f"{name:<21} {sizes}: {found:,.0f} cycles", flush=True)
            best[name] = min(best.get(name, (float("inf"), {})), (found, sizes), key=lambda pair: pair[0])
    for name, (found, sizes) in best.items():
        print(f"best {name}: {found:,.0f} cycles with {sizes}")


if __name__ == "__main__":
    main()
