"""From a row's number back to the documents that it is made of, with the characters and the text of each piece.

Rows say where their pieces begin in the tokens (packing.py), the tokens' offsets say of which document that is, and the
tokenizer, run again on that document, says which characters a token stands for. What is found is compared with the
row's own tokens, so an answer is right or an error.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data import mixture, packing, source, stages
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a document in a row."""

    id: str  # of the document, as in documents/ and as corpus.remove takes it
    source: str
    meta: dict[str, str]
    number: int  # of the document in its split, from 0
    piece: int  # of the document, from 1
    pieces: int  # that rows of this length cut the document into
    begin: int  # characters of the document's cleaned text: the piece is text[begin:end]
    end: int
    characters: int  # of the whole document
    tokens: int  # of the piece, without [CLS] and [SEP]
    text: str


def trace(directory: Path, rows: str, place: str) -> list[Part]:
    """The pieces of a row in its order.

    Args:
      directory: a prepared corpus.
      rows: its folder of training rows, such as rows_<T> or single_<T>.
      place: a row's number as training counts them, from 0 (in single_<T> on from bucket to bucket, the shortest
        first), or "validation:N" for a held-out piece.

    Pieces of a document are next to each other: one begins at the first character of its first token and ends where
    the next one begins. Raises BadInput for another place, a row that is not there (it names their number), rows of an
    earlier jaxbert (see `Rows.piece_starts`), a corpus that is not prepared or whose folders do not belong together.
    """
    found = re.fullmatch(r"(validation:)?(\d+)", place)
    if not found:
        raise BadInput(f"--trace: {place!r} is no row; give its number, from 0, or validation:N for a held-out piece")
    split, number = ("validation" if found[1] else "train"), int(found[2])
    folder = directory / ("validation" if found[1] else rows)
    if not folder.is_dir():
        there = sorted(p.name for p in directory.glob("*_*") if re.fullmatch(mixture.FOLDERS, p.name))
        raise BadInput(
            f"--trace: there is no {folder}; run jaxbert.prepare with this recipe, or give FOLDER:{number} with a "
            f"folder that is there ({', '.join(there) or 'none'})"
        )
    tokenizer = TextTokenizer.load(directory / "tokenizer")
    tokens = packing.TokenFile(directory / "tokens" / split, tokenizer.vocab_size)
    if split == "train":
        ids_T, segments_T, starts, row_length = _training_row(folder, number)
    else:
        ids_T, segments_T, starts, row_length = _held_out_piece(folder, number, tokens)
    document_N = np.searchsorted(tokens.offsets, starts, side="right") - 1
    documents = _documents(directory, split, document_N)
    return [
        _part(folder, tokens, tokenizer, documents, int(d), int(start), ids_T[segments_T == i][1:-1], row_length - 2)
        for i, (d, start) in enumerate(zip(document_N, starts, strict=True), 1)
    ]


def _training_row(folder: Path, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Ids (T,), segments (T,), where the pieces begin in the tokens (pieces,), and the row length that cut them."""
    feed = source.Feed(folder, 1, 0)
    _check_number(folder, number, len(feed), "rows")
    rows = next(r for r in feed.buckets if number < r.first + len(r))
    ids_RT, _, segments_RT = rows[[number - rows.first]]
    return ids_RT[0], segments_RT[0], rows.piece_starts(number - rows.first), feed.row_length


def _held_out_piece(
    folder: Path, number: int, tokens: packing.TokenFile
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """As `_training_row`. Held-out pieces are all pieces of all documents, in order, so counting finds one."""
    held_out = source.Validation.open(folder)
    _check_number(folder, number, len(held_out), "held-out pieces")
    room = held_out.row_length - 2
    pieces_D = -(-np.diff(tokens.offsets) // room)  # as `packing.piece_lengths`
    document = int(np.searchsorted(np.cumsum(pieces_D), number, side="right"))
    before = number - int(pieces_D[:document].sum())
    begin, end = (int(n) for n in tokens.offsets[document : document + 2])
    start = begin + sum(packing.piece_lengths(end - begin, room)[:before])
    row = held_out[[number]]
    return row.ids_RT[0], row.segment_ids_RT[0], np.array([start]), held_out.row_length


def _check_number(folder: Path, number: int, there: int, what: str) -> None:
    if number >= there:
        raise BadInput(f"--trace: {number}, but {folder} has {there:,} {what}; give 0 to {there - 1}")


def _documents(directory: Path, split: str, numbers: np.ndarray) -> dict[int, dict[str, Any]]:
    wanted = np.unique(numbers).tolist()
    return dict(zip(wanted, source.read_documents(directory, split, wanted), strict=True))


def _part(
    folder: Path,
    tokens: packing.TokenFile,
    tokenizer: TextTokenizer,
    documents: dict[int, dict[str, Any]],
    number: int,
    start: int,
    ids: np.ndarray,
    room: int,
) -> Part:
    """The piece that begins at `start` in the tokens; `ids`, as the row has them, must be the document's there."""
    document, first = documents[number], int(tokens.offsets[number])
    encoded, begins = tokenizer.encode_with_places(document["text"])
    lengths = packing.piece_lengths(int(tokens.offsets[number + 1]) - first, room)
    starts = np.cumsum([0, *lengths])
    piece = int(np.searchsorted(starts, start - first, side="right"))  # from 1
    at = slice(start - first, start - first + len(ids))
    stored, _ = packing.split_bit(tokens.tokens[start : start + len(ids)])
    whole = starts[piece - 1] == at.start and starts[piece] == at.stop and len(encoded) == starts[-1]
    if not whole or not np.array_equal(stored, ids) or not np.array_equal(encoded[at], ids):
        raise BadInput(
            f"{folder}: what document {document['id']} has in this row is not its text in documents/, so these folders "
            f"do not belong together; delete {stages.and_later(folder.parent, 'tokens')} and run jaxbert.prepare again"
        )
    characters = len(document["text"])
    begin = 0 if piece == 1 else int(begins[at.start])
    end = characters if piece == len(lengths) else int(begins[at.stop])
    return Part(
        id=document["id"],
        source=document["source"],
        meta=document["meta"],
        number=number,
        piece=piece,
        pieces=len(lengths),
        begin=begin,
        end=end,
        characters=characters,
        tokens=len(ids),
        text=document["text"][begin:end],
    )


def show(directory: Path, rows: str, place: str) -> None:
    """Print what `trace` finds. Raises BadInput as it does."""
    parts = trace(directory, rows, place)
    where = directory / ("validation" if place.startswith("validation") else rows)
    sources = {s["name"]: s for s in stages.read_record(directory, "documents")["report"]["sources"]}
    tokens = sum(part.tokens + 2 for part in parts)
    count = "1 piece" if len(parts) == 1 else f"{len(parts)} pieces"
    stages.say(f"{place} of {where}: {count}, {tokens} tokens with [CLS] and [SEP]")
    for i, part in enumerate(parts, 1):
        about = sources[part.source]
        characters = f"characters {part.begin} to {part.end} of {part.characters}"
        stages.say(f"\n{i}  {part.id}")
        stages.say(f"   source: {' '.join(filter(None, (part.source, about['version'])))}; licence: {about['licence']}")
        stages.say(f"   piece {part.piece} of {part.pieces}, {characters}, {part.tokens} tokens")
        for name, value in part.meta.items():
            stages.say(f"   {name}: {value}")
        stages.say("   text   " + part.text.replace("\n", "\n          "))
