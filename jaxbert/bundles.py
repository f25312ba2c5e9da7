"""The control flow of a machine program that libtpu dumped: its bundles, its loops, and what their iterations skip.

A line is a VLIW bundle, `0x1a PF: > { op  ;;  op }`, its operations in static single assignment. A loop ends with a
branch back to the region that its first bundle starts. The compiler pipelines loops over blocks, so a loop over 12
blocks runs 14 times and skips its load, its body or its store in the first and the last of them: by branches on
predicates that follow from the iteration alone, which a little scalar arithmetic decides. Those on data stay open.
"""

import bisect
import dataclasses
import re

import numpy as np

DELAY_SLOTS = 4  # bundles behind a branch that run whether or not it is taken

_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(?:[A-Z]{2})? *: ?[> ]*\{", re.MULTILINE)
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)\b")
_BRANCH = re.compile(r"sbr\.rel(?: \((!?)(%p\w+)\))? target = \$region(\d+)")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_SCALAR = re.compile(r"(%[sp]\w+) = (s[a-z]+\.[\w.]+|sphi|scalar_select|p[a-z]+) ([^;}]*)")
_PREDICATED = re.compile(r"\((!?)(%p\w+)(?:, (%s\w+))?\), ")

Value = int | None  # None: depends on data


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
    """Loops, and how often each bundle runs in an iteration of the innermost loop around it."""

    def __init__(self, bundles: list[str]):
        """`bundles` as `split` gives them."""
        self.count = len(bundles)
        self.scalars = _Scalars(bundles)
        regions = {region: i for i, bundle in enumerate(bundles) for region in _REGION.findall(bundle)}
        branches = [
            (i, predicate and (negated == "!", predicate), regions[region])
            for i, bundle in enumerate(bundles)
            for negated, predicate, region in _BRANCH.findall(bundle)
            if region in regions
        ]
        self._skips = [branch for branch in branches if branch[2] > branch[0]]  # (bundle, predicate, target)
        backward = [(i, predicate, target) for i, predicate, target in branches if target <= i]
        loops = []
        for i, predicate, target in backward:
            trips = self.scalars.limit(predicate[1]) if predicate else None
            loops.append(Loop(target, min(i + DELAY_SLOTS, self.count - 1), trips))
        self.loops = tuple(sorted(loops, key=lambda loop: (loop.begin, -loop.end)))

    def executed(self) -> np.ndarray:
        """(bundles,) float64 in [0, 1]: the share of its loop's iterations in which a bundle runs.

        1 outside of loops, in loops of unknown trips, and where a branch depends on data.
        """
        shares = np.ones(self.count)
        for loop in self.loops:
            inner = [other for other in self.loops if other is not loop and _holds(loop, other)]
            skips = [
                branch
                for branch in self._skips
                if loop.begin <= branch[0] <= loop.end and not any(o.begin <= branch[0] <= o.end for o in inner)
            ]
            if loop.trips and skips:
                skipped = self._skipped(loop, skips)
                shares[loop.begin : loop.end + 1] *= 1.0 - skipped / loop.trips
        return shares

    def _skipped(self, loop: Loop, skips: list[tuple[int, tuple[bool, str], int]]) -> np.ndarray:
        """(bundles of the loop,) int: the iterations that skip each, by running its scalars through all of them."""
        change = np.zeros(loop.end - loop.begin + 2, np.int64)
        starts = [branch[0] for branch in skips]
        state = self.scalars.start(loop.begin)
        for _ in range(loop.trips or 0):
            known: dict[str, Value] = dict(state)
            at = 0
            while at < len(skips):
                i, predicate, target = skips[at]
                at += 1
                if predicate:
                    value = self.scalars.value(predicate[1], known)
                    if value is None or bool(value) == predicate[0]:
                        continue
                begin, end = i + 1 + DELAY_SLOTS - loop.begin, min(target, loop.end + 1) - loop.begin
                if begin < end:
                    change[begin] += 1
                    change[end] -= 1
                at = max(at, bisect.bisect_left(starts, target))
            state = self.scalars.advance(state, known)
        return np.cumsum(change)[:-1]


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
