"""The report: its numbers, its pictures, that any text is safe in it, that it needs nothing else and loses nothing."""

import dataclasses
import io
import json
import random
import re
import shutil
import struct
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, pre_tokenizers

from jaxbert import census, charts, config, prepare, published, report, webpage
from jaxbert.data import across, packing, source
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput
from tests.pseudo_galician import documents

XHTML = "{http://www.w3.org/1999/xhtml}"
SCRIPT = '<script>alert("1 & 2")</script> unha liña & máis <b>de texto</b>'


def recipe(place, **tokenizer):
    """Two files: made-up Galician with changed copies, and text full of mark-up with true copies."""
    text = documents(120, seed=3)
    near = ["\n".join(t.split("\n")).replace(t.split()[9], "cambiado", 1) for t in text[:40]]
    (place / "galego.txt").write_text("\n\n".join(text + near))
    marked = [f"{SCRIPT} {number} dos que hai" for number in range(60)]
    (place / "a&b.txt").write_text("\n\n".join(marked + marked[:5] + marked[:5]))
    return config.resolve(
        config.Config(
            corpus=config.Corpus(
                input=(str(place / "galego.txt"), str(place / "a&b.txt")),
                language="gl",
                directory=str(place / "corpus"),
                validation_share=0.2,
                clean=config.Clean(identify_language=False, near_duplicates=0.6, min_letters=0.3),
            ),
            tokenizer=config.Tokenizer(**{"vocab_size": 600, **tokenizer}),
            data=config.Data(row_length=64),
            model=config.named_model("bert_tiny"),
            evaluation=config.Evaluation(piece_length=32),
        )
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A corpus with its report, made once; tests that change it take a copy."""
    place = tmp_path_factory.mktemp("report")
    prepare.prepare(recipe(place))
    return place / "corpus"


@pytest.fixture
def copy(prepared, tmp_path):
    return Path(shutil.copytree(prepared, tmp_path / "corpus"))


def read(directory):
    return (Path(directory) / "report.html").read_text(encoding="utf-8")


def tree(directory):
    """The page as XML: malformed pages raise."""
    return ET.fromstring(read(directory))


def text_of(element):
    return " ".join("".join(element.itertext()).split())


def table(directory, heading):
    """First cell → other cells, of the table after a heading."""
    main = tree(directory).find(f"{XHTML}body/{XHTML}main")
    elements = list(main.iter())
    at = next(i for i, e in enumerate(elements) if e.tag in (f"{XHTML}h2", f"{XHTML}h3") and text_of(e) == heading)
    found = next(e for e in elements[at:] if e.tag == f"{XHTML}table")
    return {text_of(row[0]): [text_of(cell) for cell in row[1:]] for row in found.iter(f"{XHTML}tr")}


# --- numbers ---


def test_the_numbers_are_those_of_corpus_json(prepared):
    corpus = prepare.load_corpus(prepared)
    fates = table(prepared, "What became of the documents")
    shown = {name: int(cells[-1].split()[0].replace(",", "")) for name, cells in fates.items()}
    named = {" ".join(filter(None, (report._words(fate), report.MEANING.get(fate)))): fate for fate in corpus["fates"]}
    assert {named[name]: n for name, n in shown.items()} == {fate: n for fate, n in corpus["fates"].items() if n}
    assert sum(shown.values()) == corpus["documents"]
    for record in corpus["sources"]:
        kept, read_ = record["documents"]["kept"], sum(record["documents"].values())
        name = Path(record["name"]).name
        assert table(prepared, "Documents kept of those read")[name][-1] == f"{kept:,} of {read_:,}"
        assert record["sha256"] in read(prepared)
    splits = table(prepared, "To train on, and held out")
    for column, split in enumerate(prepare.SPLITS):
        for what, count in {**corpus["splits"][split], "tokens": corpus["tokens"][split]}.items():
            assert splits[what][column] == f"{count:,}"


def test_fertility_is_tokens_a_white_space_word_and_the_sources_add_up(prepared):
    corpus = prepare.load_corpus(prepared)
    tokenizer = TextTokenizer.load(prepared / "tokenizer")
    tokens, words = Counter(), Counter()
    for split in prepare.SPLITS:
        for document in source.read_documents(prepared, split):
            tokens[document["source"]] += len(tokenizer.encode([document["text"]])[0][0])
            words[document["source"]] += len(document["text"].split())
    shown = table(prepared, "Tokens a word")
    for name in tokens:
        assert shown[Path(name).name][-1] == f"{tokens[name] / words[name]:.3f}"
    assert shown["all sources"][-1] == f"{tokens.total() / words.total():.3f}"
    assert tokens.total() == sum(corpus["tokens"].values())


def test_lengths_are_counted_by_the_powers_of_two_that_they_lie_between(copy):
    shown = {label: int(cells[-1].split()[0]) for label, cells in table(copy, "Documents by their tokens").items()}
    lengths = np.concatenate([np.diff(packing.TokenFile(copy / "tokens" / s, 600).offsets) for s in prepare.SPLITS])
    assert sum(shown.values()) == len(lengths)
    made_up = census.Measured({}, np.zeros(census.LONGEST + 1, np.int64), census.LONGEST + 7, None, None, 0, 0, {}, {})
    for length in (1, 2, 3, 4, 7, 8, 1023, 1024, census.LONGEST - 1, census.LONGEST):
        made_up.lengths[length] += 1
    page = webpage.chart(report._chart_of_lengths(made_up))
    (copy / "report.html").write_text(f'<html xmlns="{XHTML[1:-1]}"><body><main>{page}</main></body></html>')
    found = {label: int(cells[-1].split()[0]) for label, cells in table(copy, "Documents by their tokens").items()}
    assert {label: n for label, n in found.items() if n} == {
        **{"1": 1, "2–3": 2, "4–7": 2, "8–15": 1, "512–1,023": 1, "1,024–2,047": 1},
        **{"524,288–1,048,575": 1, "1,048,576 and more": 1},
    }


def test_entries_that_the_training_text_never_uses_are_counted_without_specials_and_bytes(prepared):
    tokenizer = TextTokenizer.load(prepared / "tokenizer")
    counts = packing.unigram_counts(prepared / "tokens" / "train", tokenizer.vocab_size)
    pieces = [tokenizer.tokenizer.id_to_token(i) for i in range(tokenizer.vocab_size)]
    text = [i for i, p in enumerate(pieces) if i not in tokenizer.special_ids and not re.fullmatch("<0x..>", p)]
    facts = table(prepared, "Tokenizer")
    assert facts["entries that the training text never uses"][0].split(",")[0] == str(sum(counts[i] == 0 for i in text))


def test_words_that_are_one_token_are_counted_across_the_chunks(monkeypatch):
    starts = np.random.default_rng(0).integers(0, 2, 1000).astype(np.uint16)
    starts[0] = 1
    bounds = np.append(np.flatnonzero(starts), 1000)
    expected = int((np.diff(bounds) == 1).sum()), int(starts.sum())
    for chunk in (1, 7, 999, 1000, 5000):
        monkeypatch.setattr(census, "CHUNK", chunk)
        assert census._whole_words(starts) == expected


def test_words_and_marks_are_those_of_split_and_of_the_pattern_on_every_character():
    texts = [
        "",
        " ",
        "a",
        "nota_1, ¿si?",
        "x\u0301y \u200bz\x1c\u3000日本",
        "  dous\n\nparágrafos — «…»  ",
        "\U0001d518. \ud800",
    ]
    texts += ["a" + "".join(map(chr, range(first, first + 0x1000))) for first in range(0, 0x110000, 0x1000)]
    texts += [c + "a " for c in map(chr, range(0x3100))]
    expected = [len(text.split()) for text in texts], [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]
    assert census._words_and_marks(texts) == expected


def test_near_duplicates_are_shown_beside_what_stayed_with_the_words_that_differ_marked(prepared):
    assert prepare.load_corpus(prepared)["fates"]["near_duplicate"] > 5
    figures = [e for e in tree(prepared).iter(f"{XHTML}figure") if e.get("class") == "stays"]
    assert len(figures) == 6
    assert any(text_of(m) == "cambiado" for m in tree(prepared).iter(f"{XHTML}mark"))


def test_examples_of_duplicates_are_counted_exactly_whatever_the_order():
    choose = random.Random(0)
    keys = [f"{choose.getrandbits(64):016x}" for _ in range(100)]
    seen = choose.choices(keys, k=1000)
    expected = sorted(Counter(seen).items())[: across.SAMPLE]
    for _ in range(3):
        choose.shuffle(seen)
        examples = across.Examples()
        for start in range(0, len(seen), 300):  # as parts do
            of_part = across.Examples()
            for key in seen[start : start + 300]:
                of_part.add(key, f"id of {key}", "text")
            examples.merge(of_part)
        found = examples.report("x")["x"]
        assert [(e["id"], e["copies"]) for e in found] == [(f"id of {k}", n) for k, n in expected]


@pytest.mark.parametrize("language", ["pl", "sv", "gl", "cs", "nl", "no", "nb", "nn", "pt", "tr", "de"])
def test_three_published_tokenizers_are_known_for_the_language_of_every_recipe(language):
    found = published.published(language)
    assert len({p.tokenizer for p in found if not p.marks_are_words}) >= 3
    for p in found:
        assert p.text in published.CITED
        assert 1 < float(p.tokens_a_word) < 3.1 and (not p.characters_a_token or 2 < float(p.characters_a_token) < 6)


def test_published_figures_are_quotients_of_the_counts_of_the_same_text():
    words, characters, tokens, *_ = published.FLORES["gl"]
    xlm = published.published("gl")[0]
    assert (xlm.tokenizer, xlm.text) == ("XLM-RoBERTa", "FLORES-200")
    assert (xlm.tokens_a_word, xlm.characters_a_token) == (f"{tokens / words:.3f}", f"{characters / tokens:.3f}")
    assert published.published("xx") == []


def test_ours_stands_first_beside_the_published_tokenizers_by_both_ways_of_counting_words(prepared):
    ours = table(prepared, "In figures")  # the first of that name is of lengths
    assert "median" in ours
    found = table(prepared, "Beside published tokenizers")
    facts = table(prepared, "Tokenizer")
    first, *others = [name for name in found if name]
    assert first == "this one 600 entries, on this corpus" and len(others) == 3
    assert found[first] == [
        facts["tokens a word (fertility)"][0],
        facts["characters a token, white space among them"][0],
    ]
    assert "multilingual BERT 119,547 entries, on Universal Dependencies 2.3" in text_of(tree(prepared))


# --- any text ---


def test_mark_up_in_documents_is_shown_and_is_no_mark_up(prepared):
    page = tree(prepared)
    assert not list(page.iter(f"{XHTML}script")) and "<script" not in read(prepared)
    quotes = [text_of(e) for e in page.iter(f"{XHTML}blockquote")]
    assert any(quote.startswith(SCRIPT) for quote in quotes)  # of an exact duplicate
    assert any("a&b.txt: " in text_of(e) for e in page.iter(f"{XHTML}figcaption"))  # of a sentence in tokens


@pytest.mark.parametrize("text", ["\0\x1b", "\ud800", "\uffff", "]]>", "&amp;", "\u202eabc", "é\u0301", '"onload="x'])
def test_any_text_is_well_formed_in_the_page(text):
    ET.fromstring(f'<p title="{webpage.text(text)}">{webpage.foreign(text, text)}</p>')


def test_the_page_needs_nothing_from_elsewhere(prepared):
    page = read(prepared).replace('xmlns="http://www.w3.org/1999/xhtml"', "")
    assert not re.search(r"\b(src|srcset|action|data)=|href=\"[^#]|url\(|@import|https?:|//", page)
    assert not re.search(r"\son\w+=", re.sub(r">[^<]*<", "><", page))  # in no element


def test_no_path_of_this_machine_is_in_the_page(prepared):
    assert str(prepared.parent) not in read(prepared)


def test_every_link_of_the_page_leads_to_a_section_and_every_section_has_a_link(prepared):
    links = [a.get("href") for a in tree(prepared).iter(f"{XHTML}a")]
    assert links == [f"#{section.get('id')}" for section in tree(prepared).iter(f"{XHTML}section")] and len(links) == 8


# --- pictures ---


def size_of(path):
    """(width, height) of a PNG, from its header."""
    head = Path(path).read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return struct.unpack(">II", head[16:24])


def test_every_chart_of_the_page_is_a_picture_of_the_same_bytes_each_time(copy):
    paths = report.write_pictures(copy)
    names = {"sources", "tokens", "documents", "paragraphs", "lengths", "fertility", "overview"}  # no language rejected
    assert {p.name for p in (copy / "report").iterdir()} == {p.name for p in paths} == {f"{n}.png" for n in names}
    before = {p: p.read_bytes() for p in paths}
    assert report.write_pictures(copy) == paths and before == {p: p.read_bytes() for p in paths}
    assert size_of(copy / "report/sources.png")[0] == 1600 and size_of(copy / "report/overview.png")[0] == 2200


def test_a_users_own_settings_of_matplotlib_change_no_picture():
    chart = charts.counted("a title", [("one", "remark", 3), ("two", "", 1)])
    expected = charts.png(chart, "about")
    with matplotlib.rc_context({"font.family": "serif", "text.color": "red", "font.size": 20}):
        assert charts.png(chart, "about") == expected


@pytest.mark.parametrize("label", ["$x_1$ of $", "a" * 500, "\u6f22\u5b57", "", "tab\there", "$\\frac{$"])
def test_any_label_can_be_drawn_without_a_warning(label, tmp_path, recwarn):
    chart = charts.counted(label, [(label, label, 1)], label)
    (tmp_path / "a.png").write_bytes(charts.png(chart, label, dots=50))
    assert size_of(tmp_path / "a.png")[0] == 400 and not recwarn.list


def test_a_picture_has_the_colours_of_the_page_on_white():
    chart = charts.Chart("t", (charts.Bar("b", tuple((part, 0.2) for part in charts.COLORS), "1"),))
    with Image.open(io.BytesIO(charts.png(chart, "about", dots=50))) as image:
        found = Counter(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))
    assert found.most_common(1)[0][0] == (255, 255, 255)
    for color in (*charts.COLORS.values(), charts.TINT):
        assert found[tuple(bytes.fromhex(color[1:]))] > 50
        assert color in webpage.STYLE or color == charts.TINT


def test_long_labels_lose_their_middle_and_fit():
    assert charts._clipped("a" * 20, 20) == "a" * 20
    assert charts._clipped("begins" + "x" * 500 + "ends", 12) == "begin…xends"


def test_a_picture_shows_so_many_bars_and_says_how_many_more_there_are(monkeypatch):
    drawn = []
    monkeypatch.setattr(charts._Pen, "write", lambda pen, x, y, text, *_, **__: drawn.append(text))
    charts.png(charts.counted("t", [(f"label {n}", "", n) for n in range(charts.BARS + 7)]), "about", 20)
    assert sum(text.startswith("label") for text in drawn) == charts.BARS
    assert "7 more are in report.html." in drawn


def test_pictures_of_another_corpus_are_taken_away_with_its_report(copy):
    report.write_pictures(copy, dots=20)
    report.write_report(copy)
    assert (copy / "report").is_dir()
    (copy / "corpus.json").write_text((copy / "corpus.json").read_text() + "\n")
    report.write_report(copy)
    assert not (copy / "report").exists()


def test_the_command_writes_page_and_pictures_and_names_what_it_cannot_use(copy, tmp_path, capsys, monkeypatch):
    (copy / "report.html").unlink()
    report.main([f"--corpus={copy}", "--dots=30"])
    assert (copy / "report.html").is_file() and size_of(copy / "report/fertility.png")[0] == 240
    assert str(copy / "report/overview.png") in capsys.readouterr().out
    with pytest.raises(BadInput, match="--corpus: .* has no corpus.json, .*; run jaxbert.prepare"):
        report.main([f"--corpus={tmp_path}"])
    with pytest.raises(BadInput, match="--dots: 5000 dots an inch; give 20 to 1000"):
        report.main([f"--corpus={copy}", "--dots=5000"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadInput, match=r'pip install "jaxbert\[pictures\]"'):
        report.main([f"--corpus={copy}"])


# --- corpora of other kinds ---


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_every_kind_of_tokenizer_has_a_report(tmp_path, kind):
    prepare.prepare(recipe(tmp_path, kind=kind))
    assert "tokens a word (fertility)" in table(tmp_path / "corpus", "Tokenizer")
    assert len([e for e in tree(tmp_path / "corpus").iter(f"{XHTML}p") if e.get("class") == "tokens"]) == 1


def test_entries_of_byte_level_bpe_are_shown_as_the_text_that_they_stand_for():
    pipeline = Pipeline(models.BPE({"Ġ": 0, "ĠÃ±": 1, "Ã": 2, "a": 3}, []))
    pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer = SimpleNamespace(tokenizer=pipeline, vocab_size=4)
    assert report._shown(tokenizer, report._pieces(tokenizer)) == ["▁", "▁ñ", "\ufffd", "a"]


def test_rows_of_one_document_each_are_named_as_such(tmp_path):
    settings = recipe(tmp_path)
    prepare.prepare(dataclasses.replace(settings, data=config.Data(row_length=64, pack=False)))
    rows = prepare.load_corpus(tmp_path / "corpus")["rows"]["single_64"]["rows"]
    assert f"rows of 64, one document each{rows:,}, " in text_of(tree(tmp_path / "corpus"))


def rewritten(directory, change):
    """The report of the same corpus with another corpus.json."""
    corpus = prepare.load_corpus(directory)
    change(corpus)
    (directory / "corpus.json").write_text(json.dumps(corpus))
    report.write_report(directory)
    return tree(directory)


def test_a_split_without_documents_has_a_report(copy):
    for path in (copy / "documents").glob("validation-*"):
        path.unlink()
    (copy / "tokens/validation/tokens.bin").write_bytes(b"")
    (copy / "tokens/validation/offsets.bin").write_bytes(bytes(8))

    def change(corpus):
        corpus["splits"]["validation"] = {"documents": 0, "characters": 0}
        corpus["tokens"]["validation"] = 0

    rewritten(copy, change)
    assert {cells[1] for cells in table(copy, "To train on, and held out").values()} == {"validation", "0"}


def test_a_corpus_without_any_document_has_a_report(copy):
    for path in (copy / "documents").glob("*"):
        path.unlink()
    for split in prepare.SPLITS:
        (copy / "tokens" / split / "tokens.bin").write_bytes(b"")
        (copy / "tokens" / split / "offsets.bin").write_bytes(bytes(8))

    def change(corpus):
        corpus.update(documents=0, fates={"kept": 0}, paragraphs={}, changed={}, sources=[], languages_rejected={})
        corpus["splits"] = {s: {"documents": 0, "characters": 0} for s in prepare.SPLITS}
        corpus["tokens"] = dict.fromkeys(prepare.SPLITS, 0)
        del corpus["near_duplicates"], corpus["duplicate_examples"]

    assert "0documents read" in text_of(rewritten(copy, change))


def test_sources_without_licence_and_recipes_without_later_fields_have_a_report(copy):
    def change(corpus):
        for record in corpus["sources"]:
            record.update(licence="", attribution="", version="")
        corpus["recipe"] = {"corpus.language": "", "corpus.later": {"/a/path": [{"of": "/somebody's/disk"}]}}

    shown = text_of(rewritten(copy, change))
    assert shown.count("none recorded") == 2 and "corpus.later.pathof=disk" in shown


def test_rejected_languages_benchmarks_removals_and_boilerplate_are_shown_where_there_are_any(copy):
    def change(corpus):
        corpus["recipe"]["corpus.clean"]["identify_language"] = True
        corpus["languages_rejected"] = {"es": 7, "unsure": 2} | {f"x{number}": 1 for number in range(20)}
        corpus["benchmarks"] = {"/somewhere/else/test.jsonl": {"fields": 41, "documents": 3}}
        corpus["weights"] = {corpus["sources"][0]["name"]: 2.5}
        corpus["remove"] = {"files": ["x"], "lines": 9, "unmatched": ["y"]}
        corpus["boilerplate"] = {"lines": 2, "removed": 31, "most_frequent": [["<all> rights", 17]]}

    shown = text_of(rewritten(copy, change))
    languages = table(copy, "Rejected paragraphs, by language")
    assert languages["es"][-1].startswith("7 ") and languages["14 others"][-1].startswith("14 ")
    assert table(copy, "Overlap with test data")["test.jsonl"] == ["41", "3"]
    assert table(copy, "Boilerplate")["<all> rights"] == ["17"]
    assert shown.count("2.5 times") == 1
    assert "9 lines, of which 1 named nothing" in shown and "31 lines, 2 different ones" in shown


# --- what it leaves alone ---


def test_a_missing_report_is_written_without_a_stage_made_again(copy, prepared, tmp_path):
    settings = recipe(tmp_path)
    shutil.copytree(prepared.parent, tmp_path, dirs_exist_ok=True)
    corpus = dataclasses.replace(
        settings.corpus, input=tuple(str(prepared.parent / Path(f).name) for f in settings.corpus.input)
    )
    settings = dataclasses.replace(settings, corpus=corpus)
    (copy / "report.html").unlink()
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*.*") if p.suffix in (".bin", ".array_record", ".model")}
    prepare.prepare(settings)
    assert before == {p: p.stat().st_mtime_ns for p in before} and read(copy) == read(prepared)


def test_a_report_that_fails_says_so_and_leaves_the_corpus_and_no_old_report(copy, monkeypatch, capsys):
    def fails(*_):
        raise ZeroDivisionError("of a bug")

    (copy / "corpus.json").write_text((copy / "corpus.json").read_text() + "\n")
    with monkeypatch.context() as patch:
        patch.setattr(report, "page", fails)
        report.write_report(copy)
    said = capsys.readouterr()
    assert "NOT written: ZeroDivisionError: of a bug; the corpus is whole" in said.out and "fails" in said.err
    assert prepare.load_corpus(copy) and not list(copy.glob("report*"))
    report.write_report(copy)
    assert tree(copy)


def test_documents_that_corpus_json_does_not_describe_have_no_report(copy, capsys):
    corpus = prepare.load_corpus(copy)
    corpus["splits"]["train"]["documents"] += 1
    (copy / "corpus.json").write_text(json.dumps(corpus))
    report.write_report(copy)
    assert re.search(
        r"NOT written: BadInput: .*corpus\.json: \d+ documents for train, but there are", capsys.readouterr().out
    )
    assert not (copy / "report.html").exists()


def test_a_report_that_is_up_to_date_is_not_written_again(copy):
    before = (copy / "report.html").stat().st_mtime_ns
    report.write_report(copy)
    assert (copy / "report.html").stat().st_mtime_ns == before
    (copy / "corpus.json").write_text((copy / "corpus.json").read_text() + "\n")
    report.write_report(copy)
    assert (copy / "report.html").stat().st_mtime_ns > before
