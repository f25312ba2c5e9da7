"""What is read from a prepared corpus: documents, and rows by index, in an order where any step is found at once."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.data import masking, packing
from jaxbert.errors import BadInput

SPLITS = ("train", "validation")
_FEISTEL_ROUNDS = 6
AHEAD = 8  # batches that `prefetch` holds
SHARD_BYTES = 256 << 20  # of JSON in a file of documents
RECORD_OPTIONS = "group_size:64,zstd:1"


class Rows:
    """Training rows of one length. `rows[indices]` → (ids_RT int32, starts_word_RT bool, segment_ids_RT int32).

    Picklable: another process maps the files itself.
    """

    def __init__(self, directory: str | Path, *, one_document: bool = False, first: int = 0) -> None:
        """Open a folder rows_<T>, or a bucket of single_<T>, whose rows hold `one_document` each.

        `first`: the number of row 0 among the rows of all buckets. Raises BadInput for missing files or files of a
        wrong size.
        """
        self.directory, self.one_document, self.first = Path(directory), one_document, first
        self.about = _read_json(self.directory / "rows.json")
        self.row_length: int = self.about["row_length"]
        self.tokens: int = self.about["tokens"]  # of text, in all rows
        self.tokenizer: str = self.about["tokenizer"]  # fingerprint
        self._map()

    def _map(self) -> None:
        shape = (self.about["rows"], self.row_length)
        self._tokens_RT = packing.map_array(self.directory / "tokens.bin", np.dtype(self.about["dtype"]), shape)
        segment_dtype = np.dtype(self.about["segment_dtype"])
        self._segments_RT = packing.map_array(self.directory / "segments.bin", segment_dtype, shape)

    def __getstate__(self) -> dict[str, Any]:
        """All but the maps."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_tokens_RT", "_segments_RT")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files again."""
        self.__dict__.update(state)
        self._map()

    def __len__(self) -> int:
        """Rows."""
        return self.about["rows"]

    def __getitem__(self, indices: Sequence[int] | np.ndarray | slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids (int32), word bits (bool) and segment ids (int32) of some rows, each (R, T)."""
        ids_RT, starts_word_RT = packing.split_bit(self._tokens_RT[indices])
        return ids_RT, starts_word_RT, self._segments_RT[indices].astype(np.int32)

    def piece_starts(self, row: int) -> np.ndarray:
        """Where a row's pieces begin in tokens/train/tokens.bin, int64. Raises BadInput for rows without pieces.bin."""
        if not (self.directory / "pieces.bin").is_file():
            raise BadInput(
                f"{self.directory}: was made by a jaxbert that did not write where rows come from; delete it and run "
                "jaxbert.prepare again: its rows will be the same bytes"
            )
        i8 = np.dtype("<i8")
        bounds = packing.map_array(self.directory / "row_pieces.bin", i8, (self.about["rows"] + 1,))
        starts = packing.map_array(self.directory / "pieces.bin", i8, (self.about["pieces"],))
        return np.array(starts[bounds[row] : bounds[row + 1]])


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Held-out pieces with their fixed predictions; in filling, everything is 0."""

    ids_RT: np.ndarray  # int32, as written
    input_ids_RT: np.ndarray  # int32, with the replacements in place
    segment_ids_RT: np.ndarray  # int32: 1, and 0 in padding
    positions_RP: np.ndarray  # int32
    labels_RP: np.ndarray  # int32
    replacements_RP: np.ndarray  # int32
    weights_RP: np.ndarray  # float32, 1 for a prediction
    characters_RP: np.ndarray  # int32, characters of text that a label stands for


class Validation:
    """Held-out pieces by index. `validation[indices]` → Pieces."""

    def __init__(self, directory: str | Path) -> None:
        """Open a folder validation. Raises BadInput for missing files or files of a wrong size."""
        self.directory = Path(directory)
        self.about = _read_json(self.directory / "validation.json")
        self.row_length: int = self.about["row_length"]
        self.predictions: int = self.about["predictions"]  # the static P
        self.masked_tokens: int = self.about["masked_tokens"]
        self.tokenizer: str = self.about["tokenizer"]  # fingerprint
        rows, i4 = self.about["rows"], np.dtype("<i4")
        shapes: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
            "tokens": (np.dtype(self.about["dtype"]), (rows, self.row_length)),
            "segments": (np.dtype(self.about["segment_dtype"]), (rows, self.row_length)),
            **dict.fromkeys(("positions", "labels", "replacements", "characters"), (i4, (rows, self.predictions))),
            "count": (i4, (rows,)),
        }
        self._arrays = {n: packing.map_array(self.directory / f"{n}.bin", *shape) for n, shape in shapes.items()}

    @classmethod
    def open(cls, directory: str | Path) -> "Validation":
        """The pieces in a folder validation."""
        return cls(directory)

    def __len__(self) -> int:
        """Rows."""
        return self.about["rows"]

    def __getitem__(self, indices: Sequence[int] | np.ndarray | slice) -> Pieces:
        """Some pieces."""
        part = {name: array[indices] for name, array in self._arrays.items()}
        ids_RT, _ = packing.split_bit(part["tokens"])
        real_RP = np.arange(self.predictions) < part["count"][:, None]
        input_ids_RT = ids_RT.copy()
        row_N, slot_N = np.nonzero(real_RP)
        input_ids_RT[row_N, part["positions"][row_N, slot_N]] = part["replacements"][row_N, slot_N]
        return Pieces(
            ids_RT=ids_RT,
            input_ids_RT=input_ids_RT,
            segment_ids_RT=part["segments"].astype(np.int32),
            weights_RP=real_RP.astype(np.float32),
            **{f"{n}_RP": np.asarray(part[n]) for n in ("positions", "labels", "replacements", "characters")},
        )


class Shards:
    """ArrayRecord files <split>-00000.array_record, … of about SHARD_BYTES each; a split without records has none."""

    def __init__(self, folder: Path, split: str) -> None:
        """Nothing is written before the first record."""
        self.folder, self.split, self.number, self.bytes = folder, split, 0, 0
        self.writer: Any = None

    def __enter__(self) -> "Shards":
        """Nothing to open yet."""
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        """Finish the last file."""
        if self.writer:
            self.writer.close()

    def write(self, record: bytes) -> None:
        """Append a record. A full disk is a RuntimeError of array_record, here or at the end."""
        from array_record.python.array_record_module import ArrayRecordWriter

        if self.writer and self.bytes >= SHARD_BYTES:
            self.writer.close()
            self.writer, self.bytes, self.number = None, 0, self.number + 1
        if not self.writer:
            path = self.folder / f"{self.split}-{self.number:05d}.array_record"
            self.writer = ArrayRecordWriter(str(path), RECORD_OPTIONS)
        self.writer.write(record)
        self.bytes += len(record)


def read_documents(directory: Path, split: str, numbers: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
    """Kept documents {text, id, source, meta} of a corpus's split, in order; `numbers` (ascending) picks some."""
    from array_record.python.array_record_module import ArrayRecordReader

    first = 0  # number of the file's first document
    for path in sorted((Path(directory) / "documents").glob(f"{split}-*.array_record")):
        if numbers is not None and (not len(numbers) or numbers[-1] < first):
            return
        reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
        count = reader.num_records()
        wanted = range(count) if numbers is None else [n - first for n in numbers if first <= n < first + count]
        for start in range(0, len(wanted), 256):
            for record in reader.read(list(wanted[start : start + 256])):
                yield json.loads(record.decode())  # of bytes it would look for the encoding first
        first += count
        reader.close()


