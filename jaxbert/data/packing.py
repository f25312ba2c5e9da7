"""From token files to rows: documents are cut into pieces, pieces share rows, rows are files read by index.

Token file: one little-endian unsigned integer a token, `id << 1 | starts_word` (uint16 while every id fits, else
uint32). `tokens/<split>/tokens.bin` is flat, `offsets.bin` (int64, documents + 1) says where documents begin.

`rows_<T>/`: tokens.bin (R, T) as above with [CLS], [SEP] and [PAD] in it; segments.bin (R, T) uint16, 0 is padding,
1, 2, … the pieces of a row; rows.json describes both. pieces.bin (pieces,) int64 says where each piece begins in
tokens/train/tokens.bin, row after row, and row_pieces.bin (R + 1,) int64 where a row's pieces begin in that: nobody but
`prepare --trace` reads them, which finds a row's documents by them at once. (Packing again would tell the same without
a file, but takes as long as packing did, and errs after a change to the packer.) `single_<T>/`: the same pieces, one a
row, for encoders that cannot pack: single.json, and a folder <B>/ like rows_<B> for each bucket length B.
`validation/`: one piece a row, segments.bin alike, and its predictions, fixed here so that every encoder is scored on
the same tokens in the same context.

The writers fill a folder that their caller made and will rename when it is whole.
"""

import bisect
import contextlib
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data import masking
from jaxbert.data.stages import write_json
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput

LEAST_PIECE = 16  # tokens of the last piece of a cut document
OPEN_ROWS = 64
BUCKETS, SHORTEST_BUCKET = 4, 16  # of rows of one piece: T, T/2, T/4, T/8, but none under so many tokens
VALIDATION_ARRAYS = ("tokens", "segments", "positions", "labels", "replacements", "characters", "count")
_BLOCK = 4096  # rows written at a time
_DOCUMENTS = 1 << 16  # documents cut at a time
_NUMBER_BITS = 40  # of a row's number in the packer's keys


class TokenFile:
    """A split's tokenized documents, memory-mapped: `.tokens` (N,) unsigned, `.offsets` (documents + 1,) int64."""

    def __init__(self, directory: Path, vocab_size: int) -> None:
        """Open a folder tokens/<split>. Raises BadInput where files are missing or their sizes disagree."""
        self.tokens = map_array(directory / "tokens.bin", token_dtype(vocab_size), (-1,))
        self.offsets = map_array(directory / "offsets.bin", np.dtype("<i8"), (-1,))
        if not len(self.offsets) or self.offsets[-1] != len(self.tokens):
            raise BadInput(f"{directory}: offsets.bin does not fit tokens.bin; delete the folder and run prepare again")


def token_dtype(vocab_size: int) -> np.dtype:
    """The integer that holds `id << 1 | starts_word` for every id below `vocab_size`."""
    return np.dtype("<u2" if vocab_size <= 1 << 15 else "<u4")


def join_bit(ids: np.ndarray, starts_word: np.ndarray, vocab_size: int) -> np.ndarray:
    """Token ids and word bits (same shape) as stored integers."""
    return (ids.astype(np.uint32) << 1 | starts_word.astype(np.uint32)).astype(token_dtype(vocab_size))


def split_bit(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stored integers as token ids (int32) and word bits (bool), same shape."""
    return (stored >> 1).astype(np.int32), (stored & 1).astype(bool)


def map_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A file as a read-only array; -1 in `shape` is filled in. Raises BadInput if it is missing or of another size."""
    if not path.is_file():
        raise BadInput(f"{path}: missing; run jaxbert.prepare again with the same recipe")
    size, known = path.stat().st_size, dtype.itemsize * int(np.prod([n for n in shape if n >= 0], dtype=np.int64))
    expected = known if -1 not in shape else size // known * known
    if size != expected:
        raise BadInput(f"{path}: {size} bytes, expected {expected}; delete its folder and run jaxbert.prepare again")
    if not size:
        return np.zeros(tuple(max(n, 0) for n in shape), dtype)
    return np.memmap(path, dtype, "r").reshape(shape)


def unigram_counts(tokens_dir: Path, vocab_size: int) -> np.ndarray:
    """How often each id stands in a split's tokens; int64 (V,)."""
    stored = TokenFile(tokens_dir, vocab_size).tokens
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, len(stored), 1 << 24):
        counts += np.bincount(stored[start : start + (1 << 24)] >> 1, minlength=vocab_size)
    return counts


