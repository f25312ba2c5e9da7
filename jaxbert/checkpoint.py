"""Checkpoints: Orbax writes them, asynchronously and atomically; a fingerprint of every leaf proves them whole.

Orbax restores a file with a flipped bit without noticing, so each checkpoint carries a uint32 per leaf that changes
with any bit and does not depend on the mesh; restore checks it and falls back to the newest checkpoint that is whole.
"""

import copy
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from jaxbert.config import Checkpoint
from jaxbert.errors import BadInput

log = logging.getLogger("jaxbert")
LOOP = "loop"  # beside the state's own keys: what the loop knows, as JSON


def fingerprint(x: jax.Array) -> jax.Array:
    """uint32: a position-weighted sum of the bits of `x`, equal on any mesh; the weights are odd, so one flip shows.

    Any shape; floating point, integer or bool of 1, 2, 4 or 8 bytes.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if x.dtype.itemsize == 8:
        x = jax.lax.bitcast_convert_type(x, jnp.uint32)  # adds an axis of two words
    words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, words).astype(jnp.uint32)
    weight = jnp.uint32(0)
    for axis in range(x.ndim):
        weight = weight * jnp.uint32(0x9E3779B1) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    weight = (weight ^ (weight >> 15)) * jnp.uint32(0x85EBCA6B)
    return jnp.sum(bits * (weight | 1), dtype=jnp.uint32)


@jax.jit
def _fingerprints(tree: Any) -> list[jax.Array]:
    return [fingerprint(leaf) for leaf in jax.tree.leaves(tree)]


def _names(tree: Any) -> list[str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value") for path, _ in paths]


def _root_cause(error: BaseException) -> str:
    """The last exception of the chain: Orbax reports every load error as "incompatible handler"."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]


def _context() -> ocp.Context:
    context = ocp.Context()
    registry = ocp.handlers.local_registry().add(ocp.handlers.JsonHandler, checkpointable_name=LOOP)
    context.checkpointables.registry = registry
    return context


def steps_in(directory: Path) -> list[int]:
    """The steps that have a checkpoint directory, ascending; whether they are whole only a restore tells."""
    return sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit()) if directory.is_dir() else []


def read(directory: Path, step: int, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The checkpoint of `step`, checked leaf by leaf: (state, loop).

    Args:
      directory: of all checkpoints of a run, absolute.
      abstract: ShapeDtypeStructs with shardings under the state's top-level keys, or some of them ({"model": …}).

    Raises ValueError with the reason if what was asked for is not whole.
    """
    with _context():
        try:
            loaded = ocp.load_checkpointables(directory / str(step), {**abstract, LOOP: None})
        except Exception as error:  # Orbax raises many types for a torn directory
            raise ValueError(_root_cause(error)) from None
    loop = loaded.pop(LOOP)
    for name, value in zip(_names(loaded), _fingerprints(loaded), strict=True):
        if loop["fingerprints"].get(name) != int(value):
            raise ValueError(f"{name} is not what was saved (its fingerprint differs: a flipped bit, or another model)")
    return loaded, loop


class Checkpoints:
    """The checkpoints of one run: the last N and the best by held-out loss."""

    def __init__(self, directory: Path, checkpoint: Checkpoint):
        """`directory` is made; half-written leftovers of a killed process are removed."""
        self.directory, self.checkpoint = directory.absolute(), checkpoint
        self._open: Any = None
        self._pending: Any = None

    def restore_newest(self, abstract: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, loop) of the newest checkpoint that is whole, None if there is none at all.

        A broken one is renamed to `broken-<step>`, named in a warning and left for inspection. Raises BadInput if
        there are checkpoints and none is whole.
        """
        steps = steps_in(self.directory)
        for step in reversed(steps):
            try:
                state, loop = read(self.directory, step, abstract)
                return step, state, loop
            except ValueError as error:
                aside = self.directory / f"broken-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.directory / str(step)).rename(aside)
                log.warning("checkpoint %s is broken: %s; moved to %s", self.directory / str(step), error, aside.name)
        if steps:
            raise BadInput(
                f"{self.directory}: none of the {len(steps)} checkpoints is whole; start in another --workdir"
            )
        return None

    def _checkpointer(self) -> Any:
        if self._open is None:
            save, keep = ocp.training.save_decision_policies, ocp.training.preservation_policies
            self._open = ocp.training.Checkpointer(
                self.directory,
                context=_context(),
                save_decision_policy=save.FixedIntervalPolicy(1),  # the loop decides when; Orbax's own would skip
                cleanup_tmp_directories=True,
                preservation_policy=keep.AnyPreservationPolicy(
                    [
                        keep.LatestN(self.checkpoint.keep_last),
                        keep.BestN(get_metric_fn=lambda m: -m["loss"], n=1, keep_checkpoints_without_metrics=False),
                    ]
                ),
            )
        return self._open

    def save(self, step: int, state: Any, loop: dict[str, Any], held_out_loss: float | None) -> None:
        """Start saving; returns as soon as the arrays are copied off the devices. A failed save warns, no more.

        `loop` is copied: it is written later, when the caller's has gone on.
        """
        self.wait()
        fingerprints = dict(zip(_names(state), map(int, _fingerprints(state)), strict=True))
        metrics = None if held_out_loss is None else {"loss": held_out_loss}
        try:
            self._pending = (
                step,
                self._checkpointer().save_checkpointables_async(
                    step, {**state, LOOP: {**copy.deepcopy(loop), "fingerprints": fingerprints}}, metrics=metrics
                ),
            )
        except Exception as error:
            self._failed(step, error)

    def wait(self) -> None:
        """Until the save in flight is on disk; a failure is a warning, because an older checkpoint is whole."""
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:
            self._failed(step, error)

    def _failed(self, step: int, error: Exception) -> None:
        log.warning("checkpoint of step %d was not saved: %s; training goes on", step, _root_cause(error))
        # Orbax raises a failed save's error once more at the next save: a fresh Checkpointer forgets it.
        broken, self._open = self._open, None
        try:
            if broken is not None:
                broken.close()
        except Exception as again:
            log.debug("closing after a failed save: %s", _root_cause(again))
        shutil.rmtree(self.directory / str(step), ignore_errors=True)

    def close(self) -> None:
        """Wait for the save in flight and release Orbax's threads."""
        self.wait()
        if self._open is not None:
            self._open.close()
            self._open = None


def abstract_with_shardings(tree: Any, shardings: Any) -> Any:
    """ShapeDtypeStructs that say where each leaf goes, the form in which Orbax wants its target."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
