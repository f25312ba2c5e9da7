"""The loop: resuming, accumulating, refusing, skipping, and the mesh."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxbert import config, evaluate, runs, train
from jaxbert.data.source import rows_of_step
from jaxbert.errors import BadInput, Diverged
from jaxbert.models import gmlp
from jaxbert.objectives.mlm import MaskedLanguageModelling
from tests.conftest import FLAGS

# What no two runs share.
TIMES = ("tokens_per_second", "flops_utilization", "data_wait_fraction", "goodput", "slow_steps")


def change(settings: config.Config, **sections: dict) -> config.Config:
    for name, fields in sections.items():
        settings = dataclasses.replace(settings, **{name: dataclasses.replace(getattr(settings, name), **fields)})
    return settings


def without_dropout(settings: config.Config) -> config.Config:
    return change(settings, model={"hidden_dropout": 0.0, "attention_dropout": 0.0})


def records(workdir: Path, split: str | None = None) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in TIMES} for r in lines if split in (None, r["split"])]


def fingerprints(workdir: Path) -> dict:
    return runs.load_run(workdir).loop["fingerprints"]


class Killed(BaseException):
    """Stands in for SIGKILL: nothing in the package catches it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = train.prefetch

    def prefetch(make_batch, start, stop):
        for number, batch in enumerate(real(make_batch, start, stop), start=start):
            if number == step:
                raise Killed
            yield batch

    monkeypatch.setattr(train, "prefetch", prefetch)


def test_the_loss_falls_and_the_run_directory_holds_what_people_script_against(tiny_run: Path) -> None:
    losses = [r["loss"] for r in records(tiny_run, "train")]
    assert [r["step"] for r in records(tiny_run, "train")] == [5, 10, 15, 20]
    assert [r["step"] for r in records(tiny_run, "validation")] == [10, 20]
    assert losses[-1] < losses[0] - 0.2
    assert {"config.json", "metrics.jsonl", "checkpoints", "tokenizer", "summary.json"} <= {
        path.name for path in tiny_run.iterdir()
    }
    assert json.loads((tiny_run / "summary.json").read_text())["validation"]["loss"] == records(tiny_run)[-1]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "lamb", "learning_rate": 2e-2},
        {"name": "stable_adamw", "decay_follows": "schedule", "decays": "all", "clip_norm": 0.0},
    ],
)
def test_the_loss_falls_and_resuming_is_exact_with_other_optimizers_and_z_loss(
    tiny_corpus: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: dict
) -> None:
    settings = change(tiny_corpus, optimizer=optimizer, objective={"z_loss": 1e-4})
    train.train(settings, tmp_path / "whole")
    told = records(tmp_path / "whole", "train")
    assert told[-1]["loss"] < told[0]["loss"] - 0.1
    assert all(0 < record["z_loss"] < 1e-4 * 12**2 for record in told)  # log Z starts near ln 600 = 6.4
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 13)
        train.train(settings, tmp_path / "killed")
    train.train(settings, tmp_path / "killed")
    assert fingerprints(tmp_path / "killed") == fingerprints(tmp_path / "whole")
    assert records(tmp_path / "killed") == records(tmp_path / "whole")


@pytest.mark.parametrize("step", [13, *(pytest.param(step, marks=pytest.mark.slow) for step in (3, 18))])
def test_a_killed_run_started_again_is_bit_for_bit_the_undisturbed_one(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, step)
        train.train(tiny_corpus, tmp_path / "run")
    train.train(tiny_corpus, tmp_path / "run")
    assert fingerprints(tmp_path / "run") == fingerprints(tiny_run)
    assert records(tmp_path / "run") == records(tiny_run)


