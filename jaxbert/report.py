"""The report of a prepared corpus: one HTML file beside corpus.json that needs no network, no script and no other file.

What corpus.json counts is printed as it stands there. What it does not count (words, lengths, tokens by source, unused
tokens, examples) is found in one pass over documents/ and tokens/, in memory that grows with the vocabulary and the
number of sources alone. Bytes depend on the corpus and this file, not on time, place or the number of workers.

The page is written by hand, as XML that browsers read as HTML: one column, system fonts, light and dark, and printable.
Bars are inline SVG, whose widths are shares of the column, so that they fit any screen.
"""

import dataclasses
import hashlib
import json
import os
import re
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert import webpage as web
from jaxbert.data import packing, source, stages
from jaxbert.data import tokenizer as tokenizers
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput

NAME = "report.html"
SPLITS = ("train", "validation")
LONGEST = 1 << 20  # tokens; lengths of documents are counted one by one up to here
CHUNK = 1 << 22  # tokens looked at at once
SENTENCES, SENTENCE_WORDS, SENTENCE_CHARACTERS = 6, (6, 16), 120  # examples, and what fits one
PIECES = 40  # entries of the vocabulary in a list
OTHER_CHARACTERS = 4000  # kept of a document that a near duplicate names

# What the fates and outcomes of jaxbert/data/clean.py mean, in a few words; one that is not here has no explanation.
MEANING = {
    "kept": "in the corpus",
    "empty": "white space and control characters only",
    "too_long": "over corpus.max_document_megabytes",
    "unreadable": "a broken file, or the rest of a broken archive",
    "no_paragraph_left": "no paragraph with enough words and letters",
    "language": "in another language",
    "repetition": "it repeats itself",
    "benchmark": "shares a run of words with test data",
    "duplicate": "the same text was there before",
    "near_duplicate": "nearly an earlier one",
    "near_validation": "nearly a held-out one",
    "boilerplate": "lines that many documents have",
    "removed": "named in corpus.remove",
    "error": "cleaning it failed",
    "too_few_words": "under corpus.clean.min_words",
    "too_few_letters": "under corpus.clean.min_letters",
    "repaired_lines": "lines repaired (wrong encodings, HTML entities, forms of Unicode)",
    "control_characters": "control and invisible characters taken out",
    "nul_bytes": "zero bytes among these",
    "masked_emails": "e-mail addresses masked",
    "masked_phones": "telephone numbers masked",
    "masked_identity_numbers": "identity numbers masked",
}
# Parts of the bars by source: (class, what the legend says, fates; the last takes all that are left).
PARTS = (
    ("a", "kept", ("kept",)),
    ("b", "duplicate", ("duplicate", "near_duplicate", "near_validation")),
    ("c", "other language", ("language",)),
    ("d", "other reasons", ()),
)
# Tokens a word of multilingual BERT (119,547 entries) on the treebanks of Universal Dependencies 2.3, in which
# punctuation marks are words: from the counts that Judit Ács published with "Exploring BERT's Vocabulary" (2019),
# juditacs/snippets, deep_learning/bert_vocab_stats/bert_tokenizer_stats.tsv, all treebanks of a language together.
MULTILINGUAL_BERT = {
    **{"cs": 1.897, "da": 1.542, "de": 1.385, "en": 1.205, "es": 1.252, "fi": 2.188, "fr": 1.254, "gl": 1.162},
    **{"it": 1.299, "nl": 1.457, "no": 1.519, "pl": 1.879, "pt": 1.165, "sv": 1.620, "tr": 1.963},
}
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass
class Measured:
    """What the pass over documents and tokens finds; both splits together unless said otherwise."""

    sources: dict[str, Counter]  # by name, in corpus.json's order: documents, characters, words, marks, tokens
    lengths: np.ndarray  # int64 (LONGEST + 1,): documents by their tokens; the last counts longer ones, too
    longest: int  # tokens of the longest document
    counts_V: np.ndarray  # int64: tokens of the training split by id
    held_out_V: np.ndarray  # int64: of the validation split
    single: int  # words, as the tokenizer cuts them, that are one token
    words: int  # words, as the tokenizer cuts them
    sentences: dict[str, tuple[str, str]]  # by source, (hash, text) of the paragraph with the smallest hash
    named: dict[str, str]  # id → beginning of the text, of documents that near duplicates name

    @property
    def total(self) -> Counter:
        """Of all sources."""
        return sum(self.sources.values(), Counter())


