"""The accelerators that jaxbert knows: what a datasheet says of each, and topologies of them that need not be attached.

`libtpu` compiles for a TPU by its name, on any Linux machine (jax.experimental.topologies). Nothing runs there.
"""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from jaxbert.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Chip:
    """One *device* as JAX counts it: a chip, or one of its two cores where those are devices of their own.

    Sources: cloud.google.com/tpu/docs (the page of each version: FLOP/s, HBM, bandwidths), jax's own table for kernels
    (jax/_src/pallas/mosaic/tpu_info.py: VMEM, matrix units); NVIDIA's H100 SXM datasheet.
    """

    name: str  # in topologies: "v5e" of "v5e:16x16"
    kind: str  # jax's device_kind
    flops: float  # dense bfloat16 FLOP/s
    hbm: float  # bytes
    hbm_bandwidth: float  # bytes/s
    link_bandwidth: float  # bytes/s that one device sends in all directions together
    clock: float = 0.0  # Hz; FLOP/s ÷ (2 × multipliers), so derived; 0: not derived
    matrix_units: int = 0  # of one device
    matrix_size: int = 128  # rows and columns of a matrix unit
    cores: int = 1  # TensorCores of one device
    devices_a_chip: int = 1
    devices_a_host: int = 4
    granule: int = 32  # bytes that a transfer's size in libtpu's dumps counts
    readable: bool = False  # whether jax was seen to read its programs back; not v5p's and v6e's (sparse cores)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 275e12, 32 * 2**30, 1228e9, 300e9, 1.05e9, 8, cores=2, granule=512),
        Chip("v5e", "TPU v5 lite", 197e12, 16 * 2**30, 819e9, 200e9, 1.5e9, 4, readable=True),
        Chip("v5p", "TPU v5", 459e12, 95 * 2**30, 2765e9, 600e9, 1.75e9, 8, cores=2),
        Chip("v6e", "TPU v6 lite", 918e12, 32 * 2**30, 1640e9, 400e9, 1.75e9, 4, matrix_size=256),
        Chip(
            "tpu7x",
            "TPU7x",
            1153.5e12,
            96 * 2**30,
            3690e9,
            600e9,
            2.2e9,
            4,
            matrix_size=256,
            devices_a_chip=2,
            devices_a_host=8,
        ),
        Chip("h100", "NVIDIA H100", 989e12, 80e9, 3350e9, 450e9, devices_a_host=8, readable=True),
    )
}
# What XLA asks of a GPU that is not there; the figures of NVIDIA's H100 SXM and of compute capability 9.0.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  name: "NVIDIA H100 80GB HBM3"
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  runtime_version: "13.0.0"
  driver_version: "13.0.0"
  dnn_version: "9.12.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
TOPOLOGY = re.compile(r"([a-z0-9]+):([1-9]\d*(?:x[1-9]\d*)*)")


def parse(topology: str) -> tuple[Chip, int]:
    """("v5e", 256 devices) of "v5e:16x16"; raises BadInput for a name that is none."""
    match = TOPOLOGY.fullmatch(topology)
    chip = CHIPS.get(match[1]) if match else None
    if match is None or chip is None:
        raise BadInput(
            f"topology: {topology!r}; give CHIP:AxB or CHIP:AxBxC, as v5e:16x16 or v5p:4x4x4; chips: {', '.join(CHIPS)}"
        )
    count = chip.devices_a_chip
    for size in match[2].split("x"):
        count *= int(size)
    return chip, count


def open_topology(topology: str) -> tuple[Chip, list[Any]]:
    """The chip and the devices, in jax's order, of a topology that need not be attached: compile for them, run nothing.

    Raises BadInput for an unknown topology, one that the compiler refuses, and where the compiler is not installed.
    To be called before jax starts a backend of its own: this process then computes on the CPU.
    """
    chip, count = parse(topology)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no question to the metadata server of a cloud machine
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compilers may run side by side: none of them has a TPU
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")  # what libtpu would ask for, in 20 lines of warnings
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    jax.config.update("jax_platforms", "cpu")
    package, remedy = ("jax_cuda13_plugin", "'jaxbert[cuda]'") if chip.name == "h100" else ("libtpu", "'jaxbert[tpu]'")
    if importlib.util.find_spec(package) is None:
        raise BadInput(f"topology: compiling for {topology} needs {package}; pip install {remedy}")
    try:
        if chip.name == "h100":
            described = topologies.get_topology_desc(chip.name, "cuda", target_config=H100, topology=f"1x1x{count}")
        else:
            # Left to itself libtpu describes a v4 of two devices a chip, which no machine has and no mesh takes.
            cores: dict[str, Any] = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **cores)
    except Exception as error:
        raise BadInput(f"topology: the compiler refuses {topology!r}: {error}") from None
    return chip, list(described.devices)
