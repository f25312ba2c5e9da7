"""Will it fit, and where would its time go: python -m jaxbert.plan --config=FILE[:VARIANT] --topology=v5e:16x16

Compiles the very step that `jaxbert.train` runs, for devices that need not be attached and without a corpus or a
tokenizer: sizes come from the recipe. --sweep ranks meshes and micro-batches, --cycles lists the machine programs by
static cycles, --no-search compiles what is asked alone, --json=FILE writes everything. Nothing runs on a device: memory
and counts are the compiler's, times are estimates.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxbert import chips, collectives, config, cycles, objectives, optim, program, recipe_files, sharding, step
from jaxbert.data.source import AHEAD
from jaxbert.errors import BadInput, run
from jaxbert.models.embeddings import padded
from jaxbert.ops.attention import visits
from jaxbert.ops.attention.tiles import Tiles, of_chip
from jaxbert.ops.attention.visits import UNIT

GIB = 2**30
EXCESS = 1.05  # of flops over the model's own count, from which on products are listed
RECOMPUTED = 1.25  # by how much what the backward pass reads may be more than a device has
POLICIES = ("none", "full")  # of model.rematerialize: what the search for the largest micro-batch tries


# --- what is compiled ---


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a device. `total`: what the compiler reserves, or would need."""

    parameters: int
    optimizer: int
    batch: int
    activations: int  # kept for the backward pass, from shapes: what JAX hands to it, before the compiler
    temporaries: int  # all that the compiler reserves between arguments and results, activations included
    total: int


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One compilation: of a phase of a recipe on a mesh. `compiled` is None where the compiler ran out of memory."""

    settings: config.Config
    mesh: dict[str, int]  # axis → devices
    rows: int  # of the global batch
    row_length: int
    memory: Memory
    chip: chips.Chip
    compiled: Any
    refusal: str  # the compiler's message
    seconds: float  # that compiling took
    dumped: str  # by the compiler: the program; "" if it does not

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for it. A GPU's does not look: there the table says what a device has."""
        return self.compiled is not None and self.memory.total <= self.chip.hbm

    @functools.cached_property
    def text(self) -> str:
        """What was compiled, as HLO text.

        From libtpu's own dump, because jax cannot read all programs back: libtpu 0.0.52's for v5p and v6e, whose
        look-ups run on the sparse cores. Raises BadInput where there is neither.
        """
        try:
            return self.dumped or self.compiled.as_text()
        except jax.errors.JaxRuntimeError as error:
            raise BadInput(
                f"topology: compiled for {self.chip.name}, but libtpu dumped nothing and jax cannot read the program "
                f"back ({str(error).splitlines()[0]}); memory stands as told, counts need another chip or libtpu 0.0.52"
            ) from None

    @functools.cached_property
    def parsed(self) -> program.Program:
        """What was compiled, read once."""
        return program.parse(self.text)

    @functools.cached_property
    def exchanges(self) -> list[collectives.Collective]:
        """What its devices send each other."""
        return collectives.collectives(self.parsed, self.mesh)

    @property
    def least(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """The least bytes that a device sends in a step for its parameters and gradients, by (kind, axes)."""
        train = self.settings.train
        elements = self.memory.parameters / 4 * self.mesh["fsdp"]
        compute = 2 if train.dtype == "bfloat16" else 4
        again = self.settings.model.rematerialize == "full"
        ideal = collectives.ideal(
            elements, self.mesh, compute_bytes=compute, gradient_bytes=compute, rematerialized=again
        )
        # Every part gathers parameters and scatters its gradients; what data adds up, it adds up once.
        return {key: size * (1 if key[1] == ("data",) else train.accumulate) for key, size in ideal.items()}

    @property
    def whole_logits(self) -> list[str]:
        """What holds the logits of the whole vocabulary for all predicted tokens of a device's rows: op names.

        Where `tensor` splits the vocabulary there must be nothing: somebody would have gathered them.
        """
        shapes = objective_of(self.settings).batch_shapes(self.micro_batch, self.row_length, one_document=False)
        words = padded(self.settings.tokenizer.vocab_size)
        size = words * math.prod(shapes["positions_BP"].shape)
        holds = lambda i: any(words in array.dims and math.prod(array.dims) == size for array in i.shapes)  # noqa: E731
        return [f"{i.name} {i.op_name}" for _, i, _ in self.parsed.everything() if holds(i)]

    @functools.cached_property
    def costs(self) -> "Costs":
        """The roofline of what was compiled (Williams et al. 2009): an estimate from counts, no measurement."""
        kernels = [call for call in self.parsed.custom_calls() if call.flops]
        flops = self.parsed.flops() + sum(call.flops * call.executions for call in kernels)
        hbm = self.parsed.hbm_bytes()
        links = sum(c.bytes * c.executions for c in self.exchanges)
        return Costs(
            flops,
            objective_of(self.settings).step_flops(self.rows, self.row_length) / math.prod(self.mesh.values()),
            hbm,
            links,
            flops / self.chip.flops,
            hbm / self.chip.hbm_bandwidth,
            links / self.chip.link_bandwidth,
        )

    @property
    def micro_batch(self) -> int:
        """Rows that a device holds at once."""
        return self.rows // self.settings.train.accumulate // (self.mesh["data"] * self.mesh["fsdp"])

    @property
    def flags(self) -> str:
        """The fields that make this attempt, as the command line takes them."""
        fields: dict[str, Any] = {f"sharding.{axis}": size for axis, size in self.mesh.items()}
        fields["train.accumulate"] = self.settings.train.accumulate
        fields["model.rematerialize"] = self.settings.model.rematerialize
        return " ".join(f"--config.{name}={value}" for name, value in fields.items())


class Planner:
    """Compiles a phase's step for a topology, each variant once."""

    def __init__(self, settings: config.Config, phase: tuple[str, config.Phase], topology: str) -> None:
        """A resolved recipe, one of `config.phases` and a name as v5e:16x16. Raises BadInput for an unknown one."""
        self.settings, (_, self.phase) = settings, phase
        self.field = config.batch_field(phase[0])
        self.chip, self.devices = chips.open_topology(topology)
        self.tried: dict[tuple[Any, ...], Attempt] = {}

    def attempt(
        self, mesh: config.Sharding | None = None, accumulate: int | None = None, rematerialize: str | None = None
    ) -> Attempt:
        """Compile with another mesh, number of parts or policy than the recipe's (None).

        Raises BadInput for a mesh that is not the topology's, a batch or heads that do not divide among it.
        """
        settings = self.settings
        train, model = settings.train, settings.model
        policy: Any = rematerialize or model.rematerialize
        settings = dataclasses.replace(
            settings,
            sharding=mesh or settings.sharding,
            train=dataclasses.replace(train, accumulate=accumulate or train.accumulate),
            model=dataclasses.replace(model, rematerialize=policy),
        )
        key = settings.sharding, settings.train.accumulate, settings.model.rematerialize
        if key not in self.tried:
            self.tried[key] = self._compile(settings)
        return self.tried[key]

    def _compile(self, settings: config.Config) -> Attempt:
        rows, accumulate = self.phase.batch_size, settings.train.accumulate
        mesh = sharding.make_mesh(settings.sharding, rows // accumulate, self.field, self.devices)
        objective = objective_of(settings)
        part = objective.batch_shapes(rows // accumulate, self.phase.row_length, one_document=not settings.data.pack)
        batch = {n: jax.ShapeDtypeStruct((accumulate, *s.shape), s.dtype) for n, s in part.items()}
        compiled, refusal, dumped, begin = None, "", "", time.perf_counter()
        with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
            made = step.make_step(settings, objective, run_steps(settings) or 2**30, mesh)
            kept = kept_for_backward(objective, made.abstract["model"], part)
            try:
                dumping = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
                compiled = made.compile(batch, dumping if self.chip.matrix_units else None)
                dumped = "".join(file.read_text() for file in Path(folder).glob("*.after_codegen.txt"))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                refusal = str(error)
        kept //= mesh.shape["data"] * mesh.shape["fsdp"]
        memory = _memory(made, batch, kept, compiled, refusal)
        seconds = time.perf_counter() - begin
        length, chip = self.phase.row_length, self.chip
        where = settings, dict(mesh.shape), rows, length
        return Attempt(*where, memory, chip, compiled, refusal, seconds, dumped)

    def largest(self, policy: str, mesh: config.Sharding | None = None) -> Attempt | None:
        """With the largest micro-batch that compiles, of those that divide the batch; None: not even one row a device.

        It starts where the arrays kept for the backward pass, which grow with the rows, fill what the attempt as asked
        leaves of a device, and compiles its way up or down from there: one or two compilations, mostly. Where they
        alone are far more than that it compiles nothing.
        """
        place, asked = mesh or self.settings.sharding, self.attempt()
        shape = sharding.make_mesh(place, self.phase.batch_size, self.field, self.devices).shape
        shards = shape["data"] * shape["fsdp"]
        share = self.phase.batch_size // shards
        parts = [n for n in range(share, 0, -1) if share % n == 0]  # of accumulation: ascending micro-batches
        kept = self._kept(policy, shards) / shards  # of one row a device
        free = self.chip.hbm - (asked.memory.total - asked.memory.temporaries)
        at = max(0, sum(share // n * kept <= free for n in parts) - 1)
        # A compiler short of memory recomputes a little of what is kept, and tensor splits most of it.
        least = kept / shape["tensor"] / RECOMPUTED
        found, refused = None, max(1, sum(share // n * least <= free for n in parts))
        while 0 <= at < refused:
            tried = self.attempt(place, parts[at], policy)
            if tried.fits:
                found, at = tried, at + 1
            else:
                refused, at = at, at if found else at - 1
        return found

    def _kept(self, policy: str, rows: int) -> int:
        settings: Any = self.settings
        settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, rematerialize=policy))
        objective, one = objective_of(settings), not settings.data.pack
        batch = objective.batch_shapes(rows, self.phase.row_length, one_document=one)
        return kept_for_backward(objective, jax.eval_shape(lambda: objective.init(jax.random.key(0))), batch)


def objective_of(settings: config.Config) -> Any:
    """The objective without a tokenizer: a vocabulary of the recipe's size whose first five entries are special."""
    vocabulary = settings.tokenizer.vocab_size
    return objectives.make(settings, vocab_size=vocabulary, mask_id=4, special_ids=frozenset(range(5)))


def run_steps(settings: config.Config) -> int | None:
    """Steps of the run where the recipe alone tells them: a run in tokens counts full rows, one in epochs is None."""
    train = settings.train
    if train.tokens is not None:
        return -(-train.tokens // (train.batch_size * settings.data.row_length))
    return train.steps


def explain_sharding(settings: config.Config) -> list[str]:
    """What a resolved recipe's mesh makes of every parameter, as lines: shape, axes that split it, bytes a device.

    From the recipe alone. Without a -1 the mesh may be larger than the machine; with one, its devices are counted.
    Raises BadInput for a mesh that fits neither the batches nor the model.
    """
    asked = (settings.sharding.data, settings.sharding.fsdp, settings.sharding.tensor)
    sizes = sharding.mesh_sizes(settings.sharding, jax.device_count() if min(asked) < 1 else math.prod(asked))
    for field, phase in config.phases(settings):
        sharding.check_rows(sizes, phase.batch_size // settings.train.accumulate, config.batch_field(field))
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))
    objective = objective_of(settings)
    optimizer = optim.make_optimizer(settings.optimizer, objective.vocab_size)
    state = jax.eval_shape(lambda: step.initial_state(objective, optimizer, jax.random.key(0)))
    sharding.check_model(settings.model, state["model"], sizes)
    lines, whole, local = sharding.explain(state["model"], mesh, settings.sharding.overrides)
    _, moments, of_moments = sharding.explain(state["optimizer"], mesh, settings.sharding.overrides)
    shape = " × ".join(f"{axis} {size}" for axis, size in sizes.items())
    return [
        f"{settings.model.name} on {math.prod(sizes.values())} devices ({shape})",
        *lines,
        f"parameters  {local:>16,} bytes a device of {whole:,}",
        f"optimizer   {of_moments:>16,} bytes a device of {moments:,}",
        f"together    {local + of_moments:>16,} bytes a device of {whole + moments:,}",
    ]


def kept_for_backward(objective: Any, model: Any, batch: dict[str, Any]) -> int:
    """Bytes that the backward pass of a batch reads besides parameters, on all devices together, from shapes alone.

    What `jax.vjp` closes over: every array with an axis of the batch's rows, or of rows × tokens.
    """

    def backward(model: Any, batch: dict[str, Any]) -> Any:
        def loss(model: Any) -> tuple[Any, Any]:
            total, count, more = objective.loss(model, batch, jax.random.key(0))
            return total, (count, more)

        return jax.vjp(loss, model, has_aux=True)[1]

    inputs = {name: array for name, array in batch.items() if name != "tokens_B"}
    (rows, length), (_, predictions) = batch["input_ids_BT"].shape, batch["positions_BP"].shape
    of_batch = {rows, rows * length, rows * predictions}
    leaves = jax.tree.leaves(jax.eval_shape(backward, model, inputs))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if of_batch.intersection(leaf.shape))


def _memory(made: step.Step, batch: dict[str, Any], kept: int, compiled: Any, refusal: str) -> Memory:
    def local(tree: Any, shardings: Any) -> int:
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
        return sum(math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in pairs)

    parameters, optimizer = (local(made.abstract[name], made.shardings[name]) for name in ("model", "optimizer"))
    rows = local(batch, dict.fromkeys(batch, made.rows))
    if compiled:
        temporaries, total = compiled.memory_analysis().temp_size_in_bytes, step.memory_needed(compiled)
    else:
        said = step.out_of_memory(refusal)
        temporaries = int(said.needed) if said else 0
        total = parameters + optimizer + rows + temporaries
    return Memory(parameters, optimizer, rows, kept, temporaries, total)


# --- what a compiled step costs ---


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a step does on one device, by its program, and the seconds that this takes at the datasheet's rates."""

    flops: float
    model_flops: float  # of the encoder's own count (objective.step_flops)
    hbm_bytes: float
    link_bytes: float  # that one device sends
    products: float  # seconds
    hbm: float
    links: float

    @property
    def low(self) -> float:
        """Seconds of a step in which everything overlaps."""
        return max(self.products, self.hbm, self.links)

    @property
    def high(self) -> float:
        """Seconds of a step in which nothing does."""
        return self.products + self.hbm + self.links


def estimate(tried: Attempt) -> list[str]:
    """The time of a step and of the run, as lines."""
    cost, chip = tried.costs, tried.chip
    steps, devices = run_steps(tried.settings), math.prod(tried.mesh.values())
    tokens = tried.rows * tried.row_length
    parts = {"products": cost.products, "HBM": cost.hbm, "links": cost.links}
    bound = max(parts, key=lambda name: parts[name])
    lines = [
        f"{_seconds(cost.low)} (all overlaps) to {_seconds(cost.high)} (nothing does) a step: an estimate from the "
        f"datasheet's rates, not a measurement; most of it {bound}",
        ", ".join(f"{name} {_seconds(value)}" for name, value in parts.items()),
        f"{tokens / cost.high:,.0f} to {tokens / cost.low:,.0f} tokens/s, flops utilisation at most "
        f"{cost.model_flops / chip.flops / cost.low:.0%}",
    ]
    if steps is None:
        return [*lines, "chip-hours: train.epochs needs the corpus; give train.steps or train.tokens"]
    hours = [steps * t * devices / chip.devices_a_chip / 3600 for t in (cost.low, cost.high)]
    return [*lines, f"{hours[0]:,.0f} to {hours[1]:,.0f} chip-hours for {steps:,} steps"]


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def host_memory(tried: Attempt) -> tuple[int, int]:
    """Bytes of a host, at most: (its devices' rows of the batches made ahead; their part of a state being saved)."""
    shards, devices = tried.mesh["data"] * tried.mesh["fsdp"], math.prod(tried.mesh.values())
    state, own = tried.memory.parameters + tried.memory.optimizer, tried.chip.devices_a_host
    return AHEAD * tried.memory.batch * min(shards, own), min(devices, own) * state


# --- what is told ---


def kernel_trips(tiles: Tiles, length: int, kernel: cycles.Program, number: int) -> int:
    """Trips of a program's `number`th loop that depends on data, for `cycles.rank`, tiles and length given first.

    Of the attention kernels' as in rows of one document each: all whole chunks (loop 0), and no tiles that a document
    ends in (the others). 1 for any other program.
    """
    plans = {"attention_forward": visits.forward_plan, "attention_backward": visits.backward_plan}
    make = next((plans[name] for name in plans if name in kernel.name), None)  # transformations write around the name
    if make is None:
        return 1
    units = -(-length // UNIT)
    return 0 if number else units // make(units * UNIT, units * UNIT, tiles).chunk


def title(tried: Attempt) -> str:
    """A phase, its mesh and its parts, in a line."""
    model, accumulate = tried.settings.model, tried.settings.train.accumulate
    mesh = " × ".join(f"{axis} {size}" for axis, size in tried.mesh.items())
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    return (
        f"{model.name}: {tried.rows:,} rows of {tried.row_length} tokens{parts}, {tried.micro_batch} at once on each "
        f"of {math.prod(tried.mesh.values())} devices ({mesh}), rematerialize {model.rematerialize}, compiled in "
        f"{tried.seconds:.0f} s"
    )


def memory_lines(tried: Attempt) -> list[str]:
    """Memory a device beside what it has, and whether it fits."""
    memory = tried.memory
    answer = "fits" if tried.fits else "DOES NOT FIT"
    sizes = {
        "parameters": memory.parameters,
        "optimizer": memory.optimizer,
        "batch": memory.batch,
        "temporaries": memory.temporaries,
        "total": memory.total,
    }
    lines = [f"{name:<12}{size / GIB:>9.3f} GiB" for name, size in sizes.items()]
    lines[3] += f"   of which kept for the backward pass, by shapes: {memory.activations / GIB:.3f} GiB"
    lines[4] += f"   of {tried.chip.hbm / GIB:.2f} GiB a device: {answer}"
    return lines


def report(tried: Attempt) -> Iterator[str]:
    """Everything about one attempt, line by line."""
    yield title(tried)
    yield from memory_lines(tried)
    batches, state = host_memory(tried)
    yield f"a host      {batches / GIB:>9.3f} GiB of batches made ahead, {state / GIB:.3f} more while saving a state"
    if not tried.compiled:
        yield f"the compiler said: {tried.refusal.splitlines()[0]}"
        return
    yield "largest arrays that the step makes:"
    for made in tried.parsed.buffers():
        shape = f"{made.dtype}[{','.join(map(str, made.dims))}]"
        yield f"  {made.bytes / GIB:.3f} GiB  {shape}  {_told(made.op_name, made.source)}"
    cost = tried.costs
    yield (
        f"flops of a step, a device: {cost.flops:.4g} = {cost.flops / cost.model_flops:.3f} × the model's own count; "
        f"HBM bytes {cost.hbm_bytes:.4g}"
    )
    yield from uncounted(tried.parsed)
    if cost.flops > EXCESS * cost.model_flops:
        yield "  more than the model's: the products that most of them are"
        yield from (f"  {p.flops:.3g}  {_told(p.op_name, p.source)}" for p in tried.parsed.products()[:8])
    yield from exchange_lines(tried)
    yield from estimate(tried)


def uncounted(parsed: program.Program) -> Iterator[str]:
    """What the counts leave out: trips that the rows decide (HyperMixer's packed rows, blocks of chunked attention)."""
    if parsed.unknown_trips:
        yield f"  too low: {len(parsed.unknown_trips)} loops take as many trips as the rows ask for, and count as one"


def exchange_lines(tried: Attempt) -> Iterator[str]:
    """What devices send each other by kind and axis, beside the least that the sharding of parameters needs."""
    found = tried.exchanges
    if not found:
        return
    ideal = tried.least
    sent, least = tried.costs.link_bytes, sum(ideal.values())
    ratio = f", {sent / least:.2f} × the least for parameters and gradients" if least else ""
    yield f"sent to other devices, a device and step: {sent:.4g} bytes{ratio}"
    for (kind, axes), size in sorted(collectives.totals(found).items(), key=lambda item: -item[1]):
        hidden = sum(c.bytes * c.executions for c in found if (c.kind, c.axes) == (kind, axes) and c.overlapped)
        wanted = f", least {ideal[kind, axes]:.4g}" if (kind, axes) in ideal else ""
        where = " × ".join(axes) or "?"
        yield f"  {kind} over {where}: {size:.4g}{wanted}; {hidden / size if size else 0:.0%} beside computation"


def _told(op_name: str, source: str) -> str:
    return f"{op_name.removeprefix('jit(update)/')[-70:]} {source}".strip() or "made by the compiler"


def search(planner: Planner) -> Iterator[str]:
    """The largest micro-batch that compiles, with and without rematerialisation, and what to change if it must be."""
    asked, fitting = planner.attempt(), list[Attempt]()
    for policy in POLICIES:
        if fitting and fitting[0].settings.train.accumulate == 1:
            yield f"largest micro-batch, rematerialize {policy}: the batch in one part fits without"
            continue
        found = planner.largest(policy)
        if found is None:
            yield f"largest micro-batch, rematerialize {policy}: none, not even one row a device"
            continue
        fitting.append(found)
        size = f"{found.micro_batch} rows of {found.row_length} tokens a device, {found.memory.total / GIB:.2f} GiB"
        yield f"largest micro-batch, rematerialize {policy}: {size}"
    if asked.fits:
        return
    yield "what to change, the best estimate first:" if fitting else "what to change: no micro-batch fits this mesh"
    whole = dataclasses.replace(planner.settings.sharding, data=1, fsdp=-1, tensor=1)
    with contextlib.suppress(BadInput):  # neither rows nor widths need divide among all devices
        if asked.mesh["fsdp"] < len(planner.devices) and (found := planner.largest(POLICIES[-1], whole)):
            fitting.append(found)
    for found in sorted(fitting, key=lambda f: f.costs.high):
        yield f"  {found.flags}"


def meshes(settings: config.Config, devices: int) -> list[config.Sharding]:
    """What --sweep tries: tensor 1, 2, 4 where heads divide, fsdp in powers of 4 up to the rest, data what is left."""
    heads = getattr(settings.model, "num_heads", None) or 1
    found = []
    for tensor in (1, 2, 4):
        if heads % tensor or devices % tensor:
            continue
        rest, fsdp = devices // tensor, 1
        while fsdp <= rest:
            mesh: dict[str, Any] = {"data": rest // fsdp, "fsdp": fsdp, "tensor": tensor}
            found.append(dataclasses.replace(settings.sharding, **mesh))
            fsdp = rest if fsdp < rest < fsdp * 4 else fsdp * 4
    return found


def sweep(planner: Planner) -> Iterator[str]:
    """Meshes with their largest micro-batches, by the estimate, the best first; those that do not fit at the end."""
    tried: list[tuple[float, str]] = []
    for mesh, policy in itertools.product(meshes(planner.settings, len(planner.devices)), POLICIES):
        try:
            found = planner.largest(policy, mesh)
            cost = found.costs if found else None
        except BadInput as error:
            tried.append((math.inf, f"{mesh}: {error}"))
            continue
        if found is None or cost is None:
            tried.append((math.inf, f"{mesh}, rematerialize {policy}: does not fit with one row a device"))
            continue
        line = (
            f"{_seconds(cost.low):>8} to {_seconds(cost.high):>8}  {found.memory.total / GIB:6.2f} GiB  {found.flags}"
        )
        tried.append((cost.high, line))
        print(f"compiled {line}", file=sys.stderr)
    yield from (line for _, line in sorted(tried))


def record(tried: Attempt) -> dict[str, Any]:
    """One attempt as JSON values; bytes, seconds and operations."""
    found: dict[str, Any] = {
        "model": tried.settings.model.name,
        "rematerialize": tried.settings.model.rematerialize,
        "accumulate": tried.settings.train.accumulate,
        "mesh": tried.mesh,
        "rows": tried.rows,
        "row_length": tried.row_length,
        "micro_batch": tried.micro_batch,
        "fits": tried.fits,
        "memory": dataclasses.asdict(tried.memory),
        "hbm": tried.chip.hbm,
    }
    if tried.compiled:
        found["costs"] = {**dataclasses.asdict(tried.costs), "low": tried.costs.low, "high": tried.costs.high}
        found["least_link_bytes"] = sum(tried.least.values())
        found["whole_logits"] = tried.whole_logits
    return found


def main(argv: list[str]) -> None:
    """The command; see the module's docstring."""
    parser = recipe_files.command_parser("python -m jaxbert.plan", __doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--topology", required=True, metavar="CHIP:AxB", help="v5e:16x16, v5p:4x4x4, h100:8, …")
    parser.add_argument("--sweep", action="store_true", help="rank meshes and micro-batches: many compilations")
    parser.add_argument("--cycles", action="store_true", help="the machine programs by static cycles, and no search")
    parser.add_argument("--no-search", action="store_true", help="compile no other micro-batches")
    parser.add_argument("--json", metavar="FILE", type=Path)
    known, overrides = parser.parse_known_args(argv)
    chip, _ = chips.parse(known.topology)
    settings = config.resolve(recipe_files.load(known.config, overrides))
    if known.cycles and not chip.matrix_units:
        raise BadInput(f"--cycles: reads programs of TPUs, not of {chip.name}; leave it out")
    jax.config.update("jax_enable_compilation_cache", False)  # what is compiled for absent devices cannot be read back
    with tempfile.TemporaryDirectory() as folder:
        if known.cycles:  # libtpu reads this once, when it is loaded
            os.environ.update(cycles.environment(folder))
        records = []
        for phase in config.phases(settings):
            planner = Planner(settings, phase, known.topology)
            tried = planner.attempt()
            lines = [report(tried)]
            if known.sweep:
                lines.append(sweep(planner))
            elif not (known.cycles or known.no_search):
                lines.append(search(planner))
            for line in itertools.chain.from_iterable(lines):
                print(line, flush=True)
            if known.json:
                records += [record(found) for found in planner.tried.values()]
            if known.cycles and tried.compiled:
                trips = functools.partial(kernel_trips, of_chip(chip.name, 2), tried.row_length)
                flops = tried.costs.model_flops
                ranked = cycles.of_compiled(folder, tried.text, chip, trips=trips)
                print(cycles.table(ranked, flops=flops))
                if any(row.program.name.startswith("attention_") for row in ranked.rows):
                    print("attention kernels: as on rows of one document each")
                if known.json:
                    static = {"seconds": ranked.seconds, "share_of_peak": ranked.share_of_peak(flops)}
                    records[-1]["static"] = static | {"alone": ranked.sums}
            for dump in Path(folder).iterdir():  # the next phase's programs have the same names
                dump.unlink()
    if known.json:
        known.json.write_text(json.dumps({"topology": known.topology, "attempts": records}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
