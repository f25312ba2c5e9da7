"""The long convolution compiled for TPUs that are not attached: the kernels where they can be, matrices elsewhere."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbert import program
from jaxbert.chips import open_topology
from jaxbert.ops.long_conv.api import long_conv

pytest.importorskip("libtpu", reason="the TPU's compiler")
B, D = 64, 256


def compiled(topology: str, T: int, dtype: str = "bfloat16") -> str:
    """Value and gradients on data 2 × tensor 2: the program of one device."""
    devices = np.array(open_topology(topology)[1]).reshape(2, 1, 2)
    mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def both(x: jax.Array, *rest: jax.Array) -> tuple[jax.Array, ...]:
        *filters, weight = rest
        y, pull = jax.vjp(long_conv, x, *filters)
        return y, *pull(weight)

    def array(*shape: int, dtype: str = "float32", axes: tuple[str, ...] = ()) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(axes)))

    rows = array(B, T, D, dtype=dtype, axes=("data", "fsdp"))
    with jax.set_mesh(mesh):
        step = jax.jit(both).lower(rows, array(T, D), array(T, D), array(D), rows)
        return step.compile().as_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_rows_of_up_to_128_tokens_make_no_matrices_in_memory(topology: str, dtype: str) -> None:
    text = compiled(topology, 100, dtype)
    flops = [call.flops for call in program.parse(text).custom_calls() if "tpu" in call.target]
    assert sorted(flops) == [2 * products * (B // 2) * 128**2 * D for products in (1, 2)], "forward, backward"
    sizes = [np.prod([*map(int, dims.split(","))]) for dims in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", text)]
    assert max(sizes) <= max(B // 2 * 128 * D, 128 * 128), "matrices of all channels would be 128² D numbers"


@pytest.mark.parametrize(("topology", "tokens"), [("v4:2x2x1", 128), ("v5e:2x2", 129)])
def test_chips_that_cannot_turn_sublanes_apart_and_longer_rows_get_products_of_matrices(
    topology: str, tokens: int
) -> None:
    assert "tpu_custom_call" not in compiled(topology, tokens)
