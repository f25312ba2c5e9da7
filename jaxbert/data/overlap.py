"""Overlap of documents with benchmarks: runs of words that both have, in lower case and without punctuation.

Thirteen words is the length of Brown et al. 2020 (arXiv:2005.14165, appendix C). A benchmark is a file or a folder of
them: of JSON and JSON lines every string is a field, of any other text what stands between tabs and line ends. A field
of fewer words says too little to be looked for; those are counted.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert.config import Corpus
from jaxbert.data import clean, near, stages
from jaxbert.data.clean import Cleaned
from jaxbert.errors import BadInput

LEAST_WORDS = 4  # of a run
FIELDS = 4096  # that are hashed at once


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One entry of `corpus.benchmarks`."""

    name: str
    runs: np.ndarray  # hashes of its runs of words, distinct and ascending, uint64
    fields: int
    too_short: int  # fields


def check(corpus: Corpus) -> None:
    """Raises BadInput for runs that are too short and benchmarks that cannot be read."""
    if corpus.benchmarks and corpus.benchmark_words < LEAST_WORDS:
        raise BadInput(f"corpus.benchmark_words: {corpus.benchmark_words}; give {LEAST_WORDS} or more (13 is usual)")
    load(corpus.benchmarks, corpus.benchmark_words)


def mark(block: list[Cleaned], corpus: Corpus) -> None:
    """Say of every kept document which benchmarks it shares runs with, in place; it goes if they are to be removed."""
    kept = [(i, cleaned) for i, cleaned in enumerate(block) if cleaned.fate == "kept"]
    if not corpus.benchmarks or not kept:
        return
    runs, counts = near.shingles([cleaned.text for _, cleaned in kept], corpus.benchmark_words)
    ends = np.cumsum(counts)
    for benchmark in load(corpus.benchmarks, corpus.benchmark_words):
        if not len(benchmark.runs):
            continue
        place = np.minimum(np.searchsorted(benchmark.runs, runs), len(benchmark.runs) - 1)
        shared = np.diff(np.r_[0, np.cumsum(benchmark.runs[place] == runs)][np.r_[0, ends]])
        for (i, cleaned), count in zip(kept, shared.tolist(), strict=True):
            if count:
                cleaned.overlaps[benchmark.name] = count
                if corpus.benchmark_overlap == "remove" and block[i].fate == "kept":
                    detail = f"{count} runs of words of {benchmark.name}"
                    block[i] = clean.rejected(cleaned, "benchmark", detail, "benchmark")


def report(corpus: Corpus, documents: dict[str, int]) -> dict[str, Any]:
    """For corpus.json; `documents`: by benchmark, how many share runs with it."""
    loaded = load(corpus.benchmarks, corpus.benchmark_words)
    return {
        b.name: {
            "fields": b.fields,
            "too_short": b.too_short,
            "runs": len(b.runs),
            "documents": documents.get(b.name, 0),
        }
        for b in loaded
    }


@functools.lru_cache(maxsize=1)
def load(entries: tuple[str, ...], words: int) -> list[Benchmark]:
    """The benchmarks; once a process. Memory: 8 bytes a word. Raises BadInput for one that cannot be read."""
    loaded = []
    for entry in entries:
        runs, fields, too_short, batch = [np.zeros(0, np.uint64)], 0, 0, []
        for path in files(entry):
            for field in _fields(path):
                fields += 1
                batch.append(field)
                if len(batch) == FIELDS:
                    too_short += _add(batch, words, runs)
                    batch = []
        too_short += _add(batch, words, runs)
        if not fields:
            raise BadInput(f"corpus.benchmarks: {entry!r} holds no text; give a file or a folder of a benchmark's text")
        loaded.append(Benchmark(entry, np.unique(np.concatenate(runs)), fields, too_short))
    return loaded


def _add(batch: list[str], words: int, runs: list[np.ndarray]) -> int:
    """Append the runs of some fields; returns how many fields were too short."""
    _, counts = near.shingles(batch, 1)
    long = [field for field, count in zip(batch, counts.tolist(), strict=True) if count >= words]
    runs.append(np.unique(near.shingles(long, words)[0]))
    return len(batch) - len(long)


def files(entry: str) -> list[Path]:
    """The files of a benchmark, sorted. Raises BadInput if there is none."""
    path = Path(entry).expanduser()
    found = (
        sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]
    )
    if not found or not found[0].is_file():
        raise BadInput(
            f"corpus.benchmarks: there is no file in {entry!r}; give a file or a folder of a benchmark's text"
        )
    return found


def digest(entry: str) -> str:
    """Of the files' names and bytes, in hexadecimal digits."""
    return stages.sha256_of_lines(f"{stages.sha256(path)}  {path.name}" for path in files(entry))


def _fields(path: Path) -> Iterator[str]:
    """Every text in a file. Raises BadInput for one that is not UTF-8, or not the JSON that its name promises."""
    try:
        if path.suffix == ".json":
            yield from _strings(json.loads(path.read_text(encoding="utf-8-sig")))
            return
        with open(path, encoding="utf-8-sig") as file:
            for line in file:
                if path.suffix in (".jsonl", ".ndjson"):
                    if line.strip():
                        yield from _strings(json.loads(line))
                else:
                    yield from (field for field in line.split("\t") if field.strip())
    except (ValueError, RecursionError) as error:  # of decoding, too
        remedy = "give plain text, TSV, JSON or JSON lines in UTF-8"
        raise BadInput(f"corpus.benchmarks: {path} cannot be read: {type(error).__name__}: {error}; {remedy}") from None
    except OSError as error:
        raise BadInput(f"corpus.benchmarks: {path} cannot be read: {error.strerror}") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
