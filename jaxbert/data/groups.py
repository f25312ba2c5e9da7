"""A group-by on disk: which keys are equal, and in which order they stand in the corpus.

Each part of a corpus writes a file of its keys, sorted. Equal keys are brought together a range of keys at a time, of
about LARGEST keys, so that memory does not grow with the corpus: about 60 bytes for each of those. On disk a key takes
24 bytes.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LARGEST = 2_000_000  # keys of a range
_COLUMNS: tuple[np.dtype, ...] = (np.dtype("<u8"), np.dtype("<u8"), np.dtype("<u4"), np.dtype("<u4"))
_BYTES = sum(column.itemsize for column in _COLUMNS)


@dataclasses.dataclass(frozen=True)
class Groups:
    """Keys of a range, equal ones beside each other in the order (part, index)."""

    begins: np.ndarray  # bool (N,): the first of equal ones
    part: np.ndarray  # uint32 (N,): number of the part
    index: np.ndarray  # uint32 (N,): number of the key in its part
    owner: np.ndarray  # uint32 (N,): what the part said that it belongs to


def write_keys(path: Path, keys_N2: np.ndarray, owner_N: np.ndarray) -> None:
    """The keys of a part, uint64 (N, 2), in order, and an integer for each."""
    order = np.argsort(keys_N2[:, 0], kind="stable")
    columns = (keys_N2[order, 0], keys_N2[order, 1], order, owner_N[order])
    with open(path, "wb") as file:
        for column, dtype in zip(columns, _COLUMNS, strict=True):
            file.write(column.astype(dtype).tobytes())


def keys_of(digests: Sequence[bytes]) -> np.ndarray:
    """Hashes of 16 bytes as keys, uint64 (N, 2)."""
    return np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)


def ranges(keys: int) -> int:
    """Into how many ranges so many keys are divided."""
    return -(-keys // LARGEST) or 1


def group(paths: Sequence[Path], number: int, of: int) -> Groups:
    """The keys of range `number` of `of` in the files of all parts, in their order."""
    found: list[list[np.ndarray]] = [[], [], [], [], []]
    for number_of_part, path in enumerate(paths):
        count = path.stat().st_size // _BYTES
        if not count:
            continue
        with open(path, "rb") as file:
            first, last = _bounds(np.memmap(file, _COLUMNS[0], "r", shape=(count,)), number, of)
            start = 0
            for columns, dtype in zip(found, _COLUMNS, strict=False):
                file.seek(start + first * dtype.itemsize)
                columns.append(np.frombuffer(file.read((last - first) * dtype.itemsize), dtype))
                start += count * dtype.itemsize
        found[4].append(np.full(last - first, number_of_part, np.uint32))
    if not found[0]:
        nothing = np.zeros(0, np.uint32)
        return Groups(np.zeros(0, bool), nothing, nothing, nothing)
    high, low, index, owner, part = (np.concatenate(columns) for columns in found)
    order = np.argsort(high, kind="stable")
    begins = np.r_[True, high[order][1:] != high[order][:-1]][: len(high)]
    if np.any(~begins[1:] & (low[order][1:] != low[order][:-1])):  # half of the key is equal: next to never
        order = np.lexsort((index, part, low, high))
        begins = np.r_[True, (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])]
    return Groups(begins, part[order], index[order], owner[order])


def _bounds(high: np.ndarray, number: int, of: int) -> tuple[int, int]:
    """Where the range begins and ends in sorted keys."""
    first, last = (2**64 * n // of for n in (number, number + 1))
    end = len(high) if last == 2**64 else int(np.searchsorted(high, np.uint64(last)))
    return int(np.searchsorted(high, np.uint64(first))), end
