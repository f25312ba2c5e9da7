"""Text out of the formats that documentation and translations come in.

Each function takes a file's bytes and its path and yields documents: paragraphs separated by newlines, white space
inside a paragraph collapsed. Navigation, credits, licences, listings and markup are not text and stay behind. A broken
file raises whatever its parser raises; `readers.read` counts it. Where other files are needed (the titles that Mallard
links show), they are looked up beside `path`. OCR also says how doubtful it is, as a document's meta values.
"""

import codecs
import functools
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from html.entities import html5
from pathlib import Path
from typing import Any

from lxml import etree
from lxml import html as lxml_html

BREAK = "\u2029"  # PARAGRAPH SEPARATOR: marks ends of blocks while text is put together
MESSAGES = 24  # of a catalogue, in one document
UNPACKED = 50_000_000  # bytes of what is unpacked or expanded here, at most
MESSAGE_WORDS = 4  # a shorter message is a label, not text

HTML_BLOCKS = frozenset(
    "address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption figure"
    " footer form h1 h2 h3 h4 h5 h6 header hgroup hr html legend li main menu ol option p section summary table tbody"
    " td tfoot th thead title tr ul".split()
)
HTML_SKIPPED = frozenset(
    "aside button footer form head header input label nav noscript object pre script select style svg template"
    " textarea".split()
)
XML_BLOCKS = frozenset(
    "abstract answer appendix article book bridgehead caption chapter cite comment desc entry example figure"
    " formalpara glossdef glossentry glossterm important info item itemizedlist list listitem note orderedlist p page"
    " para part preface procedure question refname refpurpose row sect1 sect2 sect3 sect4 sect5 section simpara"
    " simplelist simplesect member step steps substeps subtitle table tbody td term terms textobject tgroup th thead"
    " tip title titleabbrev tr tree variablelist varlistentry warning".split()
)
XML_SKIPPED = frozenset(
    "address author authorgroup biblioentry bibliography collab contrib copyright corpauthor credit date edition editor"
    " email funcsynopsis graphic holder imageobject include indexterm keywordset legalnotice license literallayout"
    " media mediaobject othercredit programlisting pubdate publisher releaseinfo revhistory revision screen screenshot"
    " synopsis videoobject xref year years".split()
)
XML_JOINED = {"guiseq": " > ", "keycombo": "+", "keyseq": "+", "menuchoice": " > "}  # how their parts are shown


def html(data: bytes, path: Path) -> Iterator[str]:
    """One document a page: its headings, paragraphs, list items and table cells."""
    root = _html_root(data)
    body = root.find("body")
    parts: list[str] = []
    _collect(root if body is None else body, parts, HTML_BLOCKS, HTML_SKIPPED, path)
    # LibreOffice's help has lines for its own search in every page.
    yield _paragraphs("".join(parts), drop=re.compile(r"Title is: "))


def _html_root(data: bytes) -> Any:
    # huge_tree: without it libxml2 drops, in silence, what is nested deeper than 256 elements
    parser = lxml_html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    return lxml_html.document_fromstring(decoded(data).encode("utf-8", "surrogatepass"), parser=parser)


def xhtml(data: bytes, path: Path) -> Iterator[str]:
    """One document a page of XHTML."""
    root = _xhtml_root(data)
    body = next(root.iter("{*}body"), root)
    parts: list[str] = []
    _collect(body, parts, HTML_BLOCKS, HTML_SKIPPED, path)
    yield _paragraphs("".join(parts))


def _xhtml_root(data: bytes) -> Any:
    try:
        return xml_root(data)
    except etree.XMLSyntaxError:  # only then as HTML, in which <title/> or <script/> swallows what follows
        return _html_root(data)


def xml_root(data: bytes, recover: bool = False) -> Any:
    """The first element of an XML file; with `recover` as much as can be had of a broken one."""
    # No network, no external entities: a file must not be able to read others.
    parser = etree.XMLParser(
        no_network=True, resolve_entities=False, remove_comments=True, remove_pis=True, huge_tree=True, recover=recover
    )
    root = etree.fromstring(_expand_entities(decoded(data)).encode("utf-8", "surrogatepass"), parser)
    if root is None:
        raise ValueError("no XML element in the file")
    return root


