"""What needs all documents before the first can be judged: near duplicates, and lines that many documents have.

All documents pass once, are written into a file and counted, and pass again, in the same order. The steps are applied
in the order near duplicates, boilerplate lines; repeated paragraphs are taken out after them, of what stays.
"""

import collections
import contextlib
import dataclasses
import heapq
import json
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard

from jaxbert.config import Corpus
from jaxbert.data import clean, near, stages
from jaxbert.data.clean import Cleaned
from jaxbert.data.readers import Document, Unread
from jaxbert.errors import BadInput

EXAMPLES = 20  # boilerplate lines that the report shows, the most frequent ones
SAMPLE = 12  # duplicates, and near duplicates, of which corpus.json holds the beginning
BEGINNING = 1000  # characters of it


def check(corpus: Corpus) -> None:
    """Raises BadInput for settings that cannot work."""
    threshold, least = corpus.clean.near_duplicates, corpus.clean.boilerplate
    if threshold and not near.LEAST <= threshold <= 1:
        raise BadInput(
            f"corpus.clean.near_duplicates: {threshold}; give {near.LEAST} to 1, or 0 to keep near duplicates"
        )
    if least < 0 or least == 1:
        raise BadInput(f"corpus.clean.boilerplate: {least}; give 2 documents or more, or 0 to keep boilerplate lines")


def sign_kept(block: list[Cleaned], corpus: Corpus) -> None:
    """Give every kept document of a block what `judged` needs of it. Pure but for that; runs in workers."""
    if threshold := corpus.clean.near_duplicates:
        kept = [cleaned for cleaned in block if cleaned.fate == "kept"]
        signatures = near.sign([c.text for c in kept], near.rows_of_band(threshold))
        for cleaned, signature in zip(kept, signatures, strict=True):
            cleaned.signature = signature


def judged(
    documents: Iterable[tuple[Document | Unread, Cleaned]],
    corpus: Corpus,
    folder: Path,
    report: dict[str, Any],
    *,
    keep_texts: bool,
) -> Iterator[tuple[Document | Unread, Cleaned]]:
    """The same documents in the same order, after the steps that `corpus.clean` asks for; without any, as they come.

    In between they wait in a file in `folder`, compressed, which is removed at the end. The input's texts, which are
    wanted of rejected documents alone, are kept if `keep_texts`. What was counted goes into `report`, and so do
    examples of duplicates, which were found before.
    """
    steps = corpus.clean
    repeated, near_examples = Examples(), Examples()
    documents = _noted(documents, repeated)
    if not steps.near_duplicates and not steps.boilerplate:
        yield from documents
        report.update(repeated.report("duplicate_examples"))
        return
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder, prefix="across-")))
        index = boilerplate = None
        if steps.near_duplicates:
            index = stack.enter_context(contextlib.closing(near.Index(temporary, steps.near_duplicates)))
        if steps.boilerplate:
            boilerplate = Boilerplate(steps.boilerplate)
        with zstandard.open(temporary / "documents.zst", "wb", cctx=zstandard.ZstdCompressor(level=1)) as file:
            for document, cleaned in documents:
                if cleaned.fate == "kept" and index is not None:
                    assert cleaned.signature is not None
                    split = clean.split_of(cleaned, corpus.validation_share)
                    index.add(cleaned.signature, document.id, split == "validation")
                if cleaned.fate == "kept" and boilerplate is not None:
                    boilerplate.count(cleaned)
                cleaned = dataclasses.replace(cleaned, signature=None)
                if not keep_texts:
                    document = dataclasses.replace(document, text="")
                pickle.dump((document, cleaned), file, pickle.HIGHEST_PROTOCOL)
        found = index.find() if index is not None else None
        if boilerplate is not None:
            boilerplate.decide()
        number = 0
        with zstandard.open(temporary / "documents.zst", "rb") as file:
            for document, cleaned in _unpickled(file):
                if cleaned.fate == "kept" and index is not None and found is not None:
                    cleaned = _compared(cleaned, index, found, number)
                    if cleaned.fate != "kept":
                        similarity, _, other = cleaned.detail.partition(" ")
                        key = f"{cleaned.own_hash} {document.id}"
                        near_examples.add(key, document.id, cleaned.text, similarity=float(similarity), other=other)
                    number += 1
                if boilerplate is not None:
                    cleaned = boilerplate.apply(cleaned)
                yield document, cleaned
        if index is not None and found is not None:
            rejected = int(np.count_nonzero(found.near >= 0))
            stages.say(f"near duplicates: {rejected:,} of {len(index):,} documents, {found.compared:,} pairs compared")
            counts = {"documents": len(index), "compared": found.compared, "capped": found.capped}
            report["near_duplicates"] = counts | near_examples.report("examples")
        if boilerplate is not None:
            report["boilerplate"] = boilerplate.report()
        report.update(repeated.report("duplicate_examples"))


