"""Every recipe of a published size, compiled for every chip: whether it fits, its operations, its static share of peak.

    python tools/compile_matrix.py [--recipes bert_base gmlp_base] [--chips v5e v6e] [--quick] [--out=FILE] [--table]

A cell is `python -m jaxbert.plan --cycles` of the recipe on four chips, in a process of its own; a line of --out each.
--chips v5e:16x16 takes 256 of them.
Started again, it makes what is missing. --quick leaves the static share out, which takes most of the time: without
--quick such cells are made again. --table prints what is there and compiles nothing. Everything is compiled for
devices that were not attached: nothing ran on one.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = ("bert_base", "convbert_base", "gmlp_base", "m2_base", "hypermixer_base", "web_base", "web_large")
TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
    "h100": "h100:4",
    "v5e:16x16": "v5e:16x16",
}
LIMIT = 3600  # seconds for a cell


def compile_cell(recipe: str, chip: str, *overrides: str, static: bool = True) -> list[dict]:
    """The attempts of a recipe, with overrides, on a chip, one a phase, or one with "error"."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        flags = [f"--config=configs/{recipe}.py", f"--topology={TOPOLOGIES[chip]}", f"--json={file}"]
        flags += ["--config.corpus.language=en", *overrides]
        command = ["-m", "jaxbert.plan", "--cycles"] if static else [__file__, "--attempt"]
        try:
            done = subprocess.run(
                [sys.executable, *command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return [{"error": f"over {LIMIT} s"}]
        if done.returncode:
            return [{"error": done.stderr.strip().splitlines()[-1][:300]}]
        return json.loads(file.read_text())["attempts"]


def attempt(argv: list[str]) -> None:
    """`jaxbert.plan` without its search for other micro-batches, in this process."""
    from jaxbert import config, plan, recipe_files

    parser = argparse.ArgumentParser()
    for name in ("--config", "--topology", "--json"):
        parser.add_argument(name, required=True)
    flags, overrides = parser.parse_known_args(argv)
    settings = config.resolve(recipe_files.load(flags.config, overrides))
    planners = [plan.Planner(settings, phase, flags.topology) for phase in config.phases(settings)]
    Path(flags.json).write_text(json.dumps({"attempts": [plan.record(planner.attempt()) for planner in planners]}))


def row(cell: dict, found: dict) -> str:
    """One attempt as a row of the table."""
    if "error" in found:
        return f"| {cell['recipe']} | {cell['chip']} | {found['error']} | | | | | |"
    size = f"{found['memory']['total'] / 2**30:.2f} of {found['hbm'] / 2**30:.0f}"
    ratio, sent = "", ""
    if "costs" in found:
        ratio = f"{found['costs']['flops'] / found['costs']['model_flops']:.3f}"
        sent = f"{found['costs']['link_bytes'] / 1e9:.2f} of {found['least_link_bytes'] / 1e9:.2f}"
    share = f"{found['static']['share_of_peak']:.0%}" if "static" in found else ""
    rows, fits = f"{found['micro_batch']} × {found['row_length']}", "yes" if found["fits"] else "no"
    return f"| {cell['recipe']} | {cell['chip']} | {rows} | {size} | {fits} | {ratio} | {sent} | {share} |"


def show(cells: list[dict]) -> str:
    """The matrix as Markdown."""
    columns = ("recipe", "chip", "rows × tokens a device", "memory, GiB", "fits", "flops ÷ model's", "GB sent of least")
    head = f"| {' | '.join((*columns, 'static share of peak'))} |"
    return "\n".join([head, "|---" * 8 + "|", *(row(cell, found) for cell in cells for found in cell["attempts"])])


def main() -> None:
    """The command; see the module's docstring."""
    if sys.argv[1:2] == ["--attempt"]:
        attempt(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--chips", nargs="+", choices=tuple(TOPOLOGIES), default=tuple(TOPOLOGIES)[:-1])
    parser.add_argument("--out", type=Path, default=Path("matrix.jsonl"))
    parser.add_argument("--quick", action="store_true", help="without the static share of peak")
    parser.add_argument("--table", action="store_true")
    flags = parser.parse_args()
    cells = [json.loads(line) for line in flags.out.read_text().splitlines()] if flags.out.exists() else []
    for chip, recipe in [] if flags.table else itertools.product(flags.chips, flags.recipes):
        static = not flags.quick and chip != "h100"
        before = [cell for cell in cells if (cell["recipe"], cell["chip"]) == (recipe, chip)]
        if before and (before[-1]["static"] or not static):
            continue
        cells = [cell for cell in cells if cell not in before]
        cells.append({"recipe": recipe, "chip": chip, "static": static})
        cells[-1]["attempts"] = compile_cell(recipe, chip, static=static)
        print(f"{recipe} {chip}: {cells[-1]['attempts'][0].get('error', 'compiled')}", file=sys.stderr, flush=True)
        flags.out.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    cells.sort(key=lambda cell: (RECIPES.index(cell["recipe"]), list(TOPOLOGIES).index(cell["chip"])))
    print(show(cells))


if __name__ == "__main__":
    main()
