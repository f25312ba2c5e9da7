"""Static cycles: what the machine programs that libtpu writes say about a compiled step, with no TPU attached.

`libtpu` dumps a program for each fusion and Pallas kernel, a line a VLIW bundle, one cycle a bundle if nothing stalls,
beside a table of the slots that each bundle fills. A program takes at least the largest of its bundles (times the trips
of its loops), the time its matrix products need at the chip's peak, and the time its operands need from HBM. Stalls of
DMA, network and matrix unit are in none of them, and programs are taken one after the other: the sum ranks alternatives
and is a lower bound in that sense; it is not a speed.

    os.environ.update(cycles.environment(folder))   # before anything loads libtpu
    compiled = jax.jit(step).lower(...).compile()
    print(cycles.table(cycles.of_compiled(folder, compiled.as_text(), chip)))
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxbert.bundles import Flow, Loop, split
from jaxbert.chips import Chip
from jaxbert.errors import BadInput
from jaxbert.program import Program as Hlo
from jaxbert.program import parse

KNOWN = "libtpu 0.0.52"  # whose dumps these are
SLOTS = ("MATMUL", "MATPUSH", "XLU", "VALU", "VPOP", "EUP", "VLOAD", "FILL", "VSTORE", "SPILL", "SALU")
DUMPED_SLOTS = "MATMUL, MATPUSH, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU"
DUMPS = "final_bundles|final_hlo-static-per-bundle-utilization|deduplication-map"  # of two hundred passes, the last
BETWEEN = "TLP"  # the top-level program, which calls the others
SPILLED = 0.25  # of a program's cycles that spilling takes before it is what bounds it

_FILE = re.compile(r"\d+-(.+)-\d+-(final_bundles|final_hlo-static-per-bundle-utilization|deduplication-map)\.txt")
_MATMUL = re.compile(r"vmatmul\.(lmr\.)?(?:\w+\.)*?(f32|bf16|\w*8\w*|\w*4\w*)\b")
# Of a vmatmul: those of one vector register by its elements; 8 where its left side was pushed into the unit before
# (lmr). Counted so, every product's rows are its multiplications ÷ a unit's size, on v4 to tpu7x.
_ROWS = {"f32": 8, "bf16": 16}
_HLO = re.compile(r"^\s*[\d.]+ scheduled bundles \([\d.]+%\): %(\S+) = (.*)$", re.MULTILINE)
_OP_NAME = re.compile(r'op_name="([^"]*)"')

Trips = Mapping[str, tuple[int, ...]] | Callable[["Program", int], int]


@dataclasses.dataclass(frozen=True)
class Program:
    """One machine program, as dumped. Arrays have an entry for each bundle, in order."""

    name: str  # of the HLO instruction it was compiled for
    instructions: tuple[str, ...]  # every HLO instruction that runs it: equal ones share a program
    op_name: str  # the JAX operations it comes from, "jit(update)/…"; "" if not dumped
    loops: tuple[Loop, ...]  # by their first bundles, so an outer loop stands before its inner ones
    executed: np.ndarray  # (bundles,) float64: the share of its loop's iterations in which a bundle runs
    moved: np.ndarray  # (bundles,) float64: bytes to and from HBM that a mean iteration moves there
    slots: np.ndarray  # (bundles, SLOTS) int: slots filled
    capacity: tuple[int, ...]  # of a bundle, by slot
    rows: np.ndarray  # (bundles,) int: rows that vmatmul instructions send through a matrix unit

    @property
    def bundles(self) -> int:
        """Bundles of the text, loops counted once."""
        return len(self.slots)

    @property
    def unknown(self) -> tuple[Loop, ...]:
        """Loops whose trips depend on data, in the order in which trips are to be supplied."""
        return tuple(loop for loop in self.loops if loop.trips is None)

    def weights(self, trips: Trips | None = None) -> np.ndarray:
        """Iterations of the loops around each bundle, (bundles,) int64; unknown trips are 1 unless `trips` gives them.

        `trips`: program name → trips of its unknown loops in order; or a function of (program, number of the unknown
        loop). Raises BadInput where the mapping gives another number of loops than the program has.
        """
        weights, unknown = np.ones(self.bundles, np.int64), self.unknown
        given: tuple[int, ...] = (1,) * len(unknown)
        if callable(trips):
            given = tuple(trips(self, number) for number in range(len(unknown)))
        elif trips and self.name in trips:
            given = tuple(trips[self.name])
            if len(given) != len(unknown):
                raise BadInput(
                    f"trips: {len(given)} given for {self.name}, which has {len(unknown)} loops whose trips depend on "
                    f"data, at bundles {[loop.begin for loop in unknown]}"
                )
        supplied = dict(zip(unknown, given, strict=True))
        for loop in self.loops:
            weights[loop.begin : loop.end + 1] *= supplied[loop] if loop.trips is None else loop.trips
        return weights

    def work(self, trips: Trips | None = None) -> "Work":
        """One run: every bundle times the trips of the loops around it."""
        iterations = self.weights(trips)
        runs = iterations * self.executed
        slots = dict(zip(SLOTS, (runs @ self.slots).tolist(), strict=True))
        return Work(float(runs.sum()), float(runs @ self.rows), float(iterations @ self.moved), slots)


@dataclasses.dataclass(frozen=True)
class Work:
    """What one run of a program takes, stalls aside."""

    cycles: float  # bundles × trips
    matrix_rows: float  # sent through matrix units: matrix_size values, times as wide a matrix
    moved: float  # bytes to and from HBM
    slots: dict[str, float]  # filled, by name of SLOTS


@dataclasses.dataclass(frozen=True)
class Row:
    """A program's part of a step. Cycles are of all its runs."""

    program: Program
    runs: int
    work: Work  # of one run
    bundles: float
    matrix: float
    hbm: float  # 0 for the top-level program, whose transfers wait for nobody
    source: str  # "file:line", or the JAX operations

    @property
    def cycles(self) -> float:
        """The least that it can take: the largest of the three."""
        return max(self.bundles, self.matrix, self.hbm)

    @property
    def spilling(self) -> float:
        """Share of its bundles that loading and storing spilled registers fills at least."""
        capacity = dict(zip(SLOTS, self.program.capacity, strict=True))
        slots = self.work.slots
        return max(slots["FILL"] / capacity["VLOAD"], slots["SPILL"] / capacity["VSTORE"]) / max(1, self.work.cycles)

    @property
    def bound(self) -> str:
        """What takes longest: "matrix unit", "HBM", "spills" (register pressure) or "bundles"."""
        if self.hbm == self.cycles:
            return "HBM"
        if self.matrix == self.cycles:
            return "matrix unit"
        return "spills" if self.spilling >= SPILLED else "bundles"

    @property
    def fullest(self) -> tuple[str, float]:
        """The slot that most bundles fill, and its share: what its bundles are made of."""
        shares = {
            slot: self.work.slots[slot] / capacity / max(1, self.work.cycles)
            for slot, capacity in zip(SLOTS, self.program.capacity, strict=True)
            if slot not in ("MATMUL", "MATPUSH", "FILL", "SPILL")
        }
        return max(shares.items(), key=lambda item: item[1])


