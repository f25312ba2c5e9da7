"""Steps that need all documents: their order, their counts, what stays of documents and what is left behind on disk."""

from collections import Counter

import pytest

from jaxbert.config import Clean, Corpus
from jaxbert.data import across, clean, parts
from jaxbert.data.readers import Document, Source, Unread
from jaxbert.errors import BadInput
from tests.pseudo_galician import documents

OFF = {"repair": False, "control_characters": False, "min_words": 0, "min_letters": 0.0, "identify_language": False}
TEXTS = documents(12)


@pytest.fixture(params=[1, 3], ids=["one part", "several parts"])
def judge(tmp_path, request):
    """(results, report) of texts, cut into parts; None is something unreadable."""

    def run(texts: list[str | None], share: float = 0.0, **steps) -> tuple[list[clean.Cleaned], dict]:
        corpus = Corpus(clean=Clean(**OFF, **{"duplicates": "off"} | steps), validation_share=share)
        found = [
            Document(t, f"a#{i}", "a") if t is not None else Unread(f"a#{i}", "a", "unreadable", "")
            for i, t in enumerate(texts)
        ]
        size = -(-len(found) // request.param)
        blocks = [found[i : i + size] for i in range(0, len(found), size)]
        whole = Source("a", "files", "a", "", "", 0, "", "", ())
        made = [
            parts.make(parts.Work(f"{i}", whole, block), tmp_path, corpus, keep_texts=False)
            for i, block in enumerate(blocks)
        ]
        decided = across.decide(made, tmp_path, corpus)
        judged = [pair for i, part in enumerate(made) for pair in across.judged(i, part, decided)]
        assert [d.id for d, _ in judged] == [d.id for d in found]
        return [result for _, result in judged], decided.report

    return run


def test_others_than_kept_documents_pass_as_they_are_in_their_places(judge):
    results, report = judge([None, TEXTS[0], " ", TEXTS[0] + " fin", None], near_duplicates=0.8)
    assert [r.fate for r in results] == ["unreadable", "kept", "empty", "near_duplicate", "unreadable"]
    assert results[3].detail.endswith(" a#1")
    assert report["near_duplicates"] == {"documents": 2, "compared": 1, "capped": 0}


def test_paragraphs_of_near_duplicates_are_counted_as_such(judge):
    results, _ = judge([TEXTS[0], TEXTS[0] + " fin"], near_duplicates=0.8)
    assert [r.paragraphs for r in results] == [{"kept": 2}, {"near_duplicate": 2}]


def test_a_training_document_near_a_held_out_one_has_its_own_fate_though_it_came_first(judge):
    share, seen = 0.5, set()
    for text in TEXTS:
        results, _ = judge([text, text + " fin"], share=share, near_duplicates=0.8)
        first, second = (clean.split_of(r, share) for r in results)
        fates = [r.fate for r in results]
        seen.add((first, second))
        if (first, second) == ("train", "validation"):
            assert fates == ["near_validation", "kept"]
        else:
            across_splits = (first, second) == ("validation", "train")
            assert fates == ["kept", "near_validation" if across_splits else "near_duplicate"]
    assert len(seen) == 4


# --- copies ---


def test_a_repeated_document_is_a_duplicate_even_with_other_white_space(judge):
    (first, second), _ = judge(["un dous\ntres", "un  dous\n\n tres"], duplicates="document")
    assert (first.fate, second.fate, second.detail) == ("kept", "duplicate", "of a document")
    assert second.paragraphs == {"duplicate": 2}


def test_repeated_paragraphs_go_and_the_first_stays(judge):
    (first, second, third), _ = judge(["un\ndous", "dous\ntres\ntres", "tres\nun"], duplicates="paragraph")
    assert (first.text, second.text) == ("un\ndous", "tres")
    assert second.paragraphs == {"kept": 1, "duplicate": 2}
    assert (third.fate, third.detail) == ("duplicate", "of paragraphs")


def test_documents_alone_are_compared_on_request_and_nothing_when_off(judge):
    assert [c.fate for c in judge(["un\ndous", "dous"], duplicates="document")[0]] == ["kept", "kept"]
    assert [c.fate for c in judge(["un", "un"])[0]] == ["kept", "kept"]


def test_paragraphs_of_documents_that_go_do_not_take_those_of_others_with_them(judge):
    texts = [TEXTS[0], TEXTS[0] + " fin\nnovo", TEXTS[1] + "\nnovo"]
    results, _ = judge(texts, near_duplicates=0.8, duplicates="paragraph")
    assert [r.fate for r in results] == ["kept", "near_duplicate", "kept"]
    assert results[2].text.endswith("\nnovo")


def test_paragraphs_that_are_boilerplate_are_counted_as_that_alone(judge):
    results, _ = judge([f"{text}\npé\n{TEXTS[0]}" for text in TEXTS[1:4]], boilerplate=3, duplicates="paragraph")
    assert sum((r.paragraphs for r in results), Counter()) == {"kept": 6, "boilerplate": 9}


# --- boilerplate lines ---


def test_a_line_of_many_documents_goes_from_all_of_them_and_is_counted(judge):
    footer = "Ligazón permanente | Imprimir"
    texts = [f"{text}\n{footer}" for text in TEXTS[:4]] + [TEXTS[4]]
    texts[1] += f"\n {footer} "  # twice in one document, with other white space
    results, report = judge(texts, boilerplate=4)
    assert [r.text for r in results] == TEXTS[:5]
    assert sum((r.paragraphs for r in results), Counter()) == {"kept": 10, "boilerplate": 5}
    assert report["boilerplate"] == {"lines": 1, "removed": 5, "most_frequent": [[footer, 4]]}


def test_a_line_of_fewer_documents_stays_however_often_one_repeats_it(judge):
    texts = [f"{TEXTS[0]}\nmenú\nmenú\nmenú", f"{TEXTS[1]}\nmenú"]
    results, report = judge(texts, boilerplate=3)
    assert [r.text for r in results] == texts and report["boilerplate"]["lines"] == 0


def test_a_document_of_boilerplate_alone_has_that_fate(judge):
    results, _ = judge(["un\ndous", "dous\nun", "un\ndous\ntres"], boilerplate=2)
    assert [r.fate for r in results] == ["boilerplate", "boilerplate", "kept"]
    assert (results[2].text, results[0].paragraphs) == ("tres", {"boilerplate": 2})


def test_documents_change_no_side_when_they_lose_boilerplate(judge):
    texts = [f"{text}\npé" for text in TEXTS]
    with_it, _ = judge(texts, share=0.5)
    without, _ = judge(texts, share=0.5, boilerplate=2)
    assert [clean.split_of(r, 0.5) for r in with_it] == [clean.split_of(r, 0.5) for r in without]


# --- settings ---


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ({"near_duplicates": 0.1}, r"near_duplicates: 0\.1; give 0\.4 to 1, or 0"),
        ({"near_duplicates": 1.01}, r"near_duplicates: 1\.01"),
        ({"near_duplicates": -0.5}, r"near_duplicates: -0\.5"),
        ({"boilerplate": 1}, r"boilerplate: 1; give 2 documents or more, or 0"),
        ({"boilerplate": -3}, r"boilerplate: -3"),
    ],
)
def test_settings_that_cannot_work_are_refused(steps, message):
    with pytest.raises(BadInput, match=rf"corpus\.clean\.{message}"):
        across.check(Corpus(clean=Clean(**steps)))


def test_both_steps_are_off_unless_asked_for():
    across.check(Corpus())
    assert (Clean().near_duplicates, Clean().boilerplate) == (0, 0)
