"""A corpus on its way: parts of the input, each cleaned by itself, on disk with the keys that compare it with others.

`divided` and `works` cut the input into works of bounded size, in its order; `make` turns one into a part:
    <name>.documents   (Document, Cleaned) of all that was in it, compressed; the input's text only where it is wanted
    <name>.texts       keys of the documents that are fit to stay, by their cleaned text (groups.py)
    <name>.lines       keys of their lines, white space apart; the owner is the document, counted among the fit
    <name>.near        their ids, sides and signatures (near.py)
Lines and signatures are written where a step of `corpus.clean` asks for them.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from jaxbert.config import Corpus
from jaxbert.data import clean, groups, near, overlap, readers, stages
from jaxbert.data.clean import Cleaned
from jaxbert.data.files import COMPRESSED, Document, Unparsed, Unread

CHARACTERS = 1 << 20  # of a work out of a large file, nearly
SMALL = 4 << 20  # bytes of files that are one work together
EXPANDS = 20  # compressed bytes count so often


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some files of the input, in order: a large one, or small ones together."""

    number: int
    source: readers.Source  # whose `files` are those of this piece
    large: bool


@dataclasses.dataclass(frozen=True)
class Work:
    """Some of the input, in order."""

    name: str  # sorts like the input
    source: readers.Source  # whose `files` are those of this work
    documents: Sequence[Document | Unread | Unparsed] | None  # of a large file; None: to be read from `files`


@dataclasses.dataclass(frozen=True)
class Part:
    """What a work became."""

    name: str
    documents: int  # all that was in it
    texts: int  # documents among them that are fit to stay
    lines: int  # of these, if they were written
    files: int  # that ended in it
    removed: collections.Counter[str]  # lines of the removal lists → documents that they named


# --- the input in works ---


def divided(found: Sequence[readers.Source]) -> list[Piece]:
    """All files of all sources in order, small ones together."""
    pieces: list[Piece] = []
    for source in found:
        taken: list[list[tuple[str, str, str]]] = []
        sizes: list[int] = []
        for file in source.files:
            size = _bytes(file)
            if not taken or sizes[-1] + size > SMALL:
                taken.append([])
                sizes.append(0)
            taken[-1].append(file)
            sizes[-1] += size
        for files, size in zip(taken, sizes, strict=True):
            pieces.append(Piece(len(pieces), dataclasses.replace(source, files=tuple(files)), size > SMALL))
    return pieces


def _bytes(file: tuple[str, str, str]) -> int:
    """Of a file of `Source.files`, as far as that can be told: what is not a local file counts as large."""
    try:
        size = os.path.getsize(file[1])
    except OSError:
        return SMALL + 1
    return size * (EXPANDS if file[1].endswith((*COMPRESSED, ".epub", ".parquet")) else 1)


def works(piece: Piece, corpus: Corpus) -> Iterator[Work]:
    """Small files are read where they are cleaned, a large one here, so that its documents can go to several."""
    number, source = piece.number, piece.source
    if not piece.large:
        yield Work(f"{number:08d}", source, None)
        return
    for i, block in enumerate(stages.blocks(readers.read_unparsed(source, corpus), CHARACTERS)):
        yield Work(f"{number:08d}-{i:08d}", dataclasses.replace(source, files=source.files if i == 0 else ()), block)


# --- a work becomes a part ---