def xml(data: bytes, path: Path) -> Iterator[str]:
    """One document a Mallard page or DocBook file."""
    root = xml_root(data, recover=True)
    parts: list[str] = []
    _collect(root, parts, XML_BLOCKS, XML_SKIPPED, path)
    yield _paragraphs("".join(parts))


_DOCTYPE = re.compile(r"<!DOCTYPE[^[>]*(?:\[.*?\]\s*)?>", re.S)
_FIRST_ELEMENT = re.compile(r"<(?:[\w.-]+:)?([\w.-]+)")
_REFERENCE = re.compile(r"&([A-Za-z][\w.-]*);")


def _expand_entities(text: str) -> str:
    """The XML without its DOCTYPE: entities that the file defines are expanded, those of other files are their names.

    After its first undefined entity libxml2 drops the defined ones too, and KDE's handbooks take &Ctrl; and their like
    from a file that is in another package: "Prema Ctrl" is the sentence, "Prema" is not.
    """
    doctype, start = _prolog(text)
    own = {name: a or b for name, a, b in re.findall(r"<!ENTITY\s+([\w.-]+)\s+(?:\"([^\"]*)\"|'([^']*)')", doctype)}
    size = 0

    def expand(match: re.Match[str]) -> str:
        nonlocal size
        name = match[1]
        if name in ("amp", "lt", "gt", "quot", "apos"):
            return match[0]
        value = own.get(name) or html5.get(f"{name};", name)
        size += len(value)
        if size > UNPACKED:
            raise ValueError("entities expand to more than 50 MB")
        return value

    text = text[start:]
    for _ in range(3):  # entities within entities; a bound, because they may be cyclic
        text = _REFERENCE.sub(expand, text)
    return text


def _prolog(text: str) -> tuple[str, int]:
    """(the DOCTYPE of an XML text or "", where its first element starts); comments and instructions are passed over."""
    doctype, at = "", 0
    while True:
        at += len(text[at : at + 100]) - len(text[at : at + 100].lstrip("\ufeff \t\r\n"))
        if text[at : at + 1].isspace():
            continue
        end = -1
        for opening, closing in (("<?", "?>"), ("<!--", "-->")):
            if text.startswith(opening, at):
                end = text.find(closing, at) + len(closing) if closing in text[at:] else len(text)
        if match := _DOCTYPE.match(text, at):
            doctype, end = match[0], match.end()
        if end < 0:
            return doctype, at
        at = end


def _collect(element: Any, parts: list[str], blocks: frozenset[str], skipped: frozenset[str], path: Path) -> None:
    """Append the text of an element (and what follows it in its parent) to `parts`, with BREAK around blocks."""
    tag = etree.QName(element).localname if isinstance(element.tag, str) else None
    if tag is not None and tag not in skipped:
        edge = BREAK if tag in blocks else ""
        parts.append(edge + (element.text or ""))
        joint = XML_JOINED.get(tag)
        for child in element:
            if joint and child.getprevious() is not None:
                parts.append(joint)
            _collect(child, parts, blocks, skipped, path)
        if tag == "link" and not element.text and len(element) == 0:
            parts.append(_linked_title(path.parent, element.get("xref", "")))
        parts.append(edge)
    parts.append(element.tail or "")


@functools.lru_cache(maxsize=4096)
def _linked_title(directory: Path, xref: str) -> str:
    """What a Mallard viewer shows for an empty link to a page: the page's title. Empty if there is no such page."""
    page = directory / f"{xref.partition('#')[0]}.page"
    if not xref or "/" in xref or not page.is_file():  # a page's id is no path
        return ""
    root = etree.parse(page, etree.XMLParser(recover=True, no_network=True, resolve_entities=False)).getroot()
    title = None if root is None else root.find("{*}title")
    return "" if title is None else " ".join("".join(title.itertext()).split())


def _paragraphs(text: str, drop: re.Pattern[str] | None = None) -> str:
    lines = (" ".join(block.split()) for block in text.split(BREAK))
    return "\n".join(line for line in lines if line and not (drop and drop.match(line)))


_DECLARED = re.compile(rb"charset=[\"']?([\w-]+)|<\?xml[^>]*encoding=[\"']([\w.-]+)")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def first_element(data: bytes) -> str:
    """The local name of the first element of an XML file, of which `data` is the beginning; "" where there is none."""
    text = data.decode(_encoding(data), "replace")
    found = _FIRST_ELEMENT.match(text, _prolog(text)[1])
    return found[1] if found else ""