def write_report(directory: str | Path) -> None:
    """Write `directory`/report.html of a prepared corpus, whole or not at all, unless it is there and up to date.

    Raises nothing: what goes wrong is said, with its traceback where it is a fault of ours, and leaves the corpus as it
    is; an earlier report, which would tell of another corpus, is removed.
    """
    directory = Path(directory)
    path = directory / NAME
    try:
        made_from = _made_from(directory)
        if path.is_file():
            with open(path, "rb") as file:
                if made_from.encode() in file.read(1000):
                    stages.say(f"report: {path}")
                    return
            path.unlink()
        corpus = json.loads((directory / "corpus.json").read_text(encoding="utf-8"))
        tokenizer = TextTokenizer.load(directory / "tokenizer")
        content = page(corpus, _measure(directory, corpus, tokenizer), tokenizer, made_from)
        beside = path.with_name(f"{NAME}.tmp-{os.getpid()}")  # of a killed process, stages.sweep removes it
        beside.write_text(content, encoding="utf-8")
        beside.rename(path)
    except Exception as error:
        if not isinstance(error, BadInput | OSError):
            traceback.print_exc()
        stages.say(
            f"report: NOT written: {type(error).__name__}: {error}; the corpus is whole, and the next "
            "jaxbert.prepare with the same recipe tries again"
        )
        return
    stages.say(f"report: {path}")


def _made_from(directory: Path) -> str:
    """SHA-256 of all that decides about the report: the corpus, its tokenizer, and the code that writes the page."""
    code = (Path(__file__), Path(web.__file__))
    files = (directory / "corpus.json", directory / "tokenizer" / "tokenizer.json", *code)
    return stages.sha256_of_lines(map(stages.sha256, files))


# --- the pass ---


def _measure(directory: Path, corpus: dict[str, Any], tokenizer: TextTokenizer) -> Measured:
    """Raises BadInput where documents, tokens and corpus.json do not belong together."""
    size = tokenizer.vocab_size
    measured = Measured(
        sources={s["name"]: Counter() for s in corpus["sources"]},
        lengths=np.zeros(LONGEST + 1, np.int64),
        longest=0,
        counts_V=packing.unigram_counts(directory / "tokens" / "train", size),
        held_out_V=packing.unigram_counts(directory / "tokens" / "validation", size),
        single=0,
        words=0,
        sentences={},
        named={},
    )
    wanted = {example["other"] for example in corpus.get("near_duplicates", {}).get("examples", ())}
    for split in SPLITS:
        expected = {**corpus["splits"][split], "tokens": corpus["tokens"][split]}
        stored = packing.TokenFile(directory / "tokens" / split, size)
        with stages.Progress("report", expected["documents"], "documents") as progress:
            documents = progress.count(source.read_documents(directory, split), split)
            found = _count(documents, stored, measured, wanted)
        for what, count in expected.items():
            if found[what] != count:
                raise BadInput(
                    f"{directory / 'corpus.json'}: {count:,} {what} for {split}, but there are {found[what]:,} in "
                    f"documents/ and tokens/; delete {stages.and_later(directory, 'documents')} and prepare again"
                )
        single, words = _whole_words(stored.tokens)
        measured.single, measured.words = measured.single + single, measured.words + words
    return measured


def _count(
    documents: Iterable[dict[str, Any]], stored: packing.TokenFile, measured: Measured, wanted: set[str]
) -> Counter:
    """Count a split's documents into `measured`, and keep the texts that are `wanted` by id; returns their totals."""
    found: Counter = Counter()
    for number, document in enumerate(documents):
        if number + 1 >= len(stored.offsets):
            found["documents"] += 1
            break  # more documents than there are tokens for: the totals will not be those of corpus.json
        text, name = document["text"], document["source"]
        tokens = int(stored.offsets[number + 1] - stored.offsets[number])
        counts = {
            "documents": 1,
            "characters": len(text),
            "words": len(text.split()),
            "marks": len(_WORD_OR_MARK.findall(text)),
            "tokens": tokens,
        }
        found.update(counts)
        measured.sources.setdefault(name, Counter()).update(counts)
        measured.lengths[min(tokens, LONGEST)] += 1
        measured.longest = max(measured.longest, tokens)
        if document["id"] in wanted:
            measured.named[document["id"]] = text[:OTHER_CHARACTERS]
        if sentence := _sentence(text):
            key = hashlib.blake2b(sentence.encode(), digest_size=8).hexdigest()
            measured.sentences[name] = min((key, sentence), measured.sentences.get(name, (key, sentence)))
    return found


