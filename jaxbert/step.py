"""One training step: the function that `train` runs and that `plan` compiles for devices that are not attached."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbert import config, optim, sharding
from jaxbert.ops.platform import target

State = dict[str, Any]  # model, optimizer, counters
# A product of what fsdp splits gathers it whole. In place of that libtpu 0.0.52 would send it round in windows: with
# BERT-large on 16 × 16 v5e 2.35 GB a step, none of it beside computation, for 2.00 GB, of which three fifths are.
COMPILER_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}}


def initial_state(objective: Any, optimizer: Any, key: jax.Array) -> State:
    """A fresh state: float32 parameters, the optimizer's, and the counters that the update keeps."""
    model = objective.init(key)
    counters = {
        "step": jnp.zeros((), jnp.int32),
        "skipped_in_a_row": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
        "mean_norm": jnp.zeros((), jnp.float32),
    }
    return {"model": model, "optimizer": optimizer.init(model), "counters": counters}


def make_update(
    objective: Any, optimizer: Any, schedule: Callable[[Any], jax.Array], settings: config.Config
) -> Callable[[State, dict[str, jax.Array]], tuple[State, dict[str, jax.Array]]]:
    """One step as a pure function of (state, batch): gradients, clipping, the optimizer, or nothing if the step is bad.

    Every array of `batch` is (accumulate, rows, …). Gradients are sums over the parts divided once by the global count
    of predicted tokens, so accumulation gives the large batch's result. Returned metrics are scalars on the device.
    """
    train, clip = settings.train, settings.optimizer.clip_norm

    def gradients(batch: dict[str, jax.Array], model: Any, step: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        def loss_sum(model: Any, part: dict[str, jax.Array], index: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(train.dropout_seed), step), index)
            total, count, more = objective.loss(model, part, key)
            # An objective that minimises more than −log p says in `more` what its loss is.
            return total, {"loss": total, "count": count, **more}

        value_and_grad = jax.value_and_grad(loss_sum, has_aux=True)
        if train.accumulate == 1:
            (_, sums), grads = value_and_grad(model, {k: v[0] for k, v in batch.items()}, 0)
            return grads, sums

        def add_part(total: Any, part: tuple[jax.Array, dict[str, jax.Array]]) -> tuple[Any, None]:
            (_, sums), grads = value_and_grad(model, part[1], part[0])
            return jax.tree.map(jnp.add, total, (grads, sums)), None

        shapes = jax.eval_shape(lambda: value_and_grad(model, {k: v[0] for k, v in batch.items()}, 0))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[1], shapes[0][1]))
        (grads, sums), _ = jax.lax.scan(add_part, zeros, (jnp.arange(train.accumulate), batch))
        return grads, sums

    def update(state: State, batch: dict[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        model, counters = state["model"], state["counters"]
        rate = schedule(counters["step"])
        tokens = jnp.sum(batch["tokens_B"])
        inputs = {name: array for name, array in batch.items() if name != "tokens_B"}
        grads, sums = sharding.sum_over_data(gradients, train.dtype, inputs, model, counters["step"])
        count = jnp.maximum(sums.pop("count"), 1)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads))) / count
        scale = (jnp.minimum(1.0, clip / (norm + 1e-6)) if clip else 1.0) / count  # as PyTorch's clip_grad_norm_
        direction, moments = optimizer.update(jax.tree.map(lambda g: g * scale, grads), state["optimizer"], model)
        moved = jax.tree.map(lambda p, d: p - (rate * d).astype(p.dtype), model, direction)

        mean = counters["mean_norm"]
        new_mean = jnp.where(mean == 0, norm, 0.98 * mean + 0.02 * norm).astype(mean.dtype)  # float32 in any precision
        good = jnp.isfinite(norm) & jnp.isfinite(sums["loss"])
        if train.spike:
            good &= (mean == 0) | (norm <= train.spike * mean)
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)  # noqa: E731
        bad = (~good).astype(jnp.int32)
        new = {
            "model": keep(moved, model),
            "optimizer": keep(moments, state["optimizer"]),
            "counters": {
                "step": counters["step"] + 1,
                "skipped_in_a_row": (counters["skipped_in_a_row"] + bad) * bad,
                "skipped": counters["skipped"] + bad,
                "mean_norm": jnp.where(good, new_mean, mean),
            },
        }
        means = {name: value / count for name, value in sums.items()}
        told = {**means, "gradient_norm": norm, "learning_rate": rate, "tokens": tokens, "bad": bad}
        return new, {**told, "bad_in_a_row": new["counters"]["skipped_in_a_row"]}

    return update


