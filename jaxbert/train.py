"""The training loop: python -m jaxbert.train --config=FILE[:VARIANT] --workdir=DIR [--config.section.field=value …]

Started again on the same directory, it resumes at the newest whole checkpoint, bit for bit. It names no model and no
objective: it sees a pytree, `objective.loss`, and batches that are a pure function of (recipe, step).
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbert import checkpoint, config, metrics, objectives, optim, phases, runs, sharding
from jaxbert.allocator import computes_on_cpu, keep_freed_memory
from jaxbert.data.source import Feed, Rows, Validation, prefetch
from jaxbert.data.tokenizer import TextTokenizer, entries
from jaxbert.errors import BadInput, Diverged, run
from jaxbert.evaluate import held_out
from jaxbert.phases import Plan
from jaxbert.prepare import load_corpus

State = dict[str, Any]  # model, optimizer, counters


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
    """One step as a pure function of (state, batch): gradients, clipping, AdamW, or nothing if the step is bad.

    Every array of `batch` is (accumulate, rows, …). Gradients are sums over the parts divided once by the global count
    of predicted tokens, so accumulation gives the large batch's result. Returned metrics are scalars on the device.
    """
    train, clip = settings.train, settings.optimizer.clip_norm
    dropout_key = jax.random.key(train.dropout_seed)

    def gradients(model: Any, batch: dict[str, jax.Array], step: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        def loss_sum(model: Any, part: dict[str, jax.Array], index: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            key = jax.random.fold_in(jax.random.fold_in(dropout_key, step), index)
            total, count, more = objective.loss(model, part, key)
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
        grads, sums = gradients(model, inputs, counters["step"])
        count = jnp.maximum(sums.pop("count"), 1)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads))) / count
        scale = (jnp.minimum(1.0, clip / (norm + 1e-6)) if clip else 1.0) / count  # as PyTorch's clip_grad_norm_
        direction, moments = optimizer.update(jax.tree.map(lambda g: g * scale, grads), state["optimizer"], model)
        moved = jax.tree.map(lambda p, d: p - (rate * d).astype(p.dtype), model, direction)

        mean = counters["mean_norm"]
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
                "mean_norm": jnp.where(good, jnp.where(mean == 0, norm, 0.98 * mean + 0.02 * norm), mean),
            },
        }
        means = {name: value / count for name, value in sums.items()}
        told = {**means, "gradient_norm": norm, "learning_rate": rate, "tokens": tokens, "bad": bad}
        return new, {**told, "bad_in_a_row": new["counters"]["skipped_in_a_row"]}

    return update


def count_parameters(model: Any, vocab_size: int) -> int:
    """Elements of all leaves, arrays or ShapeDtypeStructs, with `vocab_size` true rows where an axis is V."""
    count = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        letters = sharding.parameter_name(path).rpartition("_")[2]
        padded = leaf.shape[letters.index("V") - len(letters)] if "V" in letters else 1
        count += math.prod(leaf.shape) // padded * (vocab_size if "V" in letters else 1)
    return count


def _shapes(batch: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}


def _memory_needed(compiled: Any) -> int:
    """Bytes a device for a compiled step: arguments, results, what lies between; donated state is counted once."""
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return needed + memory.output_size_in_bytes - memory.alias_size_in_bytes


def _say_what_runs(
    display: metrics.Display, settings: config.Config, mesh: Any, plan: Plan, state: State, need: int, peak: str
) -> None:
    """Before step 1: devices, parameters, tokens an epoch, steps, memory of the compiled step beside what there is."""
    have = metrics.device_memory()
    shape = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    display.line(f"devices     {jax.device_count()} × {jax.devices()[0].device_kind} ({shape}), {peak}")
    display.line(f"parameters  {count_parameters(state['model'], plan.vocab_size):,} ({settings.model.name})")
    for part, (_, phase) in zip(plan.stretches, config.phases(settings), strict=True):
        rows = f"{phase.batch_size} rows of {phase.row_length} tokens"
        if not settings.data.pack:
            rows += ", or as many positions of shorter ones"
        title, steps = "steps", f"{plan.steps:,}"
        if settings.train.phases:
            title, steps = f"phase {part.number}", f"steps {part.begin + 1:,} to {part.end:,}"
        data = f"{part.feed.tokens:,} tokens an epoch in {len(part.feed):,} rows, {part.feed.folder.name}"
        display.line(f"data        {data}")
        display.line(f"{title:<11} {steps} of {rows} = {part.epochs:.2f} epochs")
    of = f" of {have / 2**30:.1f} GiB" if have else ""
    display.line(f"memory      {need / 2**30:.2f} GiB a device for the step{of}")


def _check_fits(settings: config.Config, corpus: dict[str, Any]) -> None:
    """The recipe against the model's positions and against what the corpus was prepared with."""
    longest = settings.model.longest_row
    for field, phase in config.phases(settings):
        if longest is not None and phase.row_length > longest:
            raise BadInput(f"{field}: {phase.row_length} is over model.max_positions {longest}")
    for section in ("tokenizer", "evaluation"):
        for name, ours in config.to_dict(getattr(settings, section)).items():
            theirs = corpus["recipe"].get(f"{section}.{name}", ours)
            if ours != theirs:
                raise BadInput(
                    f"{section}.{name}: {ours!r}, but {settings.corpus.directory} was prepared with {theirs!r}; take "
                    "that value, or prepare another corpus.directory"
                )


