"""Near duplicates: MinHash signatures, groups by band, exact Jaccard of every pair that comes into question.

A document's shingles are the hashes of its runs of WORDS words, in lower case and without punctuation; in scripts that
put no spaces between words every character is one. Two documents are near if the Jaccard similarity of their shingles
reaches the threshold. Documents are taken in the order (validation before train, source, position), and a document goes
if it is near an earlier one that stays. So each that goes leaves a document behind that it is near to (no transitive
closure), and training documents near a held-out one go, as far as they are found (RECALL).

Who is compared: documents that agree in all MinHashes of a band, at most CANDIDATES of a document's group, the first
in the order. `sign` is pure and runs in workers, `Index.add` and `Index.find` in one process, in the order of the
input, so that the result does not depend on the number of workers. Shingles (4 bytes each, as many as words), band keys
(8 bytes a band) and groups (8 bytes a band) lie on disk; in memory are about 50 bytes a document, 50 more while a band
is sorted, and CHUNK documents' candidates. A million made-up documents of 60 shingles, a tenth of them repeated: 9 s to
find, 270 MB resident at most, of them 190 MB pages of these files; 460 MB on disk.

Measured on 5,000 documents of the demo's packages and as many edited copies (15 MB, threshold 0.8, two seeds;
tools/bench_near_duplicates.py): of 1,744 and 1,795 documents to reject by the exact similarity of all pairs, 2 and 1
stay (recall 0.999; of the copies 0.80 to 0.82 similar to their original, 1 of 362); of 8,256 and 8,205 to stay, none
goes. 16 MB/s in one process on two busy cores, 13 × datasketch with 128 permutations, which compares signatures alone:
recall 0.83, and 3 % of those to stay go.

MinHash: Broder 1997, "On the resemblance and containment of documents"; bands: Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", §3.4.
"""

import dataclasses
import functools
import os
import sys
import unicodedata
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WORDS = 5  # of a shingle; a shorter document is one shingle
HASHES = 60  # MinHashes of a document, in bands of `rows_of_band` each
RECALL = 0.99  # of pairs exactly at the threshold, that some band agrees
CANDIDATES = 8  # of a document's group in a band, that it is compared with
LEAST = 0.4  # threshold; below, bands would be of one hash and nearly everything a candidate
CHUNK = 1 << 16  # documents whose candidates are in memory at once
PIECE = 1 << 18  # characters that are hashed at once; a word that lies across the border of a piece is cut

_U = np.uint64
_BASE, _STEP = _U(0x9E3779B97F4A7C15), _U(0xD1342543DE82EF95)  # of the polynomials over characters and over words


# --- shingles ---


@functools.cache
def _kinds() -> np.ndarray:
    """uint8 by code point: 0 separates words, 1 is part of one, 2 is one by itself (scripts without spaces)."""
    marks = [c for c in range(0x300, 0x1F000) if unicodedata.category(chr(c))[0] == "M"]
    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    kinds[:0x40000] = [chr(c).isalnum() for c in range(0x40000)]  # planes behind hold no letters
    kinds[marks] = 1  # vowel signs
    # Thai and Lao, Burmese, Khmer, kana, Han and its extensions. Hangul has spaces.
    for first, last in (
        *((0x0E01, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF)),
        *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
    ):
        part = kinds[first : last + 1]
        part[part == 1] = 2
    return kinds


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """_BASE and its inverse modulo 2⁶⁴ to the power 0 … 2 × PIECE, uint64."""
    inverse = _U(pow(int(_BASE), -1, 2**64))
    return tuple(np.cumprod(np.r_[_U(1), np.full(2 * PIECE, base)]) for base in (_BASE, inverse))  # type: ignore


def _mix(x: np.ndarray) -> np.ndarray:
    """The last step of splitmix64 (Steele, Lea, Flood 2014), on uint64."""
    x = (x ^ x >> _U(30)) * _U(0xBF58476D1CE4E5B9)
    x = (x ^ x >> _U(27)) * _U(0x94D049BB133111EB)
    return x ^ x >> _U(31)


