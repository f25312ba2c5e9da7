"""The documents of a corpus: all that is in the input, cleaned, judged, counted and split. `prepare`'s first stage."""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxbert.config import Corpus
from jaxbert.data import across, clean, engines, overlap, parts, readers, source, stages
from jaxbert.data.engines import Engine
from jaxbert.data.source import SPLITS
from jaxbert.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What became of a part, and its documents as they are stored."""

    records: list[tuple[str, bytes]]  # (split, JSON) of the kept documents, in order
    rejected: bytes  # JSON lines of the others, if wanted
    fates: dict[str, Counter]  # by source
    counts: dict[str, Counter]  # "paragraphs", "languages", "changed", "overlaps"; and by split documents, characters
    duplicates: across.Examples
    near: across.Examples


def make_documents(
    folder: Path, corpus: Corpus, found: Sequence[readers.Source], engine: Engine, rejected: Path | None
) -> dict[str, Any]:
    """Read, clean, deduplicate and split all of `found` into files of documents in `folder`.

    Parts of the input are cleaned by `engine` (parts.py), compared in this process (across.py), judged by `engine` and
    written in order. In between they lie in `folder`, compressed: about as many bytes as the input's text with near
    duplicates, half of it without.

    Returns the counts: fates (which add up to the input) over all and by source, what happened to paragraphs, what
    rejected text was taken for, documents and characters a split, a fingerprint of all that was written. With
    `rejected`, a folder, the other documents go there. Raises BadInput where a split would be empty.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="parts-", ignore_cleanup_errors=True) as temporary:
        place = Path(temporary).absolute()  # a cluster's machines have another working directory
        made = _make_parts(place, corpus, found, engine, keep_texts=rejected is not None)
        decided = across.decide(made, place, corpus)
        fates: dict[str, Counter] = {s.name: Counter() for s in found}
        counts: dict[str, Counter] = collections.defaultdict(Counter)
        repeated, near = across.Examples(), across.Examples()
        fingerprint = hashlib.sha256()
        work = functools.partial(judge_part, decided=decided, corpus=corpus, keep_rejected=rejected is not None)
        with contextlib.ExitStack() as stack:
            shards = {split: stack.enter_context(source.Shards(folder, split)) for split in SPLITS}
            out = stack.enter_context(open(rejected / "rejected.jsonl", "wb")) if rejected else None
            for judgement in engine.map(work, list(enumerate(made)), engines.whole, place):
                for split, record in judgement.records:
                    shards[split].write(record)
                    fingerprint.update(record)
                if out:
                    out.write(judgement.rejected)
                for name, fate in judgement.fates.items():
                    fates[name].update(fate)
                for name, count in judgement.counts.items():
                    counts[name].update(count)
                repeated.merge(judgement.duplicates)
                near.merge(judgement.near)
    removal = clean.Removal(corpus)
    for part in made:
        for line, documents in part.removed.items():
            removal.matched[line] += documents
    _say_unmatched(removal)
    report = decided.report | repeated.report("duplicate_examples")
    if corpus.clean.near_duplicates:
        report["near_duplicates"] |= near.report("examples")
    total = sum(fates.values(), Counter())
    splits = {split: {"documents": 0, "characters": 0} | counts[split] for split in SPLITS}
    _check_enough(corpus, total, counts["languages"], splits)
    by_source = {name: dict(sorted(count.items())) for name, count in fates.items()}
    return {
        "sources": [{**s.record(), "documents": by_source[s.name]} for s in found],
        "documents": total.total(),
        "fates": {fate: total[fate] for fate in clean.FATES},
        "paragraphs": dict(sorted(counts["paragraphs"].items())),
        "changed": dict(sorted(counts["changed"].items())),
        "languages_rejected": dict(counts["languages"].most_common()),
        **({"benchmarks": overlap.report(corpus, counts["overlaps"])} if corpus.benchmarks else {}),
        **({"remove": removal.report()} if corpus.remove else {}),
        **report,
        "splits": splits,
        "fingerprint": fingerprint.hexdigest(),
    }


def _make_parts(
    place: Path, corpus: Corpus, found: Sequence[readers.Source], engine: Engine, *, keep_texts: bool
) -> list[parts.Part]:
    made: list[parts.Part] = []
    done = documents = fit = 0
    work = functools.partial(parts.make, folder=place, corpus=corpus, keep_texts=keep_texts)
    expand = functools.partial(parts.works, corpus=corpus)
    with stages.Progress("documents", sum(len(s.files) for s in found), "files") as progress:
        for part in engine.map(work, parts.divided(found), expand, place):
            made.append(part)
            done, documents, fit = done + part.files, documents + part.documents, fit + part.texts
            progress.update(done, f"{documents:,} documents, {fit:,} fit to be compared")
    return made