def _encoding(data: bytes, otherwise: str = "iso-8859-1") -> str:
    """UTF-8 where the bytes are UTF-8, else what a byte-order mark or the page declares, else `otherwise`."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        declared = _DECLARED.search(data[:4096])
    try:
        return codecs.lookup((declared[1] or declared[2]).decode("ascii")).name if declared else otherwise
    except (LookupError, ValueError):
        return otherwise


def decoded(data: bytes) -> str:
    """A page as text, in the encoding that it is in."""
    return data.decode(_encoding(data))


def says_nothing(data: bytes) -> bool:
    """Whether the bytes are not UTF-8 and nothing in them says, or says rightly, what they are."""
    encoding = _encoding(data, "")
    try:
        return not encoding or not data.decode(encoding) and bool(data)
    except UnicodeDecodeError:
        return True


def gettext(data: bytes, path: Path) -> Iterator[str]:
    """The translations of a compiled catalogue (.mo), a message a paragraph, MESSAGES consecutive ones a document.

    The messages are independent of each other, but the file is sorted by the English original, so that variants of one
    sentence are neighbours. A catalogue as one document would go to training or validation as a whole, up to a
    megabyte at once; a message as a document would put variants of a sentence on both sides, and the held-out loss
    would measure memory. Runs of neighbours avoid both. Messages under MESSAGE_WORDS words are labels and are left out,
    as are untranslated ones; of plural forms the last counts. Format: GNU gettext manual, "The Format of GNU MO Files".
    """
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(data[:4])
    if order is None:
        raise ValueError("not a gettext catalogue: wrong first four bytes")
    count, originals, translations = struct.unpack(f"{order}3I", data[8:20])
    pairs = []
    for table in (originals, translations):
        entries = struct.unpack(f"{order}{2 * count}I", data[table : table + 8 * count])
        if any(at + size > len(data) for size, at in zip(entries[::2], entries[1::2], strict=True)):
            raise ValueError("a gettext catalogue that is cut off")
        pairs.append([data[at : at + size] for size, at in zip(entries[::2], entries[1::2], strict=True)])
    header = next((t for o, t in zip(*pairs, strict=True) if not o), b"")
    declared = re.search(rb"charset=([\w-]+)", header)
    charset = declared[1].decode() if declared else "utf-8"
    yield from _runs(
        _message(translation.split(b"\0")[-1].decode(charset))
        for original, translation in zip(*pairs, strict=True)
        if original and translation.split(b"\0")[0] != original.split(b"\x04")[-1].split(b"\0")[0]
    )


_PO_LINE = re.compile(r'(?:(msgctxt|msgid_plural|msgid|msgstr)(?:\[\d+\])?\s*)?"((?:[^"\\]|\\.)*)"')
_PO_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


def po(data: bytes, path: Path) -> Iterator[str]:
    """The translations of a catalogue's source (.po), chosen, ordered and joined as in `gettext`; no fuzzy ones.

    Lines that are not of the format are left out and, at the end, raise ValueError. Format: GNU gettext manual, "The
    Format of PO Files".
    """
    entries: list[dict[str, str]] = [{}]
    field, wrong = "", []
    for number, line in enumerate(decoded(data).split("\n"), start=1):
        line = line.strip()
        if line.startswith("#"):
            if "msgid" in entries[-1]:  # comments stand before their entry
                entries.append({})
            if line.startswith("#,") and "fuzzy" in line:
                entries[-1]["fuzzy"] = line
            field = ""
        elif line:
            match = _PO_LINE.fullmatch(line)
            if not match or not (match[1] or field):
                wrong.append(number)
                continue
            if match[1]:
                field = match[1]
                if field in ("msgctxt", "msgid") and "msgid" in entries[-1]:
                    entries.append({})
                entries[-1][field] = ""  # of several plural forms the last stays
            entries[-1][field] += re.sub(r"\\(.)", lambda m: _PO_ESCAPES.get(m[1], m[1]), match[2])
    if not any("msgstr" in entry for entry in entries):
        raise ValueError("not a gettext catalogue: no msgstr in it")
    yield from _runs(
        _message(entry["msgstr"])
        for entry in sorted(entries, key=lambda entry: entry.get("msgid", ""))
        if entry.get("msgid") and entry.get("msgstr", "") not in ("", entry["msgid"]) and "fuzzy" not in entry
    )
    if wrong:
        raise ValueError(f"{len(wrong):,} lines are no part of a catalogue, the first is line {wrong[0]}")


def messages(data: bytes, path: Path) -> Iterator[str]:
    """The messages of a MediaWiki i18n file (JSON, key → message), in runs as in `gettext`, wiki markup removed."""
    values = json.loads(data)
    yield from _runs(_wiki(v) for k, v in values.items() if isinstance(v, str) and not k.startswith("@"))


def _runs(found: Iterable[str]) -> Iterator[str]:
    kept = [m for m in found if len(m.split()) >= MESSAGE_WORDS]
    for start in range(0, len(kept), MESSAGES):
        yield "\n".join(kept[start : start + MESSAGES])


_TAG = re.compile(r"</?[A-Za-z][^<>]{0,300}>")
_ACCELERATOR = re.compile(r"(?<![&~_])[&~_](?=[^\W\d_])")  # marks the key of a menu entry: &File, ~File, _File


def _message(text: str) -> str:
    """An interface message as plain text: tags and the accelerator go, hard line breaks become spaces."""
    text = _TAG.sub("", text)
    if len(_ACCELERATOR.findall(text)) == 1:  # several are identifiers: a_b_c
        text = _ACCELERATOR.sub("", text)
    return " ".join(text.split())


def langpack(data: bytes, path: Path) -> Iterator[str]:
    """The messages of a Mozilla language pack (.xpi, a zip of Fluent and .properties files), runs as in `gettext`."""
    with zipfile.ZipFile(io.BytesIO(data)) as pack:
        names = sorted(n for n in pack.namelist() if n.endswith((".ftl", ".properties")))
        if sum(pack.getinfo(name).file_size for name in names) > UNPACKED:  # zipfile gives no more than it says there
            raise ValueError(f"unpacks to more than {UNPACKED:,} bytes")
        files = {name: pack.read(name).decode("utf-8") for name in names}
    fluent = [_fluent(text) for name, text in files.items() if name.endswith(".ftl")]
    terms = {key: value for messages_ in fluent for key, value in messages_ if key.startswith("-")}
    for messages_ in fluent:
        yield from _runs(_message(_placeables(value, terms)) for _, value in messages_)
    for name, text in files.items():
        if name.endswith(".properties"):
            values = re.findall(r"^[ \t]*[\w.-][^=\n]*?=[ \t]*(.*)$", text, flags=re.M)
            yield from _runs(_message(re.sub(r"\\(?:[ntr]|$)", " ", value)) for value in values)


_FLUENT_START = re.compile(r"(-?[A-Za-z][\w-]*|\s+\.[\w-]+)\s*=\s?(.*)|\s+\*?\[[^]]*\]\s?(.*)")


def _fluent(text: str) -> list[tuple[str, str]]:
    """(key, pattern) of every message, attribute and variant of a Fluent file (projectfluent.org), in order."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if start := _FLUENT_START.match(line):
            found.append((start[1] or "", start[2] or start[3] or ""))
        elif line[:1].isspace() and line.strip() and found:
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
    return found


