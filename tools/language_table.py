"""A table of languages: documents in, out by reason, tokens, fertility; held-out scores of those that were trained.

    python tools/language_table.py data/gl_full=runs/gl data/pl_full=runs/pl data/cs_full … [--json=FILE]

Each argument is a prepared corpus, or that and the run that was trained on it. Counts come from corpus.json and scores
from evaluation.json, which `prepare` and `evaluate` leave; nothing is computed here but shares and ratios. Prints
Markdown, as in docs/languages.md.

Fertility is tokens a word of the held-out text, words being what white space separates. Bits a character is the loss of
the predicted tokens over the characters that they stand for, so that languages with other tokenizers compare.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from jaxbert.data import source
from jaxbert.errors import BadInput, run
from jaxbert.prepare import load_corpus

ALWAYS = ("language", "duplicate", "near_duplicate", "near_validation", "no_paragraph_left")  # fates with a column


def main(argv: list[str]) -> None:
    """The command. Raises BadInput for a folder that is no corpus, or a run that was not evaluated or is of another."""
    parser = argparse.ArgumentParser("python tools/language_table.py", description=__doc__.splitlines()[0])
    parser.add_argument("corpora", nargs="+", metavar="CORPUS[=RUN]")
    parser.add_argument("--json", help="also write the rows here")
    flags = parser.parse_args(argv)
    rows = []
    for argument in flags.corpora:
        directory, _, workdir = argument.partition("=")
        rows.append(corpus_row(Path(directory)) | (run_row(Path(workdir), Path(directory)) if workdir else {}))
    tables = [fates_table(rows), text_table(rows)]
    if trained := [row for row in rows if "loss" in row]:
        tables.append(runs_table(trained))
    print("\n\n".join(tables))
    if flags.json:
        Path(flags.json).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def corpus_row(directory: Path) -> dict[str, Any]:
    """What corpus.json says, and the words of the held-out documents."""
    corpus = load_corpus(directory)
    words = sum(len(d["text"].split()) for d in source.read_documents(directory, "validation"))
    characters = {split: found["characters"] for split, found in corpus["splits"].items()}
    return {
        "language": corpus["recipe"]["corpus.language"],
        "sources": len(corpus["sources"]),
        "megabytes": sum(s["bytes"] for s in corpus["sources"]) / 1e6,
        "documents": corpus["documents"],
        "fates": corpus["fates"],
        "characters": sum(characters.values()),
        "tokens": sum(corpus["tokens"].values()),
        "fertility": corpus["tokens"]["validation"] / words,
        "characters_a_token": characters["validation"] / corpus["tokens"]["validation"],
    }


def run_row(workdir: Path, directory: Path) -> dict[str, Any]:
    """The scores of a run. Raises BadInput if it was not evaluated, or was trained on another corpus."""
    try:
        scores = json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))
        recipe = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"{error.filename}: {error.strerror}; run python -m jaxbert.evaluate --workdir={workdir}"
        ) from None
    trained_on = Path(recipe["corpus"]["directory"])
    if trained_on.name != directory.name:
        raise BadInput(f"{workdir}: was trained on {trained_on}, not on {directory}; give that, or another run")
    names = ("loss", "unigram_baseline", "accuracy", "bits_per_character", "masked_tokens", "step")
    return {name: scores[name] for name in names}


def fates_table(rows: list[dict[str, Any]]) -> str:
    """Documents by fate, in the order of FATES; those that no language has are left out."""
    fates = [f for f in rows[0]["fates"] if f != "kept" and (f in ALWAYS or any(r["fates"].get(f) for r in rows))]
    head = ["documents", "packages", "MB", "in", "kept", *(f.replace("_", " ") for f in fates)]
    lines = [
        [row["language"], f"{row['sources']}", f"{row['megabytes']:.0f}", f"{row['documents']:,}"]
        + [f"{row['fates'].get(fate, 0):,}" for fate in ("kept", *fates)]
        for row in rows
    ]
    return markdown(head, lines)


def text_table(rows: list[dict[str, Any]]) -> str:
    """What was kept, and what the tokenizer makes of it."""
    head = ["text", "characters", "tokens", "tokens a word", "characters a token"]
    lines = [
        [row["language"], f"{row['characters'] / 1e6:.2f} M", f"{row['tokens'] / 1e6:.2f} M"]
        + [f"{row['fertility']:.2f}", f"{row['characters_a_token']:.2f}"]
        for row in rows
    ]
    return markdown(head, lines)


def runs_table(rows: list[dict[str, Any]]) -> str:
    """Held-out scores."""
    head = ["scores", "steps", "loss, nats", "unigram baseline", "accuracy", "bits a character", "predicted tokens"]
    lines = [
        [row["language"], f"{row['step']:,}", f"{row['loss']:.3f}", f"{row['unigram_baseline']:.3f}"]
        + [f"{row['accuracy']:.3f}", f"{row['bits_per_character']:.3f}", f"{row['masked_tokens']:,}"]
        for row in rows
    ]
    return markdown(head, lines)


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table whose columns but the first are right-aligned."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *lines])


if __name__ == "__main__":
    run(main)
