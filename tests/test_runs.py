"""A run directory's neighbours: checkpoints elsewhere, and the mean of several."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxbert import card, checkpoint, config, recipe_files, runs, train
from jaxbert.errors import BadInput
from tests.test_train import change, fingerprints, records


def leaves(run: runs.Run) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(run.model)]


def test_the_mean_of_several_checkpoints_is_taken_in_float64(tiny_run: Path) -> None:
    both = [leaves(runs.load_run(tiny_run, step)) for step in ("15", "20")]
    mean = runs.load_run(tiny_run, average=2)
    assert (mean.step, mean.averaged) == (20, (15, 20))
    for found, first, second in zip(leaves(mean), *both, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, ((first.astype(np.float64) + second) / 2).astype(np.float32))


def test_an_average_of_more_checkpoints_than_there_are_is_refused(tiny_run: Path) -> None:
    with pytest.raises(
        BadInput, match=r"--average: 3 checkpoints, but up to step 20 .* has 2 whole ones \(\[20, 15\]\)"
    ):
        runs.load_run(tiny_run, average=3)
    with pytest.raises(BadInput, match=r"--average: 2 checkpoints, but up to step 15 .* has 1 whole"):
        runs.load_run(tiny_run, "15", average=2)


def test_the_card_names_the_steps_of_a_mean_and_gives_it_no_score_of_another(tiny_run: Path) -> None:
    mean = runs.load_run(tiny_run, average=2)
    text = card.model_card(mean, tiny_run, None, card.Exported("BertForMaskedLM"), None, 1, "")
    assert "the mean of the parameters of steps 15, 20, " in text
    assert "None were recorded for this mean of several steps." in text


@pytest.mark.slow
def test_on_a_machine_that_does_not_know_the_run_it_goes_on_from_checkpoints_elsewhere(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path
) -> None:
    settings = change(tiny_corpus, checkpoint={"directory": str(tmp_path / "bucket")})
    train.train(settings, tmp_path / "first")
    shutil.rmtree(tmp_path / "bucket/20")  # as if it had been preempted after step 15
    shutil.rmtree(tmp_path / "first")
    train.train(settings, tmp_path / "second")
    assert records(tmp_path / "second") == records(tiny_run)
    assert fingerprints(tmp_path / "second") == fingerprints(tiny_run)
    summaries = [json.loads((place / "summary.json").read_text()) for place in (tmp_path / "second", tiny_run)]
    assert summaries[0]["validation"] == summaries[1]["validation"]
    with pytest.raises(BadInput, match="third holds a run of another recipe: train.batch_size was 8, now 16"):
        train.train(change(settings, train={"batch_size": 16}), tmp_path / "third")


def test_checkpoints_may_move_but_not_vanish(tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", change(tiny_corpus, checkpoint={"directory": str(tmp_path / "elsewhere")})
    shutil.copytree(tiny_run, run)
    with pytest.raises(BadInput, match="checkpoint.directory was '', now "):
        train.train(elsewhere, run)
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    train.train(elsewhere, run)
    assert checkpoint.steps_in(tmp_path / "elsewhere") == [15, 20] and fingerprints(run) == fingerprints(tiny_run)


def test_what_is_kept_for_good_must_be_saved() -> None:
    with pytest.raises(BadInput, match="checkpoint.keep_every: 1500 is no multiple of checkpoint.every 1000"):
        recipe_files.load(
            "configs/own_text.py",
            [
                "--config.corpus.input=x",
                "--config.corpus.language=gl",
                "--config.checkpoint.every=1000",
                "--config.checkpoint.keep_every=1500",
            ],
        )
