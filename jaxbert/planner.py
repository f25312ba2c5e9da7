"""The step of a recipe, compiled for devices that need not be attached: what it holds, does and sends."""

import dataclasses
import functools
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from jaxbert import chips, collectives, config, objectives, program, sharding, step
from jaxbert.errors import BadInput
from jaxbert.models.embeddings import padded

RECOMPUTED = 1.25  # by how much what the backward pass reads may be more than a device has


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

        From libtpu's own dump where jax cannot read programs back: libtpu 0.0.52's for v5p and v6e, whose look-ups run
        on the sparse cores. Raises BadInput where there is neither.
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
    def costs(self) -> Costs:
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
                # Writing takes 6 s of BERT-large's 79.
                dumping = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
                compiled = made.compile(batch, None if self.chip.readable else dumping)
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
