"""What a prepared corpus holds that corpus.json does not count: words, lengths, tokens by source, examples.

One pass over documents/ and tokens/, by pieces in the processes of an engine, in memory that grows with the vocabulary
and the number of sources alone. What it finds depends on the corpus alone, not on time, place or the number of workers.
"""

import dataclasses
import functools
import hashlib
import itertools
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data import engines, packing, source, stages
from jaxbert.data.engines import Engine
from jaxbert.data.source import SPLITS
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput

LONGEST = 1 << 20  # tokens; lengths of documents are counted one by one up to here
CHUNK = 1 << 22  # tokens looked at at once
PIECE = 4096  # documents that are counted as one piece
SENTENCE_WORDS, SENTENCE_CHARACTERS = (6, 16), 120  # what fits an example
OTHER_CHARACTERS = 4000  # kept of a document that a near duplicate names
_VISIBLE, _OF_WORD = 1, 2  # kinds of characters: not white space; what `\w` matches


@dataclasses.dataclass
class Measured:
    """What the pass over documents and tokens finds; both splits together unless said otherwise."""

    sources: dict[str, Counter]  # by name, in corpus.json's order: documents, characters, words, marks, tokens
    lengths: np.ndarray  # int64 (LONGEST + 1,): documents by their tokens; the last counts longer ones, too
    longest: int  # tokens of the longest document
    counts_V: np.ndarray  # int64: tokens of the training split by id
    held_out_V: np.ndarray  # int64: of the validation split
    single: int  # words, as the tokenizer cuts them, that are one token
    words: int  # words, as the tokenizer cuts them
    sentences: dict[str, tuple[str, str]]  # by source, (hash, text) of the paragraph with the smallest hash
    named: dict[str, str]  # id → beginning of the text, of documents that near duplicates name

    @property
    def total(self) -> Counter:
        """Of all sources."""
        return sum(self.sources.values(), Counter())


def measure(
    directory: Path, corpus: dict[str, Any], tokenizer: TextTokenizer, engine: Engine | None = None
) -> Measured:
    """One pass over both splits of a prepared corpus, whose corpus.json is `corpus`. No engine: in this process.

    Raises BadInput where documents, tokens and corpus.json do not belong together."""
    size = tokenizer.vocab_size
    measured = Measured(
        sources={s["name"]: Counter() for s in corpus["sources"]},
        lengths=np.zeros(LONGEST + 1, np.int64),
        longest=0,
        counts_V=packing.unigram_counts(directory / "tokens" / "train", size),
        held_out_V=packing.unigram_counts(directory / "tokens" / "validation", size),
        single=0,
        words=0,
        sentences={},
        named={},
    )
    wanted = {example["other"] for example in corpus.get("near_duplicates", {}).get("examples", ())}
    for split in SPLITS:
        expected = {**corpus["splits"][split], "tokens": corpus["tokens"][split]}
        stored = packing.TokenFile(directory / "tokens" / split, size)
        lengths, measured.longest = _lengths(stored.offsets, measured.longest)
        measured.lengths += lengths
        found = _count(directory, split, expected["documents"], wanted, measured, engine or engines.Local(1))
        for what, count in expected.items():
            if found[what] != count:
                raise BadInput(
                    f"{directory / 'corpus.json'}: {count:,} {what} for {split}, but there are {found[what]:,} in "
                    f"documents/ and tokens/; delete {stages.and_later(directory, 'documents')} and prepare again"
                )
        single, words = _whole_words(stored.tokens)
        measured.single, measured.words = measured.single + single, measured.words + words
    return measured


def _lengths(offsets: np.ndarray, longest: int) -> tuple[np.ndarray, int]:
    """`lengths` and `longest` (or the given one, if that is longer) of documents that begin at these tokens."""
    lengths = np.zeros(LONGEST + 1, np.int64)
    for start in range(0, len(offsets) - 1, CHUNK):
        tokens = np.diff(offsets[start : start + CHUNK + 1])
        lengths += np.bincount(np.minimum(tokens, LONGEST), minlength=LONGEST + 1)
        longest = max(longest, int(tokens.max()))
    return lengths, longest