def _sentence(text: str) -> str:
    """The first paragraph of a document if it can be an example, else ""."""
    paragraph = text.partition("\n")[0]
    if len(paragraph) > SENTENCE_CHARACTERS:
        return ""
    low, high = SENTENCE_WORDS
    return paragraph if low <= len(paragraph.split()) <= high else ""


def _whole_words(stored: np.ndarray) -> tuple[int, int]:
    """(words that are one token, words) of stored tokens; every document starts with a word."""
    single = words = 0
    for start in range(0, len(stored), CHUNK):
        starts = (stored[start : start + CHUNK + 1] & 1).astype(bool)  # one more: does the last word end here?
        here = min(CHUNK, len(stored) - start)
        following = np.append(starts[1:], True)[:here]
        words += int(starts[:here].sum())
        single += int((starts[:here] & following).sum())
    return single, words


# --- the page ---


def page(corpus: dict[str, Any], measured: Measured, tokenizer: TextTokenizer, made_from: str) -> str:
    """The report as one HTML document that is well-formed XML, too. Pure."""
    language = corpus["recipe"].get("corpus.language", "")
    title = f"Corpus report: {language}" if language else "Corpus report"
    sections = [
        _overview(corpus, measured),
        _sources(corpus, measured),
        _languages(corpus, language),
        _fates(corpus),
        _lengths(corpus, measured),
        _duplicates(corpus, measured, language),
        _tokenizer(corpus, measured, tokenizer, language),
        _provenance(corpus),
        _how(corpus),
    ]
    return web.page(title, [part for part in sections if part], made_from)


def _overview(corpus: dict[str, Any], measured: Measured) -> str:
    kept, splits, tokens = corpus["fates"].get("kept", 0), corpus["splits"], corpus["tokens"]
    characters = sum(splits[s]["characters"] for s in SPLITS)
    tiles = [
        (f"{corpus['documents']:,}", "documents read"),
        (f"{kept:,}", f"documents kept, {web.percent(kept, corpus['documents'])}"),
        (f"{characters:,}", "characters"),
        (f"{measured.total['words']:,}", "words"),
        (f"{sum(tokens.values()):,}", "tokens"),
        (f"{len(corpus['sources']):,}", "sources" if len(corpus["sources"]) != 1 else "source"),
    ]
    rows = [(what, *(f"{splits[s][what]:,}" for s in SPLITS)) for what in ("documents", "characters")]
    rows.append(("tokens", *(f"{tokens[s]:,}" for s in SPLITS)))
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{number}</b><span>{what}</span></div>" for number, what in tiles)
        + "</div><h3>To train on, and held out</h3>"
        + web.table(("", *SPLITS), rows)
        + web.note("A word is what stands between white space. Held out (validation) by the hash of a document's text.")
    )


def _sources(corpus: dict[str, Any], measured: Measured) -> str:
    legend = "".join(f'<span class="key">{web.square(part)}{label}</span>' for part, label, _ in PARTS)
    rows, shares = [], []
    total = measured.total["tokens"]
    for record in corpus["sources"]:
        fates = Counter(record["documents"])
        read, kept = fates.total(), fates["kept"]
        counts = measured.sources[record["name"]]
        known = {fate for _, _, named in PARTS for fate in named}
        parts = [
            (part, sum(fates[f] for f in named) if named else sum(n for f, n in fates.items() if f not in known))
            for part, _, named in PARTS
        ]
        bar = web.svg([(part, n / read) for part, n in parts] if read else [])
        label = _name(record["name"])
        rows.append((label, bar, f"{kept:,} of {read:,}"))
        share = counts["tokens"] / total if total else 0
        number = f"{counts['tokens']:,} <i>{web.percent(counts['tokens'], total)}</i>"
        shares.append((label, web.svg([("a", share)]), number))
    return (
        "<h2>Sources</h2><h3>Documents kept of those read</h3>"
        f'<p class="legend">{legend}</p>' + web.bars(rows) + "<h3>Tokens that each source gives</h3>" + web.bars(shares)
    )


