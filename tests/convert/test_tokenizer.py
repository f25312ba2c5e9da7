"""PyTorch users get the ids that the encoder was trained on."""

import json
import shutil

import pytest

from jaxbert import config
from jaxbert.convert.tokenizer import compare_apart, compare_with_transformers
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.data.train_tokenizer import train
from tests.pseudo_galician import HARD, documents

transformers = pytest.importorskip("transformers")
TEXTS = [*documents(40, seed=3), *HARD]
OPTIONS = {"lowercase": True, "split_digits": True, "user_symbols": ("<br>",), "reserved": 2}


@pytest.fixture(scope="module", params=[("unigram", {}), ("bpe", {}), ("wordpiece", {}), ("unigram", OPTIONS)], ids=str)
def folder(request, tmp_path_factory):
    kind, options = request.param
    directory = tmp_path_factory.mktemp("tokenizers") / kind
    train(iter(documents(200)), config.Tokenizer(kind=kind, vocab_size=700, **options), directory)
    return directory


def test_autotokenizer_gives_the_same_ids_on_hard_text(folder):
    assert compare_with_transformers(folder, TEXTS) == []


def test_a_folder_that_transformers_reads_differently_is_found_out(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "changed")
    layout = json.loads((folder / "tokenizer.json").read_text())
    layout["post_processor"]["single"].pop()  # transformers adds no [SEP]
    (tmp_path / "changed" / "tokenizer.json").write_text(json.dumps(layout))
    differences = compare_with_transformers(tmp_path / "changed", TEXTS[:3])
    assert [text for text, _, _ in differences] == TEXTS[:3]
    assert all(ours[:-1] == theirs for _, ours, theirs in differences)


@pytest.mark.parametrize("folder", [("unigram", {})], indirect=True)
def test_a_process_of_its_own_compares_too_without_torch(folder, tmp_path, monkeypatch):
    layout = json.loads((folder / "tokenizer.json").read_text())
    layout["post_processor"]["single"].pop()
    shutil.copytree(folder, tmp_path / "changed")
    (tmp_path / "changed" / "tokenizer.json").write_text(json.dumps(layout))
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    differences = compare_apart(tmp_path / "changed", TEXTS[:3])
    assert [text for text, _, _ in differences] == TEXTS[:3]
    assert all(ours[:-1] == theirs for _, ours, theirs in differences)


def test_a_process_of_its_own_says_that_transformers_is_missing_and_what_else_fails(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "transformers.py").write_text("raise ImportError")
    with pytest.raises(ImportError, match="not installed"):
        compare_apart(tmp_path, [])
    (tmp_path / "transformers.py").write_text("raise ValueError('broken')")
    with pytest.raises(RuntimeError, match="broken"):
        compare_apart(tmp_path, [])


def test_a_written_mask_is_read_as_transformers_reads_it(folder):
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in ("O [MASK] foi aberto.", "[MASK] [MASK]", "a[MASK]b, [MASK]."):
        assert TextTokenizer.load(folder).encode_with_masks(text).tolist() == theirs(text)["input_ids"]


def test_transformers_sees_lengths_and_token_types(folder):
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    pair = theirs("a", "b")
    assert theirs.model_max_length == 512 and theirs.mask_token_id == 4 and theirs.pad_token_id == 0
    assert pair["token_type_ids"][:2] == [0, 0] and pair["token_type_ids"][-1] == 1
