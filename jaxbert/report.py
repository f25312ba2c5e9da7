"""The report of a prepared corpus: one HTML file beside corpus.json that needs no network, no script and no other file.

    python -m jaxbert.report --corpus=DIR       # its charts as pictures, DIR/report/*.png; needs matplotlib

`jaxbert.prepare` writes DIR/report.html; this command does, too, where it is missing or out of date. The pictures are
for slides, papers and model cards. Where another corpus takes DIR, they go.

What corpus.json counts is printed as it stands there; census.py finds the rest. Bytes depend on the corpus and these
files, not on time, place or the number of workers. The page is written by hand, as XML that browsers read as HTML, in
system fonts, for phone, desk, dark and paper; its charts are data (charts.py) that page and pictures share.
"""

import argparse
import functools
import json
import shutil
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbert import census, charts, published
from jaxbert import webpage as web
from jaxbert.census import SPLITS, Measured
from jaxbert.charts import Bar, Chart, percent
from jaxbert.data import stages
from jaxbert.data import tokenizer as tokenizers
from jaxbert.data.engines import Engine
from jaxbert.data.tokenizer import TextTokenizer
from jaxbert.errors import BadInput, run

NAME, PICTURES = "report.html", "report"
OVERVIEW = (("sources", "lengths"), ("documents", "fertility"))  # charts in the columns of overview.png
SENTENCES, PIECES = 6, 40  # examples: sentences, and entries of the vocabulary in a list

