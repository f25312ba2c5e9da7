"""Overlap with benchmarks: what counts as shared, of which files, and what is refused."""

import json

import pytest

from jaxbert.config import Clean, Corpus
from jaxbert.data import clean, overlap
from jaxbert.data.readers import Document
from jaxbert.errors import BadInput

OFF = Clean(repair=False, control_characters=False, min_words=0, min_letters=0.0, identify_language=False)
QUESTION = "Cal é a capital do país que ten máis illas ca habitantes ten a súa vila?"  # 16 words


def mark(place, texts: list[str], **fields) -> list[clean.Cleaned]:
    corpus = Corpus(benchmarks=(str(place),), clean=OFF, **fields)
    overlap.load.cache_clear()
    overlap.check(corpus)
    block = clean.clean_block([Document(t, f"a#{i}", "a") for i, t in enumerate(texts)], corpus)
    overlap.mark(block, corpus)
    return block


@pytest.fixture
def benchmark(tmp_path):
    (tmp_path / "test.tsv").write_text(f"1\t{QUESTION}\tsi\n2\tMoi curta\tnon\n")
    return tmp_path


def test_documents_that_share_a_run_of_words_are_named_and_stay_unless_they_are_to_go(benchmark):
    texts = [f"Preguntan: {QUESTION.upper()} Ninguén sabe.", "Outra cousa", QUESTION.replace("máis", "menos"), ""]
    marked = mark(benchmark, texts)
    assert [c.overlaps for c in marked] == [{str(benchmark): 4}, {}, {}, {}]
    assert [c.fate for c in marked] == ["kept", "kept", "kept", "empty"]
    removed = mark(benchmark, texts, benchmark_overlap="remove")
    assert [c.fate for c in removed] == ["benchmark", "kept", "kept", "empty"]
    assert removed[0].detail == f"4 runs of words of {benchmark}" and removed[0].paragraphs == {"benchmark": 1}


def test_documents_without_words_share_nothing(benchmark):
    assert [c.overlaps for c in mark(benchmark, ["…", QUESTION, "!", "…"])] == [{}, {str(benchmark): 4}, {}, {}]
    assert [c.overlaps for c in mark(benchmark, ["…"])] == [{}]


def test_the_length_of_a_run_can_be_chosen(benchmark):
    text = [QUESTION.replace("máis", "menos")]
    assert mark(benchmark, text, benchmark_words=7)[0].overlaps == {str(benchmark): 1 + 2}
    with pytest.raises(BadInput, match="corpus.benchmark_words: 3; give 4 or more"):
        mark(benchmark, text, benchmark_words=3)


def test_fields_too_short_to_be_looked_for_are_counted(benchmark):
    mark(benchmark, ["Moi curta"])
    corpus = Corpus(benchmarks=(str(benchmark),))
    report = overlap.report(corpus, {str(benchmark): 5})
    assert report == {str(benchmark): {"fields": 6, "too_short": 5, "runs": 4, "documents": 5}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", QUESTION),
        ("a.csv", f'1,"{QUESTION}",si'),
        ("a.jsonl", "\n" + json.dumps({"id": 3, "data": [{"q": QUESTION}, None]}) + "\n"),
        ("a.json", json.dumps([[{"q": QUESTION}]], ensure_ascii=False)),
        ("a.conllu", f"# text = {QUESTION}\n1\tCal\tcal\tPRON"),
        ("sub/deeper/a.txt", f"\ufeff{QUESTION}"),
    ],
)
def test_text_is_found_in_every_form_of_file(tmp_path, name, content):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    assert mark(tmp_path, [QUESTION])[0].overlaps == {str(tmp_path): 4}
    assert mark(tmp_path / name, [QUESTION])[0].overlaps == {str(tmp_path / name): 4}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", r"a\.json cannot be read: JSONDecodeError.*give plain text"),
        ("a.jsonl", b"{}\n{", r"a\.jsonl cannot be read: JSONDecodeError"),
        ("a.json", b"[" * 100_000, r"a\.json cannot be read: RecursionError"),
        ("a.parquet", b"PAR1\xff\xfe", r"a\.parquet cannot be read: UnicodeDecodeError"),
        ("a.txt", b"", "holds no text"),
        (".hidden", b"text", "there is no file in"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_refused_with_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"corpus\.benchmarks: .*{message}"):
        mark(tmp_path, [])


def test_a_benchmark_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="there is no file in .*gone"):
        mark(tmp_path / "gone", [])


def test_the_digest_follows_names_and_bytes(benchmark):
    before = overlap.digest(str(benchmark))
    assert before == overlap.digest(str(benchmark))
    (benchmark / "test.tsv").write_text("outra")
    assert overlap.digest(str(benchmark)) != before