def _placeables(text: str, terms: dict[str, str]) -> str:
    """Terms ({ -brand-name }) are put in, variables ({ $count }) keep their name, all other placeables vanish."""
    text = re.sub(r"\{[^{}]*->", "", text)  # the head of a choice: its variants are messages of their own
    text = re.sub(r"\{\s*(-[\w-]+)[^{}]*\}", lambda m: terms.get(m[1], ""), text)
    return re.sub(r"\{[^{}]*\}|[{}]", "", re.sub(r"\{\s*(\$\w+)\s*\}", r"\1", text))


_WIKI = (
    (re.compile(r"\{\{(?:PLURAL|GENDER|GRAMMAR):[^{}|]*\|([^{}|]*)[^{}]*\}\}", re.I), r"\1"),
    (re.compile(r"\{\{[^{}]*\}\}"), ""),
    (re.compile(r"\[\[(?:[^][|]*\|)?([^][|]*)\]\]"), r"\1"),
    (re.compile(r"\[(?:https?:|mailto:|//|\$)\S*\s([^][]*)\]"), r"\1"),
    (re.compile(r"'{2,}|^[*#:;=]+|=+$", re.M), ""),
)


def _wiki(text: str) -> str:
    for pattern, replacement in _WIKI:
        text = pattern.sub(replacement, text)
    return _message(text)