@pytest.mark.slow
def test_rows_of_one_document_train_resume_bit_for_bit_and_read_every_token_once_an_epoch(
    tiny_corpus: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    settings = change(tiny_corpus, data={"pack": False}, train={"steps": None, "epochs": 1.0, "log_every": 1})
    train.train(settings, tmp_path / "whole")
    steps = records(tmp_path / "whole", "train")[-1]["step"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, steps // 2)
        train.train(settings, tmp_path / "killed")
    train.train(settings, tmp_path / "killed")
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    assert fingerprints(tmp_path / "killed") == fingerprints(tmp_path / "whole")
    about = json.loads((Path(settings.corpus.directory) / "single_64/single.json").read_text())
    whole = records(tmp_path / "whole", "train")
    assert whole[-1]["tokens"] == about["tokens"] + 2 * about["rows"]  # [CLS] and [SEP] are tokens of a row
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.2


def test_a_finished_run_started_again_changes_nothing(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    before = records(tmp_path / "run"), fingerprints(tmp_path / "run"), (tmp_path / "run/summary.json").read_text()
    train.train(tiny_corpus, tmp_path / "run")
    after = records(tmp_path / "run"), fingerprints(tmp_path / "run"), (tmp_path / "run/summary.json").read_text()
    assert after == before
    assert "nothing to do" in capsys.readouterr().out


def test_accumulation_gives_the_large_batchs_losses(tiny_corpus: config.Config, tmp_path: Path) -> None:
    settings = change(without_dropout(tiny_corpus), train={"log_every": 1, "steps": 6})
    for parts in (1, 4):
        train.train(change(settings, train={"accumulate": parts}), tmp_path / str(parts))
    one, four = ([r["loss"] for r in records(tmp_path / parts, "train")] for parts in "14")
    np.testing.assert_allclose(four, one, rtol=1e-5)


@pytest.mark.slow
def test_another_seed_gives_other_batches_dropout_and_initial_values(
    tiny_corpus: config.Config, tmp_path: Path
) -> None:
    for field in ("data_seed", "init_seed", "dropout_seed"):
        settings = change(tiny_corpus, train={"steps": 2, "log_every": 1})
        losses = []
        for value in (1, 2):
            workdir = tmp_path / f"{field}{value}"
            train.train(change(settings, train={field: value}), workdir)
            losses.append(records(workdir, "train")[1]["loss"])
        assert losses[0] != losses[1], field


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path
) -> None:
    train.train(change(tiny_corpus, train={"dtype": "bfloat16"}), tmp_path / "run")
    half, full = (records(place, "validation")[-1]["loss"] for place in (tmp_path / "run", tiny_run))
    assert half != full and abs(half - full) < 0.05
    model = runs.load_run(tmp_path / "run").model
    assert model.encoder.embedding_VD.dtype == np.float32


@pytest.mark.parametrize(
    "sections, names",
    [
        ({"train": {"batch_size": 16}}, ["train.batch_size was 8, now 16"]),
        ({"optimizer": {"learning_rate": 1.0}, "objective": {"mask_rate": 0.3}}, ["learning_rate", "mask_rate"]),
        ({"train": {"steps": 40}}, ["train.steps was 20, now 40"]),
    ],
)
def test_a_resumed_run_refuses_another_recipe_and_names_the_fields(
    tiny_corpus: config.Config, tiny_run: Path, sections: dict, names: list[str]
) -> None:
    with pytest.raises(BadInput) as error:
        train.train(change(tiny_corpus, **sections), tiny_run)
    for name in names:
        assert name in str(error.value)


@pytest.mark.slow
def test_a_warmup_stable_decay_run_may_be_made_longer(tiny_corpus: config.Config, tmp_path: Path) -> None:
    settings = change(tiny_corpus, schedule={"name": "wsd", "warmup": 2, "decay": 0}, train={"log_every": 1})
    for steps in (5, 10):
        train.train(change(settings, train={"steps": steps}, checkpoint={"every": 1000 + steps}), tmp_path / "grown")
    train.train(change(settings, train={"steps": 10}), tmp_path / "whole")
    assert records(tmp_path / "grown", "train") == records(tmp_path / "whole", "train")


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    real = MaskedLanguageModelling.make_batch

    def make_batch(self, rows, epoch_B, row_B, seed):
        batch = real(self, rows, epoch_B, row_B, seed)
        wanted = [rows_of_step(step, len(row_B), len(rows), seed)[1].tolist() for step in steps]
        if row_B.tolist() in wanted:
            batch["weights_BP"] = batch["weights_BP"] * np.nan
        return batch

    monkeypatch.setattr(MaskedLanguageModelling, "make_batch", make_batch)


def test_a_step_with_a_nan_is_left_out_and_its_rows_are_named(
    tiny_corpus: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {3})
    train.train(tiny_corpus, tmp_path / "run")
    skipped = records(tmp_path / "run", "skipped")
    assert [r["step"] for r in skipped] == [4]
    assert len(skipped[0]["rows"]) == 8
    losses = [r["loss"] for r in records(tmp_path / "run", "train")]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_a_run_may_stop_at_the_first_bad_step(
    tiny_corpus: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {3})
    with pytest.raises(Diverged, match=r"step 3: loss nan.*rows in rows_64: \["):
        train.train(change(tiny_corpus, train={"bad_step": "stop"}), tmp_path / "run")


def test_too_many_bad_steps_in_a_row_stop_the_run(
    tiny_corpus: config.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, set(range(4, 20)))
    with pytest.raises(Diverged, match="step 7.*max_skipped"):
        train.train(change(tiny_corpus, train={"max_skipped": 3}), tmp_path / "run")


@pytest.mark.slow
def test_a_spike_of_the_gradient_is_left_out(tiny_corpus: config.Config, tmp_path: Path) -> None:
    train.train(change(tiny_corpus, train={"spike": 0.5}), tmp_path / "run")  # so low that ordinary steps are spikes
    assert records(tmp_path / "run", "skipped")


def test_an_impossible_first_loss_stops_a_fresh_model(tiny_corpus: config.Config, tmp_path: Path) -> None:
    settings = change(tiny_corpus, model={"initializer_range": 3.0})
    with pytest.raises(Diverged, match=r"first loss is .* ln 600 = 6.397"):
        train.train(settings, tmp_path / "run")


def test_a_new_run_starts_from_the_weights_of_another_at_another_row_length(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path
) -> None:
    settings = change(
        tiny_corpus,
        model={"initialize_from": str(tiny_run)},
        data={"row_length": 96},
        train={"log_every": 1, "steps": 2},
    )
    train.train(settings, tmp_path / "run")
    assert records(tmp_path / "run", "train")[0]["loss"] < records(tiny_run, "train")[1]["loss"]


@pytest.mark.slow
def test_weights_of_another_run_are_split_over_several_devices(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path
) -> None:
    settings = change(tiny_corpus, model={"initialize_from": str(tiny_run)}, train={"log_every": 1, "steps": 1})
    train.train(settings, tmp_path / "one")
    done = start(change(settings, sharding={"data": 1, "fsdp": 2}), tmp_path / "two", JAX_NUM_CPU_DEVICES="2")
    assert done.wait() == 0
    one, two = ([r["loss"] for r in records(tmp_path / place, "train")] for place in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_weights_of_other_sizes_are_refused_by_name(tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path) -> None:
    settings = change(tiny_corpus, model={"initialize_from": str(tiny_run), "feed_forward_size": 48})
    with pytest.raises(BadInput, match=r"encoder/blocks/down_FD is \(2, 64, 32\) in .*, \(2, 48, 32\)"):
        train.train(settings, tmp_path / "run")


def test_weights_of_another_vocabulary_of_the_same_size_are_refused(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "other")
    path = tmp_path / "other" / "tokenizer" / "tokenizer.json"
    layout = json.loads(path.read_text())
    pieces = layout["model"]["vocab"]
    pieces[100], pieces[101] = pieces[101], pieces[100]
    path.write_text(json.dumps(layout))
    settings = change(tiny_corpus, model={"initialize_from": str(tmp_path / "other")})
    with pytest.raises(BadInput, match=r"initialize_from: .*other has another vocabulary than .*convert --from=run"):
        train.train(settings, tmp_path / "run")


def test_rows_longer_than_the_models_positions_are_refused(tiny_corpus: config.Config, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"data.row_length: 128 .*model.max_positions 96"):
        train.train(change(tiny_corpus, data={"row_length": 128}), tmp_path / "run")


@pytest.mark.slow
def test_a_toeplitz_matrix_reads_rows_over_its_positions(tiny_corpus: config.Config, tmp_path: Path) -> None:
    model = gmlp.Config("gmlp", 1, 16, feed_forward_size=32, attention_size=0, max_positions=24)
    settings = dataclasses.replace(change(tiny_corpus, train={"steps": 1}), model=model)
    train.train(settings, tmp_path / "run")
    assert evaluate.fill(runs.load_run(tmp_path / "run"), "[MASK]" * 120)
    dense = dataclasses.replace(settings, model=dataclasses.replace(model, spatial="dense"))
    with pytest.raises(BadInput, match=r"data.row_length: 64 .*model.max_positions 24"):
        train.train(dense, tmp_path / "dense")


def test_a_recipe_with_another_tokenizer_than_the_corpuss_is_refused(
    tiny_corpus: config.Config, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="tokenizer.vocab_size: 700, but .* was prepared with 600"):
        train.train(change(tiny_corpus, tokenizer={"vocab_size": 700}), tmp_path / "run")


def test_a_corpus_that_was_tokenized_anew_is_refused_by_the_run_that_knows_the_old_one(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run/tokenizer/tokenizer.json").write_text(
        (tmp_path / "run/tokenizer/tokenizer.json").read_text().replace('"version"', ' "version"', 1)
    )
    with pytest.raises(BadInput, match="tokenized with another tokenizer"):
        train.train(tiny_corpus, tmp_path / "run")


def test_a_corpus_that_was_not_prepared_is_refused(tiny_corpus: config.Config, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"jaxbert.prepare"):
        train.train(change(tiny_corpus, corpus={"directory": str(tmp_path / "absent")}), tmp_path / "run")


def test_a_work_directory_that_cannot_be_written_is_refused(tiny_corpus: config.Config) -> None:
    with pytest.raises(BadInput, match="--workdir: cannot write to /proc/run"):
        train.train(tiny_corpus, Path("/proc/run"))


@pytest.mark.slow
def test_a_broken_newest_checkpoint_costs_its_steps_and_nothing_else(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    newest = tmp_path / "run/checkpoints/20"
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)
    train.train(tiny_corpus, tmp_path / "run")
    assert records(tmp_path / "run") == records(tiny_run)
    assert fingerprints(tmp_path / "run") == fingerprints(tiny_run)


def start(settings: config.Config, workdir: Path, **environment: str) -> subprocess.Popen:
    """The loop in a process of its own, from a resolved recipe."""
    program = (
        "import json, sys; from pathlib import Path; from jaxbert import config, train;"
        "train.train(config.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", program, json.dumps(config.to_dict(settings)), str(workdir)]
    return subprocess.Popen(arguments, env={**os.environ, "XLA_FLAGS": FLAGS, **environment}, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "tensor": 2}])  # others, without the loop: test_meshes.py
def test_eight_devices_give_the_losses_of_one(tiny_corpus: config.Config, tmp_path: Path, mesh: dict[str, int]) -> None:
    settings = change(tiny_corpus, train={"log_every": 1})
    train.train(settings, tmp_path / "one")
    done = start(change(settings, sharding=mesh), tmp_path / "eight", JAX_NUM_CPU_DEVICES="8")
    assert done.wait() == 0
    one, eight = ([r["loss"] for r in records(tmp_path / place, "train")] for place in ("one", "eight"))
    assert len(one) == 20
    np.testing.assert_allclose(eight, one, rtol=1e-5)