def piece_lengths(tokens: int, room: int, least: int = LEAST_PIECE) -> list[int]:
    """Cut a document of `tokens` tokens into ceil(tokens / room) pieces.

    All are full but the last; a last piece under `least` takes tokens from its predecessor until it has `least` (or is
    full, where a piece has less room than that). A document that fits is one piece however short; none has no piece.
    """
    count = -(-tokens // room)
    last = tokens - (count - 1) * room
    if count <= 1:
        return [tokens] if tokens else []
    moved = max(0, min(least, room) - last)
    return [room] * (count - 2) + [room - moved, last + moved]


def pieces(offsets: np.ndarray, room: int, documents: np.ndarray | None = None) -> Iterator[tuple[int, int]]:
    """(start in the token file, tokens) of every piece of every document, in order; or of those that `documents`, int64
    numbers, names, in its order and as often as it does."""
    for block in range(0, len(offsets) - 1 if documents is None else len(documents), _DOCUMENTS):
        if documents is None:
            bounds = offsets[block : block + _DOCUMENTS + 1]
            starts, ends = bounds[:-1].tolist(), bounds[1:].tolist()
        else:
            numbers = documents[block : block + _DOCUMENTS]
            starts, ends = offsets[numbers].tolist(), offsets[numbers + 1].tolist()
        for start, end in zip(starts, ends, strict=True):
            if end - start <= room:
                if end > start:
                    yield start, end - start
                continue
            for length in piece_lengths(end - start, room):
                yield start, length
                start += length


def pack(
    piece_stream: Iterable[tuple[int, int]], row_length: int, open_rows: int = OPEN_ROWS
) -> Iterator[list[tuple[int, int]]]:
    """Best fit: a piece goes into the open row that it leaves fullest (the oldest of equals), else opens a row.

    Pieces are (start, tokens) and take two positions more for [CLS] and [SEP]; yields each row's pieces when the row
    closes: full, or the fullest when more than `open_rows` would be open. Deterministic; holds only the open rows.
    """
    keys: list[int] = []  # free positions << _NUMBER_BITS | row number, ascending
    contents: dict[int, list[tuple[int, int]]] = {}
    number_mask, opened = (1 << _NUMBER_BITS) - 1, 0
    for piece in piece_stream:
        needs = piece[1] + 2
        at = bisect.bisect_left(keys, needs << _NUMBER_BITS)
        if at < len(keys):
            key = keys.pop(at)
            free, number = key >> _NUMBER_BITS, key & number_mask
            contents[number].append(piece)
        else:
            if len(keys) == open_rows:
                yield contents.pop(keys.pop(0) & number_mask)
            free, number, opened = row_length, opened, opened + 1
            contents[number] = [piece]
        if free - needs < 3:  # no piece is shorter than one token
            yield contents.pop(number)
        else:
            bisect.insort(keys, (free - needs) << _NUMBER_BITS | number)
    for number in sorted(contents):
        yield contents[number]


def write_rows(
    tokens_dir: Path, folder: Path, row_length: int, tokenizer: TextTokenizer, documents: np.ndarray | None = None
) -> dict[str, Any]:
    """Pack a split's tokens, or those of `documents` (see `pieces`), into the empty folder `folder`; returns rows.json.

    Streams: memory does not grow with the corpus. Raises BadInput where the split holds no tokens.
    """
    source = _tokens_to_cut(tokens_dir, tokenizer)
    with _RowWriter(folder, source.tokens, row_length, tokenizer) as writer:
        for row in pack(pieces(source.offsets, row_length - 2, documents), row_length):
            writer.add(row)
    report = writer.report | _documents_cut(source, row_length, documents)
    write_json(folder / "rows.json", report)
    return report


def bucket_lengths(row_length: int) -> list[int]:
    """The lengths of rows that hold one piece each, ascending: halves of `row_length` while they are whole and no
    shorter than SHORTEST_BUCKET. Batches of every length have the same number of positions."""
    lengths = [row_length]
    while len(lengths) < BUCKETS and lengths[-1] % 2 == 0 and lengths[-1] // 2 >= SHORTEST_BUCKET:
        lengths.append(lengths[-1] // 2)
    return lengths[::-1]


def write_single(
    tokens_dir: Path, folder: Path, row_length: int, tokenizer: TextTokenizer, documents: np.ndarray | None = None
) -> dict[str, Any]:
    """Put every piece of a split into a row of its own, in the shortest bucket that holds it; returns single.json.

    The pieces are those of `write_rows`: documents are cut, never truncated. A bucket without a piece has no folder.
    Streams, and raises BadInput, as `write_rows` does.
    """
    source, lengths = _tokens_to_cut(tokens_dir, tokenizer), bucket_lengths(row_length)
    with contextlib.ExitStack() as stack:
        writers: dict[int, _RowWriter] = {}
        for piece in pieces(source.offsets, row_length - 2, documents):
            length = next(n for n in lengths if n >= piece[1] + 2)
            if length not in writers:
                (folder / str(length)).mkdir()
                writer = _RowWriter(folder / str(length), source.tokens, length, tokenizer)
                writers[length] = stack.enter_context(writer)
            writers[length].add([piece])
    buckets = {length: writers[length].report for length in sorted(writers)}
    for length, bucket in buckets.items():
        write_json(folder / str(length) / "rows.json", bucket)
    tokens, rows = (sum(bucket[name] for bucket in buckets.values()) for name in ("tokens", "rows"))
    positions = sum(bucket["rows"] * length for length, bucket in buckets.items())
    report = {
        "rows": rows,
        "row_length": row_length,
        "buckets": {str(length): bucket["rows"] for length, bucket in buckets.items()},
        "tokens": tokens,
        "fill": (tokens + 2 * rows) / positions,
        "tokenizer": tokenizer.fingerprint,
        **_documents_cut(source, row_length, documents),
    }
    write_json(folder / "single.json", report)
    return report


def _tokens_to_cut(tokens_dir: Path, tokenizer: TextTokenizer) -> TokenFile:
    source = TokenFile(tokens_dir, tokenizer.vocab_size)
    if not len(source.tokens):
        raise BadInput(f"{tokens_dir}: no tokens to make rows of; give more text in corpus.input")
    return source


def _documents_cut(source: TokenFile, row_length: int, documents: np.ndarray | None) -> dict[str, int]:
    tokens = np.diff(source.offsets)
    if documents is not None:
        tokens = tokens[documents]
    return {"documents": len(tokens), "cut_documents": int((tokens > row_length - 2).sum())}


class _RowWriter:
    """The files of rows of one length, written a block at a time; afterwards `.report` counts."""

    def __init__(self, folder: Path, tokens: np.ndarray, row_length: int, tokenizer: TextTokenizer) -> None:
        self.folder, self.tokens, self.row_length, self.tokenizer = folder, tokens, row_length, tokenizer
        self.block: list[list[tuple[int, int]]] = []
        self.rows = self.pieces = self.written = 0
        self.report: dict[str, Any] = {}

    def __enter__(self) -> "_RowWriter":
        names = ("tokens", "segments", "pieces", "row_pieces")
        self.files = [open(self.folder / f"{name}.bin", "wb") for name in names]
        self.files[3].write(np.zeros(1, "<i8").tobytes())
        return self

    def add(self, row: list[tuple[int, int]]) -> None:
        self.block.append(row)
        if len(self.block) == _BLOCK:
            self._flush()

    def _flush(self) -> None:
        stored_RT, segments_RT = _fill_rows(self.tokens, self.block, self.row_length, self.tokenizer)
        start_N = np.array([start for row in self.block for start, _ in row], "<i8")
        ends_R = (self.pieces + np.cumsum([len(row) for row in self.block])).astype("<i8")
        for file, array in zip(self.files, (stored_RT, segments_RT, start_N, ends_R), strict=True):
            file.write(array.tobytes())
        self.rows, self.pieces = self.rows + len(self.block), self.pieces + sum(map(len, self.block))
        self.written += sum(length for row in self.block for _, length in row)
        self.block = []

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None and self.block:
            self._flush()
        for file in self.files:
            file.close()
        self.report = {
            "rows": self.rows,
            "row_length": self.row_length,
            "dtype": token_dtype(self.tokenizer.vocab_size).str,
            "segment_dtype": "<u2",
            "layout": "tokens.bin and segments.bin: (rows, row_length); a token is id << 1 | starts_word",
            "tokens": self.written,
            "pieces": self.pieces,
            "fill": (self.written + 2 * self.pieces) / max(1, self.rows * self.row_length),
            "tokenizer": self.tokenizer.fingerprint,
            "vocab_size": self.tokenizer.vocab_size,
        }


def _fill_rows(
    tokens: np.ndarray, rows: list[list[tuple[int, int]]], row_length: int, tokenizer: TextTokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of pieces as stored tokens (R, T) and segments (R, T) uint16."""
    counts_R = np.array([len(row) for row in rows])
    start_N, length_N = np.array([piece for row in rows for piece in row], np.int64).T
    row_N = np.repeat(np.arange(len(rows)), counts_R)
    taken_N = np.cumsum(length_N + 2) - (length_N + 2)
    first_N = np.cumsum(counts_R) - counts_R  # of each row, its first piece
    at_N = row_N * row_length + taken_N - taken_N[first_N][row_N]  # where each piece begins in the flat block

    stored = np.full(len(rows) * row_length, tokenizer.pad_id << 1, token_dtype(tokenizer.vocab_size))
    segments = np.zeros(len(rows) * row_length, np.uint16)
    stored[at_N], stored[at_N + length_N + 1] = tokenizer.cls_id << 1, tokenizer.sep_id << 1
    inside = np.arange(length_N.sum()) - np.repeat(np.cumsum(length_N) - length_N, length_N)
    stored[np.repeat(at_N + 1, length_N) + inside] = tokens[np.repeat(start_N, length_N) + inside]
    whole = np.arange((length_N + 2).sum()) - np.repeat(taken_N, length_N + 2)
    segment_N = (np.arange(len(row_N)) - first_N[row_N] + 1).astype(np.uint16)
    segments[np.repeat(at_N, length_N + 2) + whole] = np.repeat(segment_N, length_N + 2)
    return stored.reshape(-1, row_length), segments.reshape(-1, row_length)


def maskable(ids_RT: np.ndarray, tokenizer: TextTokenizer) -> np.ndarray:
    """Which tokens may be predicted, bool (R, T): all that are not special (padding and [UNK] are)."""
    return ~_special_table(tokenizer.special_ids, tokenizer.vocab_size)[ids_RT]


@functools.lru_cache(maxsize=8)
def _special_table(special_ids: frozenset[int], vocab_size: int) -> np.ndarray:
    table_V = np.zeros(vocab_size, bool)
    table_V[sorted(special_ids)] = True
    return table_V


def write_validation(
    tokens_dir: Path,
    folder: Path,
    piece_length: int,
    tokenizer: TextTokenizer,
    *,
    mask_rate: float,
    mask_share: float,
    random_share: float,
    seed: int,
) -> dict[str, Any]:
    """Cut a split into pieces of at most `piece_length` tokens with [CLS] and [SEP], one a row, and fix what is
    predicted in each: n = max(1, round(mask_rate × maskable tokens)) single tokens, replaced by the given shares.

    A piece's predictions depend on its own tokens and the seed, so added documents leave the others' as they are.
    Writes into the empty folder `folder`: tokens.bin, segments.bin (R, T) as in rows; positions.bin, labels.bin,
    replacements.bin, characters.bin (R, P) int32; count.bin (R,) int32, the predictions before the filling; and
    validation.json, which is also returned. characters.bin holds the characters of text that each label stands for.
    A piece without a maskable token is kept and counted. Raises BadInput where nothing can be predicted.
    """
    source = TokenFile(tokens_dir, tokenizer.vocab_size)
    predictions = masking.predictions(mask_rate, piece_length)
    rows = predicted = characters = unpredicted = 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in VALIDATION_ARRAYS}
        for block in _blocks(pieces(source.offsets, piece_length - 2), _BLOCK):
            stored_RT, segments_RT = _fill_rows(source.tokens, [[piece] for piece in block], piece_length, tokenizer)
            ids_RT, starts_RT = split_bit(stored_RT)
            content_R = [int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little") for row in stored_RT]
            masked = masking.mask(
                ids_RT,
                starts_RT,
                maskable(ids_RT, tokenizer),
                masking.row_keys(seed, np.zeros(len(block)), np.array(content_R, np.uint64)),
                rate=mask_rate,
                mask_share=mask_share,
                random_share=random_share,
                whole_words=False,
                mask_id=tokenizer.mask_id,
                vocab_size=tokenizer.vocab_size,
                special_ids=tokenizer.special_ids,
                predictions=predictions,
            )
            count_R = masked.weights_RP.sum(1).astype(np.int32)
            characters_RP = np.where(masked.weights_RP > 0, tokenizer.characters(masked.labels_RP), 0).astype(np.int32)
            predictions_RP = (masked.positions_RP, masked.labels_RP, masked.replacements_RP, characters_RP)
            for file, array in zip(files.values(), (stored_RT, segments_RT, *predictions_RP, count_R), strict=True):
                file.write(array.tobytes())
            rows, predicted = rows + len(block), predicted + int(count_R.sum())
            characters, unpredicted = characters + int(characters_RP.sum()), unpredicted + int((count_R == 0).sum())
    if not predicted:
        raise BadInput(f"{tokens_dir}: no token to predict in {rows} pieces; raise corpus.validation_share")
    report = {
        "rows": rows,
        "row_length": piece_length,
        "predictions": predictions,
        "dtype": token_dtype(tokenizer.vocab_size).str,
        "segment_dtype": "<u2",
        "layout": "tokens, segments: (rows, row_length); count: (rows,) int32; the others: (rows, predictions) int32",
        "tokens": len(source.tokens),
        "documents": len(source.offsets) - 1,
        "masked_tokens": predicted,
        "masked_characters": characters,
        "pieces_without_prediction": unpredicted,
        "mask_rate": mask_rate,
        "mask_share": mask_share,
        "random_share": random_share,
        "seed": seed,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
    }
    write_json(folder / "validation.json", report)
    return report


def _blocks(stream: Iterable[Any], size: int) -> Iterator[list[Any]]:
    block = []
    for element in stream:
        block.append(element)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block
