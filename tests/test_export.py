"""The exported folder: what stands in it, that it is the run's model, and that nothing else ever appears."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxbert import evaluate, export, runs
from jaxbert.card import Exported, model_card
from jaxbert.convert import bert as convert
from jaxbert.convert.key_map import to_torch
from jaxbert.errors import BadInput

FILL = "O [MASK] foi aberto."


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory) -> Path:
    """A copy of the tiny run with an evaluation.json."""
    workdir = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(tiny_run, workdir)
    evaluate.main([f"--workdir={workdir}", "--fill", FILL])
    return workdir


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """Its export, verified by the command."""
    pytest.importorskip("transformers")
    export.main([f"--workdir={run}", f"--out={run.parent / 'exported'}"])
    return run.parent / "exported"


@pytest.fixture(scope="module")
def unverified(run: Path) -> Path:
    """An export of step 15 without verification, which needs no torch."""
    export.export(run, run.parent / "unverified", step="15", verify=False)
    return run.parent / "unverified"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- what stands in it ---


def test_the_folder_holds_what_transformers_wants_and_a_card(unverified):
    assert names(unverified) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "README.md",
    }
    assert len({path.stat().st_mode for path in unverified.iterdir()}) == 1  # all as readable as each other


def test_the_weights_are_those_of_the_step_bit_for_bit(run, unverified):
    trained = runs.load_run(run, "15")
    shapes = convert.torch_shapes(trained.config.model)
    ours = to_torch(trained.model, convert.MASKED_LM, trained.tokenizer.vocab_size, shapes)
    theirs = load_file(unverified / "model.safetensors")
    assert set(ours) == set(theirs) and all((ours[name] == theirs[name]).all() for name in ours)
    with safe_open(unverified / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_tokenizer_is_the_runs_and_knows_the_models_positions(run, unverified):
    assert (unverified / "tokenizer.json").read_bytes() == (run / "tokenizer" / "tokenizer.json").read_bytes()
    ours, theirs = (json.loads((d / "tokenizer_config.json").read_text()) for d in (run / "tokenizer", unverified))
    assert theirs == ours | {"model_max_length": 96}


def test_config_json_names_the_true_vocabulary(unverified):
    config = json.loads((unverified / "config.json").read_text())
    assert config["vocab_size"] == 600 and config["architectures"] == ["BertForMaskedLM"]


# --- the card ---


def test_the_card_says_what_the_run_and_its_corpus_recorded(run, exported):
    card, scores = (exported / "README.md").read_text(), json.loads((run / "evaluation.json").read_text())
    head, body = card.split("---\n")[1:3]
    assert head.splitlines() == [
        'language: "gl"',
        'license: "cc0-1.0"',
        'library_name: "transformers"',
        'pipeline_tag: "fill-mask"',
        'mask_token: "[MASK]"',
    ]
    for fact in (
        "41,208 parameters",
        f"step 20, {runs.load_run(run).loop['tokens']:,} tokens read",
        f"| loss (nats a masked token) | {scores['loss']:.4f} |",
        f"| masked tokens | {scores['masked_tokens']:,} |",
        "200 documents: 200 kept.",
        "- `text.txt`; 200 documents kept; licence: CC0-1.0; attribution: made up by tests/pseudo_galician.py; SHA-256",
        "| optimizer.learning_rate | 0.005 |",
        "Tokenizer: unigram, 600 tokens, trained by sentencepiece",
        "token ids of 162 documents: equal",
        f"`{FILL}`: ",
    ):
        assert fact in body


def test_the_card_holds_no_path_of_this_machine(run, exported):
    assert str(run.parent) not in (exported / "README.md").read_text()
    assert str(Path(runs.load_run(run).config.corpus.input[0]).parent) not in (exported / "README.md").read_text()


def test_the_card_gives_no_score_of_another_step_and_says_when_nothing_was_verified(unverified):
    card = (unverified / "README.md").read_text()
    assert "None were recorded for this step." in card and "| loss" not in card
    assert "**This folder was not verified:**" in card and "Loaded by" not in card


def test_several_licences_or_none_are_not_made_into_one(run):
    trained = runs.load_run(run)
    corpus = evaluate.corpus_of(trained)[1]
    for licences in (["CC0-1.0", "MIT"], ["", ""], ["CC0-1.0", ""], ["my own"] * 2):
        sources = [corpus["sources"][0] | {"licence": licence} for licence in licences]
        card = model_card(trained, run, corpus | {"sources": sources}, Exported("X"), None, 1, "0")
        assert "license:" not in card.split("---\n")[1]
        assert all(f"licence: {licence or 'none recorded'}" in card for licence in licences)


@pytest.fixture
def orphan(run, tmp_path):
    """A run whose prepared corpus is gone."""
    shutil.copytree(run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["corpus"]["directory"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path / "run"


def test_without_its_corpus_a_run_is_not_exported(orphan, tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(BadInput, match="corpus is not prepared"):
        export.export(orphan, tmp_path / "out")
    assert names(tmp_path) == {"run"}


def test_without_its_corpus_an_unverified_card_says_that_the_text_is_not_described(orphan, tmp_path):
    export.export(orphan, tmp_path / "out", verify=False)
    assert "corpus was not there" in (tmp_path / "out" / "README.md").read_text()


# --- verification ---


def test_the_command_tells_the_path_and_the_largest_differences(run, tmp_path, capsys):
    pytest.importorskip("transformers")
    export.main([f"--workdir={run}", f"--out={tmp_path / 'out'}", "--step=best"])
    told = capsys.readouterr().out
    assert str(tmp_path / "out") in told and "(float32)" in told and "(float64)" in told
    assert "162 documents: equal" in told and "fill-mask" in told


def test_what_is_compared_is_ragged_and_agrees_closely(run, tmp_path):
    pytest.importorskip("transformers")
    verified = export.export(run, tmp_path / "out")
    assert verified.rows == 8 and verified.lengths[0] < verified.lengths[1] == 32
    assert verified.differences["float32"] <= 1e-4 and verified.differences["float64"] <= 1e-8
    assert verified.documents == 162 and verified.texts == 5


def test_transformers_fills_the_mask_as_evaluate_does(run, exported):
    fill_mask = pytest.importorskip("transformers").pipeline("fill-mask", model=str(exported))
    ours = evaluate.fill(runs.load_run(run), FILL)[0]
    theirs = [(choice["token_str"], choice["score"]) for choice in fill_mask(FILL)]
    assert [token for token, _ in ours] == [token for token, _ in theirs]
    np.testing.assert_allclose([p for _, p in ours], [p for _, p in theirs], atol=1e-6)


def damage(change):
    """A save_file that changes the tensors first."""

    def save(state, path, **options):
        change(state)
        save_file(state, path, **options)

    return save


def lose_end_of_text(folder):
    layout = json.loads((folder / "tokenizer.json").read_text())
    layout["post_processor"]["single"].pop()  # no [SEP]
    (folder / "tokenizer.json").write_text(json.dumps(layout))


QUERY, HEAD = "bert.encoder.layer.1.attention.self.query.weight", "cls.predictions.bias"
DAMAGES = {
    "wrong values": (
        lambda s: s.update({HEAD: s[HEAD] + np.float32(0.01)}),
        "logits in float32 differ from PyTorch's by up to",
    ),
    "slightly wrong values": (lambda s: s.update({HEAD: s[HEAD] + np.float32(1e-6)}), "logits in float64 differ"),
    "an axis the wrong way": (lambda s: s.update({QUERY: s[QUERY].T.copy()}), "logits in float64 differ"),
    "a tensor left out": (lambda s: s.pop(HEAD), f"not in the file: {HEAD}"),
    "a tensor too many": (lambda s: s.update(stray=np.zeros(2)), "not in the model: stray"),
    "another shape": (lambda s: s.update({QUERY: s[QUERY][:5].copy()}), f"other shape: .*{QUERY}"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_weights_that_are_not_the_runs_are_named_and_no_folder_appears(what, run, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    change, message = DAMAGES[what]
    monkeypatch.setattr(export, "save_file", damage(change))
    with pytest.raises(export.VerificationFailed, match=message):
        export.export(run, tmp_path / "out")
    assert names(tmp_path) == set()


def test_a_tokenizer_that_transformers_reads_otherwise_is_named_and_no_folder_appears(run, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    copy = export._copy_tokenizer
    monkeypatch.setattr(export, "_copy_tokenizer", lambda *a: (copy(*a), lose_end_of_text(a[1])))
    with pytest.raises(export.VerificationFailed, match="162 of 162 documents get other token ids from transformers"):
        export.export(run, tmp_path / "out")
    assert names(tmp_path) == set()


ANSWERS = {
    "other tokens": lambda p_PV: p_PV[:, ::-1],
    "other values": lambda p_PV: p_PV + 2e-4,
    "another order": lambda p_PV: np.where(np.arange(p_PV.shape[1]) == 599, 0.9, p_PV),
}


@pytest.mark.parametrize("change", ANSWERS.values(), ids=ANSWERS)
def test_fill_mask_that_answers_otherwise_is_named_and_no_folder_appears(change, run, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    fill = export.mask_probabilities
    monkeypatch.setattr(export, "mask_probabilities", lambda *arguments: change(fill(*arguments)))
    with pytest.raises(export.VerificationFailed, match=r"no folder was written: fill-mask answers .* in 'O \[MASK\]"):
        export.export(run, tmp_path / "out")
    assert names(tmp_path) == set()


def test_without_torch_it_says_what_to_install_and_no_verify_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BadInput, match=r'torch is not installed.*pip install "jaxbert\[torch\]".*--no-verify'):
        export.export(run, tmp_path / "out")
    assert names(tmp_path) == set()
    export.main([f"--workdir={run}", f"--out={tmp_path / 'out'}", "--no-verify"])
    assert names(tmp_path) == {"out"}


# --- where it appears ---


def test_an_earlier_export_is_replaced(unverified, run, tmp_path):
    shutil.copytree(unverified, tmp_path / "out")
    export.export(run, tmp_path / "out", step="20", verify=False)
    assert names(tmp_path) == {"out"} and "step 20" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("what", ["a file", "somebody's folder", "an export with a file added", "other weights"])
def test_nothing_else_is_replaced(what, unverified, run, tmp_path):
    out = tmp_path / "out"
    if what == "a file":
        out.write_text("mine")
    elif what == "somebody's folder":
        out.mkdir()
        (out / "README.md").write_text("mine")
    else:
        shutil.copytree(unverified, out)
        changed = out / ("notes.txt" if what == "an export with a file added" else "model.safetensors")
        changed.write_text("mine")
    with pytest.raises(BadInput, match="--out: .* is not an unchanged export"):
        export.export(run, out, verify=False)
    assert b"mine" in {p.read_bytes() for p in ([out] if out.is_file() else out.iterdir())}


def test_an_empty_folder_is_taken_and_what_a_killed_export_left_is_removed(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.tmp-1").mkdir()
    export.export(run, tmp_path / "out", verify=False)
    assert names(tmp_path) == {"out"}


def test_a_place_that_cannot_be_written_is_one_message(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="--out: cannot write"):
        export.export(run, tmp_path / "file" / "out", verify=False)


def test_a_full_disk_is_one_message_and_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(BadInput, match="--out: cannot write .*No space left"):
        export.export(run, tmp_path / "out", verify=False)
    assert names(tmp_path) == set()