def _languages(corpus: dict[str, Any], language: str) -> str:
    steps = corpus["recipe"].get("corpus.clean", {})
    heading = "<h2>Languages</h2>"
    if not steps.get("identify_language", False):
        return heading + web.note("Language identification was off: nothing was rejected for its language.")
    accepted = ", ".join(steps.get("languages") or [language])
    paragraphs, rejected = corpus["paragraphs"], Counter(corpus["languages_rejected"])
    lost = paragraphs.get("language", 0)
    judged = sum(paragraphs.values()) - paragraphs.get("too_few_words", 0) - paragraphs.get("too_few_letters", 0)
    most = rejected.most_common(12)
    rows = [(web.text(code), n) for code, n in most]
    if others := rejected.total() - sum(n for _, n in most):
        rows.append((f"{len(rejected) - len(most)} others", others))
    text = (
        f"<p>Accepted: <b>{web.text(accepted)}</b>. Of {judged:,} paragraphs with enough words and letters, {lost:,} "
        f"({web.percent(lost, judged)}) were taken for another language.</p>"
    )
    if not rows:
        return heading + text
    note = "The identifier errs between related languages, most on short paragraphs."
    if "unsure" in rejected:
        note += " “unsure”: most probably accepted, but under the threshold."
    return heading + text + "<h3>Rejected paragraphs, by language</h3>" + web.counted(rows) + web.note(note)


def _fates(corpus: dict[str, Any]) -> str:
    parts = ["<h2>What became of the text</h2><h3>Documents</h3>"]
    parts.append(web.counted((_meaning(fate), n) for fate, n in corpus["fates"].items() if n))
    if corpus["paragraphs"]:
        ordered = sorted(corpus["paragraphs"].items(), key=lambda item: -item[1])
        parts += ["<h3>Paragraphs</h3>", web.counted((_meaning(outcome), n) for outcome, n in ordered)]
    if corpus["changed"]:
        rows = [(web.text(MEANING.get(what, what)), f"{n:,}") for what, n in corpus["changed"].items()]
        parts += ["<h3>Changed in what was read</h3>", web.table((), rows)]
    if found := corpus.get("benchmarks"):
        shared = [(_name(name), f"{b['fields']:,}", f"{b['documents']:,}") for name, b in found.items()]
        parts += ["<h3>Overlap with test data</h3>", web.table(("test data", "its fields", "documents"), shared)]
    if removal := corpus.get("remove"):
        unmatched = len(removal["unmatched"])
        parts.append(f"<p>Removal lists: {removal['lines']:,} lines, of which {unmatched:,} named nothing.</p>")
    return "".join(parts)


def _lengths(corpus: dict[str, Any], measured: Measured) -> str:
    lengths, rows = measured.lengths, []
    low = 1
    if lengths[0]:
        rows.append(("0", int(lengths[0])))
    while low <= min(measured.longest, LONGEST):
        high = min(2 * low, LONGEST + 1)
        label = f"{low:,}–{2 * low - 1:,}" if low > 1 else "1"
        rows.append((label if low < LONGEST else f"{LONGEST:,} and more", int(lengths[low:high].sum())))
        low *= 2
    first = next((i for i, (_, n) in enumerate(rows) if n), 0)
    before = np.cumsum(lengths)
    documents = int(before[-1])
    quantiles = np.searchsorted(before, [share * documents for share in (0.05, 0.5, 0.95)]).tolist()
    facts = [
        ("median", f"{quantiles[1]:,} tokens"),
        ("nine documents in ten", f"{quantiles[0]:,} to {quantiles[2]:,}"),
        ("longest", f"{measured.longest:,}"),
    ]
    for length, made in corpus["rows"].items():
        kind = f"rows of {made['row_length']:,}" + (", one document each" if length.startswith("single") else "")
        cut = f"{made['cut_documents']:,} of {made['documents']:,} training documents cut"
        facts.append((kind, f"{made['rows']:,}, {made['fill']:.2%} filled; {cut}"))
    held = corpus["validation"]
    facts.append(
        (f"held-out pieces of {held['row_length']:,}", f"{held['rows']:,}, {held['masked_tokens']:,} predictions")
    )
    return (
        "<h2>Lengths of documents</h2><h3>Documents by their tokens</h3>"
        + web.counted(rows[first:])
        + web.table((), [(web.text(name), value) for name, value in facts])
    )