def _word_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of all words uint64 (W,), words of each text int64)."""
    counts = np.zeros(len(texts), np.int64)
    hashes: list[np.ndarray] = []
    batch: list[tuple[int, str]] = []
    size = 0
    for number, text in enumerate(texts):
        lower = text.lower()
        for start in range(0, len(lower), PIECE):
            piece = lower[start : start + PIECE]
            if batch and size + len(piece) >= PIECE:
                hashes.append(_hash_batch(batch, counts))
                batch, size = [], 0
            batch.append((number, piece))
            size += len(piece) + 1
    if batch:
        hashes.append(_hash_batch(batch, counts))
    return np.concatenate(hashes) if hashes else np.zeros(0, np.uint64), counts


def _hash_batch(batch: list[tuple[int, str]], counts: np.ndarray) -> np.ndarray:
    """Hashes of the words of all pieces; adds each piece's number of words to `counts` of its text.

    A word's hash is a polynomial in its code points. All at once: of the sums over all characters before, the
    difference between the next word's start and this one's, divided by the power that this one starts at.
    """
    codes = np.frombuffer("\0".join(piece for _, piece in batch).encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = _kinds()[codes]
    before = np.r_[np.uint8(0), kinds[:-1]]
    starts = np.flatnonzero((kinds > 0) & ((before != 1) | (kinds == 2)))
    powers, inverses = _powers()
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(np.where(kinds > 0, codes, 0).astype(np.uint64) * powers[: len(codes)], out=sums[1:])
    ends = np.r_[starts[1:], len(codes)][: len(starts)]  # what lies between words is zero
    edges = np.cumsum([0, *(len(piece) + 1 for _, piece in batch)])
    np.add.at(counts, [number for number, _ in batch], np.diff(np.searchsorted(starts, edges)))
    return _mix((sums[ends] - sums[starts]) * inverses[starts])


def shingles(texts: Sequence[str], words: int = WORDS) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the runs of `words` words of each text, one text after another, uint64; how many of each, int64).

    In order and with repetitions. A text of fewer words has one, of all of them; one without words has none.
    """
    hashes, counts = _word_hashes(texts)
    ends = np.repeat(np.cumsum(counts), counts)  # by word: where its text ends
    at = np.arange(len(hashes))
    sums = np.zeros(len(hashes), np.uint64)
    factor = _U(1)
    for k in range(min(words, len(hashes))):
        stop = len(hashes) - k
        sums[:stop] += np.where(at[:stop] + k < ends[:stop], hashes[k:] * factor, _U(0))
        factor = _U(int(factor) * int(_STEP) % 2**64)
    lengths = np.repeat(counts, counts)
    real = (at + words <= ends) | ((lengths < words) & (at == ends - lengths))
    return _mix(sums[real]), np.maximum(counts - words + 1, np.minimum(counts, 1))


# --- signatures ---

# Band keys, uint64 (bands,), and distinct shingles in ascending order, uint32; without shingles it is near to nothing.
Signature = tuple[np.ndarray, np.ndarray]


