"""Cleaning: repair, control characters, personal data, paragraphs, language, duplicates; every outcome is counted.

`clean_block` is pure; what judges a document by lists is `Removal`, what needs all documents is across.py.
"""

import collections
import dataclasses
import functools
import hashlib
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import xxhash
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad
from ftfy.chardata import LIGATURES, WIDTH_MAP

from jaxbert.config import Clean, Corpus
from jaxbert.data import language, personal, repetition
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
    known = set(language.identifier().labels)
    for code in sorted(accepted - known):
        raise BadInput(f"corpus.language: the identifier knows {len(known)} languages, but not {code!r}; {off}")


def clean_block(documents: list[Document], corpus: Corpus) -> list[Cleaned]:
    """Every step that `corpus.clean` asks for but duplicates, on each document by itself; same order as given.

    A document that raises comes back with the fate "error" and the exception as its detail.
    """
    cleaned = [_guarded(document, _begin, document.text, corpus) for document in documents]
    begun = [(i, c) for i, c in enumerate(cleaned) if isinstance(c, _Begun)]
    verdicts: list[list[str]] = [[""] * len(b.fit) for _, b in begun]
    if corpus.clean.identify_language:
        verdicts = language.identify([b.fit for _, b in begun], _accepted(corpus), corpus.clean.language_threshold)
    for (i, b), taken_for in zip(begun, verdicts, strict=True):
        cleaned[i] = _guarded(documents[i], _finish, b, taken_for, corpus)
    return cleaned