def _make_mesh(settings: config.Config) -> Any:
    """The mesh, which the batch of every phase must fill. Raises BadInput."""
    train = settings.train
    fields = [f"train.phases[{i}].batch_size" for i in range(len(train.phases))] or ["train.batch_size"]
    for field, (_, phase) in zip(fields, config.phases(settings), strict=True):
        mesh = sharding.make_mesh(settings.sharding, phase.batch_size // train.accumulate, field)
    return mesh


def _step_flops(objective: Any, feed: Feed) -> float:
    """Model flops of a mean step."""
    return sum(share * objective.step_flops(size, length) for size, length, share in feed.shapes())


def _compile(update: Any, abstract: State, batches: Iterable[dict[str, np.ndarray]]) -> dict[tuple[int, ...], Any]:
    """The step by the shape of a batch's rows, one for each shape in `batches`."""
    compiled: dict[tuple[int, ...], Any] = {}
    for shapes in map(_shapes, batches):
        if (shape := shapes["input_ids_BT"].shape) not in compiled:
            compiled[shape] = update.lower(abstract, shapes).compile()
    return compiled


def train(settings: config.Config, workdir: Path) -> dict[str, Any]:
    """Train (or go on training) a resolved recipe in `workdir`; returns what summary.json holds.

    Raises BadInput, or Diverged for an impossible first loss, a bad step under `train.bad_step = "stop"`, or more than
    `train.max_skipped` bad steps in a row.
    """
    if computes_on_cpu():
        keep_freed_memory()
    corpus_directory = Path(settings.corpus.directory)
    corpus = load_corpus(corpus_directory)
    _check_fits(settings, corpus)
    A, seed = settings.train.accumulate, settings.train.data_seed
    mesh = _make_mesh(settings)
    validation = Validation.open(corpus_directory / "validation")
    tokenizer = TextTokenizer.load(corpus_directory / "tokenizer")
    plan = phases.make_plan(settings, phases.open_feeds(settings), tokenizer.vocab_size)
    settings = phases.in_steps(settings, plan)

    rows_sharding = sharding.batch_sharding(mesh, leading=1)
    objective = objectives.for_tokenizer(settings, tokenizer)
    optimizer = optim.make_optimizer(settings.optimizer)
    schedule = optim.make_schedule(settings.schedule, settings.optimizer.learning_rate, plan.steps)

    def make_batch(rows: Rows, epoch_B: np.ndarray, row_B: np.ndarray) -> dict[str, np.ndarray]:
        batch = objective.make_batch(rows, epoch_B, row_B, seed)
        return {name: array.reshape(A, len(array) // A, *array.shape[1:]) for name, array in batch.items()}

    runs.open_run(workdir, settings, corpus_directory)
    saves = checkpoint.Checkpoints(workdir / "checkpoints", settings.checkpoint)
    with jax.set_mesh(mesh):
        init = functools.partial(initial_state, objective, optimizer)
        abstract = jax.eval_shape(init, jax.random.key(0))
        shardings = sharding.shard_by_name(abstract, mesh)
        update = jax.jit(
            make_update(objective, optimizer, schedule, settings),
            donate_argnums=0,
            in_shardings=(shardings, rows_sharding),
            out_shardings=(shardings, None),
        )
        every = (rows for part in plan.stretches for rows in part.feed.first_of_each_bucket())
        compiled = _compile(update, abstract, (make_batch(*rows) for rows in every))
        restored = saves.restore_newest(checkpoint.abstract_with_shardings(abstract, shardings))
        start, state, memory = restored or (0, None, {"tokens": 0, "sums": {}})
        if state is None:
            state = jax.jit(init, out_shardings=shardings)(jax.random.key(settings.train.init_seed))
            if settings.model.initialize_from:
                state["model"] = _initialize_from(settings, tokenizer, abstract["model"], shardings["model"])

        score = jax.jit(objective.score)
        batch_size, limit = settings.evaluation.batch_size, settings.evaluation.rows
        peak, source = metrics.peak_flops()
        display, writer = metrics.Display(plan.steps, start), metrics.MetricWriter(workdir, restored_step=start)
        loop = _Loop(
            settings,
            plan,
            display,
            writer,
            saves,
            lambda model: held_out(objective, score, model, validation, batch_size, limit),
            [_step_flops(objective, part.feed) / peak for part in plan.stretches],
            restored is None and not settings.model.initialize_from,
            {name: memory[name] for name in ("tokens", "sums")},
        )
        try:
            need = max(map(_memory_needed, compiled.values()))
            _say_what_runs(display, settings, mesh, plan, abstract, need, f"{peak / 1e9:,.0f} GFLOP/s ({source})")
            if restored:
                display.line(f"resuming    at step {start:,}" + (": nothing to do" if start == plan.steps else ""))
            batches = prefetch(lambda step: make_batch(*plan.at(step)), start, plan.steps)
            loop.run(compiled, state, batches, rows_sharding, start)
        finally:
            display.close()
            writer.close()
            saves.close()
    if not loop.last:  # the run was finished before
        return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    summary = {"steps": plan.steps, "parameters": count_parameters(abstract["model"], plan.vocab_size), **loop.last}
    runs.write_json(workdir / "summary.json", summary)
    return summary


def _initialize_from(settings: config.Config, tokenizer: TextTokenizer, abstract: Any, shardings: Any) -> Any:
    """Weights of another run (`DIR` or `DIR@STEP`) for a new one. Raises BadInput if tokens, names or shapes differ."""
    source = settings.model.initialize_from
    directory, _, step = source.partition("@")
    other = runs.load_run(directory, step or "latest")
    if entries(other.tokenizer.tokenizer) != entries(tokenizer.tokenizer):
        folder = Path(settings.corpus.directory) / "tokenizer"
        raise BadInput(
            f"model.initialize_from: {source} has another vocabulary than {folder}; python -m jaxbert.convert "
            f"--from=run --source={source} --tokenizer={folder} --method=mean --workdir=NEW gives its weights this one"
        )
    wanted, found = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
        for leaves in (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (abstract, other.model))
    )
    for name in sorted(set(wanted) | set(found)):
        ours, theirs = (getattr(tree.get(name), "shape", "absent") for tree in (wanted, found))
        if ours != theirs:
            raise BadInput(
                f"model.initialize_from: {name.removesuffix('/value')} is {theirs} in {source}, {ours} in this recipe; "
                "give the model the sizes of the one that it starts from"
            )
    leaves = map(jax.device_put, jax.tree.leaves(other.model), jax.tree.leaves(shardings))
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


@dataclasses.dataclass
class _Loop:
    """The steps, and what is told and saved on the way. Metrics of step i − 1 are read after step i is dispatched."""

    settings: config.Config
    plan: Plan
    display: metrics.Display
    writer: metrics.MetricWriter
    saves: checkpoint.Checkpoints
    evaluate: Callable[[Any], dict[str, float]]  # model → held-out metrics
    step_flops: list[float]  # by phase: model flops of a mean step, as a share of what the devices do in a second
    fresh: bool  # neither resumed nor initialized from another run
    memory: dict[str, Any]  # saved with each checkpoint: tokens so far, and the sums since the last log line
    clock: float = 0.0  # when the present window began
    waited: float = 0.0  # seconds of it that went into waiting for data
    timed: tuple[int, int] = (0, 0)  # steps and tokens of it in this process (a resumed window began in another)
    last: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)  # newest record of each split

    def run(self, updates: dict[tuple[int, ...], Any], state: State, batches: Any, place: Any, start: int) -> State:
        """Steps start … plan.steps − 1; `updates`: the compiled step for each shape of rows."""
        settings, previous = self.settings, None
        self.clock = time.perf_counter()
        for step in range(start, self.plan.steps):
            before = time.perf_counter()
            batch = sharding.put_batch(next(batches), place)
            self.waited += time.perf_counter() - before
            state, told = updates[batch["input_ids_BT"].shape](state, batch)
            if previous is not None:
                self._account(*previous)
            previous, done = (step, told), step + 1
            end = done == self.plan.steps
            evaluate, save = (end or done % n == 0 for n in (settings.evaluation.every, settings.checkpoint.every))
            if evaluate or save:
                self._account(*previous)
                previous, paused = None, time.perf_counter()
                held_out = self._held_out(done, state["model"]) if evaluate else None
                if save:
                    self.saves.save(done, state, {"step": done, **self.memory}, held_out)
                self.clock += time.perf_counter() - paused  # tokens/s are of training alone
            self.display.advance(done)
        return state

    def _account(self, step: int, told: dict[str, jax.Array]) -> None:
        """Read the metrics of `step`, judge them, log at the end of a window of `train.log_every` steps or a phase."""
        values = {name: float(value) for name, value in jax.device_get(told).items()}
        tokens, bad, in_a_row = (int(values.pop(name)) for name in ("tokens", "bad", "bad_in_a_row"))
        self.memory["tokens"] += tokens
        self.timed = self.timed[0] + 1, self.timed[1] + tokens
        if step == 0 and self.fresh:
            self._check_first_loss(values["loss"])
        if bad:
            self._bad_step(step, values, in_a_row)
        else:
            sums = self.memory["sums"]
            for name, value in {**values, "steps": 1}.items():
                sums[name] = sums.get(name, 0.0) + value
        done = step + 1
        if done % self.settings.train.log_every == 0 or done == self.plan.stretch(step).end:
            self._log(done)

    def _log(self, done: int) -> None:
        sums, seconds = self.memory["sums"], time.perf_counter() - self.clock
        steps, phase = sums.pop("steps", 0), self.plan.stretch(done - 1).number
        record = {name: value / steps for name, value in sums.items()} if steps else {}
        record |= {
            **({"phase": phase} if self.settings.train.phases else {}),
            "tokens": self.memory["tokens"],
            "tokens_per_second": self.timed[1] / seconds,
            "flops_utilization": self.timed[0] * self.step_flops[phase] / seconds,
            "data_wait_fraction": self.waited / seconds,
        }
        self._tell(done, "train", record)
        self.memory["sums"] = {}
        self.clock, self.waited, self.timed = time.perf_counter(), 0.0, (0, 0)

    def _held_out(self, done: int, model: Any) -> float:
        record = {**self.evaluate(model), "tokens": self.memory["tokens"]}
        self._tell(done, "validation", record)
        return record["loss"]

    def _tell(self, step: int, split: str, record: dict[str, Any]) -> None:
        self.last[split] = {"step": step, **record}
        self.writer.write(step, split, record)
        self.display.log(step, split, record)

    def _check_first_loss(self, loss: float) -> None:
        expected = math.log(self.plan.vocab_size)
        if self.settings.train.check_first_loss and not abs(loss - expected) <= 0.5:
            raise Diverged(
                f"the first loss is {loss:.3f}, but a model that knows nothing has ln {self.plan.vocab_size} = "
                f"{expected:.3f}: initial values or data are wrong; train.check_first_loss=false goes on all the same"
            )

    def _bad_step(self, step: int, values: dict[str, float], in_a_row: int) -> None:
        train = self.settings.train
        bucket, _, row_B = self.plan.at(step)
        rows = (bucket.first + row_B[row_B < len(bucket)]).tolist()
        folder = self.plan.stretch(step).feed.folder.name
        what = f"step {step}: loss {values['loss']:.4g}, gradient norm {values['gradient_norm']:.4g}"
        told = {"gradient_norm": values["gradient_norm"], "folder": folder, "rows": rows}  # as --trace=FOLDER:ROW takes
        self.writer.write(step + 1, "skipped", told)
        self.display.line(f"{what}: bad, left out; its rows in {folder}: {rows}")
        if train.bad_step == "stop":
            raise Diverged(f"{what}; train.bad_step is 'stop'; its rows in {folder}: {rows}")
        if in_a_row > train.max_skipped:
            raise Diverged(f"{what}; the {in_a_row}th bad step in a row (train.max_skipped); lower the learning rate")


def main(argv: list[str]) -> None:
    """The command; see the module's docstring."""
    parser = config.command_parser("python -m jaxbert.train", __doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--workdir", required=True, metavar="DIR")
    known, overrides = parser.parse_known_args(argv)
    settings = config.resolve(config.load(known.config, overrides))
    train(settings, Path(known.workdir))


if __name__ == "__main__":
    run(main)
