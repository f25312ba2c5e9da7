"""What a program is traced for: the mesh's devices before JAX's own."""

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxbert.ops.platform import Target, target


def abstract_mesh(platform: str, kind: str) -> AbstractMesh:
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    return AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)


def test_without_a_mesh_it_is_the_default_device() -> None:
    host = jax.devices("cpu")[0]
    for default in (None, "cpu", host):
        with jax.default_device(default):
            assert target() == Target("cpu", host.device_kind)


@pytest.mark.parametrize("platform, ours", [("tpu", "tpu"), ("cuda", "gpu"), ("rocm", "gpu"), ("gpu", "gpu")])
def test_a_mesh_of_other_devices_comes_first_and_is_traced_anew(platform: str, ours: str) -> None:
    seen = []

    @jax.jit
    def traced(x: jax.Array) -> jax.Array:
        seen.append(target())
        return x

    traced.trace(1.0)
    with jax.sharding.use_abstract_mesh(abstract_mesh(platform, "Some kind")), jax.default_device("cpu"):
        traced.trace(1.0)
    assert [found.platform for found in seen] == ["cpu", ours] and seen[1].kind == "Some kind"


def test_a_shard_map_keeps_the_meshs_devices() -> None:
    seen = []
    with jax.sharding.use_abstract_mesh(abstract_mesh("tpu", "TPU v5 lite")):
        spec = jax.sharding.PartitionSpec("data")
        split = jax.shard_map(lambda x: seen.append(target()) or x, in_specs=spec, out_specs=spec)
        jax.jit(split).trace(jax.numpy.ones(4))
    assert seen == [Target("tpu", "TPU v5 lite")]
