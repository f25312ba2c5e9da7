"""Scores of a run: what they are made of, what they do not depend on, and how the command answers."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxbert import evaluate, objectives, runs
from jaxbert.data.packing import unigram_counts
from jaxbert.data.source import Validation, read_documents
from jaxbert.errors import BadInput

FILL = "O [MASK] foi [MASK]."


@pytest.fixture(scope="module")
def trained(tiny_run: Path) -> runs.Run:
    return runs.load_run(tiny_run)


@pytest.fixture(scope="module")
def validation(tiny_corpus) -> Validation:
    return Validation.open(Path(tiny_corpus.corpus.directory) / "validation")


@pytest.fixture
def own(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the run for a test that changes it."""
    shutil.copytree(tiny_run, tmp_path / "run")
    return tmp_path / "run"


def score(trained, validation, batch_size, limit=0, objective=None):
    objective = objective or trained.objective
    return evaluate.held_out(objective, jax.jit(objective.score), trained.model, validation, batch_size, limit)


def by_hand(trained, validation, rows):
    """Loss and hits of some pieces, one at a time and without padding."""
    losses, hits = [], []
    for row in range(rows):
        piece = validation[np.array([row])]
        length, count = int((piece.segment_ids_RT > 0).sum()), int(piece.weights_RP.sum())
        batch = {
            "input_ids_BT": piece.input_ids_RT[:, :length],
            "segment_ids_BT": np.ones((1, length), np.int32),
            "position_ids_BT": np.arange(length, dtype=np.int32)[None],
        }
        logits_PV = np.asarray(trained.model(batch, piece.positions_RP[:, :count]))[0, :, :600].astype(np.float64)
        labels_P = piece.labels_RP[0, :count]
        log_sum_P = np.log(np.exp(logits_PV).sum(axis=1))
        losses += (log_sum_P - logits_PV[np.arange(count), labels_P]).tolist()
        hits += (logits_PV.argmax(axis=1) == labels_P).tolist()
    return np.mean(losses), np.mean(hits), len(losses)


# --- held-out loss ---


@pytest.mark.parametrize("rows", [9, pytest.param(24, marks=pytest.mark.slow)])  # each length is a program
def test_the_score_is_the_mean_over_predicted_tokens_of_unpadded_pieces(rows, trained, validation):
    loss, accuracy, count = by_hand(trained, validation, rows)
    found = score(trained, validation, 8, limit=rows)
    assert found["loss"] == pytest.approx(loss, rel=1e-5) and found["accuracy"] == pytest.approx(accuracy)
    assert found["masked_tokens"] == count


@pytest.mark.parametrize("batch_size", [1, 7, 300])
def test_the_score_does_not_depend_on_the_batch_size(batch_size, trained, validation):
    rows = 40
    expected, found = score(trained, validation, 16, rows), score(trained, validation, batch_size, rows)
    assert found["masked_tokens"] == expected["masked_tokens"] and found["accuracy"] == expected["accuracy"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_the_score_does_not_depend_on_the_row_length_or_training_rate(trained, validation):
    config = trained.config
    other = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, row_length=512),
        objective=dataclasses.replace(config.objective, mask_rate=0.4, whole_words=True),
    )
    tokenizer = trained.tokenizer
    ids = {"vocab_size": tokenizer.vocab_size, "mask_id": tokenizer.mask_id, "special_ids": tokenizer.special_ids}
    assert score(trained, validation, 16, 32, objectives.make(other, **ids)) == score(trained, validation, 16, 32)


def test_a_limit_scores_the_first_pieces_and_0_or_more_than_there_are_scores_all(trained, validation):
    everything = score(trained, validation, 64)
    assert (
        everything["masked_tokens"]
        == validation.masked_tokens
        == score(trained, validation, 64, 10**6)["masked_tokens"]
    )
    first, second = (score(trained, validation, 16, n)["masked_tokens"] for n in (10, 20))
    counts = validation[np.arange(20)].weights_RP.sum(axis=1)
    assert (first, second) == (counts[:10].sum(), counts.sum())


def test_the_score_in_training_is_the_score_of_evaluate(tiny_run, trained):
    told = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in told if record["split"] == "validation"][-1]
    result = evaluate.evaluate(runs.load_run(tiny_run))
    assert last["loss"] == pytest.approx(result["loss"], rel=1e-6) and last["accuracy"] == result["accuracy"]


# --- baseline and bits ---


def test_the_baseline_is_add_one_unigram_cross_entropy_on_the_same_tokens(tiny_corpus, trained, validation):
    directory, counts = Path(tiny_corpus.corpus.directory), {}
    for document in read_documents(directory, "train"):
        for token in trained.tokenizer.encode([document["text"]])[0][0].tolist():
            counts[token] = counts.get(token, 0) + 1
    total, losses = sum(counts.values()) + 600, []
    for row in range(len(validation)):
        piece = validation[np.array([row])]
        for label, weight in zip(piece.labels_RP[0].tolist(), piece.weights_RP[0].tolist(), strict=True):
            if weight:
                losses.append(-math.log((counts.get(label, 0) + 1) / total))
    counts_V = unigram_counts(directory / "tokens" / "train", 600)
    assert evaluate.unigram_baseline(validation, counts_V) == pytest.approx(np.mean(losses), rel=1e-12)


def test_bits_a_character_count_the_characters_of_the_masked_tokens(tiny_run, trained, validation):
    result = evaluate.evaluate(runs.load_run(tiny_run))
    piece = validation[np.arange(len(validation))]
    labels = piece.labels_RP[piece.weights_RP > 0]
    characters = sum(
        len(trained.tokenizer.tokenizer.id_to_token(int(label))) for label in labels
    )  # no byte pieces here
    assert not any(trained.tokenizer.tokenizer.id_to_token(int(label)).startswith("<0x") for label in labels)
    assert result["masked_characters"] == characters
    assert result["bits_per_character"] == pytest.approx(result["loss"] * len(labels) / math.log(2) / characters)


