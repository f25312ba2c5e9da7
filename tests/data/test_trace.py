"""From rows back to documents: every character of the corpus is found once, where it is, or it is an error."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest

from jaxbert import config as recipes
from jaxbert import prepare
from jaxbert.config import Clean, Config, Corpus, Data, Evaluation, Source, Train
from jaxbert.config import Tokenizer as TokenizerRecipe
from jaxbert.data import source, trace
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput

SYLLABLES = ["ba", "cá", "da", "fe", "ñe", "le", "mi", "ni", "ri", "to", "vo", "xo", "tu"]
ROWS = {True: "rows_64", False: "single_64"}


def documents(count, seed):
    """JSON lines of texts of 3 to 300 made-up words in one to four paragraphs; some with characters that are bytes."""
    choose = random.Random(seed)
    words = ["".join(choose.choices(SYLLABLES, k=choose.randint(1, 4))) for _ in range(200)]
    for number in range(count):
        size = choose.choice([5, 30, 300])
        paragraphs = [" ".join(choose.choices(words, k=choose.randint(3, size))) for _ in range(choose.randint(1, 4))]
        if number % 7 == 0:
            paragraphs.append("unha cara 😀 e un  ideograma 語 no texto")
        yield json.dumps({"text": "\n".join(paragraphs), "id": f"d{seed}-{number}"})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A finished corpus of two sources, one of them weighted, with rows of both kinds."""
    place = tmp_path_factory.mktemp("traced")
    for seed, name in enumerate(("a", "b")):
        (place / f"{name}.jsonl").write_text("\n".join(documents(40, seed)))
    doubled = Source(input=(str(place / "b.jsonl"),), name="b", weight=2.0, licence="CC0-1.0")
    settings = Config(
        corpus=Corpus(
            input=(str(place / "a.jsonl"),),
            sources=(doubled,),
            language="gl",
            directory=str(place / "corpus"),
            validation_share=0.2,
            clean=Clean(min_words=2, identify_language=False, duplicates="document"),
        ),
        tokenizer=TokenizerRecipe(vocab_size=400),
        data=Data(row_length=64),
        train=Train(steps=1),
        evaluation=Evaluation(piece_length=32),
    )
    settings = recipes.resolve(dataclasses.replace(settings, model=recipes.named_model("bert_tiny")))
    prepare.prepare(settings)
    prepare.ensure_rows(place / "corpus", 64, pack=False)
    return place, settings