@dataclasses.dataclass(frozen=True)
class Step:
    """The step on a mesh, not yet compiled. `abstract` and `shardings` have the tree of the state."""

    objective: Any
    init: Callable[[jax.Array], State]  # key → a fresh state; to be jitted with `shardings`
    abstract: State  # ShapeDtypeStructs
    shardings: State
    rows: jax.sharding.NamedSharding  # of a batch's arrays, (accumulate, rows, …)
    update: Any  # jitted; donates the state

    def compile(self, batch: dict[str, Any], options: dict[str, Any] | None = None) -> Any:
        """The executable for batches of these shapes (arrays or ShapeDtypeStructs, with the axis of `accumulate`).

        `options`: of the compiler, beside those of `make_step`.
        """
        shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}
        return self.update.lower(self.abstract, shapes).compile(options)


def make_step(settings: config.Config, objective: Any, steps: int, mesh: jax.sharding.Mesh) -> Step:
    """The step of a resolved recipe for a run of `steps`; to be called, and compiled, under `jax.set_mesh(mesh)`.

    Raises BadInput for a schedule that the run is too short for, and for a mesh that does not divide the model.
    """
    optimizer = optim.make_optimizer(settings.optimizer, objective.vocab_size)
    schedule = optim.make_schedule(settings.schedule, settings.optimizer.learning_rate, steps)
    init = functools.partial(initial_state, objective, optimizer)
    # Nothing here may compute: the mesh's devices need not be attached.
    abstract = jax.eval_shape(lambda: init(jax.random.key(0)))
    sharding.check_model(settings.model, abstract["model"], mesh.shape)
    shardings = sharding.shard_by_name(abstract, mesh, settings.sharding.overrides)
    rows = sharding.batch_sharding(mesh, leading=1)
    update = jax.jit(
        make_update(objective, optimizer, schedule, settings),
        donate_argnums=0,
        in_shardings=(shardings, rows),
        out_shardings=(shardings, None),
        compiler_options=COMPILER_OPTIONS.get(target().platform),
    )
    return Step(objective, init, abstract, shardings, rows, update)


def in_parts(batch: dict[str, np.ndarray], accumulate: int) -> dict[str, np.ndarray]:
    """A batch with the axis of `train.accumulate` in front: (rows, …) → (accumulate, rows / accumulate, …)."""
    return {n: a.reshape(accumulate, len(a) // accumulate, *a.shape[1:]) for n, a in batch.items()}


def count_parameters(model: Any, vocab_size: int) -> int:
    """Elements of all leaves, arrays or ShapeDtypeStructs, with `vocab_size` true rows where an axis is V."""
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    return sum(sharding.elements(path, leaf.shape, vocab_size) for path, leaf in leaves)


def memory_needed(compiled: Any) -> int:
    """Bytes a device for a compiled step: arguments, results, what lies between; donated state is counted once."""
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return needed + memory.output_size_in_bytes - memory.alias_size_in_bytes


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """What a compiler said of a program that does not fit; bytes. libtpu 0.0.52 names no allocations."""

    needed: float
    available: float
    kind: str  # of memory and of what fills it: "HBM", "HLO temporaries"


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_OUT_OF_MEMORY = re.compile(
    r"Ran out of memory on (\w+), the total memory required for (.+?) \(([\d.]+)([KMGT]?)\) exceeds available \w+ "
    r"\(([\d.]+)([KMGT]?)\)"
)


def out_of_memory(message: str) -> OutOfMemory | None:
    """The numbers in a compiler's error; None for another error (`RESOURCE_EXHAUSTED` alone has none)."""
    match = _OUT_OF_MEMORY.search(message)
    if match is None:
        return None
    needed, available = (float(match[n]) * _UNITS[match[n + 1]] for n in (3, 5))
    return OutOfMemory(needed, available, f"{match[1]}: {match[2]}")
