"""What needs all documents before one can be judged: copies, near duplicates, lines that many documents have, repeated
paragraphs. In this order; each sees what those before it left, but boilerplate lines are counted in near duplicates,
too.

`decide` works on the keys of parts (parts.py) alone, in one process: 2 to 3 million keys a second. `judged` applies
what was decided to a part, anywhere. Memory of `decide`: a byte a document, what near.py says where near duplicates are
looked for, and a range of keys (groups.py).
"""

import collections
import contextlib
import dataclasses
import heapq
import itertools
import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.config import Corpus
from jaxbert.data import clean, groups, near, parts, stages
from jaxbert.data.clean import Cleaned
from jaxbert.data.parts import Part
from jaxbert.data.readers import Document, Unread
from jaxbert.errors import BadInput

EXAMPLES = 20  # boilerplate lines that the report shows, the most frequent ones
SAMPLE = 12  # duplicates, and near duplicates, of which corpus.json holds the beginning
BEGINNING = 1000  # characters of it

STAYS, DUPLICATE, NEAR, NEAR_VALIDATION = range(4)  # what is decided about a document
REPEATED, BOILERPLATE = range(2)  # about a line that goes
_PART = np.uint64(33)  # bits before the number of a part


def check(corpus: Corpus) -> None:
    """Raises BadInput for settings that cannot work."""
    threshold, least = corpus.clean.near_duplicates, corpus.clean.boilerplate
    if threshold and not near.LEAST <= threshold <= 1:
        raise BadInput(
            f"corpus.clean.near_duplicates: {threshold}; give {near.LEAST} to 1, or 0 to keep near duplicates"
        )
    if least < 0 or least == 1:
        raise BadInput(f"corpus.clean.boilerplate: {least}; give 2 documents or more, or 0 to keep boilerplate lines")


# --- deciding, from keys ---


@dataclasses.dataclass(frozen=True)
class Decided:
    """What `decide` found, for `judged`: small, or on disk in `folder`."""

    folder: Path
    first: np.ndarray  # int64 (parts + 1,): the number of each part's first fit document among all
    line_ranges: int  # files lines-<n>.npy
    report: dict[str, Any]  # for corpus.json: near_duplicates, boilerplate, where these were asked for


def decide(all_parts: Sequence[Part], folder: Path, corpus: Corpus) -> Decided:
    """Which documents and lines go, into files in `folder`, where the parts' files are."""
    steps, report = corpus.clean, dict[str, Any]()
    first = np.cumsum([0, *(part.texts for part in all_parts)])
    verdict = np.zeros(first[-1], np.uint8)
    if steps.duplicates != "off":
        paths = [folder / f"{part.name}.texts" for part in all_parts]
        of = groups.ranges(len(verdict))
        for number in range(of):
            found = groups.group(paths, number, of)
            again = ~found.begins
            verdict[first[found.part[again]] + found.index[again]] = DUPLICATE
    if steps.near_duplicates:
        report["near_duplicates"] = _near(all_parts, folder, corpus, first, verdict)
    verdict.tofile(folder / "verdict.bin")
    ranges = 0
    if steps.boilerplate or steps.duplicates == "paragraph":
        ranges = groups.ranges(sum(part.lines for part in all_parts))
        frequent = _lines(all_parts, folder, corpus, first, verdict, ranges)
        if steps.boilerplate:
            report["boilerplate"] = frequent
    return Decided(folder, first, ranges, report)


def _near(
    all_parts: Sequence[Part], folder: Path, corpus: Corpus, first: np.ndarray, verdict: np.ndarray
) -> dict[str, int]:
    """Mark near duplicates in `verdict`; their similarities and the others' ids go into <part>.details."""
    with contextlib.closing(near.Index(folder, corpus.clean.near_duplicates)) as index:
        signed = (s for part in all_parts for s in parts.read_signed(folder, part))
        for state, (id, held_out, signature) in zip(verdict, signed, strict=True):
            if state == STAYS:
                index.add(signature, id, held_out)
        documents = np.flatnonzero(verdict == STAYS)  # by their number in the index
        found = index.find()
        rejected = np.flatnonzero(found.near >= 0)
        of_part = np.searchsorted(first, documents[rejected], side="right") - 1
        numbered = zip(of_part.tolist(), rejected.tolist(), strict=True)
        for part, numbers in itertools.groupby(numbered, lambda pair: pair[0]):
            details = {}
            for _, number in numbers:
                other, document = int(found.near[number]), int(documents[number])
                across = index.is_validation(other) and not index.is_validation(number)
                verdict[document] = NEAR_VALIDATION if across else NEAR
                details[document - int(first[part])] = f"{found.similarity[number]:.3f} {index.id(other)}"
            (folder / f"{all_parts[part].name}.details").write_bytes(pickle.dumps(details))
        stages.say(f"near duplicates: {len(rejected):,} of {len(index):,} documents, {found.compared:,} pairs compared")
        return {"documents": len(index), "compared": found.compared, "capped": found.capped}


