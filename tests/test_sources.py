"""Several sources in a corpus: settings of their own, and weights."""

import collections
import dataclasses
import hashlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxbert import config as recipes
from jaxbert import prepare, recipe_files, runs
from jaxbert.config import Clean, Config, Corpus, Data, Evaluation, Model, Source, Tokenizer, Train
from jaxbert.data import engines, source
from jaxbert.errors import BadInput

SYLLABLES = ["ba", "ca", "da", "fe", "ge", "le", "mi", "ni", "ri", "to", "vo", "xo", "tu"]
PLAIN = Clean(min_words=2, identify_language=False)


def lines(count, seed):
    choose = random.Random(seed)
    words = ["".join(choose.choices(SYLLABLES, k=choose.randint(1, 4))) for _ in range(200)]
    return [" ".join(choose.choices(words, k=choose.randint(3, 20))) for _ in range(count)]


def settings(place, *sources, directory="corpus", **corpus):
    """A recipe of the file general.txt and of `sources`."""
    given = {"language": "gl", "document": "line", "validation_share": 0.2, "clean": PLAIN} | corpus
    return recipes.resolve(
        Config(
            corpus=Corpus(
                input=(str(place / "general.txt"),), sources=sources, directory=str(place / directory), **given
            ),
            tokenizer=Tokenizer(vocab_size=400),
            data=Data(row_length=64),
            model=recipes.named_model("bert_tiny"),
            train=Train(steps=1),
            evaluation=Evaluation(piece_length=32),
        )
    )


def run(place, *sources, **given):
    config = settings(place, *sources, **given)
    recipe_files.validate(config)
    prepare.check_recipe(config)
    return prepare.prepare(config)


def domain(place, **fields):
    return Source(input=(str(place / "domain.txt"),), name="domain", **fields)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "general.txt").write_text("\n".join(lines(150, 0)))
    (tmp_path / "domain.txt").write_text("\n".join(lines(150, 1)))
    return tmp_path


def training(directory):
    """How often each training document's begin is in rows, by (source, number), and with which others each time."""
    sources = [d["source"] for d in source.read_documents(directory, "train")]
    offsets, rows = np.fromfile(directory / "tokens/train/offsets.bin", "<i8"), source.Rows(directory / "rows_64")
    counts, neighbours = collections.Counter(), collections.defaultdict(list)
    for row in range(len(rows)):
        starts = rows.piece_starts(row)
        numbers = np.searchsorted(offsets, starts, "right") - 1
        for number in numbers[np.isin(starts, offsets)].tolist():
            counts[sources[number], number] += 1
            neighbours[number].append(set(numbers.tolist()) - {number})
    return counts, neighbours