def _unpickled(file: Any) -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(file)
        except EOFError:
            return


def _compared(cleaned: Cleaned, index: near.Index, found: near.Found, number: int) -> Cleaned:
    """A document, rejected if it is near an earlier one; the detail is the similarity and that one's id."""
    other = int(found.near[number])
    if other < 0:
        return cleaned
    across = index.is_validation(other) and not index.is_validation(number)
    fate = "near_validation" if across else "near_duplicate"
    return clean.rejected(cleaned, fate, f"{found.similarity[number]:.3f} {index.id(other)}", "near_duplicate")


def _noted(
    documents: Iterable[tuple[Document | Unread, Cleaned]], repeated: "Examples"
) -> Iterator[tuple[Document | Unread, Cleaned]]:
    for document, cleaned in documents:
        if cleaned.fate == "duplicate":
            repeated.add(cleaned.own_hash, document.id, cleaned.text)
        yield document, cleaned


class Examples:
    """Some rejected documents for the report: those with the SAMPLE smallest keys, which are hashes.

    So they come evenly from everywhere, and do not depend on the order. Documents of one key are counted: what falls
    out once never comes back, as SAMPLE smaller keys are there for good.
    """

    def __init__(self) -> None:
        """None yet."""
        self.found: dict[str, dict[str, Any]] = {}

    def add(self, key: str, id: str, text: str, **more: Any) -> None:
        """A rejected document."""
        if key in self.found:
            self.found[key]["copies"] += 1
            return
        self.found[key] = {"id": id, "text": text[:BEGINNING], "copies": 1, **more}
        if len(self.found) > SAMPLE:
            del self.found[max(self.found)]

    def report(self, name: str) -> dict[str, Any]:
        """For corpus.json: {name: examples}, or nothing where there are none."""
        examples = [self.found[key] for key in sorted(self.found)]
        # UTF-8 cannot hold a lone surrogate, of a file's name or of a text whose control characters stayed.
        written = json.dumps(examples, ensure_ascii=False).encode("utf-8", "replace")
        return {name: json.loads(written)} if examples else {}


class Boilerplate:
    """Lines that at least so many documents have; white space apart. Memory: about 100 bytes a distinct line."""

    def __init__(self, least: int) -> None:
        """`least`: documents that make a line boilerplate."""
        self.least, self.removed = least, 0
        self.documents: collections.Counter[int] = collections.Counter()  # hash of a line → documents
        self.examples: dict[int, str] = {}  # of the most frequent → one of the lines

    def count(self, cleaned: Cleaned) -> None:
        """A kept document."""
        self.documents.update({_line_hash(line) for line in cleaned.text.split("\n")})

    def decide(self) -> None:
        """All documents have been counted."""
        frequent = {line: count for line, count in self.documents.items() if count >= self.least}
        self.documents = collections.Counter(frequent)
        most = heapq.nsmallest(EXAMPLES, frequent, key=lambda line: (-frequent[line], line))
        self.examples = dict.fromkeys(most, "")

    def apply(self, cleaned: Cleaned) -> Cleaned:
        """The document without boilerplate, or with the fate "boilerplate" if nothing is left; others than "kept" pass.

        Its own hash stays, so that it does not change sides.
        """
        if cleaned.fate != "kept":
            return cleaned
        lines = [(line, _line_hash(line)) for line in cleaned.text.split("\n")]
        for line, key in lines:
            if key in self.examples:
                self.examples[key] = self.examples[key] or line
        kept = [line for line, key in lines if key not in self.documents]
        if len(kept) == len(lines):
            return cleaned
        self.removed += len(lines) - len(kept)
        if not kept:
            return clean.rejected(cleaned, "boilerplate", "", "boilerplate")
        counts = collections.Counter(cleaned.paragraphs)
        counts.update(boilerplate=len(lines) - len(kept), kept=len(kept) - len(lines))
        return dataclasses.replace(cleaned, text="\n".join(kept), paragraphs=+counts)

    def report(self) -> dict[str, Any]:
        """For corpus.json: distinct lines, all that were removed, and the most frequent with their documents."""
        examples = [[line, self.documents[key]] for key, line in self.examples.items() if line]
        return {"lines": len(self.documents), "removed": self.removed, "most_frequent": examples}


def _line_hash(line: str) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(line.split()).encode("utf-8", "surrogatepass"))
