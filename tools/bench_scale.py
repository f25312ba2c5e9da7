"""What a pod would do, compiled, and what a run costs beside its steps, measured.

    python tools/bench_scale.py compiled [--models bert_large] [--topologies v5e:16x16] [--meshes 16x16x1]
    python tools/bench_scale.py running  [--rounds=3] [--json=FILE]
    python tools/bench_scale.py staging  [--rounds=3] [--gigabytes=1] [--directory=DIRECTORY]

`compiled`: the step of BERT-large and gMLP-large (rows of 512, 50,000 words, 4 rows at once on each device, in
bfloat16, with the sizes' own dropout) for v5e:16x16 and v5p:4x4x4, which are not attached: bytes that a device sends
over the least for its sharding as `jaxbert.plan` defines it, memory a device with fsdp 1, 4, 16 and 64, and whether
logits of the whole vocabulary stand anywhere where tensor splits it. A cell is a process of its own and a line of
--out; started again, it makes what is missing, and --table only shows what is there. Nothing ran on a device.

`running`: BERT-mini, 64 rows of 128 tokens, 100 steps, on this machine's CPU, alone on it: wall time with a checkpoint
every 10 steps beside none (both save the last), turn by turn, and the host's time between two dispatches as a share of
a step: what the loop does itself, waiting for the devices not counted.

2026-11-28, 2 cores of an AMD EPYC, nothing beside it, three rounds: a step of 2.36 s; with a checkpoint every 10 steps
0.970 of the throughput without (0.954 to 1.006), goal 0.95; the host's own time 0.3 % of a step (0.3 to 0.7), goal 2.

`staging`: `data.stage` on --gigabytes of rows within --directory: read, summed, written to the disk, read back from
there and compared; beside `shutil.copy` and fsync of the same file, turn by turn. Both read what was just written.

2026-11-29, the same machine, nothing beside it, five rounds of 1 GB: 340 MB/s (280 to 356), 0.30 of the plain copy's
1,177, which looks at nothing (0.20 to 0.33).

What was compiled stands in docs/plans.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_train import machine, make_corpora, measure, recipe, show
from compile_matrix import attempts

ROOT = Path(__file__).parents[1]
MODELS = ("bert_large", "gmlp_large")
TOPOLOGIES = {"v5e:16x16": 256, "v5p:4x4x4": 64}  # devices
FSDP = (1, 4, 16, 64)
ROWS = 4  # at once on each device
MOST_BYTES, LEAST_THROUGHPUT, MOST_HOST_TIME = 1.1, 0.95, 0.02  # goals


# compiled


def meshes(devices: int) -> list[str]:
    """data × fsdp × tensor: fsdp alone, then one in which tensor splits the vocabulary."""
    return [f"{devices // fsdp}x{fsdp}x1" for fsdp in FSDP] + [f"{devices // 8}x4x2"]


def compile_cell(model: str, topology: str, mesh: str) -> dict[str, Any]:
    """The attempt of a cell, or {"error": …}."""
    data, fsdp, tensor = map(int, mesh.split("x"))
    fields = {"model.name": model, "train.batch_size": ROWS * data * fsdp, "train.accumulate": 1}
    fields |= {"sharding.data": data, "sharding.fsdp": fsdp, "sharding.tensor": tensor}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    (found,) = attempts("web_large", topology, "--no-search", *overrides)
    return found


def make_cells(wanted: list[tuple[str, str, str]], out: Path) -> list[dict[str, Any]]:
    """The wanted cells that `out` lacks, one process each, and then all that it holds."""
    cells = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    made = {(cell["model"], cell["topology"], cell["mesh"]) for cell in cells}
    for cell in (cell for cell in wanted if cell not in made):
        begin = time.perf_counter()
        cells.append({**compile_cell(*cell), **dict(zip(("model", "topology", "mesh"), cell, strict=True))})
        told = cells[-1].get("error", f"{time.perf_counter() - begin:.0f} s")
        print(f"{' '.join(cell)}: {told}", file=sys.stderr, flush=True)
        with open(out, "a", encoding="utf-8") as file:
            file.write(json.dumps(cells[-1]) + "\n")
    return cells


def row(cell: dict[str, Any]) -> str:
    """One cell as a row of the table."""
    first = f"| {cell['model']} | {cell['topology']} | {cell['mesh'].replace('x', ' × ')} |"
    if "error" in cell:
        return f"{first} {cell['error']} | | | |"
    memory = f"{cell['memory']['total'] / 2**30:.2f}"
    if "costs" not in cell:
        return f"{first} {memory}: does not fit | | | |"
    sent, least = cell["costs"]["link_bytes"], cell["least_link_bytes"]
    ratio = f"{sent / least:.3f}" if cell["mesh"].endswith("x1") else ""  # the least leaves out what tensor sends
    split = "" if cell["mesh"].endswith("x1") else "gathered" if cell["whole_logits"] else "split"
    return f"{first} {memory} | {sent / 1e9:.2f} | {ratio} | {split} |"


def compiled_measures(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each goal as the least value that passes."""
    found, before = [], {}
    for cell in (cell for cell in cells if "costs" in cell):
        name = f"{cell['model']} {cell['topology']} {cell['mesh']}"
        if not cell["mesh"].endswith("x1"):
            found.append(measure(f"{name}: logits stay split", [float(not cell["whole_logits"])], "", 1.0))
            continue
        ratio = cell["least_link_bytes"] / cell["costs"]["link_bytes"]
        found.append(measure(f"{name}: least ÷ sent bytes", [ratio], "×", 1 / MOST_BYTES))
        fsdp, total = cell["mesh"].split("x")[1], cell["memory"]["total"]
        if (larger := before.get((cell["model"], cell["topology"]))) is not None:
            found.append(measure(f"{name}: memory with less fsdp ÷ with {fsdp}", [larger / total], "×", 1.0))
        before[cell["model"], cell["topology"]] = total
    return found