# --- which step ---


@pytest.mark.parametrize("step, expected", [("latest", 20), ("best", 20), ("15", 15), ("20", 20)])
def test_a_step_is_latest_best_or_a_number(step, expected, tiny_run):
    assert runs.load_run(tiny_run, step).step == expected


def test_best_is_the_kept_step_of_the_lowest_held_out_loss(own):
    with open(own / "metrics.jsonl", "a") as file:
        for step, loss in ((10, 0.1), (15, 0.2), (20, 9.0)):  # step 10 is not kept
            file.write(json.dumps({"step": step, "split": "validation", "loss": loss}) + "\n")
        file.write('{"step": 20, "spl')  # the process was killed
    assert runs.load_run(own, "best").step == 15


@pytest.mark.parametrize("step", ["7", "-1", "²", "newest", ""])
def test_an_unknown_step_is_refused_with_those_there_are(step, tiny_run):
    with pytest.raises(BadInput, match=r"--step: .* is not latest, best or one of \[15, 20\]"):
        runs.load_run(tiny_run, step)


def test_best_of_a_run_without_scores_is_refused(own):
    (own / "metrics.jsonl").write_text("")
    with pytest.raises(BadInput, match="--step=best: no checkpoint"):
        runs.load_run(own, "best")
    (own / "metrics.jsonl").unlink()
    with pytest.raises(BadInput, match="--step=best: no checkpoint"):
        runs.load_run(own, "best")


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="has no config.json"):
        evaluate.evaluate(runs.load_run(tmp_path))


def test_a_run_without_checkpoints_is_refused(own):
    shutil.rmtree(own / "checkpoints")
    with pytest.raises(BadInput, match="has no checkpoint"):
        evaluate.evaluate(runs.load_run(own))


def test_a_corpus_of_another_tokenizer_is_refused(own, tmp_path):
    config = json.loads((own / "config.json").read_text())
    shutil.copytree(config["corpus"]["directory"], tmp_path / "corpus")
    corpus = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    corpus["tokenizer"]["fingerprint"] = "0" * 64
    (tmp_path / "corpus" / "corpus.json").write_text(json.dumps(corpus))
    config["corpus"]["directory"] = str(tmp_path / "corpus")
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="corpus.directory: .* another tokenizer"):
        evaluate.evaluate(runs.load_run(own))


# --- fill ---


def test_every_mask_gets_its_likeliest_tokens_with_their_probabilities(trained):
    probabilities_PV = evaluate.mask_probabilities(trained, FILL)
    assert probabilities_PV.shape == (2, 600)
    np.testing.assert_allclose(probabilities_PV.sum(axis=1), 1.0, atol=1e-5)
    found = evaluate.fill(trained, FILL, most=3)
    for p_V, choices in zip(probabilities_PV, found, strict=True):
        best = sorted(range(600), key=lambda i: -p_V[i])[:3]
        assert choices == [(trained.tokenizer.decode([i]), float(p_V[i])) for i in best]


def test_a_mask_sees_both_sides(trained):
    left, right = (evaluate.mask_probabilities(trained, t)[0] for t in ("A [MASK] foi.", "A [MASK] era."))
    before, after = (evaluate.mask_probabilities(trained, t)[0] for t in ("foi [MASK] foi.", "era [MASK] foi."))
    assert np.abs(left - right).max() > 1e-7 and np.abs(before - after).max() > 1e-7


@pytest.mark.parametrize("text", ["", "nada", "[ MASK ]", "[mask]"])
def test_a_text_without_a_mask_is_refused(text, trained):
    with pytest.raises(BadInput, match=r"--fill: .* has no \[MASK\]"):
        evaluate.fill(trained, text)


def test_a_text_over_the_models_positions_is_refused(trained):
    assert evaluate.fill(trained, "[MASK]" * 94)
    with pytest.raises(BadInput, match=r"--fill: 97 tokens are over model.max_positions 96"):
        evaluate.fill(trained, "[MASK]" * 95)


# --- the command ---


def test_the_command_writes_evaluation_json_and_prints_a_table(own, capsys):
    evaluate.main([f"--workdir={own}", "--step=15", "--fill", FILL])
    written, told = json.loads((own / "evaluation.json").read_text()), capsys.readouterr().out
    assert sorted(written) == sorted(
        [
            "step",
            "tokens",
            "loss",
            "accuracy",
            "masked_tokens",
            "unigram_baseline",
            "below_baseline",
            "bits_per_character",
            "masked_characters",
            "fills",
        ]
    )
    assert written["step"] == 15 and written["tokens"] > 0
    assert written["below_baseline"] == pytest.approx(written["unigram_baseline"] - written["loss"])
    (filled,) = written["fills"]
    assert filled["text"] == FILL and [len(choices) for choices in filled["masks"]] == [5, 5]
    for shown in (
        f"{written['loss']:.4f}",
        f"{written['unigram_baseline']:.4f}",
        f"{written['masked_tokens']:,}",
        FILL,
    ):
        assert shown in told


def test_a_bad_fill_leaves_the_scores_of_before(own):
    (own / "evaluation.json").write_text("{}")
    with pytest.raises(BadInput, match="--fill"):
        evaluate.main([f"--workdir={own}", "--fill", "nada"])
    assert (own / "evaluation.json").read_text() == "{}"


def test_bad_input_ends_with_one_message_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "jaxbert.evaluate", f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --workdir: ") and done.stderr.count("\n") == 1