@pytest.mark.parametrize("pack", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_character_of_a_training_document_is_in_as_many_rows_as_its_source_weighs(recipe, pack):
    directory = recipe[0] / "corpus"
    count = len(source.Feed(directory / ROWS[pack], 1, 0))
    found = {}
    for row in range(count):
        for part in trace.trace(directory, ROWS[pack], str(row)):
            found.setdefault(part.number, []).append(part)
    stored = list(source.read_documents(directory, "train"))
    assert sorted(found) == list(range(len(stored)))
    for number, document in enumerate(stored):
        copies = 2 if document["source"] == "b" else 1
        parts = sorted(found[number], key=lambda p: p.piece)[::copies]
        assert len(found[number]) == copies * parts[0].pieces and [p.piece for p in parts] == [
            *range(1, parts[0].pieces + 1)
        ]
        assert "".join(p.text for p in parts) == document["text"]
        assert parts[0].begin == 0 and parts[-1].end == len(document["text"]) == parts[0].characters
        assert {(p.id, p.source, p.meta["id"]) for p in parts} == {
            (document["id"], document["source"], document["meta"]["id"])
        }


def assert_text_is_what_the_tokens_say(directory, pack):
    tokenizer, feed = TextTokenizer.load(directory / "tokenizer"), source.Feed(directory / ROWS[pack], 1, 0)
    for rows in feed.buckets:
        ids_RT, _, segments_RT = rows[:]
        for row in range(len(rows)):
            parts = trace.trace(directory, ROWS[pack], str(rows.first + row))
            assert len(parts) == segments_RT[row].max()
            for segment, part in enumerate(parts, 1):
                decoded = tokenizer.decode(ids_RT[row][segments_RT[row] == segment][1:-1])
                if "�" not in decoded:  # a character of several bytes, cut
                    assert (
                        "".join(decoded.removeprefix("##").split())
                        == "".join(part.text.replace("İ", "i").split()).lower()
                    )


@pytest.mark.parametrize("pack", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_pieces_text_is_what_its_tokens_say(recipe, pack):
    assert_text_is_what_the_tokens_say(recipe[0] / "corpus", pack)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_other_tokenizers_tell_characters_too(recipe, tmp_path, kind):
    # Capitals, letters that two characters make, and what is longer or shorter in lower case move no character.
    lines = [line.replace("ba", "BA").replace("to", "ÑÉ").replace("ri", "İ") for line in documents(40, 5)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines).replace("😀", "").replace("語", ""))
    corpus = dataclasses.replace(
        recipe[1].corpus, input=(str(tmp_path / "c.jsonl"),), sources=(), directory=str(tmp_path / "corpus")
    )
    words = TokenizerRecipe(kind=kind, vocab_size={"bpe": 400, "wordpiece": 300}[kind], lowercase=True)
    prepare.prepare(dataclasses.replace(recipe[1], corpus=corpus, tokenizer=words))
    for number in range(len(source.Feed(tmp_path / "corpus" / ROWS[True], 1, 0))):
        for part in trace.trace(tmp_path / "corpus", ROWS[True], str(number)):
            assert part.text and part.begin < part.end <= part.characters
    assert_text_is_what_the_tokens_say(tmp_path / "corpus", True)


def test_the_held_out_pieces_are_all_of_the_held_out_text_in_order(recipe):
    directory = recipe[0] / "corpus"
    held_out = source.Validation.open(directory / "validation")
    parts = [trace.trace(directory, ROWS[True], f"validation:{number}") for number in range(len(held_out))]
    assert all(len(row) == 1 for row in parts)
    stored = "".join(d["text"] for d in source.read_documents(directory, "validation"))
    assert "".join(row[0].text for row in parts) == stored


@pytest.mark.parametrize(
    ("place", "rows", "says"),
    [
        ("100000", "rows_64", r"--trace: 100000, but .*rows_64 has \d+ rows; give 0 to \d+"),
        ("100000", "single_64", r"--trace: 100000, but .*single_64 has \d+ rows; give 0 to \d+"),
        ("validation:9999", "rows_64", r"--trace: 9999, but .*validation has \d+ held-out pieces; give 0 to \d+"),
        ("-1", "rows_64", r"--trace: '-1' is no row; give its number"),
        ("train:1", "rows_64", r"--trace: 'train:1' is no row"),
        ("1", "rows_96", r"--trace: there is no .*rows_96; .*\(rows_64, single_64\)"),
    ],
)
def test_a_row_that_is_not_there_is_refused_with_what_is(recipe, place, rows, says):
    with pytest.raises(BadInput, match=says):
        trace.trace(recipe[0] / "corpus", rows, place)


@pytest.fixture
def copy(recipe, tmp_path):
    """A copy of the corpus, to be broken."""
    shutil.copytree(recipe[0] / "corpus", tmp_path / "corpus")
    return tmp_path / "corpus"


def test_rows_of_an_earlier_version_are_refused_with_what_to_delete(copy):
    (copy / "rows_64/pieces.bin").unlink()
    with pytest.raises(BadInput, match=r"rows_64: was made by a jaxbert that did not .* delete it"):
        trace.trace(copy, "rows_64", "0")
    source.Rows(copy / "rows_64")  # training goes on


def test_other_documents_than_the_rows_were_made_of_are_refused(copy):
    backwards = [" ".join(d["text"].split()[::-1]) for d in source.read_documents(copy, "train")]  # as many tokens
    documents = zip(source.read_documents(copy, "train"), backwards, strict=True)
    texts = [json.dumps({**d, "text": text}).encode() for d, text in documents]
    shutil.rmtree(copy / "documents")
    (copy / "documents").mkdir()
    with source.Shards(copy / "documents", "train") as shards:
        for text in texts:
            shards.write(text)
    with pytest.raises(BadInput, match=r"is not its text in documents/, so these folders do not belong together"):
        trace.trace(copy, "rows_64", "0")


def test_the_files_of_rows_are_what_they_were_before_there_was_an_index(recipe):
    folder = recipe[0] / "corpus" / "rows_64"
    about = json.loads((folder / "rows.json").read_text())
    assert {p.name for p in folder.iterdir()} == {
        "tokens.bin", "segments.bin", "rows.json", "pieces.bin", "row_pieces.bin"
    }  # fmt: skip
    starts, bounds = (np.fromfile(folder / f"{name}.bin", "<i8") for name in ("pieces", "row_pieces"))
    assert len(starts) == about["pieces"] == bounds[-1] and len(bounds) == about["rows"] + 1


def test_the_command_prints_id_source_licence_range_and_text_and_writes_nothing(recipe, tmp_path, capsys):
    place, settings = recipe
    directory = place / "corpus"
    (tmp_path / "recipe.py").write_text(
        f"from jaxbert.config import *\ndef get_config():\n    return from_dict({recipes.to_dict(settings)!r})\n"
    )
    before = {p: p.stat().st_mtime_ns for p in directory.rglob("*")}
    prepare.main([f"--config={tmp_path / 'recipe.py'}", "--trace", "3"])
    printed = capsys.readouterr().out
    parts = trace.trace(directory, "rows_64", "3")
    assert f"3 of {directory / 'rows_64'}: {len(parts)} {'piece' if len(parts) == 1 else 'pieces'}, " in printed
    for part in parts:
        assert (
            part.id in printed
            and f"source: {part.source}; licence: " in printed
            and part.text.split("\n")[0] in printed
        )
        assert f"characters {part.begin} to {part.end} of {part.characters}, {part.tokens} tokens" in printed
    prepare.main([f"--config={tmp_path / 'recipe.py'}", "--trace=validation:0", "--config.data.row_length=96"])
    assert "validation:0 of " in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in directory.rglob("*")} == before


def test_a_document_without_tokens_moves_no_piece_to_another(recipe, copy):
    tokens = copy / "tokens/validation/offsets.bin"
    offsets = np.fromfile(tokens, "<i8")
    stored = list(source.read_documents(copy, "validation"))
    np.insert(offsets, 1, offsets[1]).tofile(tokens)  # the second document has none
    kept = [json.dumps(d).encode() for d in (stored[0], {**stored[0], "text": ""}, *stored[1:])]
    for path in (copy / "documents").glob("validation-*"):
        path.unlink()
    with source.Shards(copy / "documents", "validation") as shards:
        for document in kept:
            shards.write(document)
    pieces = range(len(source.Validation.open(copy / "validation")))
    for number in pieces:
        there, here = (trace.trace(d, "rows_64", f"validation:{number}")[0] for d in (recipe[0] / "corpus", copy))
        assert (there.id, there.text) == (here.id, here.text)