def make(work: Work, folder: Path, corpus: Corpus, keep_texts: bool) -> Part:
    """Read (where it is not), clean, compare with lists and benchmarks, and write a work's part into `folder`.

    Deterministic; files are whole or absent, so that it can be done twice. `keep_texts`: the input's text of documents
    is stored, too. Raises BadInput as `readers.read` does. Memory: a block of documents, and 200 bytes a line.
    """
    own = work.source.settings(corpus)
    stream = readers.read(work.source, corpus) if work.documents is None else map(readers.parsed, work.documents)
    removal = _removal(corpus)
    removal.matched = dict.fromkeys(removal.matched, 0)
    documents = 0
    texts: list[bytes] = []
    lines: list[bytes] = []
    bounds: list[int] = []  # lines of each text
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(stages.whole_file(folder / f"{work.name}.{kind}")) for kind in _kinds(corpus)]
        out = stack.enter_context(zstandard.open(paths[0], "wb", cctx=zstandard.ZstdCompressor(level=1)))
        signed = stack.enter_context(open(paths[-1], "wb")) if corpus.clean.near_duplicates else None
        for block in stages.blocks(stream):
            cleaned = _cleaned(block, corpus, own, removal)
            fit = [(d, c) for d, c in zip(block, cleaned, strict=True) if c.fate == "kept"]
            documents += len(block)
            texts += [bytes.fromhex(c.own_hash) for _, c in fit]
            if _wants_lines(corpus):
                for _, c in fit:
                    digests = [clean.digest(line) for line in c.text.split("\n")]
                    lines += digests
                    bounds.append(len(digests))
            if signed:
                pickle.dump(_signed(fit, corpus), signed, pickle.HIGHEST_PROTOCOL)
            if not keep_texts:
                block = [dataclasses.replace(d, text="") for d in block]
                cleaned = [c if c.fate == "kept" else dataclasses.replace(c, text="") for c in cleaned]
            pickle.dump(list(zip(block, cleaned, strict=True)), out, pickle.HIGHEST_PROTOCOL)
        groups.write_keys(paths[1], groups.keys_of(texts), np.arange(len(texts)))
        if _wants_lines(corpus):
            groups.write_keys(paths[2], groups.keys_of(lines), np.repeat(np.arange(len(texts)), bounds))
    named = collections.Counter({line: n for line, n in removal.matched.items() if n})
    return Part(work.name, documents, len(texts), len(lines), len(work.source.files), named)


def _wants_lines(corpus: Corpus) -> bool:
    return corpus.clean.duplicates == "paragraph" or bool(corpus.clean.boilerplate)


def _kinds(corpus: Corpus) -> list[str]:
    lines = ["lines"] if _wants_lines(corpus) else []
    return ["documents", "texts", *lines, *(["near"] if corpus.clean.near_duplicates else [])]


@functools.lru_cache(maxsize=1)
def _removal(corpus: Corpus) -> clean.Removal:
    return clean.Removal(corpus)


def _cleaned(block: list[Document | Unread], corpus: Corpus, own: Corpus, removal: clean.Removal) -> list[Cleaned]:
    """`clean_block` with the source's own settings, then all that judges a document by itself; what could not be read
    stands in its place."""
    results = clean.clean_block([d for d in block if isinstance(d, Document)], own)
    overlap.mark(results, corpus)
    in_order = iter(results)
    cleaned = [
        next(in_order) if isinstance(d, Document) else Cleaned(text="", fate=d.reason, detail=d.detail) for d in block
    ]
    return [removal.apply(d, c) for d, c in zip(block, cleaned, strict=True)]


# --- reading a part ---


def read(folder: Path, part: Part) -> Iterator[tuple[Document | Unread, Cleaned]]:
    """All that was in it, in order."""
    with zstandard.open(folder / f"{part.name}.documents", "rb") as file:
        yield from itertools.chain.from_iterable(_unpickled(file))


def _signed(fit: Sequence[tuple[Document | Unread, Cleaned]], corpus: Corpus) -> tuple[list[str], bytes, list[Any]]:
    held_out = bytes(clean.split_of(c, corpus.validation_share) == "validation" for _, c in fit)
    signatures = near.sign([c.text for _, c in fit], near.rows_of_band(corpus.clean.near_duplicates))
    return [d.id for d, _ in fit], held_out, signatures


def read_signed(folder: Path, part: Part) -> Iterator[tuple[str, bool, near.Signature]]:
    """(id, whether it is held out, signature) of the documents that are fit to stay, in order."""
    with open(folder / f"{part.name}.near", "rb") as file:
        for ids, held_out, signatures in _unpickled(file):
            yield from zip(ids, map(bool, held_out), signatures, strict=True)


def _unpickled(file: Any) -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(file)
        except EOFError:
            return
