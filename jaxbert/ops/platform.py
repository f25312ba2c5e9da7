"""Where the code that is being traced will run, also when it is compiled for devices that are not attached."""

import dataclasses

import jax

_GPU = ("cuda", "rocm")


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that a program is traced for."""

    platform: str  # "cpu", "gpu" or "tpu"
    kind: str  # jax's device_kind, as chips.Chip.kind: "TPU v5 lite"


def target() -> Target:
    """The devices of the mesh that `jax.set_mesh` set, or else JAX's default device.

    Call it while tracing. A program compiled ahead of time for a topology is traced on a host whose own backend is the
    CPU, so `jax.default_backend()` answers wrongly there; a mesh knows its devices, attached or not, and JAX traces
    anew for another mesh. So whoever compiles for a topology sets a mesh of its devices around `lower`.

    It is not `jax.lax.platform_dependent`, which decides at lowering: that traces every branch and keeps, for the
    backward pass, what any of them keeps.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        device = getattr(jax.config, "jax_default_device")  # noqa: B009 (jax's stubs do not know it)
        if not isinstance(device, jax.Device):  # a platform's name, or None
            device = jax.devices(device)[0]
    return Target("gpu" if device.platform in _GPU else device.platform, device.device_kind)