def digest(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


# --- weights ---


def test_weights_make_rows_of_a_document_as_often_as_they_say_and_are_counted(place):
    corpus = run(place, domain(place, weight=2.0))
    counts, neighbours = training(place / "corpus")
    by_source = collections.Counter(name for name, _ in counts)
    assert {copies for (name, _), copies in counts.items() if name == "domain"} == {2}
    assert {copies for (name, _), copies in counts.items() if name != "domain"} == {1}
    told = corpus["rows"]["64"]["sources"]
    n = by_source["domain"]
    assert told["domain"] == {"weight": 2.0, "documents": n, "weighted_documents": 2 * n}
    general = str(place / "general.txt")
    assert told[general] == {"weight": 1.0, "documents": by_source[general], "weighted_documents": by_source[general]}
    assert corpus["rows"]["64"]["documents"] == 2 * n + by_source[general] and corpus["weights"] == {"domain": 2.0}
    twice = [both for (name, number) in counts if name == "domain" if len(both := neighbours[number]) == 2]
    assert sum(first != second for first, second in twice) > 0.9 * len(twice) > 60  # they meet others the second time


def test_a_fraction_takes_documents_by_the_hash_of_their_text_whatever_is_added(place):
    run(place, domain(place, weight=0.5))

    def taken(directory):
        texts = [d["text"] for d in source.read_documents(directory, "train")]
        return {texts[number] for name, number in training(directory)[0] if name == "domain"}

    first, everything = (
        taken(place / "corpus"),
        len([d for d in source.read_documents(place / "corpus", "train") if d["source"] == "domain"]),
    )
    assert 0.25 < len(first) / everything < 0.75
    (place / "domain.txt").write_text("\n".join(lines(30, 2) + lines(150, 1)))
    run(place, domain(place, weight=0.5), directory="other")
    assert first < taken(place / "other")
    run(place, domain(place, weight=1.5), directory="third")
    once_more = {number for (name, number), copies in training(place / "third")[0].items() if copies == 2}
    texts = [d["text"] for d in source.read_documents(place / "third", "train")]
    assert {texts[number] for number in once_more} == taken(place / "other")


def test_weights_change_rows_alone(place):
    run(place, domain(place))
    run(place, domain(place, weight=3.0), directory="other")
    plain, weighted = digest(place / "corpus"), digest(place / "other")
    changed = {name.partition("/")[0] for name in plain if plain[name] != weighted[name]}
    assert changed == {"rows_64", "stages", "corpus.json", "report.html"}  # the last two tell it
    assert plain["stages/documents.json"] == weighted["stages/documents.json"]


def test_a_source_of_weight_zero_is_in_no_row_but_is_held_out(place):
    corpus = run(place, domain(place, weight=0.0))
    assert {name for name, _ in training(place / "corpus")[0]} == {str(place / "general.txt")}
    assert corpus["rows"]["64"]["sources"]["domain"]["weighted_documents"] == 0
    assert "domain" in {d["source"] for d in source.read_documents(place / "corpus", "validation")}


def test_weights_that_leave_nothing_are_refused(place):
    config = settings(place, domain(place, weight=0.0))
    config = dataclasses.replace(config, corpus=dataclasses.replace(config.corpus, input=()))
    with pytest.raises(BadInput, match=r"corpus\.sources\.weight: .*'domain': 0\.0.* leave no training document"):
        prepare.prepare(config)


def test_other_weights_ask_for_new_rows_and_no_second_preparation(place):
    run(place, domain(place))
    with pytest.raises(BadInput, match=r"corpus\.sources\.weight\.domain: 2\.0, .*rows_64 .*delete .*/rows_64$"):
        run(place, domain(place, weight=2.0))
    shutil.rmtree(place / "corpus/rows_64")
    before = (place / "corpus/documents").stat().st_mtime_ns
    run(place, domain(place, weight=2.0))
    run(place, domain(place, weight=2.0), directory="other")
    assert digest(place / "corpus") == digest(place / "other")
    assert (place / "corpus/documents").stat().st_mtime_ns == before


def test_rows_that_training_asks_for_have_the_weights_and_those_of_others_are_refused(place):
    run(place, domain(place))
    prepare.ensure_rows(place / "corpus", 96)
    shutil.rmtree(place / "corpus/rows_64")
    run(place, domain(place, weight=2.0))
    prepare.ensure_rows(place / "corpus", 64)
    with pytest.raises(BadInput, match=r"corpus\.sources\.weight: .*rows_96 was made with \{\}.*delete that folder"):
        prepare.ensure_rows(place / "corpus", 96)
    prepare.ensure_rows(place / "corpus", 80)
    assert prepare.load_corpus(place / "corpus")["rows"]["80"]["sources"]["domain"]["weight"] == 2.0
    single = prepare.ensure_rows(place / "corpus", 64, pack=False)
    documents = json.loads((single / "single.json").read_text())["documents"]
    assert documents == prepare.load_corpus(place / "corpus")["rows"]["64"]["documents"]


# --- settings of their own ---


def test_a_source_is_read_and_cleaned_by_its_own_settings_and_the_rest_by_the_corpus(place):
    (place / "general.txt").write_text("\n".join(["tres palabras aquí", *lines(150, 0)]))
    (place / "old.txt").write_bytes("\n\n".join(["łódź\ni żółć", *lines(150, 1)]).encode("cp1250"))
    strict = dataclasses.replace(PLAIN, min_words=4)
    own = Source((str(place / "old.txt"),), encoding="cp1250", document="block", licence="CC0-1.0", attribution="Nós")
    corpus = run(place, own, clean=strict, validation_share=0.1)
    texts = {d["text"]: d["source"] for s in prepare.SPLITS for d in source.read_documents(place / "corpus", s)}
    assert "tres palabras aquí" not in texts and not any("łódź" in text for text in texts)
    loose = dataclasses.replace(own, name="loose", clean=dataclasses.replace(strict, min_words=1))
    corpus = run(place, loose, clean=strict, validation_share=0.1, directory="other")
    texts = {d["text"]: d["source"] for s in prepare.SPLITS for d in source.read_documents(place / "other", s)}
    assert texts["łódź\ni żółć"] == "loose" and "tres palabras aquí" not in texts
    general, named = corpus["sources"]
    assert (named["name"], named["licence"], named["attribution"]) == ("loose", "CC0-1.0", "Nós")
    assert general["licence"].startswith("unknown") and sum(named["documents"].values()) == 151


def test_the_number_of_workers_changes_no_byte_with_several_sources(place):
    own = domain(place, weight=1.5, clean=dataclasses.replace(PLAIN, min_words=20))
    run(place, own)
    prepare.prepare(settings(place, own, directory="other"), engine=engines.Local(2))
    assert digest(place / "corpus") == digest(place / "other")


def test_several_entries_of_a_source_are_told_apart_by_their_own_names(place):
    (place / "more.txt").write_text("\n".join(lines(20, 5)))
    own = Source((str(place / "domain.txt"), str(place / "more.txt")), name="mine", weight=2.0)
    corpus = run(place, own)
    assert [s["name"] for s in corpus["sources"][1:]] == [f"mine: {place / n}" for n in ("domain.txt", "more.txt")]
    assert set(corpus["weights"]) == {s["name"] for s in corpus["sources"][1:]}


def test_what_decides_about_a_sources_documents_is_part_of_the_recipe_and_its_licence_is_not(place):
    run(place, domain(place))
    run(place, domain(place, licence="CC0-1.0", attribution="Nós"))
    for change in ({"clean": dataclasses.replace(PLAIN, min_words=9)}, {"document": "file"}):
        with pytest.raises(BadInput, match=r"corpus\.sources: .*made with .*delete .*documents"):
            run(place, domain(place, **change))
    with pytest.raises(BadInput, match=r"corpus\.sources: "):
        run(place)


def test_fields_of_clean_that_came_later_are_taken_at_their_defaults_in_sources_too(place):
    own = domain(place, clean=dataclasses.replace(PLAIN, min_words=9))
    run(place, own)
    record = json.loads((place / "corpus/stages/documents.json").read_text())
    assert record["recipe"]["corpus.sources"][0]["clean"] == {"min_words": 9, "identify_language": False}


def test_a_changed_file_of_a_source_is_refused(place):
    run(place, domain(place))
    with open(place / "domain.txt", "a") as file:
        file.write("\nunha liña máis")
    with pytest.raises(BadInput, match=r"domain\.txt: changed"):
        run(place, domain(place))


def test_a_run_goes_on_that_was_started_before_there_were_sources_and_not_with_other_ones(place):
    run(place, domain(place))
    runs.open_run(place / "run", settings(place), place / "corpus")
    config = json.loads((place / "run/config.json").read_text())
    del config["corpus"]["sources"]
    (place / "run/config.json").write_text(json.dumps(config))
    runs.open_run(place / "run", settings(place), place / "corpus")
    with pytest.raises(BadInput, match=r"another recipe: corpus\.sources was \[\], now "):
        runs.open_run(place / "run", settings(place, domain(place)), place / "corpus")


# --- in recipes ---


def test_a_recipe_with_sources_survives_json(place):
    config = settings(place, domain(place, weight=2.0, clean=PLAIN), Source(("x",), document="file"))
    assert recipes.from_dict(recipes.to_dict(config)) == config


TEMPLATE = (
    "from jaxbert.config import *\ndef get_config():\n    return Config(corpus=Corpus({}), train=Train(steps=1))\n"
)


@pytest.mark.parametrize(
    ("corpus", "says"),
    [
        ("sources=(Source(),)", r"corpus\.sources\[0\]\.input: empty"),
        ("sources=(Source(('a',)), Source(('a',)))", r"corpus\.sources\[1\]\.name: 'a' is given twice"),
        ("sources=(Source(('a',), weight=-1),)", r"corpus\.sources\[0\]\.weight: -1 is outside 0 to 100"),
        ("sources=(Source(('a',), weight=101.0),)", r"corpus\.sources\[0\]\.weight: 101\.0 is outside"),
        ("sources=(Source(('a',), weight=float('nan')),)", r"corpus\.sources\[0\]\.weight: nan is outside"),
        ("sources=(Source(('a',), weight='2'),)", r"corpus\.sources\[0\]\.weight: '2' is not float"),
        ("sources=(Source('a'),)", r"corpus\.sources\[0\]\.input: 'a' is not tuple"),
        ("sources=(Source(('a',), document='page'),)", r"corpus\.sources\[0\]\.document: 'page' is not"),
        ("sources=(Source(('a',), clean=Clean(min_words='x')),)", r"sources\[0\]\.clean\.min_words: 'x' is not int"),
        ("sources=Source(('a',))", r"corpus\.sources: .*is not tuple"),
        ("sources=('a',)", r"corpus\.sources: \('a',\) is not tuple"),
        (
            "sources=(Source(('a',), clean=Clean()),), clean=Clean(near_duplicates=0.8)",
            r"corpus\.sources\[0\]\.clean\.near_duplicates: 0\.0, but corpus\.clean\.near_duplicates is 0\.8",
        ),
    ],
)
def test_a_source_that_cannot_work_is_named(tmp_path, corpus, says):
    (tmp_path / "recipe.py").write_text(TEMPLATE.format(corpus))
    with pytest.raises(BadInput, match=says):
        recipe_files.load(str(tmp_path / "recipe.py"))


def test_a_recipe_with_sources_takes_flags_for_all_else(tmp_path):
    (tmp_path / "recipe.py").write_text(TEMPLATE.format("sources=(Source(('a', 'b'), weight=2, clean=Clean()),)"))
    load = recipe_files.load(str(tmp_path / "recipe.py"), ["--config.corpus.language=gl", "--config.corpus.input=x"])
    assert load.corpus.sources == (Source(("a", "b"), weight=2, clean=Clean()),) and load.corpus.input == ("x",)
    with pytest.raises(BadInput, match=r"corpus\.sources is given in a recipe file alone"):
        recipe_files.load(str(tmp_path / "recipe.py"), ["--config.corpus.sources=x"])
    assert isinstance(load.model, Model) and "corpus.sources" not in recipe_files.help_text()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"encoding": "cp9999"}, r"no text encoding is called 'cp9999'"),
        ({"clean": Clean(languages=("xx",))}, r"the identifier knows .* but not 'xx'"),
    ],
)
def test_a_sources_own_settings_are_checked_before_anything_is_written(place, fields, says):
    with pytest.raises(BadInput, match=says):
        run(place, domain(place, **fields))
    assert not (place / "corpus/documents").exists()
