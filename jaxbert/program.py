"""What a compiled step does, read from its optimized HLO (`compiled.as_text()`): products, memory traffic, buffers.

The text is one device's program, scheduled: an instruction a line, computations of instructions, and computations that
instructions call. `cost_analysis()` counts the body of a loop once; here everything is counted as often as it runs.
Text of CPU and TPU (libtpu 0.0.52) programs is understood; jax is not needed to read it. Collectives: collectives.py.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BITS = {"pred": 8, "token": 0, "opaque": 0}  # of an element; for the other types the number in their name says it
ROOT = Path(__file__).parents[1]  # sources are named from here, as a traceback's reader would look for them
VMEM = 1  # the memory space S(1) of TPU layouts; 0 is HBM, or a CPU's only memory
# Instructions that move nothing: they name parts of buffers, run other computations, or end what a start began.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all opt-barrier partition-id "
    "replica-id add-dependency optimization-barrier".split()
)
_FREE_CALLS = frozenset(("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound"))  # of libtpu


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of a value: element type, dimensions, and on TPUs tiles and memory space of its layout."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return _bits(self.dtype) * math.prod(self.dims) // 8

    @property
    def stored(self) -> int:
        """Bytes that it takes: its minor dimensions rounded up to whole tiles, T(8,128) on TPUs."""
        dims = list(self.dims)
        if self.tile and self.tile != (1,) and len(self.minor_to_major) == len(dims):
            for axis, size in zip(self.minor_to_major, reversed(self.tile), strict=False):
                dims[axis] = math.ceil(dims[axis] / size) * size
        return _bits(self.dtype) * math.prod(dims) // 8


@dataclasses.dataclass
class Instruction:
    """One line of the program."""

    name: str
    opcode: str
    shapes: tuple[Array, ...]  # of the result: one, or a tuple's leaves in order
    operands: tuple[str, ...]  # names in the same computation
    arguments: str  # what stands between its parentheses: operands, or a constant's value
    attributes: str  # what stands behind them
    calls: tuple[str, ...]  # computations that run once each time it does; a loop's body and condition are not among
    op_name: str  # the path of jax's operation, "" for what the compiler made
    source: str  # "file:line" of the innermost frame, "" if not known
    root: bool

    def attribute(self, name: str) -> str | None:
        """The value of an attribute, its braces with it; None without it."""
        match = re.search(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return match[1] if match else None

    def numbers(self, name: str) -> tuple[int, ...]:
        """The value of an attribute such as `dimensions={0,2}`; () without it."""
        return tuple(map(int, re.findall(r"\d+", self.attribute(name) or "")))

    @property
    def target(self) -> str:
        """What a custom call calls."""
        return (self.attribute("custom_call_target") or "").strip('"')

    @property
    def backend_config(self) -> dict[str, Any]:
        """What the backend wrote beside it; {} if nothing that is an object."""
        _, found, text = self.attributes.partition("backend_config=")
        try:
            value = json.JSONDecoder().raw_decode(text)[0] if found else {}
        except json.JSONDecodeError:
            value = {}
        return value if isinstance(value, dict) else {}


@dataclasses.dataclass
class Computation:
    """Instructions in the order in which they start."""

    name: str
    instructions: dict[str, Instruction]  # by name

    @property
    def root(self) -> Instruction:
        """The one whose value is the computation's."""
        return next(i for i in reversed(self.instructions.values()) if i.root)

    def parameters(self) -> dict[int, Instruction]:
        """Its parameters by number."""
        found = (i for i in self.instructions.values() if i.opcode == "parameter")
        return {int(i.arguments): i for i in found}


@dataclasses.dataclass
class Product:
    """A dot or a convolution (which is what TPU compilers make of dots), as often as a step runs it."""

    flops: float  # all its executions
    executions: int
    opcode: str
    op_name: str
    source: str


@dataclasses.dataclass
class CustomCall:
    """A kernel, which HLO does not look into. The numbers are the author's (pl.CostEstimate), each execution's."""

    name: str
    target: str
    executions: int
    flops: float | None  # None: its author gave none
    transcendentals: float | None
    bytes: float | None
    op_name: str
    source: str


@dataclasses.dataclass
class Buffer:
    """An array in HBM that an instruction makes, and what fills it."""

    bytes: int  # with the padding of its tiles
    dtype: str
    dims: tuple[int, ...]
    executions: int
    op_name: str
    source: str


