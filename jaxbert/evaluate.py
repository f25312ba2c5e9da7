"""Scores of a run: python -m jaxbert.evaluate --workdir=DIR [--step=latest|best|N] [--fill "O [MASK] foi aberto."]

The held-out pieces, their predicted positions and replacements are fixed in the prepared corpus, so every encoder and
row length is scored on the same tokens in the same context. Writes evaluation.json and prints a table.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxbert import runs
from jaxbert.data.packing import unigram_counts
from jaxbert.data.source import Pieces, Validation
from jaxbert.errors import BadInput, run
from jaxbert.prepare import load_corpus


def held_out(
    objective: Any, score: Any, model: Any, validation: Validation, batch_size: int, limit: int = 0
) -> dict[str, float]:
    """Loss (nats a predicted token), accuracy and the number of predicted tokens of the held-out pieces.

    `score`: the jitted `objective.score`; `limit`: pieces to score, 0 for all. Sums are added in float64 on the host,
    after every batch is dispatched.
    """
    rows = min(limit, len(validation)) if limit else len(validation)
    sums = []
    for start in range(0, rows, batch_size):
        row_B = np.arange(start, start + batch_size)
        row_B = np.where(row_B < rows, row_B, len(validation))  # past the end: rows of weight 0
        sums.append(score(model, objective.make_validation_batch(validation, row_B)))
    totals = {name: math.fsum(float(s[name]) for s in sums) for name in sums[0]}
    count = totals.pop("count")
    return {**{name: value / count for name, value in totals.items()}, "masked_tokens": int(count)}


def unigram_baseline(validation: Validation, counts_V: np.ndarray) -> float:
    """Cross-entropy (nats) of the predicted tokens under add-one unigram frequencies of the training text.

    `counts_V`: occurrences in the training tokens, (V,) integers.
    """
    log_p_V = np.log(counts_V + 1.0) - math.log(counts_V.sum() + len(counts_V))
    total = sum(float(log_p_V[piece.labels_RP[piece.weights_RP > 0]].sum()) for piece in _blocks(validation))
    return -total / validation.masked_tokens


def _blocks(validation: Validation, size: int = 4096) -> Iterator[Pieces]:
    """All pieces, some at a time: they need not fit into memory."""
    for start in range(0, len(validation), size):
        yield validation[start : start + size]


def corpus_of(trained: runs.Run) -> tuple[Path, dict[str, Any]]:
    """The prepared corpus that a run was trained on: its directory and its corpus.json.

    Raises BadInput if it is not there, has another tokenizer than the run, or if the run's weights were imported.
    """
    if "imported" in trained.loop:
        raise BadInput(
            "--workdir: holds imported weights, which come without a corpus, so there is no held-out score; give "
            "--fill, or train from them on your own corpus (model.initialize_from)"
        )
    directory = Path(trained.config.corpus.directory)
    corpus = load_corpus(directory)
    if corpus["tokenizer"]["fingerprint"] != trained.tokenizer.fingerprint:
        raise BadInput(
            f"corpus.directory: {directory} was tokenized with another tokenizer than the run's "
            f"({trained.tokenizer.directory}); restore the corpus that the run was trained on"
        )
    return directory, corpus


def evaluate(trained: runs.Run) -> dict[str, Any]:
    """The held-out scores of a run, as evaluation.json holds them.

    Raises BadInput if its corpus is missing, or has another tokenizer.
    """
    directory, _ = corpus_of(trained)
    validation = Validation.open(directory / "validation")
    score = jax.jit(trained.objective.score)
    scores = held_out(trained.objective, score, trained.model, validation, trained.config.evaluation.batch_size)
    characters = sum(int(piece.characters_RP[piece.weights_RP > 0].sum()) for piece in _blocks(validation))
    bits = scores["loss"] * scores["masked_tokens"] / math.log(2) / characters
    counts_V = unigram_counts(directory / "tokens" / "train", trained.tokenizer.vocab_size)
    baseline = unigram_baseline(validation, counts_V)
    result = {
        "step": trained.step,
        "tokens": trained.loop["tokens"],
        **scores,
        "unigram_baseline": baseline,
        "below_baseline": baseline - scores["loss"],
        "bits_per_character": bits,
        "masked_characters": characters,
    }
    return result


def mask_probabilities(trained: runs.Run, text: str) -> np.ndarray:
    """Probability of every token at each [MASK] in `text`, in order: (P, V) float32, V the true vocabulary size.

    Raises BadInput if there is no [MASK], or the text is longer than the model's positions.
    """
    tokenizer, model = trained.tokenizer, trained.config.model
    ids_T = tokenizer.encode_with_masks(text)
    positions_P = np.flatnonzero(ids_T == tokenizer.mask_id)
    if not len(positions_P):
        raise BadInput(f"--fill: {text!r} has no [MASK]; write [MASK] where a token is to be predicted")
    most = model.longest_row
    if most is not None and len(ids_T) > most:
        raise BadInput(f"--fill: {len(ids_T)} tokens are over model.max_positions {most}; give a shorter text")
    batch = {
        "input_ids_BT": ids_T[None],
        "segment_ids_BT": np.ones((1, len(ids_T)), np.int32),
        "position_ids_BT": np.arange(len(ids_T), dtype=np.int32)[None],
        "length_B": np.array([len(ids_T)], np.int32),
    }
    logits_PV = trained.model(batch, jnp.asarray(positions_P)[None])[0, :, : tokenizer.vocab_size]
    return np.asarray(jax.nn.softmax(logits_PV, axis=-1))


def fill(trained: runs.Run, text: str, most: int = 5) -> list[list[tuple[str, float]]]:
    """The likeliest tokens for each [MASK] in `text`: a list a mask of (token's text, probability), best first.

    Raises BadInput as `mask_probabilities` does.
    """
    found = []
    for p_V in mask_probabilities(trained, text):
        best = np.argsort(-p_V, kind="stable")[:most]
        found.append([(trained.tokenizer.decode([int(i)]), float(p_V[i])) for i in best])
    return found


def _table(title: str, scores: dict[str, Any]) -> Table:
    table = Table(title=title)
    table.add_column("held out")
    table.add_column("value", justify="right")
    for label, value in (
        ("loss (nats a masked token)", f"{scores['loss']:.4f}"),
        ("unigram baseline", f"{scores['unigram_baseline']:.4f}"),
        ("below the baseline", f"{scores['below_baseline']:.4f}"),
        ("accuracy", f"{scores['accuracy']:.4f}"),
        ("bits a character", f"{scores['bits_per_character']:.4f}"),
        ("masked tokens", f"{scores['masked_tokens']:,}"),
    ):
        table.add_row(label, value)
    return table


def main(argv: list[str]) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m jaxbert.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--step", default="latest", help="latest, best (lowest held-out loss) or a number")
    parser.add_argument("--fill", action="append", default=[], metavar="TEXT", help="text with [MASK]; may be repeated")
    flags = parser.parse_args(argv)
    trained = runs.load_run(flags.workdir, flags.step)
    fills = [{"text": text, "masks": fill(trained, text)} for text in flags.fill]  # first: a text may be refused
    scored = "imported" not in trained.loop or not fills
    scores = evaluate(trained) if scored else {"step": trained.step, "tokens": trained.loop["tokens"]}
    runs.write_json(Path(flags.workdir) / "evaluation.json", {**scores, "fills": fills})
    console = Console(highlight=False)
    if scored:
        console.print(_table(f"{flags.workdir} at step {trained.step:,}", scores))
    else:
        console.print("imported weights: no corpus, so no held-out score", markup=False)
    for filled in fills:
        console.print(filled["text"], markup=False)
        for choices in filled["masks"]:
            console.print("    " + "  ".join(f"{text!r} {p:.3f}" for text, p in choices), markup=False)


if __name__ == "__main__":
    run(main)
