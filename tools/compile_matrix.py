"""Every recipe of a published size, compiled for every chip: whether it fits, its operations, its static share of peak.

    python tools/compile_matrix.py [--recipes bert_base gmlp_base] [--chips v5e v6e] [--quick] [--out=FILE] [--table]

A cell is `python -m jaxbert.plan --cycles` of the recipe on four chips, or on the 256 of v5e:16x16, in a process of its
own; a line of --out each. Started again, it makes what is missing. --quick leaves the static share out, which takes
most of the time: without --quick such cells are made again. --table prints what is there and compiles nothing.
Everything is compiled for devices that were not attached: nothing ran on one.
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


def attempts(recipe: str, topology: str, *flags: str) -> list[dict]:
    """Those of `python -m jaxbert.plan` with flags, in a process of its own: one a phase, or one with "error"."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "jaxbert.plan", f"--config=configs/{recipe}.py", f"--topology={topology}"]
        command += [f"--json={file}", "--config.corpus.language=en", *flags]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return [{"error": f"over {LIMIT} s"}]
        if done.returncode:
            return [{"error": done.stderr.strip().splitlines()[-1][:300]}]
        return json.loads(file.read_text())["attempts"]


def compile_cell(recipe: str, chip: str, *overrides: str, static: bool = True) -> dict:
    """A cell: the attempts of a recipe, with overrides, on a chip."""
    found = attempts(recipe, TOPOLOGIES[chip], "--cycles" if static else "--no-search", *overrides)
    return {"recipe": recipe, "chip": chip, "static": static, "attempts": found}


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--chips", nargs="+", choices=tuple(TOPOLOGIES), default=tuple(TOPOLOGIES)[:-1])
    parser.add_argument("--out", type=Path, default=Path("matrix.jsonl"))
    parser.add_argument("--quick", action="store_true", help="without the static share of peak")
    parser.add_argument("--table", action="store_true")
    flags = parser.parse_args()
    lines = flags.out.read_text().splitlines() if flags.out.exists() else []
    cells = {(cell["recipe"], cell["chip"]): cell for cell in map(json.loads, lines)}
    for chip, recipe in [] if flags.table else itertools.product(flags.chips, flags.recipes):
        static = not flags.quick and chip != "h100"
        if (recipe, chip) in cells and cells[recipe, chip]["static"] >= static:
            continue
        cells[recipe, chip] = cell = compile_cell(recipe, chip, static=static)
        print(f"{recipe} {chip}: {cell['attempts'][0].get('error', 'compiled')}", file=sys.stderr, flush=True)
        flags.out.write_text("".join(json.dumps(cell) + "\n" for cell in cells.values()))
    print(show([cells[key] for key in itertools.product(RECIPES, TOPOLOGIES) if key in cells]))


if __name__ == "__main__":
    main()