@dataclasses.dataclass
class Program:
    """One device's program. `unknown_trips` names the loops whose trips no text tells; they are counted once."""

    computations: dict[str, Computation]
    entry: str
    executions: dict[str, int] = dataclasses.field(default_factory=dict)  # of each computation that a step runs
    unknown_trips: list[str] = dataclasses.field(default_factory=list)
    fused: set[str] = dataclasses.field(default_factory=set)  # computations inside fusions
    loops: dict[str, tuple[Instruction, Computation]] = dataclasses.field(
        default_factory=dict
    )  # body → its loop, where

    def scheduled(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """Every instruction that is run by itself, not within a fusion, with its computation and executions."""
        for name, count in self.executions.items():
            if name not in self.fused:
                computation = self.computations[name]
                yield from ((computation, i, count) for i in computation.instructions.values())

    def everything(self) -> Iterator[tuple[Computation, Instruction, int]]:
        """As `scheduled`, and what fusions hold."""
        for name, count in self.executions.items():
            computation = self.computations[name]
            yield from ((computation, i, count) for i in computation.instructions.values())

    def products(self) -> list[Product]:
        """Dots and convolutions by where they come from, most flops first."""
        found: dict[tuple[str, str, str], Product] = {}
        for computation, i, count in self.everything():
            if i.opcode in ("dot", "convolution"):
                flops = count * (_dot_flops if i.opcode == "dot" else _convolution_flops)(i, computation)
                row = found.setdefault((i.opcode, i.op_name, i.source), Product(0, 0, i.opcode, i.op_name, i.source))
                row.flops, row.executions = row.flops + flops, row.executions + count
        return sorted(found.values(), key=lambda row: -row.flops)

    def flops(self) -> float:
        """Floating-point operations of the products of a step on one device; custom calls not among them."""
        return sum(row.flops for row in self.products())

    def custom_calls(self) -> list[CustomCall]:
        """Kernels and other custom calls, without those that only name memory."""
        rows = []
        for _, i, count in self.everything():
            if i.opcode == "custom-call" and i.target not in _FREE_CALLS and "AsyncCollective" not in i.target:
                cost = i.backend_config.get("custom_call_config", {}).get("cost_estimate", {})
                values = {key: float(value) for key, value in cost.items()}
                rows.append(
                    CustomCall(
                        i.name,
                        i.target,
                        count,
                        values.get("flops"),
                        values.get("transcendentals"),
                        values.get("bytes_accessed"),
                        i.op_name,
                        i.source,
                    )
                )
        return rows

    def hbm_bytes(self) -> float:
        """Bytes that a step of one device reads from and writes to HBM, padding of tiles with them.

        Each scheduled instruction reads its operands and writes its results, but what lies in VMEM (S(1)). Of what
        a fusion only slices or gathers from, and of what it updates in place, only that part counts. What one
        instruction reads twice counts once.
        """
        return sum(count * traffic(i, computation, self) for computation, i, count in self.scheduled())

    def buffers(self, most: int = 5) -> list[Buffer]:
        """The largest arrays in HBM that a step makes, largest first; state and batch are arguments, not among them.

        Their sizes, not whether they live at the same time: the compiler shares memory between them. An array that a
        loop fills is named after the instruction in its body that does.
        """
        found = []
        for computation, i, count in self.scheduled():
            if i.opcode in _FREE or i.opcode == "dynamic-update-slice" or i.opcode.endswith(("-start", "-done")):
                continue
            for shape, update in _results(i, self):
                if shape.space == 0 and update is None:
                    owner = _filler(i, computation, self) or i
                    found.append(Buffer(shape.stored, shape.dtype, shape.dims, count, owner.op_name, owner.source))
        return sorted(found, key=lambda buffer: -buffer.bytes)[:most]


def _bits(dtype: str) -> int:
    match = re.search(r"\d+", dtype)
    return BITS[dtype] if dtype in BITS else int(match[0]) * (2 if dtype[0] == "c" else 1) if match else 0


# ---------------------------------------------------------------------------------------------------------- parsing

_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r" ?([a-z][\w\-]*)\(")
_CALLED = re.compile(
    r"(?:calls|called_computations|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.\-]+)"
)
_FRAME = re.compile(r"(\d+) \{file_location_id=(\d+)")
_LOCATION = re.compile(r"(\d+) \{file_name_id=(\d+) .*?line=(\d+)")


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`. Raises ValueError for text that has no entry computation."""
    frames = _frames(text)
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        line = re.sub(r"/\*.*?\*/", "", line)
        if current is None:
            if head := _HEAD.match(line):
                current = computations[head[2]] = Computation(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif match := _LINE.match(line):
            instruction = _instruction(match, line[match.end() :], frames)
            current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program")
    program = Program(computations, entry)
    _count(program, entry, 1, False)
    return program


def _frames(text: str) -> dict[int, str]:
    """Stack frame id → "file:line", from the tables in front of the computations."""
    section, files, locations, frames = "", {}, {}, {}
    for line in text.split("\n%", 1)[0].splitlines():
        if line.rstrip() in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            section = line.rstrip()
        elif section == "FileNames" and (match := re.match(r'(\d+) "(.*)"', line)):
            files[match[1]] = match[2].rpartition("/site-packages/")[2].removeprefix(f"{ROOT}/")
        elif section == "FileLocations" and (match := _LOCATION.match(line)):
            locations[match[1]] = f"{files.get(match[2], '?')}:{match[3]}"
        elif section == "StackFrames" and (match := _FRAME.match(line)):
            frames[int(match[1])] = locations.get(match[2], "")
    return frames


def _closing(text: str, start: int) -> int:
    """The index behind the parenthesis that closes the one at `start`; quoted text is skipped."""
    depth, quoted = 0, False
    for index in range(start, len(text)):
        character = text[index]
        if character == '"' and text[index - 1] != "\\":
            quoted = not quoted
        elif not quoted and character in "()":
            depth += 1 if character == "(" else -1
            if depth == 0:
                return index + 1
    raise ValueError(f"an open parenthesis in {text[:80]!r}")


def _instruction(match: re.Match[str], rest: str, frames: dict[int, str]) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, end)
    if opcode is None:
        raise ValueError(f"no opcode in {rest[:80]!r}")
    behind = _closing(rest, opcode.end() - 1)
    arguments, attributes = rest[opcode.end() : behind - 1], rest[behind:].lstrip(", ")
    called = [name for group in _CALLED.findall(attributes) for name in re.findall(r"%([\w.\-]+)", group)]
    if opcode[1] in ("call", "async-start") and (applied := re.search(r"to_apply=%([\w.\-]+)", attributes)):
        called.append(applied[1])
    name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', attributes)
    frame = re.search(r"stack_frame_id=(\d+)", attributes)
    line = re.search(r'source_file="([^"]*)" source_line=(\d+)', attributes)
    return Instruction(
        name=match[2],
        opcode=opcode[1],
        shapes=tuple(map(_array, _ARRAY.finditer(rest[:end]))),
        operands=tuple(re.findall(r"%([\w.\-]+)", arguments)),
        arguments=arguments,
        attributes=attributes,
        calls=tuple(called),
        op_name=name[1].replace("\\'", "'") if name else "",
        source=f"{line[1]}:{line[2]}" if line else frames.get(int(frame[1]), "") if frame else "",
        root=bool(match[1]),
    )


def _array(match: re.Match[str]) -> Array:
    dims, layout = tuple(int(d.lstrip("<=")) for d in match[2].split(",") if d), match[3] or ""
    order, _, tiles = layout.partition(":")
    tile, space = re.search(r"T\(([\d,]+)\)", tiles), re.search(r"S\((\d+)\)", tiles)
    return Array(
        match[1],
        dims,
        tuple(int(d) for d in order.split(",") if d),
        tuple(int(d) for d in tile[1].split(",")) if tile else (),
        int(space[1]) if space else 0,
    )


# ------------------------------------------------------------------------------------------------- how often it runs


def _count(program: Program, name: str, times: int, fused: bool) -> None:
    """Adds `times` to the executions of a computation and, times their trips, to those of what it runs.

    All branches of a conditional count: which of them runs, the text does not say.
    """
    program.executions[name] = program.executions.get(name, 0) + times
    if fused:
        program.fused.add(name)
    computation = program.computations[name]
    for i in computation.instructions.values():
        if i.opcode == "while":
            trips = _trips(i, computation, program)
            if trips is None:
                program.unknown_trips.append(i.name)
            for part in ("condition", "body"):
                called = (i.attribute(part) or "").lstrip("%")
                program.loops[called] = (i, computation)
                _count(program, called, times * (1 if trips is None else trips), fused)
        for called in i.calls:
            _count(program, called, times, fused or i.opcode == "fusion")


def _trips(loop: Instruction, computation: Computation, program: Program) -> int | None:
    """A loop's trips: what the compiler noted, or those of `for (i = a; i < b; i += c)` found in its condition."""
    known = loop.backend_config.get("known_trip_count")
    if known:
        return int(known["n"])
    condition = program.computations[(loop.attribute("condition") or "").lstrip("%")]
    test, values = condition.root, list(condition.root.operands)
    if test.opcode == "fusion":  # its parameters are the values above
        inside = program.computations[test.calls[0]]
        test = inside.root
        numbers = {p.name: number for number, p in inside.parameters().items()}
        if any(name not in numbers for name in test.operands):
            return None
        values = [values[numbers[name]] for name in test.operands]
    if test.opcode != "compare" or test.attribute("direction") != "LT":
        return None
    start, bound = (_constant(condition.instructions[v], condition, loop, computation, program) for v in values)
    step = _step(condition.instructions[values[0]], loop, computation, program)
    return None if start is None or bound is None or not step else max(0, math.ceil((bound - start) / step))


def _constant(
    i: Instruction, inside: Computation, loop: Instruction | None, outside: Computation, program: Program
) -> int | None:
    """The integer that an instruction holds as a loop starts, through copies and the loop's initial values.

    Those of a loop within a loop may come through the outer one's state, if its body hands them on as they are.
    """
    i = _copied(i, inside)
    if i.opcode == "constant":
        return int(i.arguments) if re.fullmatch(r"-?\d+", i.arguments) else None
    if i.opcode != "get-tuple-element":
        return None
    index = int(i.attribute("index") or 0)
    if loop is None:
        if inside.name not in program.loops or inside.instructions[i.operands[0]].opcode != "parameter":
            return None
        handed = _copied(inside.instructions[inside.root.operands[index]], inside)
        if handed.opcode != i.opcode or handed.operands != i.operands or handed.attribute("index") != str(index):
            return None
        loop, outside = program.loops[inside.name]
    values = outside.instructions[loop.operands[0]]
    if values.opcode != "tuple":
        return None
    return _constant(outside.instructions[values.operands[index]], outside, None, outside, program)


def _step(counter: Instruction, loop: Instruction, computation: Computation, program: Program) -> int | None:
    """What a loop's body adds to the element of its state that `counter` of its condition reads."""
    body, index = program.computations[(loop.attribute("body") or "").lstrip("%")], counter.attribute("index")
    if counter.opcode != "get-tuple-element" or body.root.opcode != "tuple":
        return None
    added = _copied(body.instructions[body.root.operands[int(index or 0)]], body)
    operands = [_copied(body.instructions[name], body) for name in added.operands]
    if added.opcode == "fusion":
        inside = program.computations[added.calls[0]]
        added, passed = inside.root, operands
        inner = [inside.instructions[name] for name in added.operands]
        operands = [passed[int(o.arguments)] if o.opcode == "parameter" else o for o in inner]
    steps = [
        _constant(o, body, loop, computation, program)
        for o in operands
        if o.opcode != "get-tuple-element" or o.attribute("index") != index
    ]
    return steps[0] if added.opcode == "add" and len(steps) == 1 else None


def _copied(i: Instruction, computation: Computation) -> Instruction:
    """What an instruction copies, itself if it is no copy."""
    while i.opcode in ("copy", "bitcast"):
        i = computation.instructions[i.operands[0]]
    return i


# -------------------------------------------------------------------------------------------------------- products


def _dot_flops(i: Instruction, computation: Computation) -> float:
    left = computation.instructions[i.operands[0]].shapes[0]
    contracted = math.prod(left.dims[d] for d in i.numbers("lhs_contracting_dims"))
    return 2.0 * math.prod(i.shapes[0].dims) * contracted


def _convolution_flops(i: Instruction, computation: Computation) -> float:
    """2 × output rows × output features × input features a group × pairs of window and input that meet.

    A TPU compiler writes a batched dot as a convolution over its batch axes whose dilation leaves one tap real: pairs
    that meet only padding or the holes of dilation are not products. Batch groups are in the output's rows.
    """
    left, kernel, result = (
        s.dims for s in (*(computation.instructions[name].shapes[0] for name in i.operands[:2]), i.shapes[0])
    )
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", i.attribute("dim_labels") or "")
    if labels is None:
        raise ValueError(f"convolution {i.name} without dim_labels")
    of_left, of_kernel, of_result = labels.groups()
    window = dict(re.findall(r"(\w+)=([\w\-]+)", i.attribute("window") or ""))
    pairs = 1
    for axis in range(len(of_left) - 2):
        digit = str(axis)

        def value(key: str, default: str, axis: int = axis) -> str:
            return window[key].split("x")[axis] if key in window else default

        pairs *= _pairs(
            result[of_result.index(digit)],
            kernel[of_kernel.index(digit)],
            left[of_left.index(digit)],
            int(value("stride", "1")),
            int(value("pad", "0_0").split("_")[0]),
            int(value("lhs_dilate", "1")),
            int(value("rhs_dilate", "1")),
        )
    rows, features = result[of_result.index("b")], result[of_result.index("f")]
    return 2.0 * rows * features * kernel[of_kernel.index("i")] * pairs


@functools.cache
def _pairs(outputs: int, taps: int, inputs: int, stride: int, pad: int, hole: int, spread: int) -> int:
    """Pairs of an output and a tap of the window, along one axis, that meet an element of the input."""
    last, period, count = (inputs - 1) * hole, hole // math.gcd(stride, hole), 0
    for tap in range(taps):
        offset = tap * spread - pad  # the output o meets o × stride + offset
        low, high = max(0, math.ceil(-offset / stride)), min(outputs - 1, (last - offset) // stride)
        first = next((o for o in range(low, low + period) if (o * stride + offset) % hole == 0), None)
        if first is not None and first <= high:
            count += (high - first) // period + 1
    return count


# ------------------------------------------------------------------------------------------------------ HBM traffic


def traffic(i: Instruction, computation: Computation, program: Program) -> float:
    """Bytes of HBM that one execution of a scheduled instruction reads and writes; see `Program.hbm_bytes`."""
    if i.opcode in _FREE or i.opcode.endswith("-done") or i.target in _FREE_CALLS:
        return 0
    operands = [computation.instructions[name] for name in dict.fromkeys(i.operands)]
    if i.opcode == "fusion":
        inside = program.computations[i.calls[0]]
        parameters = inside.parameters()
        numbers = {name: number for number, name in enumerate(i.operands)}
        read = sum(_read(parameters[numbers[o.name]], inside, program, o) for o in operands)
        written = (update.shapes[0] if update else shape for shape, update in _results(i, program) if not shape.space)
        return read + sum(array.stored for array in written)
    if i.opcode in ("dynamic-slice", "slice", "gather", "slice-start"):
        part = i.shapes[i.opcode == "slice-start"]  # ((operand), result, context)
        return part.stored * (operands[0].shapes[0].space == 0) + part.stored * (part.space == 0)
    if i.opcode == "dynamic-update-slice":
        return 2 * _hbm(computation.instructions[i.operands[1]].shapes)
    if i.opcode in ("async-start", "async-update"):  # what they call is scheduled, too
        return 0
    results = i.shapes[:1] if i.opcode == "copy-start" else i.shapes  # (destination, source, context)
    if i.opcode in ("all-gather-start", "collective-permute-start"):
        results = i.shapes[1:2]
    return sum(_hbm(o.shapes) for o in operands) + _hbm(results)


def _hbm(shapes: tuple[Array, ...]) -> int:
    return sum(shape.stored for shape in shapes if shape.space == 0)


def _read(value: Instruction, inside: Computation, program: Program, outer: Instruction) -> float:
    """Bytes of `outer` that a fusion reads, whose parameter `value` it is."""
    whole, parts = float(_hbm(outer.shapes)), 0.0
    for user in inside.instructions.values():
        if value.name not in user.operands:
            continue
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == value.name:
            parts += user.shapes[0].stored if whole else 0
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            continue  # in place
        elif user.opcode == "bitcast":
            parts += _read(user, inside, program, outer)
        elif user.opcode == "fusion":
            nested = program.computations[user.calls[0]]
            parts += _read(nested.parameters()[user.operands.index(value.name)], nested, program, outer)
        else:
            return whole
    return min(whole, parts)


def _results(i: Instruction, program: Program) -> Iterator[tuple[Array, Instruction | None]]:
    """Each array of an instruction's result, and the update's operand if it is an array updated in place."""
    inside = program.computations[i.calls[0]] if i.opcode == "fusion" else None
    leaves: tuple[str, ...] | list[str] = ()
    if inside is not None:
        leaves = inside.root.operands if inside.root.opcode == "tuple" else [inside.root.name]
    for index, shape in enumerate(i.shapes):
        update = None
        if inside is not None and len(leaves) == len(i.shapes):
            leaf = _copied(inside.instructions[leaves[index]], inside)
            if leaf.opcode == "dynamic-update-slice":
                update = inside.instructions[leaf.operands[1]]
        yield shape, update


# ---------------------------------------------------------------------------------------------------------- buffers


def _filler(i: Instruction, computation: Computation, program: Program) -> Instruction | None:
    """The instruction in a loop's body that fills the array which `i` starts; None if no loop does."""
    for values in computation.instructions.values():
        if values.opcode != "tuple" or i.name not in values.operands:
            continue
        for loop in computation.instructions.values():
            if loop.opcode == "while" and loop.operands == (values.name,):
                body = program.computations[(loop.attribute("body") or "").lstrip("%")]
                last = body.instructions[body.root.operands[values.operands.index(i.name)]]
                if last.opcode not in _FREE:
                    return last
    return None