def judge_part(
    numbered: tuple[int, parts.Part], decided: across.Decided, corpus: Corpus, keep_rejected: bool
) -> Judgement:
    """Apply what was decided to a part, and count. Pure; reads the part's files and those of `across.decide`."""
    records: list[tuple[str, bytes]] = []
    rejected: list[bytes] = []
    fates: dict[str, Counter] = collections.defaultdict(Counter)
    counts: dict[str, Counter] = collections.defaultdict(Counter)
    repeated, near = across.Examples(), across.Examples()
    for document, result in across.judged(*numbered, decided):
        fates[document.source][result.fate] += 1
        for what in ("paragraphs", "languages", "changed"):
            if count := getattr(result, what):  # an update costs as much where there is nothing, as in most
                counts[what].update(count)
        if result.overlaps and result.fate in ("kept", "benchmark"):
            counts["overlaps"].update(result.overlaps.keys())
        if result.fate == "kept":
            split = clean.split_of(result, corpus.validation_share)
            records.append((split, _json_line({"text": result.text, **_identity(document)})))
            counts[split]["documents"] += 1
            counts[split]["characters"] += len(result.text)
        elif keep_rejected:
            # What must not be there is not there, either.
            text = "" if result.fate == "removed" else document.text
            reason = {"fate": result.fate, "detail": result.detail}
            rejected.append(_json_line({"text": text, **_identity(document), **reason}) + b"\n")
        if result.fate == "duplicate" and result.detail == "of a document":
            repeated.add(result.own_hash, document.id, result.text)
        elif result.fate in ("near_duplicate", "near_validation"):
            similarity, _, other = result.detail.partition(" ")
            key = f"{result.own_hash} {document.id}"
            near.add(key, document.id, result.text, similarity=float(similarity), other=other)
    return Judgement(records, b"".join(rejected), dict(fates), dict(counts), repeated, near)


def judge_sample(
    documents: list[readers.Document | readers.Unread], corpus: Corpus, found: Sequence[readers.Source]
) -> list[clean.Cleaned]:
    """What becomes of some documents, as if they were all; in the same order."""
    with tempfile.TemporaryDirectory() as temporary:
        place, by_name = Path(temporary), {s.name: s for s in found}
        made: list[parts.Part] = []
        for name, block in itertools.groupby(documents, lambda d: d.source):
            work = parts.Work(f"{len(made):08d}", dataclasses.replace(by_name[name], files=()), list(block))
            made.append(parts.make(work, place, corpus, keep_texts=False))
        decided = across.decide(made, place, corpus)
        judged = (across.judged(number, part, decided) for number, part in enumerate(made))
        return [result for _, result in itertools.chain.from_iterable(judged)]


def _say_unmatched(removal: clean.Removal, most: int = 20) -> None:
    """Every line of the removal lists that named nothing is in corpus.json; the first are printed too."""
    unmatched = removal.report()["unmatched"]
    if unmatched:
        more = f"\n  and {len(unmatched) - most:,} more, see corpus.json" if len(unmatched) > most else ""
        shown = "\n  ".join(unmatched[:most])
        stages.say(
            f"corpus.remove: {len(unmatched):,} of {len(removal.matched):,} lines named nothing:\n  {shown}{more}"
        )


def _identity(document: readers.Document | readers.Unread) -> dict[str, Any]:
    meta = document.meta if isinstance(document, readers.Document) else {}
    return {"id": document.id, "source": document.source, "meta": meta}


def _check_enough(corpus: Corpus, fates: Counter, languages: Counter, splits: dict[str, dict[str, int]]) -> None:
    kept, counts = fates["kept"], ", ".join(f"{n:,} {fate}" for fate, n in fates.most_common())
    if not kept:
        taken_for = f"; rejected text was taken for {shares(languages)}" if languages else ""
        raise BadInput(f"corpus.input: no document was kept ({counts}){taken_for}; see --sample, and corpus.clean.*")
    for split in SPLITS:
        if not splits[split]["documents"]:
            raise BadInput(
                f"corpus.validation_share: {corpus.validation_share} of {kept:,} documents leaves none for {split}; "
                f"give {'a larger' if split == 'validation' else 'a smaller'} share, more text, or shorter documents "
                f"(corpus.document, now {corpus.document!r})"
            )


def _json_line(values: dict[str, Any]) -> bytes:
    return _to_json(values).encode("utf-8", "replace")  # UTF-8 cannot hold a lone surrogate


_to_json = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would make one of these a line


def shares(languages: Counter, most: int = 8) -> str:
    """The languages that most paragraphs are taken for, with their shares, as a line to print."""
    total = languages.total()
    named = [f"{language} {n / total:.1%}" for language, n in languages.most_common(most)]
    return ", ".join(named) + (f" and {len(languages) - most} more" if len(languages) > most else "")
