"""Topologies by name."""

import importlib.util
import math

import jax
import jax.numpy as jnp
import pytest

from jaxbert import chips
from jaxbert.config import Sharding
from jaxbert.errors import BadInput
from jaxbert.sharding import make_mesh

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install jaxbert[tpu]; CI has it)"
)


@pytest.mark.parametrize(
    ("topology", "chip", "devices"),
    [("v5e:16x16", "v5e", 256), ("v4:2x2x1", "v4", 4), ("v5p:2x2x2", "v5p", 8), ("tpu7x:2x2x1", "tpu7x", 8)],
)
def test_a_name_gives_the_chip_and_its_devices(topology: str, chip: str, devices: int) -> None:
    found, count = chips.parse(topology)
    assert (found.name, count) == (chip, devices)


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:", "v5e:2x", "v5e:0x2", ""])
def test_an_unknown_topology_is_refused_with_the_known_chips(topology: str) -> None:
    with pytest.raises(BadInput, match="v4, v5e, v5p, v6e, tpu7x, h100"):
        chips.parse(topology)


@pytest.mark.parametrize("chip", [chip for chip in chips.CHIPS.values() if chip.matrix_units])
def test_matrix_units_at_the_clock_make_the_peak(chip: chips.Chip) -> None:
    multipliers = chip.matrix_units * chip.matrix_size**2
    assert math.isclose(2 * multipliers * chip.clock, chip.flops, rel_tol=0.01)


@needs_libtpu
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_compiler_knows_every_tpu_of_the_table_by_the_kind_and_number_of_devices(topology: str) -> None:
    chip, devices = chips.open_topology(topology)
    assert {device.device_kind for device in devices} == {chip.kind} and len(devices) == chips.parse(topology)[1]
    mesh = make_mesh(Sharding(data=-1, fsdp=2), 16, "train.batch_size", devices)
    assert sorted(device.id for device in mesh.devices.flat) == sorted(device.id for device in devices)


@needs_libtpu
def test_a_topology_that_hosts_do_not_divide_is_refused_in_the_compilers_words() -> None:
    with pytest.raises(BadInput, match="v5e:3x3.*not divisible"):
        chips.open_topology("v5e:3x3")


@needs_libtpu
def test_a_program_compiles_for_a_chip_that_is_not_there() -> None:
    _, devices = chips.open_topology("v5e:1x1")
    place = jax.sharding.SingleDeviceSharding(devices[0])
    square = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=place)
    assert "bf16[256,256]" in jax.jit(jnp.matmul).lower(square, square).compile().as_text()


def test_a_missing_compiler_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'jaxbert\[tpu\]'"):
        chips.open_topology("v5e:2x2")
    with pytest.raises(BadInput, match=r"pip install 'jaxbert\[cuda\]'"):
        chips.open_topology("h100:8")
