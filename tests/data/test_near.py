"""Near duplicates: found by the stated similarity, in the stated order, the same for any blocks."""

import random
import re

import pytest

from jaxbert.data import near
from tests.pseudo_galician import documents


def exact_shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + near.WORDS]) for i in range(max(1, len(words) - near.WORDS + 1))} if words else set()


def exact_jaccard(a: str, b: str) -> float:
    one, other = exact_shingles(a), exact_shingles(b)
    return len(one & other) / len(one | other)


def edited(text: str, share: float, choose: random.Random) -> str:
    """The text with about a share of its words replaced."""
    words = text.split(" ")
    return " ".join(choose.choice(words) + "x" if choose.random() < share else word for word in words)


@pytest.fixture
def find(tmp_path):
    def run(texts: list[str], validation: tuple[int, ...] = (), threshold: float = 0.8) -> near.Found:
        index = near.Index(tmp_path, threshold)
        for i, signature in enumerate(near.sign(texts, near.rows_of_band(threshold))):
            index.add(signature, f"a#{i}", i in validation)
        return index.find()

    return run


def words(*numbers: range | int) -> str:
    return " ".join(f"w{n}" for part in numbers for n in ([part] if isinstance(part, int) else part))


# --- recall ---


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_nearly_all_pairs_just_above_the_threshold_are_found_and_none_below(find, threshold):
    choose = random.Random(0)
    made = documents(1800)
    originals = [" ".join(made[i : i + 3]) for i in range(0, 1800, 3)]
    copies = [edited(text, choose.uniform(0.003, 0.07), choose) for text in originals]
    found = find(originals + copies, threshold=threshold)
    similar = [exact_jaccard(*pair) for pair in zip(originals, copies, strict=True)]
    wanted = [i for i, value in enumerate(similar) if threshold <= value < threshold + 0.05]
    assert len(wanted) > 30
    assert sum(found.near[600 + i] == i for i in wanted) >= 0.95 * len(wanted)
    assert (found.near[:600] < 0).all()
    assert all(found.near[600 + i] < 0 for i, value in enumerate(similar) if value < threshold)


def test_the_similarity_of_a_pair_is_the_jaccard_similarity_of_its_shingles(find):
    texts = [words(range(100)), words(range(50), 1000, range(51, 100))]
    assert find(texts).similarity[1] == pytest.approx(exact_jaccard(*texts)) and 0.8 < exact_jaccard(*texts) < 1


@pytest.mark.parametrize(
    "text", [*documents(5), "un dous", "", "…", "a_b c-d\te", "Un. Dous! Tres? Catro; cinco, seis"]
)
def test_shingles_are_the_distinct_runs_of_words(text):
    ((_, found),) = near.sign([text], 5)
    assert len(found) == len(exact_shingles(text.replace("_", " ")))


# --- words ---


def test_case_punctuation_and_white_space_say_nothing():
    a, b = near.sign(["O can, e o GATO: dous amigos!", "o can e\no  gato dous (amigos)"], 5)
    assert (a[0] == b[0]).all() and (a[1] == b[1]).all()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("漢字の文章", 5),
        ("a漢字b", 4),
        ("ภาษาไทย", 7),
        ("हिन्दी में", 2),
        ("한국어 문장", 2),
        ("café", 1),
        ("cafe\u0301 can", 2),
        ("a1 2b", 2),
        ("!?", 0),
    ],
)
def test_a_word_is_a_run_of_letters_marks_and_digits_or_one_character_where_no_spaces_are_written(text, count):
    assert near._word_hashes([text])[1] == [count]


def test_a_signature_depends_on_the_document_alone(monkeypatch):
    texts = ["", *documents(20), "un", "…", " ".join(documents(40, seed=3))]
    monkeypatch.setattr(near, "PIECE", 5_000)
    together = near.sign(texts, 5)
    for text, (keys, shingles) in zip(texts, together, strict=True):
        ((alone_keys, alone_shingles),) = near.sign([text], 5)
        assert (keys == alone_keys).all() and (shingles == alone_shingles).all()


def test_signatures_never_change():
    keys, shingles = near.sign(["O can e o gato son dous bos amigos"], 5)[0]
    assert (hex(keys[0]), hex(shingles[0])) == ("0xba2eafcb4eff3c57", "0x30bf5cf6")


# --- order ---


def test_of_two_near_documents_the_earlier_stays(find):
    assert find([words(range(100)), words(range(200, 300)), words(range(101))]).near.tolist() == [-1, -1, 0]


def test_validation_comes_first_wherever_it_stands(find):
    texts = [words(range(100)), words(range(101)), words(range(102)), words(range(103))]
    assert find(texts, validation=(2, 3)).near.tolist() == [2, 2, -1, 2]


def test_a_document_near_one_that_goes_but_near_none_that_stays_stays(find):
    a, b, c = words(range(100)), words(range(10, 110)), words(range(20, 120))
    assert exact_jaccard(a, b) > 0.8 and exact_jaccard(b, c) > 0.8 > exact_jaccard(a, c)
    assert find([a, b, c]).near.tolist() == [-1, 0, -1]


def test_documents_without_words_are_near_to_nothing(find):
    assert find(["…", "!", "", "…"]).near.tolist() == [-1] * 4


def test_documents_shorter_than_a_shingle_are_compared_whole(find):
    assert find(["un dous", "un dous tres", "Un dous."]).near.tolist() == [-1, -1, 0]


def test_no_documents_at_all_are_no_trouble(find):
    assert len(find([]).near) == 0 and len(find([""]).near) == 1


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_size_of_a_chunk_changes_nothing(find, monkeypatch, chunk):
    choose = random.Random(0)
    texts = documents(60)
    texts += [edited(choose.choice(texts), choose.choice([0.0, 0.01, 0.05]), choose) for _ in range(60)]
    whole = find(texts, validation=tuple(range(0, 120, 5)))
    monkeypatch.setattr(near, "CHUNK", chunk)
    parts = find(texts, validation=tuple(range(0, 120, 5)))
    assert (whole.near == parts.near).all() and (whole.near >= 0).sum() > 30


def test_a_document_is_compared_with_the_first_of_a_large_group_alone_and_that_is_counted(find):
    copies = find([words(range(100))] * 50)
    assert copies.near.tolist() == [-1] + [0] * 49
    assert (copies.compared, copies.capped) == (49, 50 - 1 - near.CANDIDATES)


# --- the threshold ---


def test_bands_are_as_long_as_recall_allows():
    for threshold in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        rows = near.rows_of_band(threshold)
        assert rows == 1 or 1 - (1 - threshold**rows) ** (near.HASHES // rows) >= near.RECALL
    assert (near.rows_of_band(0.8), near.rows_of_band(1.0)) == (5, 60)