@dataclasses.dataclass(frozen=True)
class Step:
    """All programs of a step, the most expensive first."""

    rows: tuple[Row, ...]
    chip: Chip
    hbm: float  # cycles that all transfers take, those of the top-level program among them, which run beside the others
    unmatched: tuple[str, ...]  # instructions of programs that `executions` does not have: counted once

    @property
    def seconds(self) -> float:
        """The sum of the programs' least cycles, or HBM's if that is more, at the chip's clock. Not a speed."""
        return max(self.hbm, sum(row.cycles for row in self.rows)) / self.chip.clock

    def share_of_peak(self, flops: float) -> float:
        """Of the device's FLOP/s, if a step of `flops` took `seconds`: an upper bound in the same sense."""
        return flops / self.chip.flops / self.seconds

    @property
    def sums(self) -> dict[str, float]:
        """Seconds of all bundles, of all products in matrix units and of all transfers, each as if alone."""
        totals = {
            "bundles": sum(row.bundles for row in self.rows),
            "matrix units": sum(row.matrix for row in self.rows),
            "HBM": self.hbm,
        }
        return {name: cycles / self.chip.clock for name, cycles in totals.items()}

    @property
    def unknown(self) -> tuple[str, ...]:
        """Programs with loops whose trips depend on data."""
        return tuple(row.program.name for row in self.rows if row.program.unknown)


