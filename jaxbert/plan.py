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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxbert import chips, collectives, config, cycles, optim, program, recipe_files, sharding, step
from jaxbert.data.source import AHEAD
from jaxbert.errors import BadInput, run
from jaxbert.ops.attention import visits
from jaxbert.ops.attention.tiles import Tiles, of_chip
from jaxbert.ops.attention.visits import UNIT
from jaxbert.planner import Attempt, Planner, objective_of, run_steps

GIB = 2**30
EXCESS = 1.05  # of flops over the model's own count, from which on products are listed
POLICIES = ("none", "full")  # of model.rematerialize: what the search for the largest micro-batch tries


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