# What the fates and outcomes of jaxbert/data/clean.py mean, in a few words; one that is not here has no explanation.
MEANING = {
    "kept": "in the corpus",
    "empty": "white space and control characters only",
    "too_long": "over corpus.max_document_megabytes",
    "unreadable": "a broken file, or the rest of a broken archive",
    "no_paragraph_left": "no paragraph with enough words and letters",
    "language": "the identifier took it for another one",
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


def write_report(directory: str | Path, engine: Engine | None = None) -> None:
    """Write `directory`/report.html of a prepared corpus, whole or not at all, unless it is there and up to date.

    `engine`: what counts; none: this process. Raises nothing: what goes wrong is said, with its traceback where it is a
    fault of ours, and leaves the corpus as it is; an earlier report, which would tell of another corpus, is removed
    with its pictures.
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
        shutil.rmtree(directory / PICTURES, ignore_errors=True)
        content = page(*_read(directory, made_from, engine), made_from)
        with stages.whole_file(path) as beside:
            beside.write_text(content, encoding="utf-8")
    except Exception as error:
        if not isinstance(error, BadInput | OSError):
            traceback.print_exc()
        stages.say(
            f"report: NOT written: {type(error).__name__}: {error}; the corpus is whole, and the next "
            "jaxbert.prepare with the same recipe tries again"
        )
        return
    stages.say(f"report: {path}")


def write_pictures(directory: str | Path, dots: int = charts.DOTS) -> list[Path]:
    """Write the charts of a prepared corpus's report as `directory`/report/*.png, all or none; returns their paths.

    overview.png has four of them and the numbers of the page's top. `dots`: an inch.

    Raises BadInput where there is no matplotlib.
    """
    directory = Path(directory)
    corpus, measured, _ = _read(directory, _made_from(directory))
    about = f"{_title(corpus)}, {corpus['fates'].get('kept', 0):,} documents, {measured.total['tokens']:,} tokens"
    drawn = {name: chart for name, chart in charts_of(corpus, measured).items() if chart.bars}
    columns = [[drawn[name] for name in names if name in drawn] for names in OVERVIEW]
    pictures = {name: charts.png(chart, about, dots) for name, chart in drawn.items()}
    pictures["overview"] = charts.overview(_title(corpus), _facts(corpus, measured), columns, dots)
    with stages.disk_trouble_is_bad_input(directory), stages.written_whole(directory / PICTURES) as folder:
        for name, content in pictures.items():
            (folder / f"{name}.png").write_bytes(content)
    return [directory / PICTURES / f"{name}.png" for name in pictures]


@functools.lru_cache(maxsize=1)  # the page and the pictures of a corpus are made from one pass over it
def _read(
    directory: Path, made_from: str, engine: Engine | None = None
) -> tuple[dict[str, Any], Measured, TextTokenizer]:
    """(corpus.json, what it does not count, the tokenizer) of a prepared corpus; `made_from`: of `_made_from`."""
    corpus = json.loads((directory / "corpus.json").read_text(encoding="utf-8"))
    tokenizer = TextTokenizer.load(directory / "tokenizer")
    return corpus, census.measure(directory, corpus, tokenizer, engine), tokenizer


def _made_from(directory: Path) -> str:
    """SHA-256 of all that decides about the report: the corpus, its tokenizer, and the code that writes the page."""
    code = (Path(module.__file__) for module in (census, charts, published, web))
    files = (directory / "corpus.json", directory / "tokenizer" / "tokenizer.json", Path(__file__), *code)
    return stages.sha256_of_lines(map(stages.sha256, files))


# --- the charts ---


def charts_of(corpus: dict[str, Any], measured: Measured) -> dict[str, Chart]:
    """Every chart of the report by its name, those without bars too. Pure."""
    rejected = Counter(corpus["languages_rejected"])
    most = [(code, "", n) for code, n in rejected.most_common(8)]
    if others := rejected.total() - sum(n for *_, n in most):
        most.append((f"{len(rejected) - len(most)} others", "", others))
    note = "The identifier errs between related languages, most on short paragraphs."
    if "unsure" in rejected:
        note += " “unsure”: most probably accepted, but under the threshold."
    fates = [(_words(fate), MEANING.get(fate, ""), n) for fate, n in corpus["fates"].items() if n]
    outcomes = sorted(corpus["paragraphs"].items(), key=lambda item: -item[1])
    paragraphs = [(_words(outcome), MEANING.get(outcome, ""), n) for outcome, n in outcomes]
    return {
        "sources": _chart_of_sources(corpus),
        "tokens": _chart_of_tokens(corpus, measured),
        "languages": charts.counted("Rejected paragraphs, by language", most, note),
        "documents": charts.counted("What became of the documents", fates),
        "paragraphs": charts.counted("What became of their paragraphs", paragraphs),
        "lengths": _chart_of_lengths(measured),
        "fertility": _chart_of_fertility(corpus, measured),
    }


def _chart_of_sources(corpus: dict[str, Any]) -> Chart:
    known = {fate for _, _, named in PARTS for fate in named}
    bars = []
    for record in corpus["sources"]:
        fates = Counter(record["documents"])
        read = fates.total()
        counts = [
            (part, sum(fates[f] for f in named) if named else sum(n for f, n in fates.items() if f not in known))
            for part, _, named in PARTS
        ]
        parts = tuple((part, n / read) for part, n in counts) if read else ()
        bars.append(Bar(_last(record["name"]), parts, f"{fates['kept']:,} of {read:,}"))
    legend = tuple((part, meaning) for part, meaning, _ in PARTS)
    return Chart("Documents kept of those read", tuple(bars), legend)


def _chart_of_tokens(corpus: dict[str, Any], measured: Measured) -> Chart:
    counts = [(_last(s["name"]), "", measured.sources[s["name"]]["tokens"]) for s in corpus["sources"]]
    return charts.counted("Tokens that each source gives", counts)


def _chart_of_lengths(measured: Measured) -> Chart:
    lengths, rows = measured.lengths, []
    low = 1
    if lengths[0]:
        rows.append(("0", "", int(lengths[0])))
    while low <= min(measured.longest, census.LONGEST):
        high = min(2 * low, census.LONGEST + 1)
        label = f"{low:,}–{2 * low - 1:,}" if low > 1 else "1"
        last = low == census.LONGEST
        rows.append((f"{census.LONGEST:,} and more" if last else label, "", int(lengths[low:high].sum())))
        low *= 2
    first = next((i for i, (*_, n) in enumerate(rows) if n), 0)
    return charts.counted("Documents by their tokens", rows[first:])


def _chart_of_fertility(corpus: dict[str, Any], measured: Measured) -> Chart:
    """First what compares: all sources together, then published tokenizers; then each source."""
    total, counts = measured.total, {_last(s["name"]): measured.sources[s["name"]] for s in corpus["sources"]}
    others = [p for p in published.published(_language(corpus)) if not p.marks_are_words]
    rows = []  # class, label, remark, ratio, ratio as text
    for name, count in (("all sources", total), *(counts.items() if len(counts) > 1 else ())):
        if count["words"]:
            ratio = count["tokens"] / count["words"]
            rows.append(("a", name, "", ratio, f"{ratio:.3f}"))
    if not rows:
        return Chart("Tokens a word", ())
    known = []
    for p in others:
        entries = f"{p.entries} entries, on {p.text}" if p.entries else f"on {p.text}"
        known.append(("d", p.tokenizer, entries, float(p.tokens_a_word), p.tokens_a_word))
    most = max(ratio for *_, ratio, _ in rows + known)
    bars = [
        Bar(name, ((part, ratio / most),), said, "", remark)
        for part, name, remark, ratio, said in (rows[0], *known, *rows[1:])
    ]
    texts = "; ".join(f"{text}: {published.CITED[text]}" for text in dict.fromkeys(p.text for p in others))
    note = f"Published ones on other text, so a rough comparison. {texts}." if others else ""
    return Chart(
        "Tokens a word", tuple(bars), (("a", "this tokenizer"), ("d", "published ones")) if known else (), note
    )


# --- the page ---


def page(corpus: dict[str, Any], measured: Measured, tokenizer: TextTokenizer, made_from: str) -> str:
    """The report as one HTML document that is well-formed XML, too. Pure."""
    language = _language(corpus)
    drawn = {name: web.chart(chart) for name, chart in charts_of(corpus, measured).items()}
    sections = {
        "Sources": web.pair(drawn["sources"], drawn["tokens"]),
        "Languages": _languages(corpus, language, drawn["languages"]),
        "Fates": _fates(corpus, drawn),
        "Lengths of documents": web.pair(drawn["lengths"], _lengths(corpus, measured)),
        "Tokenizer": _tokenizer(corpus, measured, tokenizer, drawn["fertility"]),
        "Duplicates": _duplicates(corpus, measured, language),
        "Licences and versions": _provenance(corpus),
        "How it was made": _how(corpus),
    }
    return web.page(_title(corpus), _overview(corpus, measured), sections, made_from)


def _facts(corpus: dict[str, Any], measured: Measured) -> list[tuple[str, str]]:
    """The numbers of the top, and what they count."""
    kept, read, sources = corpus["fates"].get("kept", 0), corpus["documents"], len(corpus["sources"])
    return [
        (f"{read:,}", "documents read"),
        (f"{kept:,}", f"kept, {percent(kept, read)}"),
        (f"{sum(corpus['splits'][s]['characters'] for s in SPLITS):,}", "characters"),
        (f"{measured.total['words']:,}", "words"),
        (f"{sum(corpus['tokens'].values()):,}", "tokens"),
        (f"{sources:,}", "sources" if sources != 1 else "source"),
    ]


def _overview(corpus: dict[str, Any], measured: Measured) -> str:
    splits, tokens = corpus["splits"], corpus["tokens"]
    tiles = "".join(f"<div><b>{number}</b><span>{what}</span></div>" for number, what in _facts(corpus, measured))
    rows = [(what, *(f"{splits[s][what]:,}" for s in SPLITS)) for what in ("documents", "characters")]
    rows.append(("tokens", *(f"{tokens[s]:,}" for s in SPLITS)))
    note = "A word is what stands between white space. Held out (validation) by the hash of a document's text."
    split = web.heading("To train on, and held out") + web.table(("", *SPLITS), rows)
    return web.pair(f'<div class="tiles">{tiles}</div>', split + web.note(note))


def _languages(corpus: dict[str, Any], language: str, chart: str) -> str:
    steps = corpus["recipe"].get("corpus.clean", {})
    if not steps.get("identify_language", False):
        return web.note("Language identification was off: nothing was rejected for its language.")
    accepted = ", ".join(steps.get("languages") or [language])
    paragraphs = corpus["paragraphs"]
    lost = paragraphs.get("language", 0)
    judged = sum(paragraphs.values()) - paragraphs.get("too_few_words", 0) - paragraphs.get("too_few_letters", 0)
    text = (
        f"<p>Accepted: <b>{web.text(accepted)}</b>. Of {judged:,} paragraphs with enough words and letters, {lost:,} "
        f"({percent(lost, judged)}) were taken for another language.</p>"
    )
    return web.pair(text, chart)


def _fates(corpus: dict[str, Any], drawn: dict[str, str]) -> str:
    left, right = [drawn["documents"]], [drawn["paragraphs"]]
    if corpus["changed"]:
        rows = [(web.text(MEANING.get(what, what)), f"{n:,}") for what, n in corpus["changed"].items()]
        left += [web.heading("Changed in what was read"), web.table((), rows)]
    if found := corpus.get("benchmarks"):
        shared = [(_name(name), f"{b['fields']:,}", f"{b['documents']:,}") for name, b in found.items()]
        right += [web.heading("Overlap with test data"), web.table(("test data", "its fields", "documents"), shared)]
    if removal := corpus.get("remove"):
        unmatched = len(removal["unmatched"])
        right.append(f"<p>Removal lists: {removal['lines']:,} lines, of which {unmatched:,} named nothing.</p>")
    return web.pair("".join(left), "".join(right))


def _lengths(corpus: dict[str, Any], measured: Measured) -> str:
    before = np.cumsum(measured.lengths)
    documents = int(before[-1])
    quantiles = np.searchsorted(before, [share * documents for share in (0.05, 0.5, 0.95)]).tolist()
    facts = [
        ("median", f"{quantiles[1]:,} tokens"),
        ("nine documents in ten", f"{quantiles[0]:,} to {quantiles[2]:,}"),
        ("longest", f"{measured.longest:,}"),
    ]
    for length, made in corpus["rows"].items():
        kind = f"rows of {made['row_length']:,}" + (", one document each" if length.startswith("single") else "")
        facts.append((kind, f"{made['rows']:,}, {made['fill']:.2%} filled".replace("%", "\u00a0%")))
        facts.append(("training documents cut for them", f"{made['cut_documents']:,} of {made['documents']:,}"))
    held = corpus["validation"]
    facts.append(
        (f"held-out pieces of {held['row_length']:,}", f"{held['rows']:,}, {held['masked_tokens']:,} predictions")
    )
    return web.heading("In figures") + web.table((), [(web.text(name), value) for name, value in facts])


def _duplicates(corpus: dict[str, Any], measured: Measured, language: str) -> str:
    fates, paragraphs = corpus["fates"], corpus["paragraphs"]
    steps = corpus["recipe"].get("corpus.clean", {})
    mode = steps.get("duplicates", "off")
    exact = [
        ("documents that were there before", fates.get("duplicate", 0), corpus["documents"]),
        ("paragraphs that were there before", paragraphs.get("duplicate", 0), sum(paragraphs.values())),
    ]
    rows = [(what, f"{n:,}", percent(n, of)) for what, n, of in exact] if mode != "off" else []
    near = corpus.get("near_duplicates")
    if near:
        of = near["documents"]
        for fate, what in (("near_duplicate", "nearly an earlier one"), ("near_validation", "nearly a held-out one")):
            rows.append((f"documents, {what}", f"{fates.get(fate, 0):,}", percent(fates.get(fate, 0), of)))
    notes = [web.note("Exact duplicates were not looked for.")] if mode == "off" else []
    if near:
        note = f"Near: a Jaccard similarity of runs of 5 words of {steps.get('near_duplicates', 0):g} or more"
        notes.append(web.note(f"{note}; {near['documents']:,} documents, {near['compared']:,} pairs compared."))
    else:
        notes.append(web.note("Near duplicates were not looked for (corpus.clean.near_duplicates is 0)."))
    parts = [web.pair(web.table((), rows), "".join(notes))]
    if examples := corpus.get("duplicate_examples"):
        parts.append(web.heading("Exact duplicates, some of them"))
        quotes = []
        for example in sorted(examples, key=lambda e: (-e["copies"], e["id"]))[:6]:
            times = "once more" if example["copies"] == 1 else f"{example['copies']:,} times more"
            text = web.text(_clip(example["text"].split()))
            quotes.append(web.quote(text, f"{times}; the next time as {_name(example['id'])}", language))
        parts.append(web.many(quotes))
    if near and near.get("examples"):
        parts.append(web.heading("Near duplicates, some of them"))
        # First those whose counterpart still has text: of some, every paragraph is in an earlier document, too.
        named = measured.named
        for example in sorted(near["examples"], key=lambda e: (e["other"] not in named, e["similarity"], e["id"]))[:6]:
            similar = f"similarity {example['similarity']:.3f}:"
            if example["other"] in named:
                gone, stays = web.compared(example["text"], named[example["other"]])
                went = web.quote(gone, f"{similar} {_name(example['id'])} went", language)
                parts.append(web.pair(went, web.quote(stays, f"{_name(example['other'])} stayed", language, "stays")))
            else:
                caption = f"{similar} {_name(example['id'])} is like {_name(example['other'])}"
                parts.append(web.quote(web.text(_clip(example["text"].split())), caption, language))
        parts.append(web.note("What stayed is shown without the paragraphs that earlier documents have, too."))
    if boilerplate := corpus.get("boilerplate"):
        facts = f"{boilerplate['removed']:,} lines, {boilerplate['lines']:,} different ones"
        parts.append(web.heading("Boilerplate") + f"<p>Taken out: {facts}.</p>")
        lines = [(web.foreign(_clip(line.split()), language), f"{n:,}") for line, n in boilerplate["most_frequent"]]
        parts.append(web.table(("line", "documents"), lines))
    return "".join(parts)


# --- the tokenizer ---


def _tokenizer(corpus: dict[str, Any], measured: Measured, tokenizer: TextTokenizer, fertility: str) -> str:
    language, about, total = _language(corpus), corpus["tokenizer"], measured.total
    pieces_V = _pieces(tokenizer)
    all_V = measured.counts_V + measured.held_out_V
    is_byte_V = np.array([piece in _BYTES for piece in pieces_V])
    special_V = np.zeros(len(pieces_V), bool)
    special_V[sorted(tokenizer.special_ids)] = True
    tokens = int(all_V.sum())
    facts = [
        ("kind", web.text(about["kind"])),
        *([("trained by", web.text(about["trainer"]))] if "trainer" in about else []),
        ("entries", f"{about['vocab_size']:,}"),
        ("tokens a word (fertility)", web.ratio(total["tokens"], total["words"])),
        ("the same, punctuation marks counted as words", web.ratio(total["tokens"], total["marks"])),
        ("characters a token, white space among them", web.ratio(total["characters"], total["tokens"])),
        ("words, as the tokenizer cuts them, that are one token", percent(measured.single, measured.words)),
    ]
    if is_byte_V.any():
        byte_tokens = int(all_V[is_byte_V].sum())
        facts.append(("tokens that are bytes, for want of an entry", _some(byte_tokens, tokens, 4)))
    if tokenizer.unk_id is not None:
        unknown = int(all_V[tokenizer.unk_id])
        facts.append(("unknown tokens", _some(unknown, tokens, 4)))
    text_V = ~special_V & ~is_byte_V & np.array([bool(piece) for piece in pieces_V])
    unused_V, rare_V = text_V & (measured.counts_V == 0), text_V & (measured.counts_V > 0) & (measured.counts_V < 10)
    entries, unused, rare = int(text_V.sum()), np.flatnonzero(unused_V), int(rare_V.sum())
    facts.append(("entries that the training text never uses", _some(len(unused), entries)))
    facts.append(("entries that it uses 1 to 9 times", _some(rare, entries)))
    parts = [web.pair(web.heading("In figures") + web.table((), facts) + _beside(corpus, measured), fertility)]
    shown_V = _shown(tokenizer, pieces_V)
    longest = sorted(np.flatnonzero(text_V).tolist(), key=lambda i: (-len(shown_V[i].strip(tokenizers.SPACE)), i))
    parts += [web.heading("Longest entries"), _entries((shown_V[i] for i in longest[:PIECES]), language)]
    if len(unused):
        some = unused[np.unique(np.linspace(0, len(unused) - 1, min(PIECES, len(unused))).astype(int))]
        title = "Entries never used" + (f", {len(some)} of {len(unused):,}" if len(some) < len(unused) else "")
        parts += [web.heading(title), _entries((shown_V[i] for i in some), language)]
    by_tokens = sorted(measured.sentences, key=lambda name: (-measured.sources[name]["tokens"], name))
    if by_tokens:
        parts.append(web.heading("Sentences in tokens"))
    for name in by_tokens[:SENTENCES]:
        ids, starts = tokenizer.encode([measured.sentences[name][1]])[0]
        parts.append(_segmented([shown_V[i] for i in ids], starts.tolist(), _name(name), language))
    return "".join(parts)


def _beside(corpus: dict[str, Any], measured: Measured) -> str:
    """Figures of published tokenizers under ours, "" where none is known."""
    total, others = measured.total, published.published(_language(corpus))
    entries = f"{corpus['tokenizer']['vocab_size']:,}"
    ours = f"this one <small>{entries} entries, on this corpus</small>"
    parts = []
    for marks, counted in ((False, "words"), (True, "marks")):
        rows = [
            (
                f"{web.text(p.tokenizer)} <small>{f'{p.entries} entries, ' if p.entries else ''}on {p.text}</small>",
                p.tokens_a_word,
                *(() if marks else (p.characters_a_token or "–",)),
            )
            for p in others
            if p.marks_are_words == marks
        ]
        if not rows or not total[counted]:
            continue
        mine = [web.ratio(total["tokens"], total[counted])]
        if not marks:
            mine.append(web.ratio(total["characters"], total["tokens"]))
        head = (
            ("punctuation marks are words", "tokens a word") if marks else ("", "tokens a word", "characters a token")
        )
        parts.append(web.table(head, [(ours, *mine), *rows]))
    if not parts:
        return ""
    cited = "; ".join(dict.fromkeys(f"{p.text}: {published.CITED[p.text]}" for p in others))
    note = web.note(f"Other text each time, so a rough comparison. {cited}.")
    return web.heading("Beside published tokenizers") + "".join(parts) + note


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
    parts = []
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
        listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts if value)
        parts.append(f'<div class="source"><h3>{_name(record["name"])}{version}</h3><dl>{listed}</dl></div>')
    return web.many(parts)


def _how(corpus: dict[str, Any]) -> str:
    # Inputs are above; paths on somebody's disk say nothing to a reader, and may say too much.
    left_out = ("corpus.input", "corpus.remove", "corpus.benchmarks", "tokenizer.folder")
    recipe = {name: value for name, value in _flat(corpus["recipe"], "") if name not in left_out}
    rows = [(f"<code>{web.text(name)}</code>", web.text(_value(value))) for name, value in recipe.items()]
    versions = ", ".join(f"{name} {version}" for name, version in corpus["versions"].items())
    checked = f"Token ids compared with transformers: {corpus['transformers_check']}"
    return (
        web.table((), rows)
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


def _some(part: int, of: int, digits: int = 1) -> str:
    return f"{part:,}, {percent(part, of, digits)}" if part else "none"


def _words(fate: str) -> str:
    return "other language" if fate == "language" else fate.replace("_", " ")


def _language(corpus: dict[str, Any]) -> str:
    return corpus["recipe"].get("corpus.language", "")


def _title(corpus: dict[str, Any]) -> str:
    language = _language(corpus)
    return f"Corpus report: {language}" if language else "Corpus report"


def _clip(words: Sequence[str], most: int = web.SHOWN) -> str:
    return " ".join(words[:most])[:600] + (" …" if len(words) > most else "")


def main(argv: list[str]) -> None:
    """The command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m jaxbert.report", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, metavar="DIR", help="a prepared corpus (corpus.directory)")
    parser.add_argument("--dots", type=int, default=charts.DOTS, metavar="N", help="an inch of a picture (%(default)s)")
    flags = parser.parse_args(argv)
    if not 20 <= flags.dots <= 1000:
        raise BadInput(f"--dots: {flags.dots} dots an inch; give 20 to 1000")
    directory = Path(flags.corpus)
    if not (directory / "corpus.json").is_file():
        raise BadInput(f"--corpus: {directory} has no corpus.json, so it is no prepared corpus; run jaxbert.prepare")
    write_report(directory)  # first: it takes pictures of another corpus away
    for path in write_pictures(directory, flags.dots):
        stages.say(f"report: {path}")


if __name__ == "__main__":
    run(main)