def _guarded(document: Document, step: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return step(*arguments)
    except Exception as error:
        return Cleaned(document.text, "error", f"{document.id}: {type(error).__name__}: {error}")


@dataclasses.dataclass
class _Begun:
    """A document before its languages are known."""

    result: Cleaned
    fit: list[str]  # paragraphs that have enough words and letters
    lost: collections.Counter[str]  # characters by reason


def _begin(original: str, corpus: Corpus) -> "Cleaned | _Begun":
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
    begun = _Begun(result, [], collections.Counter())
    for paragraph, reason in zip(paragraphs, _unfit(paragraphs, steps), strict=True):
        if reason:
            result.paragraphs[reason] += 1
            begun.lost[reason] += len(paragraph)
        else:
            begun.fit.append(paragraph)
    return begun


def _finish(begun: _Begun, taken_for: list[str], corpus: Corpus) -> Cleaned:
    """`taken_for`: of each paragraph the language that it is rejected for, or ""."""
    result, lost = begun.result, begun.lost
    kept = begun.fit
    if any(taken_for):
        result.languages.update(code for code in taken_for if code)
        result.paragraphs["language"] = sum(map(bool, taken_for))
        lost["language"] = sum(len(p) for p, code in zip(kept, taken_for, strict=True) if code)
        kept = [p for p, code in zip(kept, taken_for, strict=True) if not code]
    result.paragraphs["kept"] = len(kept)
    result.paragraphs = +result.paragraphs
    if kept:
        result.text = "\n".join(kept)
        result.own_hash = digest(result.text).hex()
        limits = corpus.clean.repetition
        if limits.filter and (reason := repetition.reason(result.text, limits)):
            return rejected(result, "repetition", reason, "repetition")
    elif lost["language"] > lost.total() / 2:
        result.fate, result.detail = "language", result.languages.most_common(1)[0][0]
    else:
        result.fate = "no_paragraph_left"
    return result


_ALIASES = {"nb": "no", "fil": "tl", "iw": "he", "in": "id"}  # codes in use → the identifier's


def _accepted(corpus: Corpus) -> set[str]:
    languages = corpus.clean.languages or ((corpus.language,) if corpus.language else ())
    return {_ALIASES.get(code, code) for code in languages}


# --- repair ---

# Quotation marks stay as they are: straightening them would rewrite every Polish, German or French quotation.
# Control characters are a step of their own.
FTFY = ftfy.TextFixerConfig(uncurl_quotes=False, remove_control_chars=False, normalization="NFC", explain=False)
# Everything that a step of ftfy other than the decoding of mojibake reacts to.
_SUSPICIOUS = (
    re.escape("\x1b\r\u2028\u2029" + "".join(map(chr, sorted({*LIGATURES, *WIDTH_MAP})))) + "\x80-\x9f\ud800-\udfff"
)
_FIXED = re.compile(rf"&#?[0-9A-Za-z]{{1,24}};|[{_SUSPICIOUS}]")
# What `is_bad` finds holds one of \x80-\x9f, one of _BAD_ALONE, or two characters beside each other that are not ASCII
# and of which one is no small letter.
_SMALL = f"[{MOJIBAKE_CATEGORIES['lower_accented']}{MOJIBAKE_CATEGORIES['lower_common']}ò-öø-ü]"
_BAD_ALONE = "[\u00c2\u00c3\u0152\u0153]"


def repair(text: str) -> tuple[str, int]:
    """(repaired text in NFC, lines that changed), line by line: mojibake, HTML entities, ligatures, widths, NFC.

    Equal to `ftfy.fix_text(line, FTFY)` on every line, but ftfy sees only lines that it may change: those that are not
    in NFC, match _FIXED, or pass ftfy's own test for mojibake. Most texts hold nothing of the kind, which a look at
    their characters' kinds tells. NFC and not NFKC, which turns ² into 2.
    """
    kinds_T = kinds(text)
    normal = text.isascii() or unicodedata.is_normalized("NFC", text)
    may_be_fixed = bool((kinds_T & BEGINS_FIXED).any()) and bool(_FIXED.search(text))
    may_be_bad = [] if text.isascii() else _lines_like_mojibake(kinds_T)
    if normal and not may_be_fixed and not may_be_bad:
        return text, 0
    lines, changed = text.split("\n"), 0
    doubtful = {i for i in may_be_bad if is_bad(lines[i])}
    if may_be_fixed:
        doubtful.update(i for i, line in enumerate(lines) if _FIXED.search(line))
    if not normal:
        doubtful.update(i for i, line in enumerate(lines) if not unicodedata.is_normalized("NFC", line))
    for i in doubtful:
        fixed = ftfy.fix_text(lines[i], FTFY)
        changed += fixed != lines[i]
        lines[i] = fixed
    return "\n".join(lines), changed


def _lines_like_mojibake(kinds_T: np.ndarray) -> list[int]:
    """The lines of a text of these kinds of characters in which ftfy may find mojibake other than \x80-\x9f."""
    found = kinds_T & BAD_ALONE > 0
    one, other = kinds_T[:-1], kinds_T[1:]
    found[1:] |= (one & other & NOT_ASCII > 0) & ((one | other) & NOT_SMALL > 0)
    places = np.flatnonzero(found)
    if not len(places):
        return []
    return np.unique(np.searchsorted(np.flatnonzero(kinds_T & LINE_FEED), places)).tolist()


# Cc but tab and line breaks (all that str.splitlines knows), and format characters without a shape that stick to words:
# soft hyphen, zero-width space, word joiner, byte-order mark, deprecated and annotation controls. The joiners U+200C
# and U+200D and the direction marks stay: Persian, Hindi and emoji need them.
_CONTROL = re.compile("[\0-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffc]")
_SURROGATE = re.compile("[\ud800-\udfff]")  # halves of characters: cannot be written as UTF-8


def remove_control_characters(text: str) -> tuple[str, int]:
    """(text without control and invisible format characters, how many were removed); line breaks and tabs stay."""
    if not (kinds(text) & REMOVED).any():
        return text, 0
    text, control = _CONTROL.subn("", text)
    text, surrogates = _SURROGATE.subn("", text)
    return text, control + surrogates


# --- paragraphs ---


def _unfit(paragraphs: Sequence[str], steps: Clean) -> list[str]:
    """Of each paragraph why it is not text, or ""."""
    words_P, letters_P, visible_P = count(paragraphs)
    few_words = (words_P < steps.min_words).tolist()
    few_letters = (letters_P / np.maximum(1, visible_P) < steps.min_letters).tolist()
    return [
        "too_few_words" if few else "too_few_letters" if mostly_other else ""
        for few, mostly_other in zip(few_words, few_letters, strict=True)
    ]


def count(paragraphs: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each paragraph, int64 (P,): its words between white space, its letters (vowel signs and other marks are some,
    too), and its characters that are not white space."""
    kinds_T = kinds("\n".join(("", *paragraphs)))  # a line feed before each, so that none is empty
    visible_T = kinds_T & WHITE == 0
    begins_T = np.append(False, visible_T[1:] > visible_T[:-1])
    first_P = np.cumsum([0, *(len(paragraph) + 1 for paragraph in paragraphs[:-1])])
    words_P, letters_P, visible_P = (
        np.add.reduceat(of_T, first_P, dtype=np.int64) for of_T in (begins_T, kinds_T & LETTER > 0, visible_T)
    )
    return words_P, letters_P, visible_P


# --- kinds of characters ---

WHITE, LETTER, REMOVED, BEGINS_FIXED, NOT_ASCII, NOT_SMALL, BAD_ALONE, LINE_FEED = (1 << bit for bit in range(8))


def kinds(text: str) -> np.ndarray:
    """The kinds of a text's characters, uint8 (T,), a sum of the constants above each: 20 times as fast as asking for
    one of them character by character."""
    return _table()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")]


@functools.cache
def _table() -> np.ndarray:
    """uint8 by code point."""
    every = np.arange(sys.maxunicode + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    table = np.zeros(len(every), np.uint8)
    for first, behind in ((0, 0x40000), (0xE0000, 0xE1000)):  # other planes hold neither letters nor marks
        letters = [unicodedata.category(c)[0] in "LM" for c in every[first:behind]]
        table[first:behind] = np.where(letters, LETTER, 0)
    table[0x80:] |= NOT_ASCII | NOT_SMALL
    table[ord("\n")] |= LINE_FEED
    for kind, pattern in (
        (WHITE, r"\s"),
        (REMOVED, _CONTROL),
        (REMOVED, _SURROGATE),
        (BEGINS_FIXED, f"[&{_SUSPICIOUS}]"),
        (BAD_ALONE, _BAD_ALONE),
    ):
        table[[found.start() for found in re.finditer(pattern, every)]] |= kind
    table[[found.start() for found in re.finditer(_SMALL, every)]] &= 255 - NOT_SMALL
    return table


# --- duplicates ---


def digest(text: str) -> bytes:
    """xxh3_128 with white space collapsed, so that texts that differ in it alone are equal."""
    collapsed = text.replace("\n", " ")
    # Printable white space is a space: most texts have nothing else, between words alone, one at a time.
    if not collapsed.isprintable() or "  " in collapsed or collapsed[:1] == " " or collapsed[-1:] == " ":
        collapsed = " ".join(text.split())
    return xxhash.xxh3_128_digest(collapsed.encode("utf-8", "surrogatepass"))


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