def weighted(directory: Path, weights: dict[str, float]) -> tuple[np.ndarray, dict[str, dict[str, Any]]]:
    """(numbers of the training documents that rows are made of, int64, in that order; counts by source).

    `weights`: source → how often each of its documents is there, others once. For a weight's fraction those documents
    are there once more whose text's hash is below it, so added text changes no other document's number of copies. First
    copies come in the order of the input; second ones, third ones … each in another, so that they meet others in a row.

    Why here: tokens stay as they are, so that another mixture needs new rows, which are cheap, and no second
    preparation; validation is not touched; repeated texts would be lost as duplicates before. Why from the documents:
    they know source and text, so no index has to be kept; they are read once for it, which takes some seconds a
    gigabyte. The tokenizer and the unigram baseline see every document once. Memory: 8 bytes a copy and 1 a document.
    """
    counts: dict[str, dict[str, Any]] = {}
    copies_D = bytearray()
    for document in read_documents(directory, "train"):
        weight = float(weights.get(document["source"], 1.0))
        digest = hashlib.blake2b(document["text"].encode(), digest_size=8, person=b"weight").digest()
        copies = int(weight) + (int.from_bytes(digest, "little") / 2**64 < weight % 1)
        copies_D.append(copies)
        count = counts.setdefault(document["source"], {"weight": weight, "documents": 0, "weighted_documents": 0})
        count["documents"] += 1
        count["weighted_documents"] += copies
    of_D = np.frombuffer(copies_D, np.uint8)
    orders = [np.flatnonzero(of_D)]
    for copy in range(1, int(of_D.max(initial=0))):
        again = np.flatnonzero(of_D > copy)
        orders.append(again[permute(np.arange(len(again)), len(again), copy)])
    return np.concatenate(orders), dict(sorted(counts.items()))