def _duplicates(corpus: dict[str, Any], measured: Measured, language: str) -> str:
    fates, paragraphs = corpus["fates"], corpus["paragraphs"]
    steps = corpus["recipe"].get("corpus.clean", {})
    mode = steps.get("duplicates", "off")
    exact = [
        ("documents that were there before", fates.get("duplicate", 0), corpus["documents"]),
        ("paragraphs that were there before", paragraphs.get("duplicate", 0), sum(paragraphs.values())),
    ]
    rows = [(what, f"{n:,}", web.percent(n, of)) for what, n, of in exact] if mode != "off" else []
    near = corpus.get("near_duplicates")
    if near:
        of = near["documents"]
        for fate, what in (("near_duplicate", "nearly an earlier one"), ("near_validation", "nearly a held-out one")):
            rows.append((f"documents, {what}", f"{fates.get(fate, 0):,}", web.percent(fates.get(fate, 0), of)))
    parts = ["<h2>Duplicates</h2>", web.table((), rows)]
    if mode == "off":
        parts.append(web.note("Exact duplicates were not looked for."))
    if near:
        note = f"Near: a Jaccard similarity of runs of 5 words of {steps.get('near_duplicates', 0):g} or more"
        parts.append(web.note(f"{note}; {near['documents']:,} documents, {near['compared']:,} pairs compared."))
    else:
        parts.append(web.note("Near duplicates were not looked for (corpus.clean.near_duplicates is 0)."))
    if examples := corpus.get("duplicate_examples"):
        parts.append("<h3>Exact duplicates, some of them</h3>")
        for example in sorted(examples, key=lambda e: (-e["copies"], e["id"]))[:6]:
            times = "once more" if example["copies"] == 1 else f"{example['copies']:,} times more"
            text = web.text(_clip(example["text"].split()))
            parts.append(web.quote(text, f"{times}; the next time as {_name(example['id'])}", language))
    if near and near.get("examples"):
        parts.append("<h3>Near duplicates, some of them</h3>")
        # First those whose counterpart still has text: of some, every paragraph is in an earlier document, too.
        named = measured.named
        for example in sorted(near["examples"], key=lambda e: (e["other"] not in named, e["similarity"], e["id"]))[:6]:
            similar = f"similarity {example['similarity']:.3f}:"
            if example["other"] in named:
                gone, stays = web.compared(example["text"], named[example["other"]])
                parts.append(web.quote(gone, f"{similar} {_name(example['id'])} went", language))
                parts.append(web.quote(stays, f"{_name(example['other'])} stayed", language, "stays"))
            else:
                caption = f"{similar} {_name(example['id'])} is like {_name(example['other'])}"
                parts.append(web.quote(web.text(_clip(example["text"].split())), caption, language))
        parts.append(web.note("What stayed is shown without the paragraphs that earlier documents have, too."))
    if boilerplate := corpus.get("boilerplate"):
        facts = f"{boilerplate['removed']:,} lines, {boilerplate['lines']:,} different ones"
        parts.append(f"<h3>Boilerplate</h3><p>Taken out: {facts}.</p>")
        lines = [(web.foreign(_clip(line.split()), language), f"{n:,}") for line, n in boilerplate["most_frequent"]]
        parts.append(web.table(("line", "documents"), lines))
    return "".join(parts)


# --- the tokenizer ---