def compiled(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """The table, then the measures."""
    wanted = [
        (model, topology, mesh)
        for topology in flags.topologies
        for model in flags.models
        for mesh in flags.meshes or meshes(TOPOLOGIES[topology])
    ]
    cells = make_cells([] if flags.table else wanted, flags.out)
    order = {name: n for n, name in enumerate([*MODELS, *TOPOLOGIES])}
    cells.sort(key=lambda c: (order[c["model"]], order[c["topology"]], *map(int, c["mesh"].split("x")[:0:-1])))
    print("| model | topology | data × fsdp × tensor | GiB a device | GB sent | ÷ least | logits |")
    print("|---" * 7 + "|", *map(row, cells), sep="\n")
    return compiled_measures(cells)


# running


def worker(directory: str, every: int) -> None:
    """One run in this process: prints its wall seconds, and of each step the host's own seconds and all of them.

    The clock starts before step 2, when everything is compiled and the loop has settled, and stops when the run's last
    save has ended.
    """
    import jax

    from jaxbert import config, step, train

    calls: list[tuple[float, float, float]] = []  # of each dispatch: begin, end, seconds waited for devices before it
    waited = 0.0
    compile_step, device_get = step.Step.compile, jax.device_get

    class Timed:
        """A compiled step that notes when it is called."""

        def __init__(self, compiled: Any) -> None:
            self.compiled = compiled

        def __call__(self, state: Any, batch: Any) -> Any:
            nonlocal waited
            begin, before, waited = time.perf_counter(), waited, 0.0
            told = self.compiled(state, batch)
            calls.append((begin, time.perf_counter(), before))
            return told

        def __getattr__(self, name: str) -> Any:
            return getattr(self.compiled, name)

    def wait(tree: Any) -> Any:
        nonlocal waited
        begin = time.perf_counter()
        jax.block_until_ready(tree)
        waited += time.perf_counter() - begin
        return device_get(tree)

    step.Step.compile = lambda self, batch: Timed(compile_step(self, batch))  # type: ignore[method-assign]
    jax.device_get = wait
    short = config.Train(batch_size=64, steps=100, log_every=50)
    saves = config.Checkpoint(every=every)
    with tempfile.TemporaryDirectory() as workdir:
        train.train(recipe(directory, train=short, checkpoint=saves), Path(workdir))
    end, pairs = time.perf_counter(), list(zip(calls[1:], calls[2:], strict=False))
    host = [later[0] - earlier[1] - later[2] for earlier, later in pairs]
    whole = [later[0] - earlier[0] for earlier, later in pairs]
    print(json.dumps({"seconds": end - calls[1][0], "host": host, "whole": whole}))


def running(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Both kinds of run in turn, `--rounds` times; medians of ratios within a round."""
    corpus, _ = make_corpora(flags.directory)
    runs: dict[int, list[dict[str, Any]]] = {2**30: [], 10: []}
    for _ in range(flags.rounds):
        for every, found in runs.items():
            command = [sys.executable, __file__, "running", "--worker", corpus, str(every)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    ratios = [none["seconds"] / saved["seconds"] for none, saved in zip(*runs.values(), strict=True)]
    shares = [sum(run["host"]) / sum(run["whole"]) for run in runs[2**30]]
    steps = [run["seconds"] / 99 for run in runs[2**30]]
    return [
        measure("BERT-mini 64 × 128, a step without checkpoints", steps, "s"),
        measure("the same, a checkpoint every 10 steps: throughput ÷ without", ratios, "×", LEAST_THROUGHPUT),
        measure("host's time between dispatches ÷ a step", shares, "×"),
        measure("the same, a step without it ÷ a step", [1 - x for x in shares], "×", 1 - MOST_HOST_TIME),
    ]


# staging


def staging(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Copies of one file in turn, `--rounds` times; ratios within a round."""
    from jaxbert.data import staging

    size, seconds = int(flags.gigabytes * 1e9), {"plain": [], "staged": []}
    flags.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=flags.directory) as folder:
        rows = Path(folder) / "rows"
        rows.mkdir()
        with open(rows / "ids.npy", "wb") as file:
            for begin in range(0, size, staging.BLOCK):
                file.write(os.urandom(min(staging.BLOCK, size - begin)))
        for n in range(flags.rounds):
            begin, plain = time.perf_counter(), Path(folder) / f"plain{n}"
            shutil.copy(rows / "ids.npy", plain)
            with open(plain, "rb+") as file:
                os.fsync(file.fileno())
            seconds["plain"].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            staging.stage(rows, Path(folder) / f"staged{n}")
            seconds["staged"].append(time.perf_counter() - begin)
            plain.unlink()
            shutil.rmtree(Path(folder) / f"staged{n}")
    return [
        measure("staged, compared with what was read", [size / 1e6 / s for s in seconds["staged"]], "MB/s"),
        measure("shutil.copy and fsync", [size / 1e6 / s for s in seconds["plain"]], "MB/s"),
        measure("staged ÷ plain", [p / s for p, s in zip(seconds["plain"], seconds["staged"], strict=True)], "×"),
    ]


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["compiled", "running", "staging"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--topologies", nargs="+", choices=tuple(TOPOLOGIES), default=tuple(TOPOLOGIES))
    parser.add_argument("--meshes", nargs="+", metavar="DATAxFSDPxTENSOR", help="default: those of the goals")
    parser.add_argument("--out", type=Path, default=Path("scale.jsonl"), help="where compiled cells are kept")
    parser.add_argument("--table", action="store_true", help="what is there; compile nothing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--directory", type=Path, default=Path("data/bench"), help="where text is prepared, once, or copied"
    )
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        worker(flags.worker[0], int(flags.worker[1]))
        return
    lines = {"compiled": compiled, "running": running, "staging": staging}[flags.part](flags)
    print(f"{'':70s} {'median':>10s}  {'low':>10s}  {'high':>10s}")
    show(lines)
    if flags.json:
        flags.json.write_text(json.dumps({**machine(), "measures": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