def position_ids(segment_ids_RT: np.ndarray) -> np.ndarray:
    """Positions that restart at 0 in each segment and count on in the padding behind the last; int32 (R, T).

    Published code that reads padding (mask_mode "reference") reads it at these positions; otherwise nobody does.
    """
    at_T = np.arange(segment_ids_RT.shape[1], dtype=np.int32)
    begins_RT = np.ones(segment_ids_RT.shape, bool)
    begins_RT[:, 1:] = (segment_ids_RT[:, 1:] != segment_ids_RT[:, :-1]) & (segment_ids_RT[:, 1:] > 0)
    return at_T - np.maximum.accumulate(np.where(begins_RT, at_T, 0), axis=1)


def permute(index: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Places `index` (any shape, 0 ≤ index < size) of a pseudo-random permutation of range(size); int64.

    A Feistel network over the next power of four permutes more numbers than needed; an image outside is encrypted again
    until it falls inside (cycle walking, Black and Rogaway 2002). Constant time and memory for any size.
    """
    half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    round_keys = np.random.Philox(key=seed % 2**128).random_raw(_FEISTEL_ROUNDS)

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & low
        for key in round_keys:
            hashed = (right ^ key) * np.uint64(0x9E3779B97F4A7C15)
            hashed = (hashed ^ hashed >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ (hashed >> np.uint64(32) & low)
        return left << half | right

    image = encrypt(np.atleast_1d(np.asarray(index, np.uint64)))
    while (outside := image >= np.uint64(size)).any():
        image[outside] = encrypt(image[outside])
    return image.astype(np.int64).reshape(np.shape(index))


class Feed:
    """What every step of a run reads: a pure function of (rows, batch size, seed, step), in constant time.

    Packed rows have one length. Rows of one document come in buckets of several lengths, and a step reads one bucket,
    as many rows of it as make up the positions of `batch_size` rows of the full length.
    """

    def __init__(self, folder: Path, batch_size: int, seed: int) -> None:
        """`folder`: rows_<T> or single_<T>, of any mixture. Raises BadInput as `Rows` does, or if there are no rows."""
        single, self.folder, self.seed = folder / "single.json", folder, seed
        self.buckets: list[Rows] = []
        if single.is_file():
            about = _read_json(single)
            for length in about["buckets"]:
                self.buckets.append(Rows(folder / length, one_document=True, first=len(self)))
        else:
            self.buckets = [Rows(folder)]
            about = self.buckets[0].about
        self.row_length: int = about["row_length"]
        self.tokens: int = about["tokens"]  # of text, in all rows
        self.tokenizer: str = about["tokenizer"]  # fingerprint
        self.batch_sizes = [batch_size * self.row_length // rows.row_length for rows in self.buckets]

    def __len__(self) -> int:
        """Rows of all buckets."""
        return sum(map(len, self.buckets))

    @property
    def steps_per_epoch(self) -> float:
        """Packed rows run on from one epoch into the next, so that an epoch need not be whole steps."""
        if len(self.buckets) == 1 and not self.buckets[0].one_document:
            return len(self) / self.batch_sizes[0]
        return sum(self._steps())

    def _steps(self) -> list[int]:
        """Of an epoch, by bucket; the last one of a bucket is filled up with empty rows."""
        return [-(-len(rows) // size) for rows, size in zip(self.buckets, self.batch_sizes, strict=True)]

    def at(self, step: int, first: int = 0) -> tuple[Rows, np.ndarray, np.ndarray]:
        """(rows, epoch_B, row_B int64) of `step`, from 0; a row number equal to len(rows) stands for an empty row.

        Every row is read exactly once an epoch. The steps of an epoch are a permutation too, so buckets alternate.
        `first`: where step 0 begins, of `after`.
        """
        if len(self.buckets) == 1 and not self.buckets[0].one_document:
            rows = self.buckets[0]
            return rows, *rows_of_step(step, self.batch_sizes[0], len(rows), self.seed, first)
        steps = self._steps()
        epoch, place = divmod(step, sum(steps))
        epoch += -(-first // len(self))
        number = int(permute(np.array([place]), sum(steps), _epoch_key(self.seed, epoch, sum(steps)))[0])
        bucket = int(np.searchsorted(np.cumsum(steps), number, side="right"))
        rows, size = self.buckets[bucket], self.batch_sizes[bucket]
        place_B = (number - sum(steps[:bucket])) * size + np.arange(size)
        row_B = np.full(size, len(rows), np.int64)
        real_B = place_B < len(rows)
        row_B[real_B] = permute(place_B[real_B], len(rows), _epoch_key(self.seed, epoch, rows.first + len(rows)))
        return rows, np.full(size, epoch, np.int64), row_B

    def after(self, steps: int, first: int = 0) -> int:
        """Where a feed of the same rows, whatever its batch size, goes on after `steps` that began at `first`.

        Rows, counted on from epoch to epoch. Rows of one document go on with the next epoch: an epoch of them is cut
        into steps by the batch size.
        """
        if len(self.buckets) == 1 and not self.buckets[0].one_document:
            return first + steps * self.batch_sizes[0]
        return (-(-first // len(self)) + -(-steps // sum(self._steps()))) * len(self)

    def shapes(self) -> list[tuple[int, int, float]]:
        """(rows of a batch, their length, share of the steps) of every bucket."""
        steps = self._steps()
        lengths = [rows.row_length for rows in self.buckets]
        return [(size, n, s / sum(steps)) for size, n, s in zip(self.batch_sizes, lengths, steps, strict=True)]

    def first_of_each_bucket(self) -> Iterator[tuple[Rows, np.ndarray, np.ndarray]]:
        """As `at`, for one batch of each bucket: what a batch's arrays look like."""
        for rows, size in zip(self.buckets, self.batch_sizes, strict=True):
            yield rows, np.zeros(size, np.int64), np.minimum(np.arange(size), len(rows) - 1)


def _epoch_key(seed: int, epoch: int, what: int) -> int:
    return int(masking.row_keys(seed, np.array([epoch]), np.array([what]))[0])


def rows_of_step(step: int, batch_size: int, size: int, seed: int, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(epoch_B, row_B), int64: what step `step` (from 0) reads of `size` rows. Pure, and the same cost for any step.

    `first`: rows, counted on from epoch to epoch, that were read before step 0. Every epoch is its own permutation. A
    batch that crosses into the next epoch takes each row by that row's own epoch, so every row is read exactly once an
    epoch.
    """
    if size < 1:
        raise BadInput("no rows to read; prepare found too little text: give more in corpus.input")
    first += step * batch_size
    place_B = np.arange(first % size, first % size + batch_size)
    epoch_B, row_B = first // size + place_B // size, place_B % size
    for epoch in np.unique(epoch_B):
        now_B = epoch_B == epoch
        row_B[now_B] = permute(row_B[now_B], size, _epoch_key(seed, epoch, size))
    return epoch_B, row_B


class _Steps:
    """A grain data source whose element is a whole step (with a row an element, grain is tens of times slower)."""

    def __init__(self, make_batch: Callable[[int], dict], stop: int) -> None:
        self.make_batch, self.stop = make_batch, stop

    def __len__(self) -> int:
        return self.stop

    def __getitem__(self, step: int) -> dict:
        return self.make_batch(int(step))


def prefetch(make_batch: Callable[[int], dict], start: int, stop: int, ahead: int = AHEAD) -> Iterator[dict]:
    """make_batch(start), …, make_batch(stop − 1) in order, made ahead of time by two threads.

    An error inside `make_batch` is raised here. Importing grain takes seconds, hence inside.
    """
    if stop <= start:
        return iter(())
    import grain

    steps = grain.MapDataset.source(_Steps(make_batch, stop))[start:stop]
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=ahead)))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: missing; run jaxbert.prepare with the recipe of this corpus") from None
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); delete its folder and run jaxbert.prepare again") from None