def _tokenizer(corpus: dict[str, Any], measured: Measured, tokenizer: TextTokenizer, language: str) -> str:
    about, total = corpus["tokenizer"], measured.total
    pieces_V = _pieces(tokenizer)
    all_V = measured.counts_V + measured.held_out_V
    is_byte_V = np.array([piece in _BYTES for piece in pieces_V])
    special_V = np.zeros(len(pieces_V), bool)
    special_V[sorted(tokenizer.special_ids)] = True
    tokens = int(all_V.sum())
    facts = [
        ("kind", web.text(about["kind"]) + (f", {web.text(about['trainer'])}" if "trainer" in about else "")),
        ("entries", f"{about['vocab_size']:,}"),
        ("tokens a word (fertility)", web.ratio(total["tokens"], total["words"])),
        ("the same, punctuation marks counted as words", web.ratio(total["tokens"], total["marks"])),
        ("characters a token, white space among them", web.ratio(total["characters"], total["tokens"])),
        ("words, as the tokenizer cuts them, that are one token", web.percent(measured.single, measured.words)),
    ]
    if is_byte_V.any():
        byte_tokens = int(all_V[is_byte_V].sum())
        facts.append(
            ("tokens that are bytes, for want of an entry", f"{byte_tokens:,}, {web.percent(byte_tokens, tokens, 4)}")
        )
    if tokenizer.unk_id is not None:
        unknown = int(all_V[tokenizer.unk_id])
        facts.append(("unknown tokens", f"{unknown:,}, {web.percent(unknown, tokens, 4)}"))
    text_V = ~special_V & ~is_byte_V & np.array([bool(piece) for piece in pieces_V])
    unused_V, rare_V = text_V & (measured.counts_V == 0), text_V & (measured.counts_V > 0) & (measured.counts_V < 10)
    entries, unused, rare = int(text_V.sum()), np.flatnonzero(unused_V), int(rare_V.sum())
    never = f"{len(unused):,}, {web.percent(len(unused), entries)}"
    facts.append(("entries that the training text never uses", never))
    facts.append(("entries that it uses 1 to 9 times", f"{rare:,}, {web.percent(rare, entries)}"))
    parts = ["<h2>Tokenizer</h2>", web.table((), facts)]
    parts.append(_fertility(corpus, measured, language))
    shown_V = _shown(tokenizer, pieces_V)
    longest = sorted(np.flatnonzero(text_V).tolist(), key=lambda i: (-len(shown_V[i].strip(tokenizers.SPACE)), i))
    parts += ["<h3>Longest entries</h3>", _entries((shown_V[i] for i in longest[:PIECES]), language)]
    if len(unused):
        some = unused[np.unique(np.linspace(0, len(unused) - 1, min(PIECES, len(unused))).astype(int))]
        heading = "Entries never used" + (f", {len(some)} of {len(unused):,}" if len(some) < len(unused) else "")
        parts += [f"<h3>{heading}</h3>", _entries((shown_V[i] for i in some), language)]
    by_tokens = sorted(measured.sentences, key=lambda name: (-measured.sources[name]["tokens"], name))
    if by_tokens:
        parts.append("<h3>Sentences in tokens</h3>")
    for name in by_tokens[:SENTENCES]:
        ids, starts = tokenizer.encode([measured.sentences[name][1]])[0]
        parts.append(_segmented([shown_V[i] for i in ids], starts.tolist(), _name(name), language))
    return "".join(parts)


def _fertility(corpus: dict[str, Any], measured: Measured, language: str) -> str:
    counts = {s["name"]: measured.sources[s["name"]] for s in corpus["sources"]}
    ratios = [(_name(name), c["tokens"] / c["words"]) for name, c in counts.items() if c["words"]]
    total = measured.total
    if total["words"]:
        ratios.append(("<b>all</b>", total["tokens"] / total["words"]))
    if not ratios:
        return ""
    most = max(ratio for _, ratio in ratios)
    parts = ["<h3>Tokens a word, by source</h3>"]
    parts.append(web.bars([(name, web.svg([("a", ratio / most)]), f"{ratio:.3f}") for name, ratio in ratios]))
    published = MULTILINGUAL_BERT.get({"nb": "no", "nn": "no"}.get(language, language))
    if published is not None and total["marks"]:
        rows = [
            (
                f"this tokenizer, {corpus['tokenizer']['vocab_size']:,} entries, on this corpus",
                web.ratio(total["tokens"], total["marks"]),
            ),
            ("multilingual BERT, 119,547 entries, on Universal Dependencies 2.3", f"{published:.3f}"),
        ]
        parts += [
            "<h3>Beside a published tokenizer</h3>",
            web.table(("punctuation marks counted as words", "tokens a word"), rows),
        ]
        parts.append(
            web.note(
                "Other text and other rules for words, so a rough comparison. From counts published with Judit Ács, "
                "“Exploring BERT’s Vocabulary” (2019)."
            )
        )
    return "".join(parts)


_BYTES = frozenset(tokenizers.BYTES)


def _pieces(tokenizer: TextTokenizer) -> list[str]:
    """Every entry by id, "" for an id without one."""
    return [tokenizer.tokenizer.id_to_token(i) or "" for i in range(tokenizer.vocab_size)]


