"""How the dumps beside this file came about: python -m tests.cycles.make FOLDER, then cut to what test_cycles.py reads.

Two Pallas kernels, so that the programs stay small: a product in four blocks of rows, and sums over as many blocks as
an argument says.
"""

import os
import sys
from pathlib import Path
from typing import Any

from jaxbert import chips, cycles


def product(x: Any, w: Any) -> Any:
    """(64, 128) bfloat16 times (128, 128), 16 rows a block → (64, 128) float32."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl

    def kernel(x_ref: Any, w_ref: Any, o_ref: Any) -> None:
        o_ref[...] = jnp.dot(x_ref[...], w_ref[...], preferred_element_type=jnp.float32)

    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((64, 128), jnp.float32),
        grid=(4,),
        in_specs=[pl.BlockSpec((16, 128), lambda i: (i, 0)), pl.BlockSpec((128, 128), lambda i: (0, 0))],
        out_specs=pl.BlockSpec((16, 128), lambda i: (i, 0)),
        name="product",
    )(x, w)


def sums(counts: Any, x: Any) -> Any:
    """The sum of the first counts[i] of (16, 8, 128 i … 128 (i + 1)), for i in 0 and 1 → (8, 256) float32."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    def kernel(counts_ref: Any, x_ref: Any, o_ref: Any) -> None:
        start = jnp.zeros((8, 128), jnp.float32)
        o_ref[...] = jax.lax.fori_loop(0, counts_ref[pl.program_id(0)], lambda i, total: total + x_ref[i], start)

    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(2,),
        in_specs=[pl.BlockSpec((16, 8, 128), lambda i, counts: (0, 0, i))],
        out_specs=pl.BlockSpec((8, 128), lambda i, counts: (0, i)),
    )
    shape = jax.ShapeDtypeStruct((8, 256), jnp.float32)
    return pl.pallas_call(kernel, out_shape=shape, grid_spec=grid, name="sums")(counts, x)


def scan(x: Any, w: Any) -> Any:
    """(64, 128) bfloat16 times each of (5, 128, 128) in turn."""
    import jax
    import jax.numpy as jnp

    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def main(folder: str, name: str, topology: str) -> None:
    """Compile one kernel for a topology into a folder; a process of its own, since libtpu reads its flags once."""
    os.environ.update(cycles.environment(folder))
    _, devices = chips.open_topology(topology)
    import jax
    import jax.numpy as jnp

    place = jax.sharding.SingleDeviceSharding(devices[0])
    abstract = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=place)  # noqa: E731
    kernel, arguments = {
        "product": (product, (abstract(jnp.bfloat16, 64, 128), abstract(jnp.bfloat16, 128, 128))),
        "scan": (scan, (abstract(jnp.bfloat16, 64, 128), abstract(jnp.bfloat16, 5, 128, 128))),
        "sums": (sums, (abstract(jnp.int32, 2), abstract(jnp.float32, 16, 8, 256))),
    }[name]
    compiled = jax.jit(lambda *a: kernel(*a)).lower(*arguments).compile()
    Path(folder, "compiled.hlo").write_text(compiled.as_text(), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        for topology in ("v5e:2x2", "v6e:2x2"):
            for name in ("product", "sums"):
                target = Path(sys.argv[1]) / f"{topology.partition(':')[0]}_{name}"
                target.mkdir(parents=True)
                os.system(f"{sys.executable} -m tests.cycles.make {target} {name} {topology}")
    else:
        main(*sys.argv[1:])
