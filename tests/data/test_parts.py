"""The input in works and parts: all of it once, in order, however it is cut; of bounded size; the same done twice."""

import dataclasses
import gzip

import pytest

from jaxbert.config import Clean, Corpus
from jaxbert.data import clean, documents, engines, parts, readers, source, wiki
from tests.pseudo_galician import documents as made_up

OFF = Clean(repair=False, control_characters=False, min_words=0, min_letters=0.0, identify_language=False)


@pytest.fixture
def corpus(tmp_path):
    """Three files, the last compressed; the second holds most of the text."""
    texts = made_up(40)
    (tmp_path / "a.txt").write_text("\n\n".join(texts[:5]))
    (tmp_path / "b.txt").write_text("\n\n".join(texts[3:33]))
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("\n\n".join(texts[33:]))
    return Corpus(input=(f"{tmp_path}/*.txt*",), clean=OFF, validation_share=0.3, language="gl")


def works_of(corpus):
    pieces = parts.divided(readers.sources(corpus))
    return [work for piece in pieces for work in parts.works(piece, corpus)]


def names(work):
    return [name.rpartition("/")[2] for name, _, _ in work.source.files]


def test_small_files_are_one_work_that_reads_them_itself(corpus):
    [work] = works_of(corpus)
    assert names(work) == ["a.txt", "b.txt", "c.txt.gz"] and work.documents is None


def test_a_large_file_is_read_at_once_and_goes_into_works_of_bounded_size(corpus, monkeypatch):
    monkeypatch.setattr(parts, "SMALL", 3000)
    monkeypatch.setattr(parts, "CHARACTERS", 1000)
    works = works_of(corpus)
    assert [names(w) for w in works if w.documents is None] == [["a.txt"]]
    large = [w for w in works if w.documents is not None]
    assert len(large) > 10 and [w.name for w in works] == sorted(w.name for w in works)
    assert all(sum(len(d.text) for d in w.documents[:-1]) < 1000 for w in large)
    assert [name for w in works for name in names(w)] == ["a.txt", "b.txt", "c.txt.gz"]  # each is counted once


@pytest.mark.parametrize("steps", [{}, {"near_duplicates": 0.8, "boilerplate": 3}, {"duplicates": "document"}])
def test_how_the_input_is_cut_changes_no_document_and_no_count(corpus, monkeypatch, tmp_path, steps):
    corpus = dataclasses.replace(corpus, clean=dataclasses.replace(OFF, **steps))
    reports = []
    for small, characters in ((parts.SMALL, parts.CHARACTERS), (3000, 1000), (1, 1)):
        monkeypatch.setattr(parts, "SMALL", small)
        monkeypatch.setattr(parts, "CHARACTERS", characters)
        folder = tmp_path / str(small) / "documents"
        folder.mkdir(parents=True)
        found = readers.sources(corpus)
        reports.append(documents.make_documents(folder, corpus, found, engines.Local(1), None))
        assert not [p for p in folder.iterdir() if p.is_dir()]  # parts are gone
        texts = [list(source.read_documents(folder.parent, split)) for split in documents.SPLITS]
        assert sum(map(len, texts)) == reports[-1]["fates"]["kept"]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0]["fates"]["duplicate"] == 2


def test_a_part_that_is_made_twice_has_the_same_bytes(corpus, tmp_path):
    corpus = dataclasses.replace(corpus, clean=dataclasses.replace(OFF, near_duplicates=0.8))
    [work] = works_of(corpus)
    (tmp_path / "parts").mkdir()
    made = []
    for _ in range(2):
        part = parts.make(work, tmp_path / "parts", corpus, keep_texts=False)
        made.append((part, {p.name: p.read_bytes() for p in (tmp_path / "parts").iterdir()}))
    assert made[0] == made[1] and len(made[0][1]) == 4


def test_the_text_of_the_input_is_stored_only_where_it_is_wanted(corpus, tmp_path):
    [work] = works_of(corpus)
    for keep in (True, False):
        part = parts.make(work, tmp_path, corpus, keep_texts=keep)
        assert all(bool(d.text) == keep for d, _ in parts.read(tmp_path, part))


def test_lines_of_a_removal_list_that_named_something_are_counted_in_the_part(corpus, tmp_path):
    (tmp_path / "list").write_text(f"{tmp_path}/a.txt\n{tmp_path}/b.txt#3\nnobody\n")
    corpus = dataclasses.replace(corpus, remove=(str(tmp_path / "list"),))
    [work] = works_of(corpus)
    for _ in range(2):  # counts do not run on from one part to the next
        part = parts.make(work, tmp_path, corpus, keep_texts=False)
        assert part.removed == {f"{tmp_path}/a.txt": 5, f"{tmp_path}/b.txt#3": 1}
    fates = [c.fate for _, c in parts.read(tmp_path, part)]
    assert fates.count("removed") == 6 and set(fates) <= set(clean.FATES)


def test_pages_of_a_large_dump_are_parsed_where_they_are_cleaned(tmp_path, monkeypatch):
    texts = made_up(12)
    pages = "".join(
        f"<page><title>P{i}</title><ns>0</ns><revision><model>wikitext</model><text>'''{text}'''</text></revision></page>"
        for i, text in enumerate(texts)
    )
    (tmp_path / "a.xml").write_text(f"<mediawiki><siteinfo/>{pages}</mediawiki>")
    corpus = Corpus(input=(str(tmp_path / "a.xml"),), clean=OFF, language="gl")
    [small] = works_of(corpus)
    monkeypatch.setattr(parts, "SMALL", 1)
    monkeypatch.setattr(parts, "CHARACTERS", 1000)
    large = works_of(corpus)
    with monkeypatch.context() as patch:
        patch.setattr(wiki, "article", None)  # reading does not need it
        assert len(list(works_of(corpus))) == len(large) > 1
    for works, folder in (([small], tmp_path / "one"), (large, tmp_path / "several")):
        folder.mkdir()
        made = [parts.make(work, folder, corpus, keep_texts=True) for work in works]
        found = [pair for part in made for pair in parts.read(folder, part)]
        assert [(d.id.rpartition("#")[2], d.meta["title"]) for d, _ in found] == [
            (f"{i + 1}", f"P{i}") for i in range(12)
        ]
        assert [d.text for d, _ in found] == texts