def gretl(data: bytes, path: Path) -> Iterator[str]:
    """gretl's help for its window: a document an entry (`# name …`), with <@tag="text"> as its text."""
    text = re.sub(r'<@\w+="([^"]*)">', r"\1", data.decode("utf-8"))
    text = re.sub(r"</?@?\w+>", "", text)
    for entry in re.split(r"^# .*$", text, flags=re.M):
        if entry.strip():
            yield "\n".join(" ".join(line.split()) for line in entry.splitlines() if line.strip())


_ROFF_CHARACTERS = {
    "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "Bq": "„", "Fo": "«", "Fc": "»", "em": "—",
    "en": "–", "hy": "-", "bu": "•", "co": "©", "rg": "®", "tm": "™", "ha": "^", "ti": "~", "rs": "\\", "->": "→",
}  # fmt: skip
_ROFF_ESCAPES = (
    (re.compile(r"\\f(?:\[[^]]*\]|\(..|.)"), ""),  # fonts
    (re.compile(r"\\s[-+]?\d+|\\[&|^/,:%)]|\\c"), ""),  # sizes, zero-width and break marks
    (re.compile(r"\\[hvmMwk]'[^']*'"), ""),
    (re.compile(r"\\\*?(?:\((..)|\[([^]]*)\])"), lambda m: _ROFF_CHARACTERS.get(m[1] or m[2], "")),
    (re.compile(r"\\[ ~0]"), " "),
    (re.compile(r"\\([-.'`\"])"), r"\1"),
    (re.compile(r"\\[e\\]"), r"\\"),
)
_ROFF_TEXT = frozenset("B I BI BR IB IR RB RI SB SM SH SS Nm Em Sy IP TP TQ Sh Ss".split())
_ROFF_BREAKS = frozenset("PP P LP TP TQ IP HP SH SS br sp RS RE Pp Sh Ss It Bl El UR UE SY".split())
_ROFF_LISTINGS = {"nf": "fi", "EX": "EE", "TS": "TE", "Bd": "Ed", "de": ".", "ig": "."}


def roff(data: bytes, path: Path) -> Iterator[str]:
    """One document a manual page: headings and filled paragraphs; requests, font changes and tables are left out."""
    if data[:2] == b"\x1f\x8b":
        unpacked = zlib.decompressobj(wbits=31)
        data = unpacked.decompress(data, UNPACKED)
        if unpacked.unconsumed_tail:
            raise ValueError(f"unpacks to more than {UNPACKED:,} bytes")
    parts: list[str] = []
    until = ""  # the request that ends the listing we are in
    for line in decoded(data).splitlines():
        request, _, rest = line[1:].strip().partition(" ") if line[:1] in (".", "'") else ("", "", line)
        if until:
            until = "" if request == until else until
            continue
        if request in _ROFF_LISTINGS:
            until = _ROFF_LISTINGS[request]
            continue
        if request in _ROFF_BREAKS or not line.strip():
            parts.append(BREAK)
        if not request and not line.startswith((".", "'")):
            parts.append(f"{rest} ")
        elif request in _ROFF_TEXT and request not in ("TP", "TQ", "IP"):
            words = re.findall(r'"((?:[^"]|"")*)"|(\S+)', rest)  # BR and its like alternate fonts: no spaces between
            joint = "" if len(request) == 2 and set(request) <= set("BIR") else " "
            parts.append(joint.join(a.replace('""', '"') or b for a, b in words))
            parts.append(BREAK if request in ("SH", "SS", "Sh", "Ss") else " ")
    text = "".join(parts)
    for pattern, replacement in _ROFF_ESCAPES:
        text = pattern.sub(replacement, text)
    yield _paragraphs(text)


# --- what OCR says ---

Recognised = tuple[str, dict[str, str]]  # text, meta
DOUBTFUL = 0.6  # a word that the engine is less sure of is counted as doubtful
_HYPHENS = "-\u2010\xad¬⸗"  # hyphen-minus, hyphen, soft hyphen, what engines write for it, double oblique hyphen


