"""The training loop: python -m jaxbert.train --config=FILE[:VARIANT] --workdir=DIR [--config.section.field=value …]

Started again on the same directory, it resumes at the newest whole checkpoint, bit for bit. It names no model and no
objective: it sees a pytree, `objective.loss`, and batches that are a pure function of (recipe, step).
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxbert import (
    checkpoint,
    config,
    distributed,
    goodput,
    metrics,
    objectives,
    phases,
    preemption,
    profiling,
    progress,
    recipe_files,
    runs,
    sharding,
)
from jaxbert.allocator import computes_on_cpu, keep_freed_memory
from jaxbert.data.source import Feed, Rows, Validation, prefetch
from jaxbert.data.tokenizer import TextTokenizer, entries
from jaxbert.errors import BadInput, Diverged, StartAgain, run
from jaxbert.evaluate import held_out
from jaxbert.phases import Plan
from jaxbert.prepare import load_corpus
from jaxbert.step import State, Step, count_parameters, in_parts, make_step, memory_needed


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
    for field, phase in config.phases(settings):
        rows = phase.batch_size // settings.train.accumulate
        mesh = sharding.make_mesh(settings.sharding, rows, config.batch_field(field))
    return mesh


def _step_flops(objective: Any, feed: Feed) -> float:
    """Model flops of a mean step."""
    return sum(share * objective.step_flops(size, length) for size, length, share in feed.shapes())


def train(
    settings: config.Config,
    workdir: Path,
    notice: preemption.Notice | None = None,
    profile: range = range(0),
) -> dict[str, Any]:
    """Train (or go on training) a resolved recipe in `workdir`; returns what summary.json holds.

    `profile`: steps, from 0, whose trace is written into workdir/profile.
    Raises BadInput, StartAgain after a `notice` that the machine is taken back, or Diverged for an impossible first
    loss, a bad step under `train.bad_step = "stop"`, or more than `train.max_skipped` bad steps in a row.
    """
    began = time.time()
    if computes_on_cpu():
        keep_freed_memory()
    corpus_directory = Path(settings.corpus.directory)
    corpus = load_corpus(corpus_directory)
    _check_fits(settings, corpus)
    seed, accumulate = settings.train.data_seed, settings.train.accumulate
    mesh = _make_mesh(settings)
    place = sharding.batch_sharding(mesh, leading=1)
    validation = Validation.open(corpus_directory / "validation")
    tokenizer = TextTokenizer.load(corpus_directory / "tokenizer")
    plan = phases.make_plan(settings, phases.open_feeds(settings), tokenizer.vocab_size)
    settings = phases.in_steps(settings, plan)
    if profile and profile.start >= plan.steps:
        raise BadInput(f"--profile: starts after step {profile.start:,}, but the run has {plan.steps:,}; start earlier")

    objective = objectives.for_tokenizer(settings, tokenizer)

    def make_batch(rows: Rows, epoch_B: np.ndarray, row_B: np.ndarray) -> dict[str, np.ndarray]:
        own_B = sharding.own_rows(place, accumulate, len(row_B))  # of a batch, a process makes what its devices read
        return in_parts(objective.make_batch(rows, epoch_B[own_B], row_B[own_B], seed), accumulate)

    first = jax.process_index() == 0  # the one process that writes and speaks
    spent = goodput.Account(workdir / "goodput.json" if first else None, began)
    runs.open_run(workdir, settings, corpus_directory, write=first)
    distributed.meet("opened")
    saves = checkpoint.Checkpoints(runs.checkpoints_of(workdir, settings), settings.checkpoint)
    with jax.set_mesh(mesh):
        step = make_step(settings, objective, plan.steps, mesh)
        spent.enter("compile")
        compiled: dict[tuple[int, ...], Any] = {}  # by the shape of a batch's rows
        for part in plan.stretches:
            for batch in itertools.starmap(make_batch, part.feed.first_of_each_bucket()):
                shapes = sharding.batch_shapes(batch, place)
                if (shape := shapes["input_ids_BT"].shape) not in compiled:
                    compiled[shape] = step.compile(shapes)
        distributed.meet("compiled")
        spent.enter("restore")
        restored = saves.restore_newest(checkpoint.abstract_with_shardings(step.abstract, step.shardings))
        start, state, memory = restored or (0, None, {"tokens": 0, "sums": {}})
        if state is None:
            state = jax.jit(step.init, out_shardings=step.shardings)(jax.random.key(settings.train.init_seed))
            if settings.model.initialize_from:
                state["model"] = _initialize_from(settings, tokenizer, step)

        spent.enter("start")
        spent.go_on(memory.get("time"))
        score = jax.jit(objective.score)
        batch_size, limit = settings.evaluation.batch_size, settings.evaluation.rows
        peak, source = metrics.peak_flops()
        display = metrics.Display(plan.steps, start, quiet=not first)
        writer = metrics.MetricWriter(workdir, restored_step=start, owed="owed" in memory, write=first)
        loop = _Loop(
            settings,
            plan,
            display,
            writer,
            saves,
            lambda model: held_out(objective, score, model, validation, batch_size, limit),
            [_step_flops(objective, part.feed) / peak for part in plan.stretches],
            restored is None and not settings.model.initialize_from,
            {name: memory[name] for name in ("tokens", "sums", "owed") if name in memory},
            notice or preemption.Notice(),
            spent,
            profiling.Trace(profile, workdir / "profile"),
        )
        try:
            need = max(map(memory_needed, compiled.values()))
            _say_what_runs(display, settings, mesh, plan, step.abstract, need, f"{peak / 1e9:,.0f} GFLOP/s ({source})")
            if restored:
                again = f"; {writer.redone:,} logged steps are done again" if writer.redone else ""
                display.line(f"resuming    at step {start:,}" + (": nothing to do" if start == plan.steps else again))
            if profile and profile.stop <= start:
                display.line(f"profile     the steps to {profile.stop:,} are done; nothing is traced")
            batches = prefetch(lambda number: make_batch(*plan.at(number)), start, plan.steps)
            distributed.meet("ready")
            loop.run(compiled, state, batches, step.rows, start)
            if start < plan.steps:
                saves.finish(plan.steps)
        finally:
            loop.trace.close()
            spent.enter("save", plan.steps)
            saves.close()
            if start < plan.steps:
                spent.write()
                display.line(f"goodput     {spent}")
            display.close()
            writer.close()
    summary = {
        "steps": plan.steps,
        "parameters": count_parameters(step.abstract["model"], plan.vocab_size),
        **writer.last,
        **spent.summary(),
    }
    if first:
        runs.write_json(workdir / "summary.json", summary)
    return summary


def _initialize_from(settings: config.Config, tokenizer: TextTokenizer, step: Step) -> Any:
    """Weights of another run (`DIR` or `DIR@STEP`) for a new one. Raises BadInput if tokens, names or shapes differ."""
    source = settings.model.initialize_from
    directory, _, saved = source.partition("@")
    other = runs.load_run(directory, saved or "latest", mesh=step.rows.mesh)
    if entries(other.tokenizer.tokenizer) != entries(tokenizer.tokenizer):
        folder = Path(settings.corpus.directory) / "tokenizer"
        raise BadInput(
            f"model.initialize_from: {source} has another vocabulary than {folder}; python -m jaxbert.convert "
            f"--from=run --source={source} --tokenizer={folder} --method=mean --workdir=NEW gives its weights this one"
        )
    wanted, found = (
        {sharding.leaf_name(path): leaf for path, leaf in leaves}
        for leaves in (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (step.abstract["model"], other.model))
    )
    for name in sorted(set(wanted) | set(found)):
        ours, theirs = (getattr(tree.get(name), "shape", "absent") for tree in (wanted, found))
        if ours != theirs:
            raise BadInput(
                f"model.initialize_from: {name} is {theirs} in {source}, {ours} in this recipe; "
                "give the model the sizes of the one that it starts from"
            )

    leaves = map(jax.device_put, jax.tree.leaves(other.model), jax.tree.leaves(step.shardings["model"]))
    return jax.tree.unflatten(jax.tree.structure(step.abstract["model"]), leaves)


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
    # Saved with each checkpoint: tokens so far, the sums since the last log line, whether its held-out score is owed.
    memory: dict[str, Any]
    notice: preemption.Notice
    spent: goodput.Account
    trace: profiling.Trace
    clock: float = 0.0  # when the present window began
    waited: float = 0.0  # seconds of it that went into waiting for data
    timed: tuple[int, int] = (0, 0)  # steps and tokens of it in this process (a resumed window began in another)

    def run(self, updates: dict[tuple[int, ...], Any], state: State, batches: Any, place: Any, start: int) -> State:
        """Steps start … plan.steps − 1; `updates`: the compiled step for each shape of rows."""
        settings, previous = self.settings, None
        if self.memory.pop("owed", False):
            self.spent.enter("evaluate", start)
            self._held_out(start, state["model"])
        self.notice.begin()
        self.clock = time.perf_counter()
        for step in range(start, self.plan.steps):
            self.trace.begin(step)
            self.spent.enter("data", step)
            before = time.perf_counter()
            batch = sharding.put_batch(next(batches), place)
            self.waited += time.perf_counter() - before
            self.spent.enter("step", step)
            shape = batch["input_ids_BT"].shape
            with self.trace.around(step):
                state, told = updates[shape](state, batch)
            if previous is not None:
                self._account(*previous)
            previous, done = (step, told), step + 1
            end = done == self.plan.steps
            stop = not end and self.notice.reached(done)
            evaluate, save = (end or done % n == 0 for n in (settings.evaluation.every, settings.checkpoint.every))
            if evaluate or save or stop:
                self._account(*previous)
                previous, paused = None, time.perf_counter()
                owed = {"owed": True} if evaluate and stop else {}  # seconds are left: the next process scores it
                self.spent.enter("evaluate", done)
                held_out = self._held_out(done, state["model"]) if evaluate and not stop else None
                self.spent.enter("save", done)
                if save or stop:
                    kept = {"step": done, **self.memory, "time": self.spent.saved(), **owed}
                    self.saves.save(done, state, kept, held_out)
                    runs.publish(self.writer.path.parent, settings)
                if stop:
                    raise StartAgain(f"preempted after step {done:,}: {self.saves.last_words(done)}")
                self.clock += time.perf_counter() - paused  # tokens/s are of training alone
            self._end_step(done, shape, told)
        return state

    def _end_step(self, done: int, shape: tuple[int, ...], told: dict[str, jax.Array]) -> None:
        """Once around the loop: say so if it was slow, end the trace if this was the last of its steps."""
        slow = self.spent.step_ends(shape)
        if slow is not None:
            self.display.line(f"step {done:,}: {slow}")
        self.spent.enter("profile", done)
        if self.trace.end(done - 1, told):
            self.display.line(f"profile     of the steps to {done:,} in {self.trace.directory}")
        self.display.advance(done)

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
        self.spent.judged(counts=not bad)
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
            "goodput": self.spent.share,
            "slow_steps": self.spent.slow_in_window,
        }
        self._tell(done, "train", record)
        self.memory["sums"] = {}
        self.clock, self.waited, self.timed, self.spent.slow_in_window = time.perf_counter(), 0.0, (0, 0), 0

    def _held_out(self, done: int, model: Any) -> float:
        record = {**self.evaluate(model), "tokens": self.memory["tokens"]}
        self._tell(done, "validation", record)
        return record["loss"]

    def _tell(self, step: int, split: str, record: dict[str, Any]) -> None:
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
    parser = recipe_files.command_parser("python -m jaxbert.train", __doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--workdir", metavar="DIR")
    parser.add_argument(
        "--explain-sharding", action="store_true", help="how the mesh splits parameters; trains nothing"
    )
    parser.add_argument("--profile", metavar="START:STOP", help="trace the steps after START until STOP")
    distributed.add_flags(parser)
    known, overrides = parser.parse_known_args(argv)
    settings = config.resolve(recipe_files.load(known.config, overrides))
    if known.explain_sharding:
        from jaxbert.plan import explain_sharding  # with compilers' topologies and Pallas, which training may not need

        print(*explain_sharding(settings), sep="\n")
        return
    if known.workdir is None:
        parser.error("--workdir is required: the directory of the run")
    profile = profiling.parse(known.profile) if known.profile else range(0)
    workdir, place = Path(known.workdir), distributed.find_place(known)
    with distributed.joined(place, settings, workdir, known.start_timeout) as end:
        process, processes = (place.process, place.processes) if place else (0, 1)
        with (
            progress.watched(workdir, process, processes, settings.limits, end),
            preemption.listen(end) as notice,
        ):
            train(settings, workdir, notice, profile)


if __name__ == "__main__":
    run(main)