def environment(folder: str | Path) -> dict[str, str]:
    """Environment variables under which libtpu dumps into `folder`; to be set before the process loads libtpu.

    They are undocumented. What LIBTPU_INIT_ARGS already holds is kept.
    """
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex={DUMPS}"
    return {"LIBTPU_INIT_ARGS": f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {flags}".strip()}


def read(folder: str | Path, chip: Chip) -> list[Program]:
    """The programs of a folder that libtpu dumped one compile for a chip into.

    Raises BadInput if there are none, or if they do not look like those of the libtpu that this was written for.
    """
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(Path(folder).glob("*.txt")):
        if match := _FILE.fullmatch(path.name):
            name, kind = match.groups()
            files.setdefault(name.removesuffix("-schedule-analysis"), {})[kind] = path
    for path in sorted(Path(folder).glob("*-schedule-analysis_final_bundles.txt")):
        if match := re.fullmatch(r"\d+-(.+)-\d+-schedule-analysis_final_bundles\.txt", path.name):
            files.setdefault(match[1], {})["analysis"] = path
    if not any("final_bundles" in kinds for kinds in files.values()):
        raise BadInput(
            f"{folder}: no *-final_bundles.txt; this libtpu writes no machine programs under the flags that {KNOWN} "
            "knows, or it was loaded before they were set"
        )
    shared = _shared_programs(files.get(BETWEEN, {}).get("deduplication-map"))
    programs = []
    for name, kinds in files.items():
        if "final_bundles" not in kinds or name.startswith("<"):
            continue  # <late-initialization> and its like run once a process
        if "final_hlo-static-per-bundle-utilization" not in kinds:
            raise BadInput(f"{kinds['final_bundles']}: no slot table beside it; {KNOWN} writes one")
        programs.append(_program(name, shared.get(name, (name,)), kinds, chip))
    return programs


def _shared_programs(path: Path | None) -> dict[str, tuple[str, ...]]:
    """Program → HLO instructions that run it."""
    if path is None:
        return {}
    shared = {}
    for entry in path.read_text(encoding="utf-8", errors="replace").split("key:")[1:]:
        key, _, *instructions = entry.split("\n")
        names = tuple(line.strip() for line in instructions if line.startswith("  "))
        shared[key] = names or (key,)
    return shared


def _program(name: str, instructions: tuple[str, ...], kinds: dict[str, Path], chip: Chip) -> Program:
    text = kinds["final_bundles"].read_text(encoding="utf-8", errors="replace")
    capacity, slots = _slot_table(kinds["final_hlo-static-per-bundle-utilization"])
    bundles = split(text)
    if len(bundles) != len(slots):
        raise BadInput(
            f"{kinds['final_bundles']}: {len(bundles)} bundles, but its slot table has {len(slots)} lines: not the "
            f"format of {KNOWN}"
        )
    rows = np.zeros(len(bundles), np.int64)
    for i, bundle in enumerate(bundles):
        for match in _MATMUL.finditer(bundle):
            rows[i] += 8 if match[1] else _ROWS.get(match[2], 32)
    analysis = kinds["analysis"].read_text(encoding="utf-8", errors="replace") if "analysis" in kinds else ""
    op_name = _OP_NAME.search(analysis) if name != BETWEEN else None
    flow = Flow(bundles, chip.granule)
    where = op_name[1] if op_name else ""
    return Program(name, instructions, where, flow.loops, flow.executed, flow.moved, slots, capacity, rows)


def _slot_table(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    header, names, capacity, title, *lines = path.read_text(encoding="utf-8").splitlines()
    if names.strip() != DUMPED_SLOTS or "UTILIZATION" not in title:
        raise BadInput(f"{path}: begins with {names[:120]!r}; {KNOWN} writes {DUMPED_SLOTS!r}")
    slots = np.array(" ".join(lines).split(), np.int64).reshape(len(lines), -1)
    return tuple(int(size) for size in capacity.split()), slots


def rank(
    programs: list[Program],
    chip: Chip,
    *,
    executions: Mapping[str, int] | None = None,
    sources: Mapping[str, str] | None = None,
    trips: Trips | None = None,
) -> Step:
    """The step's programs by the least cycles of all their runs.

    Args:
      programs: of one compile, as `read` gives them.
      chip: gives clock, matrix units and HBM bandwidth.
      executions: HLO instruction → how often a step runs it; None: each once.
      sources: HLO instruction → where it comes from ("file:line"); without it, the JAX operations of the dump.
      trips: of loops that depend on data: see `Program.weights`.
    """
    rows, unmatched, moved = [], [], 0.0
    # A program is one core's. At its peak a core sends so many rows through its matrix units in a cycle.
    rows_a_cycle = chip.flops / chip.cores / (2 * chip.matrix_size**2) / chip.clock
    for program in programs:
        work, runs = program.work(trips), 0
        for instruction in program.instructions:
            count = 1
            if executions is not None and program.name != BETWEEN:
                if instruction not in executions:
                    unmatched.append(instruction)
                count = executions.get(instruction, 1)
            runs += count
        hbm = runs * work.moved * chip.cores / chip.hbm_bandwidth * chip.clock
        moved += hbm
        where = [(sources or {}).get(instruction, "") for instruction in program.instructions]
        rows.append(
            Row(
                program,
                runs,
                work,
                float(runs * work.cycles),
                runs * work.matrix_rows / rows_a_cycle,
                0.0 if program.name == BETWEEN else hbm,
                next(filter(None, where), program.op_name),
            )
        )
    return Step(tuple(sorted(rows, key=lambda row: -row.cycles)), chip, moved, tuple(unmatched))


def of_compiled(folder: str | Path, text: str, chip: Chip, *, trips: Trips | None = None) -> Step:
    """`rank` of the programs in `folder` with what the HLO of the same compile, `text`, says of runs and sources.

    The trips of the loops that the top-level program runs are HLO's too; `trips` is for those of other programs.
    """
    hlo, programs = parse(text), read(folder, chip)
    executions = {i.name: count for _, i, count in hlo.scheduled()}
    sources = {i.name: "/".join(i.source.split("/")[-2:]) for _, i, _ in hlo.scheduled()}
    outer = tuple(_loop_trips(hlo, hlo.entry))
    known = {p.name: outer for p in programs if p.name == BETWEEN and len(p.unknown) == len(outer)}
    if callable(trips):
        given = trips
        trips = lambda p, number: known[p.name][number] if p.name in known else given(p, number)  # noqa: E731
    else:
        trips = {**(trips or {}), **known}
    return rank(programs, chip, executions=executions, sources=sources, trips=trips)


def _loop_trips(hlo: Hlo, name: str) -> list[int]:
    """Trips of the loops of a computation in the order in which they are scheduled, those within one behind it."""
    found = []
    for i in hlo.computations[name].instructions.values():
        if i.opcode == "while" and (body := (i.attribute("body") or "").lstrip("%")) in hlo.executions:
            found += [hlo.executions[body] // hlo.executions[name], *_loop_trips(hlo, body)]
    return found


def table(step: Step, *, flops: float | None = None, count: int = 20) -> str:
    """The `count` most expensive programs as text, then the sum; `flops` of the model gives the share of peak."""
    total = sum(row.cycles for row in step.rows)
    lines = [
        f"{'program':<38} {'runs':>5} {'ms':>8} {'share':>6} {'bundles':>10} {'matrix':>10} {'HBM':>10}  "
        f"{'bound':<11} {'fullest slot':<12} {'fills':>7} {'spills':>7}  from"
    ]
    for row in step.rows[:count]:
        slot, share = row.fullest
        lines.append(
            f"{row.program.name:<38.38} {row.runs:>5} {row.cycles / step.chip.clock * 1e3:>8.3f} "
            f"{row.cycles / total:>6.1%} {row.bundles / row.runs if row.runs else 0:>10,.0f} "
            f"{row.matrix / row.runs if row.runs else 0:>10,.0f} {row.hbm / row.runs if row.runs else 0:>10,.0f}  "
            f"{row.bound:<11} {slot:<6} {share:>5.0%} {row.work.slots['FILL']:>7.0f} {row.work.slots['SPILL']:>7.0f}  "
            f"{row.source}"
        )
    lines.append(f"{len(step.rows)} programs: at least {step.seconds * 1e3:.2f} ms at {step.chip.clock / 1e9:.2f} GHz")
    if flops is not None:
        lines[-1] += f", at most {step.share_of_peak(flops):.1%} of peak"
    lines[-1] += " if nothing stalls and nothing overlaps; for ranking, not a speed"
    shares = {name: f" ({flops / step.chip.flops / value:.1%})" if flops else "" for name, value in step.sums.items()}
    alone = ", ".join(f"{name} {value * 1e3:.2f} ms{shares[name]}" for name, value in step.sums.items())
    lines.append(f"each alone (and the share of peak that it would allow): {alone}")
    if step.unknown:
        more = f" and {len(step.unknown) - 8} more" if len(step.unknown) > 8 else ""
        lines.append(f"trips depend on data, and count once unless given, in: {', '.join(step.unknown[:8])}{more}")
    return "\n".join(lines)