def _count(
    directory: Path, split: str, documents: int, wanted: set[str], measured: Measured, engine: Engine
) -> Counter:
    """Count a split's documents into `measured`, and keep the texts that are `wanted` by id; returns their totals."""
    pieces = [(first, min(first + PIECE, documents)) for first in range(0, documents, PIECE)] or [(0, 0)]
    pieces[-1] = (pieces[-1][0], documents + 1)  # are there more than there should be?
    work = functools.partial(
        count_piece, directory=directory.absolute(), split=split, vocab_size=len(measured.counts_V), wanted=wanted
    )
    found: Counter = Counter()
    with (
        stages.folder_beside(directory / "census") as folder,
        stages.Progress("report", documents, "documents") as progress,
    ):
        for sources, sentences, named in engine.map(work, pieces, engines.whole, folder):
            for name, counts in sources.items():
                found.update(counts)
                measured.sources.setdefault(name, Counter()).update(counts)
            for name, sentence in sentences.items():
                measured.sentences[name] = min(sentence, measured.sentences.get(name, sentence))
            measured.named |= named
            progress.update(min(documents, found["documents"]), split)
    return found


def count_piece(
    piece: tuple[int, int], directory: Path, split: str, vocab_size: int, wanted: set[str]
) -> tuple[dict[str, Counter], dict[str, tuple[str, str]], dict[str, str]]:
    """`sources`, `sentences` and `named` of `Measured`, of documents `piece[0]` to `piece[1]` of a split."""
    stored = packing.TokenFile(directory / "tokens" / split, vocab_size)
    sources: dict[str, Counter] = {}
    sentences: dict[str, tuple[str, str]] = {}
    named: dict[str, str] = {}
    documents = source.read_documents(directory, split, range(*piece))
    numbers = itertools.count(piece[0])
    for block in stages.blocks(documents):
        words_D, marks_D = _words_and_marks([document["text"] for document in block])
        for document, words, marks, number in zip(block, words_D, marks_D, numbers, strict=False):
            text, name = document["text"], document["source"]
            counts = sources.setdefault(name, Counter())
            counts["documents"] += 1
            if number + 1 >= len(stored.offsets):
                break  # more documents than there are tokens for: the totals will not be those of corpus.json
            counts["characters"] += len(text)
            counts["words"] += words
            counts["marks"] += marks
            counts["tokens"] += int(stored.offsets[number + 1] - stored.offsets[number])
            if document["id"] in wanted:
                named[document["id"]] = text[:OTHER_CHARACTERS]
            if sentence := _sentence(text):
                key = hashlib.blake2b(sentence.encode(), digest_size=8).hexdigest()
                sentences[name] = min((key, sentence), sentences.get(name, (key, sentence)))
    return sources, sentences, named


def _words_and_marks(texts: Sequence[str]) -> tuple[list[int], list[int]]:
    r"""Of each text the words that `split` finds, and the matches of `\w+|[^\w\s]`: all characters at once."""
    edges = np.cumsum([0, *(len(text) + 1 for text in texts)])  # a line feed behind each
    joined = "\n".join((*texts, "")).encode("utf-32-le", "surrogatepass")
    kinds_T = _kinds()[np.frombuffer(joined, "<u4")]
    visible_T, of_word_T = kinds_T & _VISIBLE > 0, kinds_T & _OF_WORD > 0
    begins_word_T, mark_T = visible_T.copy(), visible_T.copy()
    begins_word_T[1:] &= ~visible_T[:-1]
    mark_T[1:] &= ~(of_word_T[1:] & of_word_T[:-1])  # each character that goes on no run of `\w`
    words_D, marks_D = (
        np.diff(np.searchsorted(np.flatnonzero(found_T), edges)).tolist() for found_T in (begins_word_T, mark_T)
    )
    return words_D, marks_D


@functools.cache
def _kinds() -> np.ndarray:
    """uint8 by code point."""
    every = np.arange(sys.maxunicode + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    kinds = np.full(len(every), _VISIBLE, np.uint8)
    kinds[[found.start() for found in re.finditer(r"\w", every)]] |= _OF_WORD
    kinds[[found.start() for found in re.finditer(r"\s", every)]] = 0
    return kinds


def _sentence(text: str) -> str:
    """The first paragraph of a document if it can be an example, else ""."""
    paragraph = text.partition("\n")[0]
    if len(paragraph) > SENTENCE_CHARACTERS:
        return ""
    low, high = SENTENCE_WORDS
    return paragraph if low <= len(paragraph.split()) <= high else ""


def _whole_words(stored: np.ndarray) -> tuple[int, int]:
    """(words that are one token, words) of stored tokens; every document starts with a word."""
    single = words = 0
    for start in range(0, len(stored), CHUNK):
        starts = (stored[start : start + CHUNK + 1] & 1).astype(bool)  # one more: does the last word end here?
        here = min(CHUNK, len(stored) - start)
        following = np.append(starts[1:], True)[:here]
        words += int(starts[:here].sum())
        single += int((starts[:here] & following).sum())
    return single, words