def alto(data: bytes, path: Path) -> Iterator[Recognised]:
    """One document a file of ALTO (loc.gov/standards/alto): a paragraph a TextBlock, in the file's ReadingOrder.

    meta: `doubtful_words`, the share of words with a confidence (WC) under DOUBTFUL; absent where no word has one.
    """
    root = xml_root(data)
    if etree.QName(root).localname != "alto":
        raise ValueError(f"not ALTO: the first element is {etree.QName(root).localname}")
    rank = {reference.get("REF"): i for i, reference in enumerate(root.iter("{*}ElementRef"))}
    blocks = sorted(root.iter("{*}TextBlock"), key=lambda block: rank.get(block.get("ID"), len(rank)))
    paragraphs, confidences = [], []
    whole = False  # the word that a hyphen divides was taken in one piece, so its second part is not taken again
    for block in blocks:
        lines = []
        for line in block.iter("{*}TextLine"):
            words: list[str] = []
            for part in line.iter("{*}String", "{*}HYP"):
                if etree.QName(part).localname == "HYP":
                    if words and not whole:
                        words[-1] += part.get("CONTENT") or "-"
                    continue
                confidences.append(part.get("WC"))
                if whole and part.get("SUBS_TYPE") == "HypPart2":
                    whole = False
                    continue
                whole = part.get("SUBS_TYPE") == "HypPart1" and bool(part.get("SUBS_CONTENT"))
                words.append(part.get("SUBS_CONTENT" if whole else "CONTENT") or "")
            lines.append(" ".join(filter(None, words)))
        paragraphs.append(dehyphenated(lines))
    yield "\n".join(filter(None, paragraphs)), _doubts(confidences, 1.0)


_HOCR_LINES = frozenset("ocr_line ocrx_line ocr_header ocr_footer ocr_caption ocr_textfloat".split())
_HOCR_PARAGRAPHS = ("ocr_par", "ocr_carea", "ocrx_block", "ocr_page")


def hocr(data: bytes, path: Path) -> Iterator[Recognised]:
    """One document a file of hOCR (kba.github.io/hocr-spec), as `alto`: a paragraph an ocr_par; confidence x_wconf."""
    root = _xhtml_root(data)
    paragraphs: list[tuple[Any, list[str]]] = []  # (element, its lines)
    confidences: list[str | None] = []
    lines = [e for e in root.iter() if _HOCR_LINES & _classes(e)]
    for line in lines or [e for e in root.iter() if "ocr_par" in _classes(e)]:
        words = [e for e in line.iter() if "ocrx_word" in _classes(e)]
        for word in words:
            confidence = re.search(r"x_wconf\s+([\d.]+)", word.get("title", ""))
            confidences.append(confidence[1] if confidence else None)
        # in a word every character may be an element of its own, with white space around
        text = " ".join("".join("".join(word.itertext()).split()) for word in words) or "".join(line.itertext())
        above = [line, *line.iterancestors()]
        inside = next((e for name in _HOCR_PARAGRAPHS for e in above if name in _classes(e)), root)
        if not paragraphs or paragraphs[-1][0] is not inside:
            paragraphs.append((inside, []))
        paragraphs[-1][1].append(text)
    if not paragraphs and not any("ocr_page" in _classes(e) for e in root.iter()):
        raise ValueError("not hOCR: no element of class ocr_page, ocr_par or ocr_line")
    found = (dehyphenated(lines) for _, lines in paragraphs)
    yield "\n".join(filter(None, found)), _doubts(confidences, 100.0)


def _classes(element: Any) -> set[str]:
    return set(element.get("class", "").split()) if isinstance(element.tag, str) else set()


def _doubts(confidences: list[str | None], largest: float) -> dict[str, str]:
    known = [float(c) / largest for c in confidences if c and re.fullmatch(r"\d*\.?\d+", c)]
    return {"doubtful_words": f"{sum(c < DOUBTFUL for c in known) / len(known):.3f}"} if known else {}


def dehyphenated(lines: Iterable[str]) -> str:
    """The lines of a printed paragraph as one: a word that a hyphen at a line's end divides is whole again.

    The hyphen goes where the next line goes on in lower case; before a capital it belongs to the word (Baden-Baden).
    """
    text = ""
    for line in lines:
        line = " ".join(line.split())
        if not line:
            continue
        if text[-1:] in _HYPHENS and text[-2:-1].isalpha() and line[0].isalpha():
            text = (text if line[0].isupper() and text[-1] in "-\u2010" else text[:-1]) + line
        else:
            text = f"{text} {line}" if text else line
    return text