def rows_of_band(threshold: float) -> int:
    """MinHashes a band: the most with which a pair at the threshold agrees in some band with probability RECALL."""
    divisors = [rows for rows in range(1, HASHES + 1) if HASHES % rows == 0]
    return max(rows for rows in divisors if rows == 1 or 1 - (1 - threshold**rows) ** (HASHES // rows) >= RECALL)


@functools.cache
def _permutations() -> np.ndarray:
    """uint32 (2, HASHES): odd factors, and summands."""
    raw = np.random.Philox(key=4).random_raw(2 * HASHES).reshape(2, HASHES)
    return (raw >> _U(32)).astype(np.uint32) | np.array([[1], [0]], np.uint32)


def sign(texts: Sequence[str], rows: int) -> list[Signature]:
    """The signatures of some texts, in bands of `rows` MinHashes."""
    values, counts = shingles(texts)
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), counts)
    distinct = np.sort(owners << _U(32) | values >> _U(32))
    if len(distinct):
        distinct = distinct[np.r_[True, distinct[1:] != distinct[:-1]]]
    counts = np.bincount((distinct >> _U(32)).astype(np.int64), minlength=len(texts))
    kept = distinct.astype(np.uint32)
    ends, some = np.cumsum(counts), np.flatnonzero(counts)
    least = np.zeros((HASHES, len(texts)), np.uint64)
    permuted = np.empty_like(kept)
    for number, (factor, summand) in enumerate(_permutations().T if len(some) else ()):
        np.multiply(kept, factor, out=permuted)
        permuted += summand
        least[number, some] = np.minimum.reduceat(permuted, ends[some] - counts[some])
    keys = np.zeros((len(texts), HASHES // rows), np.uint64)
    for band in range(HASHES // rows):
        for row in range(rows):
            keys[:, band] = _mix(keys[:, band] * _STEP + least[band * rows + row] + _U(row + 1))
    return list(zip(keys, np.split(kept, ends[:-1]), strict=True)) if texts else []


# --- comparison ---


class _Ragged:
    """Arrays or strings of bytes one after another in a file, read by number."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "w+b", buffering=1 << 20)
        self.ends = array("q", [0])

    def append(self, content: bytes) -> None:
        self.file.write(content)
        self.ends.append(self.ends[-1] + len(content))

    def __getitem__(self, number: int) -> bytes:
        """Only after `file.flush()`."""
        start, end = self.ends[number], self.ends[number + 1]
        return os.pread(self.file.fileno(), end - start, start)


@dataclasses.dataclass(frozen=True)
class Found:
    """What `Index.find` found. Documents are numbered as they were added."""

    near: np.ndarray  # int64 (D,): the number of the earlier document that this one is near to, −1 for one that stays
    similarity: np.ndarray  # float32 (D,): Jaccard similarity with that document
    compared: int  # pairs whose shingles were compared
    capped: int  # documents that had more than CANDIDATES earlier ones in a band


class Index:
    """All documents' signatures, on disk."""

    def __init__(self, folder: Path, threshold: float) -> None:
        """`threshold`: the least Jaccard similarity of near duplicates."""
        self.folder, self.threshold, self.rows = folder, threshold, rows_of_band(threshold)
        self.bands = HASHES // self.rows
        self._keys = open(folder / "keys.bin", "wb", buffering=1 << 20)
        self._shingles, self._ids = _Ragged(folder / "shingles.bin"), _Ragged(folder / "ids.bin")
        self._validation = bytearray()

    def __len__(self) -> int:
        """Documents."""
        return len(self._validation)

    def add(self, signature: Signature, id: str, validation: bool) -> None:
        """The next document."""
        self._keys.write(signature[0].tobytes())
        self._shingles.append(signature[1].tobytes())
        self._ids.append(id.encode("utf-8", "surrogatepass"))
        self._validation.append(validation)

    def close(self) -> None:
        """The files stay; their folder is the caller's."""
        for file in (self._keys, self._shingles.file, self._ids.file):
            file.close()

    def id(self, number: int) -> str:
        """A document's id."""
        return self._ids[number].decode("utf-8", "surrogatepass")

    def is_validation(self, number: int) -> bool:
        """Whether a document is held out."""
        return bool(self._validation[number])

    def find(self) -> Found:
        """Every document that is near an earlier one that stays."""
        for file in (self._keys, self._shingles.file, self._ids.file):
            file.flush()
        count = len(self)
        near, similarity = np.full(count, -1, np.int64), np.zeros(count, np.float32)
        compared = capped = 0
        if not count:
            return Found(near, similarity, 0, 0)
        # From here on a document is its place in the order; `order` leads back to its number.
        order = np.argsort(1 - np.frombuffer(self._validation, np.uint8).astype(np.int8), kind="stable")
        sizes = (np.diff(np.frombuffer(self._shingles.ends, np.int64)) // 4)[order]
        groups = [self._group(band, order) for band in range(self.bands)]
        stays = np.ones(count, bool)
        for first in range(0, count, CHUNK):
            last = min(first + CHUNK, count)
            pairs, over = _candidates(groups, first, last)
            capped += over
            later, earlier = (pairs >> _U(32)).astype(np.int64), (pairs & _U(0xFFFFFFFF)).astype(np.int64)
            less, more = np.minimum(sizes[later], sizes[earlier]), np.maximum(sizes[later], sizes[earlier])
            possible = stays[earlier] & (less > 0) & (less >= self.threshold * more)
            for one, other in zip(later[possible].tolist(), earlier[possible].tolist(), strict=True):
                if stays[one] and stays[other]:  # within the chunk that is known only now
                    compared += 1
                    value = self._jaccard(int(order[one]), int(order[other]))
                    if value >= self.threshold:
                        stays[one] = False
                        near[order[one]], similarity[order[one]] = order[other], value
        return Found(near, similarity, compared, capped)

    def _group(self, band: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(places sorted by key, then place; for each place where its group starts in these), uint32 (D,), on disk."""
        keys = np.memmap(self.folder / "keys.bin", np.uint64, "r", shape=(len(order), self.bands))[:, band][order]
        by_key = np.argsort(keys, kind="stable")
        keys = keys[by_key]
        begins = np.r_[True, keys[1:] != keys[:-1]]
        sorted_places, starts = (
            np.memmap(self.folder / f"{name}-{band}.bin", np.uint32, "w+", shape=(len(order),))
            for name in ("places", "starts")
        )
        sorted_places[:] = by_key
        starts[by_key] = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        return sorted_places, starts

    def _jaccard(self, one: int, other: int) -> float:
        a, b = (np.frombuffer(self._shingles[number], np.uint32) for number in (one, other))
        both = np.concatenate((a, b))
        both.sort()
        common = int(np.count_nonzero(both[1:] == both[:-1]))
        return common / (len(both) - common)


def _candidates(groups: list[tuple[np.ndarray, np.ndarray]], first: int, last: int) -> tuple[np.ndarray, int]:
    """Pairs of places later << 32 | earlier, uint64, ascending, for first ≤ later < last; and how many were capped."""
    places = np.arange(first, last, dtype=np.uint32)
    found, capped = [], np.zeros(last - first, bool)
    for sorted_places, starts in groups:
        at = starts[first:last].astype(np.int64)[:, None] + np.arange(CANDIDATES + 1)
        other = sorted_places[np.minimum(at, len(sorted_places) - 1)]
        # A group is ascending and holds the place itself, so what comes before that is of the group.
        earlier = np.logical_and.accumulate(other < places[:, None], axis=1)
        capped |= earlier[:, CANDIDATES]
        row, column = np.nonzero(earlier[:, :CANDIDATES])
        found.append(places[row].astype(np.uint64) << _U(32) | other[row, column].astype(np.uint64))
    return np.unique(np.concatenate(found)), int(capped.sum())
