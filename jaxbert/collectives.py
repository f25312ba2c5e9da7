"""What the devices of a compiled step send each other, by mesh axis, and the least that its sharding needs.

Bytes of a collective are what one device sends in it, n devices in a group, on a ring (Thakur et al. 2005, §3-4):
all-gather (n − 1) × its part, reduce-scatter and all-to-all (n − 1)/n × its array, all-reduce 2 (n − 1)/n × its array,
collective-permute its array.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

from jaxbert.program import Computation, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, in its order; () if the groups are no product of axes
    group: int  # devices
    dtype: str
    bytes: float  # that a device sends in one execution
    executions: int
    overlapped: bool  # whether anything is computed between its start and its end
    op_name: str
    source: str


def collectives(program: Program, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a step, most bytes first. `mesh`: axis → size, in the order of the mesh's devices.

    A TPU compiler spreads one collective over several fusions (start, steps beside products, end): it counts once.
    """
    callers = {called: (c, i, count) for c, i, count in program.scheduled() for called in i.calls}
    found = []
    for computation, i, count in program.everything():
        kind = i.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        targets = {other.target for other in computation.instructions.values()}
        chained = "chain_id=" in i.attributes
        if chained and "AsyncCollectiveStart" not in targets:
            continue
        if computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        arrays = [computation.instructions[name].shapes[0] for name in i.operands]
        groups = _groups(i, math.prod(mesh.values()))
        size, axes = len(groups[0]), _axes(groups, mesh)
        sent = _factor(kind, size) * sum(array.bytes for array in arrays)
        overlapped = _overlapped(i, computation, callers, program)
        named = i if i.op_name or computation.name not in callers else callers[computation.name][1]
        found.append(
            Collective(kind, axes, size, arrays[0].dtype, sent, count, overlapped, named.op_name, named.source)
        )
    return sorted(found, key=lambda c: -c.bytes * c.executions)


def totals(found: Sequence[Collective]) -> dict[tuple[str, tuple[str, ...]], float]:
    """(kind, axes) → bytes that a device sends in a step."""
    sums: dict[tuple[str, tuple[str, ...]], float] = {}
    for c in found:
        sums[c.kind, c.axes] = sums.get((c.kind, c.axes), 0.0) + c.bytes * c.executions
    return sums


def ideal(
    elements: float, mesh: Mapping[str, int], *, compute_bytes: int, gradient_bytes: int, rematerialized: bool = False
) -> dict[tuple[str, tuple[str, ...]], float]:
    """The least that a device sends in a step for its parameters; keys as in `totals`.

    `elements`: of the parameters that fsdp splits, on the devices of one tensor rank. fsdp: they are gathered for the
    forward and for the backward pass, once more if that computes the forward pass again, and their gradients are
    scattered (Rajbhandari et al. 2020, arXiv:1910.02054, §7.2). data: gradients of what a device keeps are reduced.
    What tensor parallelism sends depends on the model: see its rows in the program.
    """
    data, fsdp = mesh.get("data", 1), mesh.get("fsdp", 1)
    sums: dict[tuple[str, tuple[str, ...]], float] = {}
    if fsdp > 1:
        share = (fsdp - 1) / fsdp * elements
        sums["all-gather", ("fsdp",)] = (3 if rematerialized else 2) * share * compute_bytes
        sums["reduce-scatter", ("fsdp",)] = share * gradient_bytes
    if data > 1:
        sums["all-reduce", ("data",)] = 2 * (data - 1) / data * elements / fsdp * gradient_bytes
    return sums


def _factor(kind: str, size: int) -> float:
    """Bytes sent by a device over bytes of its operand."""
    if kind == "all-gather":
        return size - 1
    if kind == "collective-permute":
        return 1
    return (2 if kind == "all-reduce" else 1) * (size - 1) / size


def _groups(i: Instruction, devices: int) -> list[tuple[int, ...]]:
    """The groups of partitions that take part; for a permutation its pairs."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", i.attributes)
    if pairs:
        return [tuple(map(int, pair.split(","))) for pair in re.findall(r"\{(\d+,\d+)", pairs[1])]
    mesh = re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", i.attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh[1])}
        return _along(sizes, re.findall(r"'([^']*)'", mesh[2]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", i.attributes)
    if iota:
        dims = [int(d) for d in iota[3].split(",")]
        order = [int(d) for d in iota[4].split(",")] if iota[4] else list(range(len(dims)))
        strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
        places = itertools.product(*(range(dims[axis]) for axis in order))
        ids = [sum(strides[axis] * at for axis, at in zip(order, place, strict=True)) for place in places]
        size = int(iota[2])
        return [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    explicit = re.search(r"replica_groups=\{(\{.*?\})\}", i.attributes)
    if explicit:
        return [tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", explicit[1])]
    return [tuple(range(devices))]


def _along(sizes: Mapping[str, int], axes: Sequence[str]) -> list[tuple[int, ...]]:
    """The groups of devices, numbered row by row, that differ along `axes` alone."""
    places = list(itertools.product(*map(range, sizes.values())))
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, place in enumerate(places):
        rest = tuple(at for axis, at in zip(sizes, place, strict=True) if axis not in axes)
        groups.setdefault(rest, []).append(number)
    return list(map(tuple, groups.values()))


def _axes(groups: Sequence[tuple[int, ...]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes along which the members of a group differ."""
    places = list(itertools.product(*map(range, mesh.values())))
    differing = set()
    for group in groups:
        for axis, positions in zip(mesh, zip(*(places[member] for member in group), strict=True), strict=True):
            if len(set(positions)) > 1:
                differing.add(axis)
    return tuple(axis for axis in mesh if axis in differing)


def _overlapped(
    i: Instruction,
    computation: Computation,
    callers: Mapping[str, tuple[Computation, Instruction, int]],
    program: Program,
) -> bool:
    """Whether a product, a fusion or a kernel starts between a collective's start and its end."""
    place, start = computation, i
    if not i.opcode.endswith("-start"):  # within the fusion or the computation that starts it
        if computation.name not in callers:
            return False
        place, start, _ = callers[computation.name]
        if start.opcode != "async-start" and "chain_id=" not in i.attributes:
            return False
    channel, started = i.attribute("channel_id"), False
    for other in place.instructions.values():
        if other is start:
            started = True
        elif started:
            inside = program.computations[other.calls[0]].instructions.values() if other.opcode == "fusion" else ()
            same = any(o.attribute("channel_id") == channel for o in inside if o.opcode == i.opcode)
            ends = same and any(o.target == "AsyncCollectiveDone" for o in inside)
            if ends or (other.opcode.endswith("-done") and start.name in other.operands):
                return False
            if other.opcode in ("fusion", "custom-call", "dot", "convolution", "while", "call"):
                return True
    return False
