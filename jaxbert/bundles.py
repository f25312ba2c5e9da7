"""The control flow of a machine program that libtpu dumped: its bundles, its loops, and what their iterations skip.

A line is a VLIW bundle, `0x1a PF: > { op  ;;  op }`, its operations in static single assignment. A loop ends with a
branch back to the region that its first bundle starts. The compiler pipelines loops over blocks, so a loop over 12
blocks runs 14 times and skips its load, its body or its store in the first and the last of them: by branches on
predicates that follow from the iteration alone, which a little scalar arithmetic decides. Those on data stay open.
"""

import bisect
import dataclasses
import math
import re

import numpy as np

DELAY_SLOTS = 4  # bundles behind a branch that run whether or not it is taken

_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(?:[A-Z]{2})? *: ?[> ]*\{", re.MULTILINE)
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)\b")
_BRANCH = re.compile(r"sbr\.rel(?: \((!?)(%p\w+)\))? target = \$region(\d+)")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_SCALAR = re.compile(r"(%[sp]\w+) = (s[a-z]+\.[\w.]+|sphi|scalar_select|p[a-z]+) ([^;}]*)")
_TRANSFER = re.compile(
    r"dma\.(?:general|hbm_to_\w+|\w+_to_hbm)(?: \[thread:\$\d+\])? *(?:\((!?)(%p\w+)\), )?"
    r".*?size_in_granules=\*/(%?\w+)"
    r"(?:(?!dma\.).)*?(?:window_bounds: \(([\d, ]+)\).*?element_size_in_bytes: (\d+)|$)",
    re.DOTALL,
)
_PREDICATED = re.compile(r"\((!?)(%p\w+)(?:, (%s\w+))?\), ")

Value = int | None  # None: depends on data
Predicate = tuple[bool, str] | None  # (negated, name); None: always


@dataclasses.dataclass(frozen=True)
class _Skip:
    """A branch forward."""

    bundle: int
    predicate: Predicate
    target: int


@dataclasses.dataclass(frozen=True)
class _Transfer:
    """A DMA between HBM and the core."""

    bundle: int
    predicate: Predicate
    granules: str  # a number or a name
    block: int  # bytes of a whole block: where the number depends on data


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop of a program, by bundle numbers (both included)."""

    begin: int
    end: int
    trips: int | None  # None: they depend on data


def split(text: str) -> list[str]:
    """The bundles of a dumped program, in order; a bundle may span lines."""
    starts = [match.start() for match in _BUNDLE.finditer(text)]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


class Flow:
    """What a program's loops do, found by following their counters. Arrays have an entry for each bundle.

    A bundle runs `executed` times in a mean iteration of the innermost loop around it and moves `moved` bytes between
    HBM and the core in it. Branches and transfers that depend on data are taken to run, loops of unknown trips to run
    everything in them: the most.
    """

    def __init__(self, bundles: list[str], granule: int):
        """`bundles` as `split` gives them; `granule`: bytes that a transfer's size counts (chips.Chip)."""
        self.granule = granule
        self.count = len(bundles)
        self.executed, self.moved = np.ones(self.count), np.zeros(self.count)
        self._scalars = _Scalars(bundles)
        regions = {region: i for i, bundle in enumerate(bundles) for region in _REGION.findall(bundle)}
        loops: list[Loop] = []
        events: list[_Skip | _Transfer] = []
        for i, bundle in enumerate(bundles):
            events += _transfers(i, bundle) if "dma." in bundle else []
            for negated, name, region in _BRANCH.findall(bundle):
                target, predicate = regions.get(region, self.count), (negated == "!", name) if name else None
                if target > i:
                    events.append(_Skip(i, predicate, target))
                else:
                    trips = self._scalars.limit(name) if name else None
                    loops.append(Loop(target, min(i + DELAY_SLOTS, self.count - 1), trips))
        self.loops = tuple(sorted(loops, key=lambda loop: (loop.begin, -loop.end)))
        self._follow(None, [event for event in events if not any(_inside(event, loop) for loop in self.loops)])
        for loop in self.loops:
            inner = [other for other in self.loops if other is not loop and _holds(loop, other)]
            own = [e for e in events if _inside(e, loop) and not any(_inside(e, other) for other in inner)]
            self._follow(loop, own)

    def _follow(self, loop: Loop | None, events: list[_Skip | _Transfer]) -> None:
        """Run the scalars through all iterations of a loop (None: the program, once) and note what its events do."""
        if not events:
            return
        trips = (loop.trips or 1) if loop else 1
        begin, end = (loop.begin, loop.end + 1) if loop else (0, self.count)
        skipped = np.zeros(self.count + 1, np.int64)  # changes from a bundle to the next
        places = [event.bundle for event in events]
        state = self._scalars.start(begin) if loop and loop.trips else {}
        for _ in range(trips):
            known: dict[str, Value] = dict(state)
            at = 0
            while at < len(events):
                event = events[at]
                at += 1
                happens = self._happens(event.predicate, known)
                if isinstance(event, _Transfer):
                    if happens is not False:
                        granules = self._scalars.value(event.granules, known)
                        size = event.block if granules is None else granules * self.granule
                        self.moved[event.bundle] += size / trips
                elif happens:
                    first, last = event.bundle + 1 + DELAY_SLOTS, min(event.target, end)
                    if first < last:
                        skipped[first] += 1
                        skipped[last] -= 1
                    at = max(at, bisect.bisect_left(places, event.target))
            state = self._scalars.advance(state, known)
        self.executed[begin:end] *= 1.0 - np.cumsum(skipped)[begin:end] / trips

    def _happens(self, predicate: Predicate, known: dict[str, Value]) -> bool | None:
        if predicate is None:
            return True
        value = self._scalars.value(predicate[1], known)
        return None if value is None else bool(value) != predicate[0]


