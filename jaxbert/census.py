"""What a prepared corpus holds that corpus.json does not count: words, lengths, tokens by source, examples.

One pass over documents/ and tokens/, in memory that grows with the vocabulary and the number of sources alone. What it
finds depends on the corpus alone, not on time, place or the number of workers.
"""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data import packing, source, stages
from jaxbert.data.source import SPLITS
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput

LONGEST = 1 << 20  # tokens; lengths of documents are counted one by one up to here
CHUNK = 1 << 22  # tokens looked at at once
SENTENCE_WORDS, SENTENCE_CHARACTERS = (6, 16), 120  # what fits an example
OTHER_CHARACTERS = 4000  # kept of a document that a near duplicate names
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


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


def measure(directory: Path, corpus: dict[str, Any], tokenizer: TextTokenizer) -> Measured:
    """One pass over both splits of a prepared corpus, whose corpus.json is `corpus`.

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
        with stages.Progress("report", expected["documents"], "documents") as progress:
            documents = progress.count(source.read_documents(directory, split), split)
            found = _count(documents, stored, measured, wanted)
        for what, count in expected.items():
            if found[what] != count:
                raise BadInput(
                    f"{directory / 'corpus.json'}: {count:,} {what} for {split}, but there are {found[what]:,} in "
                    f"documents/ and tokens/; delete {stages.and_later(directory, 'documents')} and prepare again"
                )
        single, words = _whole_words(stored.tokens)
        measured.single, measured.words = measured.single + single, measured.words + words
    return measured


def _count(
    documents: Iterable[dict[str, Any]], stored: packing.TokenFile, measured: Measured, wanted: set[str]
) -> Counter:
    """Count a split's documents into `measured`, and keep the texts that are `wanted` by id; returns their totals."""
    found: Counter = Counter()
    for number, document in enumerate(documents):
        if number + 1 >= len(stored.offsets):
            found["documents"] += 1
            break  # more documents than there are tokens for: the totals will not be those of corpus.json
        text, name = document["text"], document["source"]
        tokens = int(stored.offsets[number + 1] - stored.offsets[number])
        counts = {
            "documents": 1,
            "characters": len(text),
            "words": len(text.split()),
            "marks": len(_WORD_OR_MARK.findall(text)),
            "tokens": tokens,
        }
        found.update(counts)
        measured.sources.setdefault(name, Counter()).update(counts)
        measured.lengths[min(tokens, LONGEST)] += 1
        measured.longest = max(measured.longest, tokens)
        if document["id"] in wanted:
            measured.named[document["id"]] = text[:OTHER_CHARACTERS]
        if sentence := _sentence(text):
            key = hashlib.blake2b(sentence.encode(), digest_size=8).hexdigest()
            measured.sentences[name] = min((key, sentence), measured.sentences.get(name, (key, sentence)))
    return found


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
