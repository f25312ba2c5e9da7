"""Attention compiled for TPUs that are not attached: what the api chooses there, and what lies around the kernel."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxbert import program
from jaxbert.chips import open_topology
from jaxbert.models import layers
from jaxbert.ops.attention.api import dot_product_attention

pytest.importorskip("libtpu", reason="the TPU's compiler")
B, N, H = 4, 4, 64
D = N * H


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    devices = np.array(open_topology("v5e:2x2")[1]).reshape(2, 1, 2)
    return Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def compiled(mesh: Mesh, T: int, **arguments: Any) -> str:
    """Projections, attention and the projection back, and their gradients: the program of one device."""

    def layer(kernels: list[nnx.Param], x_BTD: jax.Array, ids_BT: jax.Array) -> jax.Array:
        q, k, v = (layers.project(x_BTD, kernels[n], kernels[n + 1]) for n in (0, 2, 4))
        a_BTNH = dot_product_attention(q, k, v, segment_ids=ids_BT, **arguments)
        return layers.project(a_BTNH, kernels[6], kernels[7], axes=2)

    def both(kernels: list[nnx.Param], x_BTD: jax.Array, ids_BT: jax.Array, g_BTD: jax.Array) -> Any:
        y_BTD, pull = jax.vjp(lambda *given: layer(*given, ids_BT), kernels, x_BTD)
        return y_BTD, pull(g_BTD)

    def array(shape: tuple[int, ...], dtype: Any, *axes: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    inward = [array((D, N, H), "float32", None, "tensor"), array((N, H), "float32", "tensor")]
    outward = [array((N, H, D), "float32", "tensor"), array((D,), "float32")]
    kernels = [nnx.Param(x) for x in (*inward, *inward, *inward, *outward)]
    x_BTD = array((B, T, D), jnp.bfloat16, ("data", "fsdp"))
    ids_BT = array((B, T), "int32", ("data", "fsdp"))
    with jax.set_mesh(mesh):
        return jax.jit(both).lower(kernels, x_BTD, ids_BT, x_BTD).compile().as_text()


def test_a_host_without_tpus_compiles_the_kernel_for_a_mesh_of_them_and_copies_nothing_around_it(mesh: Mesh) -> None:
    text = compiled(mesh, 2048)
    forward, backward = (call.flops for call in program.parse(text).custom_calls() if "tpu" in call.target)
    assert (forward, backward) == tuple(2 * products * (B // 2) * 2048**2 * (D // 2) for products in (2, 5))
    # Of queries, keys and values, as each device has them; heads of 64 lanes would be padded to 128.
    local = rf"bf16\[{B // 2},2048,(?:{D // 2}|{N // 2},{H})\]"
    assert not re.findall(rf"= {local}\S* (?:copy|transpose)\(", text)


def test_a_row_that_xla_serves_as_well_holds_no_kernel(mesh: Mesh) -> None:
    assert "tpu_custom_call" not in compiled(mesh, 256)