def _shown(tokenizer: TextTokenizer, pieces_V: list[str]) -> list[str]:
    """Entries as a reader sees them; those of byte-level BPE are written in letters that stand for bytes."""
    if '"ByteLevel"' not in tokenizer.tokenizer.to_str():
        return pieces_V
    alphabet = tokenizers.byte_alphabet()
    shown = []
    for piece in pieces_V:
        known = all(c in alphabet for c in piece)
        text = bytes(alphabet[c] for c in piece).decode("utf-8", "replace") if known else piece
        shown.append(text.replace(" ", tokenizers.SPACE))
    return shown


def _entries(pieces: Iterable[str], language: str) -> str:
    return '<p class="entries">' + " ".join(f"<code>{web.foreign(piece, language)}</code>" for piece in pieces) + "</p>"


def _segmented(pieces: Sequence[str], starts: Sequence[bool], caption: str, language: str) -> str:
    """A sentence as boxes, one a token; those of a word touch."""
    words: list[list[str]] = []
    for piece, starts_word in zip(pieces, starts, strict=True):
        if starts_word or not words:
            words.append([])
        words[-1].append(piece)
    boxes = []
    for word in words:
        shown = [piece.lstrip(tokenizers.SPACE).removeprefix("##") or piece for piece in word]
        boxes.append("<span>" + "".join(f"<code>{web.text(piece)}</code>" for piece in shown) + "</span>")
    caption = f"{caption}: {len(words):,} words, {len(pieces):,} tokens"
    tokens = f'<p class="tokens" dir="auto"{web.lang(language)}>{" ".join(boxes)}</p>'
    return f"<figure>{tokens}<figcaption>{caption}</figcaption></figure>"


# --- where it comes from, how it was made ---


def _provenance(corpus: dict[str, Any]) -> str:
    parts = ["<h2>Licences and versions</h2>"]
    weights = corpus.get("weights", {})  # by source, where it is not 1
    for record in corpus["sources"]:
        files = f"{record['files']:,} file{'s' if record['files'] != 1 else ''}"
        facts = [
            ("licence", web.text(record["licence"] or "none recorded")),
            ("attribution", web.text(" ".join(record["attribution"].split()))),
            ("input", f"{files}, {record['bytes']:,} bytes, {web.text(record['kind'])}"),
            ("SHA-256", f"<code>{web.text(record['sha256'])}</code>"),
            ("in rows", f"{weights[record['name']]:g} times" if record["name"] in weights else ""),
        ]
        version = f" <small>{web.text(record['version'])}</small>" if record["version"] else ""
        parts.append(f'<section class="source"><h3>{_name(record["name"])}{version}</h3><dl>')
        parts += [f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts if value]
        parts.append("</dl></section>")
    return "".join(parts)


def _how(corpus: dict[str, Any]) -> str:
    # Inputs are above; paths on somebody's disk say nothing to a reader, and may say too much.
    left_out = ("corpus.input", "corpus.remove", "corpus.benchmarks", "tokenizer.folder")
    recipe = {name: value for name, value in _flat(corpus["recipe"], "") if name not in left_out}
    rows = [(f"<code>{web.text(name)}</code>", web.text(_value(value))) for name, value in recipe.items()]
    versions = ", ".join(f"{name} {version}" for name, version in corpus["versions"].items())
    checked = f"Token ids compared with transformers: {corpus['transformers_check']}"
    return (
        "<h2>How it was made</h2>"
        + web.table((), rows)
        + f"<p>{web.text(versions)}. {web.text(checked)}.</p>"
        + f"<p>Documents <code>{web.text(corpus['fingerprint'])}</code>, "
        + f"tokenizer <code>{web.text(corpus['tokenizer']['fingerprint'])}</code> (SHA-256).</p>"
    )


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{_last(name)}.")
        elif value not in (None, "", []):
            yield prefix + _last(name), value


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return " ".join(f"{_last(str(name))}={_value(of)}" for name, of in value.items())
    return _last(str(value))


# --- words ---


def _name(name: str) -> str:
    """A source or a document as HTML."""
    return web.text(_last(name))


def _last(name: str) -> str:
    """Of a path on somebody's disk only the last part."""
    return Path(name).name if Path(name).is_absolute() else name


def _meaning(fate: str) -> str:
    said = MEANING.get(fate)
    return web.text(fate.replace("_", " ")) + (f" <small>{web.text(said)}</small>" if said else "")


def _clip(words: Sequence[str], most: int = web.SHOWN) -> str:
    return " ".join(words[:most])[:600] + (" …" if len(words) > most else "")
