"""How this process keeps memory between steps on a CPU."""

import ctypes
import importlib.metadata
import importlib.util
import sys

import jax

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # mallopt(3), malloc.h of glibc


def computes_on_cpu() -> bool:
    """Whether jax can only mean the CPU here, told without starting a backend: no accelerator's plugin is installed, or
    JAX_PLATFORMS says "cpu"."""
    if platforms := jax.config.jax_platforms:  # type: ignore[attr-defined]
        return platforms == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and not importlib.util.find_spec("libtpu")


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, for the rest of the process; False where there is no glibc (nothing happens).

    XLA's CPU client allocates a step's buffers anew each time, and glibc returns such large blocks to the system: the
    page faults of the demo's step took 70 ms of 250 ms of processor time. Memory in use stays at its peak, which the
    next step needs again. Call it before anything asks jax for a device: the client's threads take arenas of their own
    when they start, and these are trimmed all the same.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    # One arena, because a second one cannot grow past 64 MB without mmap; no mmap; never trim.
    return all(mallopt(option, value) for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)))
