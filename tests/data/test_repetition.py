"""Gopher's repetition filters: each share as table A1 defines it, each limit by its own field."""

import dataclasses
from collections import Counter

import pytest

from jaxbert.config import Clean, Corpus, Repetition
from jaxbert.data import clean, repetition
from jaxbert.data.readers import Document
from tests.pseudo_galician import documents

STEPS = Clean(repair=False, min_words=0, min_letters=0.0, identify_language=False, repetition=Repetition(filter=True))


def slow_measure(text: str) -> dict[str, float]:
    """The same, from the definition, with strings."""
    words, lines = text.split(), text.split("\n")
    total = sum(map(len, words))
    again = [i for i, line in enumerate(lines) if line in lines[:i]]
    shares = {
        "duplicate_lines": len(again) / len(lines),
        "duplicate_line_characters": sum(len(lines[i]) for i in again) / sum(map(len, lines)),
    }
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(grams)
        if n < 5:
            most = max(counts.values(), default=0)
            top = [sum(map(len, gram)) * most for gram, count in counts.items() if count == most > 1]
            shares[f"top_{n}_gram"] = {value / total for value in top} or {0.0}
        else:
            covered = {i + k for i, gram in enumerate(grams) if gram in grams[:i] for k in range(n)}
            shares[f"duplicate_{n}_grams"] = sum(len(words[i]) for i in covered) / total
    return shares


PASSAGE = documents(3)
TEXTS = [
    "un", "un dous", "a b a b a b", "\n".join(["un dous tres catro"] * 3 + ["cinco seis"]), "x " * 40,
    PASSAGE[0], PASSAGE[0] + " " + PASSAGE[0][30:200], PASSAGE[1] + "\n" + PASSAGE[2] + "\n" + PASSAGE[1],
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_every_share_is_what_its_definition_gives(text):
    found, expected = repetition.measure(text.strip()), slow_measure(text.strip())
    assert list(found) == [field.name for field in dataclasses.fields(Repetition)][1:]
    for name, share in found.items():
        if name.startswith("top"):  # of equally frequent ones, any
            assert any(share == pytest.approx(value) for value in expected[name])
        else:
            assert share == pytest.approx(expected[name]), name


def test_plain_text_stays_and_a_repeating_one_is_rejected_with_the_share_and_counted():
    repeating = "Prema o botón\nPrema o botón\nPrema o botón\nou non"
    plain, rejected = clean.clean_block([Document(t, "a", "a") for t in (PASSAGE[0], repeating)], Corpus(clean=STEPS))
    assert plain.fate == "kept"
    assert (rejected.fate, rejected.detail) == ("repetition", "duplicate_lines 0.50")
    assert rejected.paragraphs == {"repetition": 4}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Repetition)][1:])
def test_each_limit_can_be_lifted_by_its_field(name):
    lifted = {field.name: 99.0 for field in dataclasses.fields(Repetition)[1:]}
    text = "un dous tres\n" * 20 + "fin"
    assert repetition.reason(text, Repetition(**{**lifted, name: 0.1})).startswith(f"{name} ")
    assert repetition.reason(text, Repetition(**lifted)) == ""


def test_it_is_off_unless_asked_for():
    steps = dataclasses.replace(STEPS, repetition=Repetition())
    (kept,) = clean.clean_block([Document("un\nun\nun", "a", "a")], Corpus(clean=steps))
    assert kept.fate == "kept"
