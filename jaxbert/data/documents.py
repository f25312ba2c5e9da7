"""The documents of a corpus: all that is in the input, cleaned, judged, counted and split. `prepare`'s first stage."""

import contextlib
import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxbert.config import Corpus
from jaxbert.data import across, clean, overlap, readers, source, stages
from jaxbert.errors import BadInput

SPLITS = ("train", "validation")


def make_documents(
    folder: Path, corpus: Corpus, found: Sequence[readers.Source], workers: int, rejected: Path | None
) -> dict[str, Any]:
    """Read, clean, deduplicate and split all of `found` into files of documents in `folder`.

    Returns the counts: fates (which add up to the input) over all and by source, what happened to paragraphs, what
    rejected text was taken for, documents and characters a split, a fingerprint of all that was written. With
    `rejected`, a folder, the other documents go there. Raises BadInput where a split would be empty.
    """
    fates: dict[str, Counter] = {s.name: Counter() for s in found}
    paragraphs: Counter = Counter()
    languages: Counter = Counter()
    changed: Counter = Counter()
    overlaps: Counter = Counter()
    splits = {split: Counter(documents=0, characters=0) for split in SPLITS}
    duplicates, removal = clean.Duplicates(corpus.clean.duplicates), clean.Removal(corpus)
    report: dict[str, Any] = {}
    fingerprint = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        shards = {split: stack.enter_context(source.Shards(folder, split)) for split in SPLITS}
        out = stack.enter_context(open(rejected / "rejected.jsonl", "wb")) if rejected else None
        documents = _cleaned_documents(corpus, found, workers, removal, duplicates)
        documents = across.judged(documents, corpus, folder, report, keep_texts=rejected is not None)
        for document, result in documents:
            result = duplicates.paragraph(result)
            fates[document.source][result.fate] += 1
            paragraphs.update(result.paragraphs)
            languages.update(result.languages)
            changed.update(result.changed)
            if result.fate in ("kept", "benchmark"):
                overlaps.update(result.overlaps.keys())
            if result.fate == "kept":
                split = clean.split_of(result, corpus.validation_share)
                record = _json_line({"text": result.text, **_identity(document)})
                shards[split].write(record)
                fingerprint.update(record)
                splits[split].update(documents=1, characters=len(result.text))
            elif out:
                # What must not be there is not there, either.
                text = "" if result.fate == "removed" else document.text
                reason = {"fate": result.fate, "detail": result.detail}
                out.write(_json_line({"text": text, **_identity(document), **reason}) + b"\n")
    _say_unmatched(removal)
    total = sum(fates.values(), Counter())
    _check_enough(corpus, total, languages, splits)
    by_source = {name: dict(sorted(count.items())) for name, count in fates.items()}
    return {
        "sources": [{**s.record(), "documents": by_source[s.name]} for s in found],
        "documents": total.total(),
        "fates": {fate: total[fate] for fate in clean.FATES},
        "paragraphs": dict(sorted(paragraphs.items())),
        "changed": dict(sorted(changed.items())),
        "languages_rejected": dict(languages.most_common()),
        **({"benchmarks": overlap.report(corpus, overlaps)} if corpus.benchmarks else {}),
        **({"remove": removal.report()} if corpus.remove else {}),
        **report,
        "splits": {split: dict(count) for split, count in splits.items()},
        "fingerprint": fingerprint.hexdigest(),
    }


def _cleaned_documents(
    corpus: Corpus,
    found: Sequence[readers.Source],
    workers: int,
    removal: clean.Removal,
    duplicates: clean.Duplicates,
) -> Iterator[tuple[readers.Document | readers.Unread, clean.Cleaned]]:
    """All that is in the input, cleaned, with what is to be removed and repeated documents found, in order."""
    stream = itertools.chain.from_iterable(readers.read(s, corpus) for s in found)
    file, done, count, kept = "", 0, 0, 0
    with stages.Progress("documents", sum(len(s.files) for s in found), "files") as progress:
        work = functools.partial(clean_documents, corpus, own_settings(corpus, found))
        for block, results in stages.in_order(work, stages.blocks(stream), workers):
            for document, result in zip(block, results, strict=True):
                result = duplicates.document(removal.apply(document, result))
                yield document, result
                count, kept = count + 1, kept + (result.fate == "kept")
                if (name := document.id.rpartition("#")[0]) != file:
                    file, done = name, done + 1
            progress.update(done, f"{count:,} documents, {kept:,} kept")


def own_settings(corpus: Corpus, found: Sequence[readers.Source]) -> dict[str, Corpus]:
    """Source → the settings that its documents are cleaned with, where they are not the corpus's."""
    return {s.name: s.settings(corpus) for s in found if s.own and s.own.clean}


def clean_documents(
    corpus: Corpus, own: dict[str, Corpus], block: list[readers.Document | readers.Unread]
) -> list[clean.Cleaned]:
    """`clean_block`, with what could not be read in its place, and compared with benchmarks and signed."""
    cleaned: list[clean.Cleaned] = []
    whole = (d for d in block if isinstance(d, readers.Document))
    for name, documents in itertools.groupby(whole, lambda d: d.source):
        cleaned += clean.clean_block(list(documents), own.get(name, corpus))
    overlap.mark(cleaned, corpus)
    across.sign_kept(cleaned, corpus)
    in_order = iter(cleaned)
    return [
        next(in_order) if isinstance(d, readers.Document) else clean.Cleaned(text="", fate=d.reason, detail=d.detail)
        for d in block
    ]


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


def _check_enough(corpus: Corpus, fates: Counter, languages: Counter, splits: dict[str, Counter]) -> None:
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
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")  # UTF-8 cannot hold a lone surrogate


def shares(languages: Counter, most: int = 8) -> str:
    """The languages that most paragraphs are taken for, with their shares, as a line to print."""
    total = languages.total()
    named = [f"{language} {n / total:.1%}" for language, n in languages.most_common(most)]
    return ", ".join(named) + (f" and {len(languages) - most} more" if len(languages) > most else "")
