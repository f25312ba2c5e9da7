"""Token files: what `prepare` makes of documents with a finished tokenizer, and the comparison with transformers."""

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np

from jaxbert.data import engines, packing, source, stages
from jaxbert.data.engines import Engine
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput

CHECKED, CHECKED_CHARACTERS = 2_000, 500  # documents whose beginnings are compared with transformers', and of each
MOST, LEAST = 4096, 64  # documents that are tokenized as one piece, where there are more


def check_against_transformers(directory: Path, documents: int) -> str:
    """Compare token ids of up to CHECKED training documents with transformers'; returns what was found, for the record.

    Of each its first CHECKED_CHARACTERS, which the record says: tokenizers differ in what they make of characters and
    words, which many beginnings hold more of than a few whole documents.

    Raises BadInput, showing differences, where any differs. Without transformers the check is left out, which is said.
    """
    from jaxbert.convert.tokenizer import compare_apart

    numbers = np.unique(np.linspace(0, documents - 1, min(documents, CHECKED)).astype(int)).tolist()
    stages.say(f"tokenizer: comparing {len(numbers):,} documents with transformers")
    texts = [d["text"][:CHECKED_CHARACTERS] for d in source.read_documents(directory, "train", numbers)]
    try:
        differences = compare_apart(directory / "tokenizer", texts)
    except ImportError:
        stages.say("tokenizer: NOT compared with transformers, which is not installed (pip install jaxbert[torch])")
        return "left out: transformers is not installed"
    if differences:
        lines = (f"  {text[:80]!r}\n    ours   {a[:24]}\n    theirs {b[:24]}" for text, a, b in differences[:5])
        shown = "\n".join(lines)
        raise BadInput(
            f"{directory / 'tokenizer'}: {len(differences):,} of {len(texts):,} documents get other token ids from "
            f"transformers, so an exported model would be wrong; use another tokenizer.kind or folder\n{shown}"
        )
    return f"{len(texts)} documents, up to {CHECKED_CHARACTERS} characters each: equal"


def make_tokens(directory: Path, folder: Path, split: str, engine: Engine, documents: int) -> int:
    """Tokenize a split into `folder`/{tokens,offsets}.bin (format: packing.py); returns the number of tokens."""
    folder.mkdir(parents=True)
    pieces = _pieces(documents, engine.workers)
    written = done = 0
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="pieces-", ignore_cleanup_errors=True) as temporary,
        open(folder / "tokens.bin", "wb") as token_file,
        open(folder / "offsets.bin", "wb") as offset_file,
        stages.Progress(f"{split} tokens", documents, "documents") as progress,
    ):
        place = Path(temporary).absolute()
        encode = functools.partial(
            encode_piece, directory=directory.absolute(), split=split, place=place, threads=engine.workers == 1
        )
        offset_file.write(np.zeros(1, "<i8").tobytes())
        for name, lengths in engine.map(encode, pieces, engines.whole, place):
            with open(place / name, "rb") as file:
                shutil.copyfileobj(file, token_file, 1 << 20)
            (place / name).unlink()
            offset_file.write((written + np.cumsum(lengths)).astype("<i8").tobytes())
            written, done = written + int(lengths.sum()), done + len(lengths)
            progress.update(done, f"{written:,} tokens")
    return written


def _pieces(documents: int, workers: int) -> list[tuple[int, int]]:
    """(first, one behind the last) of pieces that get shorter: long ones, as a process that knows the words of a source
    goes on with it, then short ones, so that all processes end together."""
    pieces, first = list[tuple[int, int]](), 0
    while first < documents:
        size = min(MOST, max(LEAST, -(-(documents - first) // (2 * workers))), documents - first)
        pieces.append((first, first + size))
        first += size
    return pieces


def encode_piece(
    piece: tuple[int, int], directory: Path, split: str, place: Path, threads: bool
) -> tuple[str, np.ndarray]:
    """Tokenize the documents `piece[0]` to `piece[1]` of a split; (name of the file in `place`, lengths int64)."""
    tokenizer = _load_tokenizer(directory / "tokenizer", threads)
    texts = (document["text"] for document in source.read_documents(directory, split, range(*piece)))
    lengths: list[int] = []
    with stages.whole_file(place / f"{piece[0]:012d}") as path, open(path, "wb") as file:
        for block in stages.blocks(texts):
            encoded = tokenizer.encode(block)
            ids, starts = (np.concatenate(parts) for parts in zip(*encoded, strict=True))
            file.write(packing.join_bit(ids, starts, tokenizer.vocab_size).tobytes())
            lengths += [len(ids) for ids, _ in encoded]
    return f"{piece[0]:012d}", np.array(lengths, np.int64)


@functools.lru_cache(maxsize=1)
def _load_tokenizer(directory: Path, threads: bool) -> TextTokenizer:
    return TextTokenizer.load(directory, threads=threads)