def _transfers(i: int, bundle: str) -> list[_Skip | _Transfer]:
    transfers: list[_Skip | _Transfer] = []
    for negated, name, granules, window, element in _TRANSFER.findall(bundle):
        block = math.prod(int(size) for size in window.split(", ")) * int(element) if window else 0
        transfers.append(_Transfer(i, (negated == "!", name) if name else None, granules, block))
    return transfers


def _inside(event: _Skip | _Transfer, loop: Loop) -> bool:
    return loop.begin <= event.bundle <= loop.end


def _holds(outer: Loop, inner: Loop) -> bool:
    return outer.begin <= inner.begin and inner.end <= outer.end


class _Scalars:
    """Scalar and predicate operations of a program: enough of them to follow loop counters."""

    def __init__(self, bundles: list[str]):
        self.operations: dict[str, tuple[str, str]] = {}  # name → (operation, operands)
        self.phis: dict[int, list[str]] = {}  # bundle → names
        for i, bundle in enumerate(bundles):
            if "%p" not in bundle and "%s" not in bundle:
                continue
            for name, operation, operands in _SCALAR.findall(_COMMENT.sub("", bundle)):
                again = self.operations.get(name, (operation, operands.strip()))
                same = again == (operation, operands.strip())
                self.operations[name] = (operation, operands.strip()) if same else ("ambiguous", "")
                if operation == "sphi":
                    self.phis.setdefault(i, []).append(name)

    def limit(self, predicate: str) -> int | None:
        """The trips of a loop that ends when counter + 1 ≥ a constant, the counter starting at 0."""
        operation, operands = self.operations.get(predicate, ("", ""))
        if not operation.startswith("scmp.ge"):
            return None
        limit = self.value(operands.rpartition(", ")[2], {})
        return limit if limit is not None and limit > 0 else None

    def start(self, bundle: int) -> dict[str, Value]:
        """Values of the counters that the loop at `bundle` carries, before its first iteration."""
        first = {name: self.operations[name][1].split(", ")[0] for name in self.phis.get(bundle, [])}
        return {name: self.value(operand, {}) for name, operand in first.items()}

    def advance(self, state: dict[str, Value], known: dict[str, Value]) -> dict[str, Value]:
        """The same before the next iteration."""
        return {name: self.value(self.operations[name][1].split(", ")[-1], known) for name in state}

    def value(self, operand: str, known: dict[str, Value]) -> Value:
        """The value of a constant or a name, or None; `known` remembers those of one iteration."""
        operand = operand.strip()
        if not operand.startswith("%"):
            return _signed(int(operand)) if operand.isdigit() else None
        if operand not in known:
            known[operand] = None  # what depends on itself is not known
            known[operand] = self._compute(*self.operations.get(operand, ("", "")), known)
        return known[operand]

    def _compute(self, operation: str, operands: str, known: dict[str, Value]) -> Value:
        if operation in ("", "sphi", "ambiguous"):
            return None  # a load, an argument, another loop's counter
        chosen = _PREDICATED.match(operands)
        if chosen:
            operands = operands[chosen.end() :]
            if chosen[3]:  # (predicate, otherwise), value
                if (test := self.value(chosen[2], known)) is None:
                    return None
                if bool(test) == (chosen[1] == "!"):
                    return self.value(chosen[3], known)
        if operation == "scalar_select":
            predicate, yes, no = operands.split(", ")
            test = self.value(predicate, known)
            return None if test is None else self.value(yes if test else no, known)
        values = [self.value(operand, known) for operand in operands.split(", ")]
        if operation in ("pnand", "pand") and 0 in values:
            return int(operation == "pnand")
        if operation in ("por", "pnor") and 1 in values:
            return int(operation == "por")
        if any(value is None for value in values):
            return None
        return _calculate(operation, [value for value in values if value is not None])


def _calculate(operation: str, values: list[int]) -> Value:
    a, b = (*values, 0)[:2]
    kind, _, rest = operation.partition(".")
    if kind == "scmp":
        relation, kind = rest.split(".")[:2]
        if kind == "u32":
            a, b = a % 2**32, b % 2**32
        return int({"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "eq": a == b, "ne": a != b}[relation])
    results = {
        "sadd": lambda: _signed(a + b),
        "ssub": lambda: _signed(a - b),
        "smul": lambda: _signed(a * b),
        "sand": lambda: _signed(a & b),
        "sor": lambda: _signed(a | b),
        "sshll": lambda: _signed(a << (b & 31)),
        "sshrl": lambda: _signed((a % 2**32) >> (b & 31)),
        "smov": lambda: a,
        "pmov": lambda: a,
        "pneg": lambda: 1 - a,
        "pand": lambda: a & b,
        "pnand": lambda: 1 - (a & b),
        "por": lambda: a | b,
        "pnor": lambda: 1 - (a | b),
    }
    return results[kind]() if kind in results else None


def _signed(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31