def _lines(
    all_parts: Sequence[Part], folder: Path, corpus: Corpus, first: np.ndarray, verdict: np.ndarray, ranges: int
) -> dict[str, Any]:
    """Write which lines of documents that stay go, and why: part << 33 | line << 1 | why, ascending in each file.

    Returns what is to be reported about boilerplate: distinct lines, all that go, and the most frequent.
    """
    paths = [folder / f"{part.name}.lines" for part in all_parts]
    distinct, removed, most = 0, 0, list[tuple[int, int, int]]()
    for number in range(ranges):
        found = groups.group(paths, number, ranges)
        run = np.cumsum(found.begins) - 1
        document = first[found.part] + found.owner
        stays = verdict[document] == STAYS
        boilerplate = np.zeros(len(run), bool)
        if corpus.clean.boilerplate and len(run):
            seen = np.flatnonzero(verdict[document] != DUPLICATE)
            new = _changes(run[seen]) | _changes(document[seen])  # a line counts once a document
            counts = np.bincount(run[seen][new], minlength=run[-1] + 1)
            boilerplate = (counts >= corpus.clean.boilerplate)[run]
            lines = np.flatnonzero(boilerplate & found.begins)
            columns = (counts[run[lines]], -found.part[lines].astype(np.int64), -found.index[lines].astype(np.int64))
            most = heapq.nlargest(EXAMPLES, [*most, *zip(*(c.tolist() for c in columns), strict=True)])
            distinct, removed = distinct + len(lines), removed + int(np.count_nonzero(boilerplate & stays))
        goes = boilerplate & stays
        if corpus.clean.duplicates == "paragraph":
            left = np.flatnonzero(stays)
            goes[left[~_changes(run[left])]] = True
        why = np.where(boilerplate, BOILERPLATE, REPEATED).astype(np.uint64)
        places = found.part.astype(np.uint64) << _PART | found.index.astype(np.uint64) << np.uint64(1) | why
        np.save(folder / f"lines-{number}.npy", np.sort(places[goes]))
    examples = [[_line(folder, all_parts[-part], -line), count] for count, part, line in most]
    return {"lines": distinct, "removed": removed, "most_frequent": examples}


def _changes(values: np.ndarray) -> np.ndarray:
    """bool (N,): where a value is not the one before it."""
    return np.r_[True, values[1:] != values[:-1]][: len(values)]


def _line(folder: Path, part: Part, number: int) -> str:
    """A line of a part's documents that are fit to stay."""
    for _, cleaned in parts.read(folder, part):
        if cleaned.fate == "kept":
            lines = cleaned.text.split("\n")
            if number < len(lines):
                return lines[number]
            number -= len(lines)
    raise IndexError(number)


# --- judging, part by part ---


def judged(number: int, part: Part, decided: Decided) -> Iterator[tuple[Document | Unread, Cleaned]]:
    """All that was in part `number`, in order, after all steps."""
    first, last = (int(decided.first[n]) for n in (number, number + 1))
    verdict = np.fromfile(decided.folder / "verdict.bin", np.uint8, last - first, offset=first)
    details = {}  # of near duplicates: similarity and the other's id
    if np.any(verdict >= NEAR):
        details = pickle.loads((decided.folder / f"{part.name}.details").read_bytes())
    goes = _goes(number, decided)
    at = line = 0  # of the documents that were fit to stay, and of their lines
    for document, cleaned in parts.read(decided.folder, part):
        if cleaned.fate == "kept":
            state, lines = verdict[at], range(line, line + cleaned.text.count("\n") + 1)
            if state == DUPLICATE:
                cleaned = clean.rejected(cleaned, "duplicate", "of a document", "duplicate")
            elif state != STAYS:
                fate = "near_duplicate" if state == NEAR else "near_validation"
                cleaned = clean.rejected(cleaned, fate, details[at], "near_duplicate")
            else:
                cleaned = _without(cleaned, [goes.get(n) for n in lines])
            at, line = at + 1, lines.stop
        yield document, cleaned


def _goes(number: int, decided: Decided) -> dict[int, int]:
    """The lines of a part that go, and why."""
    goes = {}
    for n in range(decided.line_ranges):
        places = np.load(decided.folder / f"lines-{n}.npy", mmap_mode="r")
        start, end = np.searchsorted(places, np.array([number, number + 1], np.uint64) << _PART)
        for place in places[start:end].tolist():
            goes[place >> 1 & 0xFFFFFFFF] = place & 1
    return goes


def _without(cleaned: Cleaned, why: list[int | None]) -> Cleaned:
    """A document without the lines that go; with another fate if none is left. Its own hash stays, and so its side."""
    boilerplate, repeated = why.count(BOILERPLATE), why.count(REPEATED)
    if boilerplate + repeated == 0:
        return cleaned
    if boilerplate == len(why):
        return clean.rejected(cleaned, "boilerplate", "", "boilerplate")
    counts = collections.Counter(cleaned.paragraphs)
    counts.update(boilerplate=boilerplate, duplicate=repeated, kept=-boilerplate - repeated)
    if boilerplate + repeated == len(why):
        return dataclasses.replace(cleaned, fate="duplicate", detail="of paragraphs", paragraphs=+counts)
    kept = [line for line, reason in zip(cleaned.text.split("\n"), why, strict=True) if reason is None]
    return dataclasses.replace(cleaned, text="\n".join(kept), paragraphs=+counts)


# --- examples ---


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

    def merge(self, later: "Examples") -> None:
        """Add those of documents that come after all of these."""
        for key, example in later.found.items():
            if key in self.found:
                self.found[key]["copies"] += example["copies"]
            else:
                self.found[key] = example
        for key in sorted(self.found)[SAMPLE:]:
            del self.found[key]

    def report(self, name: str) -> dict[str, Any]:
        """For corpus.json: {name: examples}, or nothing where there are none."""
        examples = [self.found[key] for key in sorted(self.found)]
        # UTF-8 cannot hold a lone surrogate, of a file's name or of a text whose control characters stayed.
        written = json.dumps(examples, ensure_ascii=False).encode("utf-8", "replace")
        return {name: json.loads(written)} if examples else {}
