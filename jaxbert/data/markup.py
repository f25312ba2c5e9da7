"""Text out of the formats that documentation and translations come in.

Each function takes a file's bytes and its path and yields documents: paragraphs separated by newlines, white space
inside a paragraph collapsed. Navigation, credits, licences, listings and markup are not text and stay behind. A broken
file raises whatever its parser raises; `readers.read` counts it. Where other files are needed (the titles that Mallard
links show), they are looked up beside `path`.
"""

import functools
import gzip
import io
import json
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator
from html.entities import html5
from pathlib import Path
from typing import Any

from lxml import etree
from lxml import html as lxml_html

BREAK = "\u2029"  # PARAGRAPH SEPARATOR: marks ends of blocks while text is put together
MESSAGES = 24  # of a catalogue, in one document
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
    parser = lxml_html.HTMLParser(encoding=_encoding(data), remove_comments=True, remove_pis=True)
    root = lxml_html.document_fromstring(data, parser=parser)
    body = root.find("body")
    parts: list[str] = []
    _collect(root if body is None else body, parts, HTML_BLOCKS, HTML_SKIPPED, path)
    # LibreOffice's help has lines for its own search in every page.
    yield _paragraphs("".join(parts), drop=re.compile(r"Title is: "))


def xml(data: bytes, path: Path) -> Iterator[str]:
    """One document a Mallard page or DocBook file."""
    # No network, no external entities: a file must not be able to read others.
    parser = etree.XMLParser(recover=True, no_network=True, resolve_entities=False, remove_comments=True)
    root = etree.fromstring(_expand_entities(data.decode(_encoding(data))).encode(), parser)
    if root is None:
        raise ValueError("no XML element in the file")
    parts: list[str] = []
    _collect(root, parts, XML_BLOCKS, XML_SKIPPED, path)
    yield _paragraphs("".join(parts))


_DOCTYPE = re.compile(r"<\?xml[^>]*\?>|<!DOCTYPE[^[>]*(?:\[.*?\]\s*)?>", re.S)
_REFERENCE = re.compile(r"&([A-Za-z][\w.-]*);")


def _expand_entities(text: str) -> str:
    """The XML without its DOCTYPE: entities that the file defines are expanded, those of other files are their names.

    After its first undefined entity libxml2 drops the defined ones too, and KDE's handbooks take &Ctrl; and their like
    from a file that is in another package: "Prema Ctrl" is the sentence, "Prema" is not.
    """
    doctype = "".join(_DOCTYPE.findall(text))
    own = {name: a or b for name, a, b in re.findall(r"<!ENTITY\s+([\w.-]+)\s+(?:\"([^\"]*)\"|'([^']*)')", doctype)}

    def expand(match: re.Match[str]) -> str:
        name = match[1]
        if name in ("amp", "lt", "gt", "quot", "apos"):
            return match[0]
        return own.get(name) or html5.get(f"{name};", name)

    text = _DOCTYPE.sub("", text)
    for _ in range(3):  # entities within entities; a bound, because they may be cyclic
        if len(text) > 50_000_000:
            raise ValueError("entities expand to more than 50 MB")
        text = _REFERENCE.sub(expand, text)
    return text


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
    if not xref or not page.is_file():
        return ""
    root = etree.parse(page, etree.XMLParser(recover=True, no_network=True, resolve_entities=False)).getroot()
    title = None if root is None else root.find("{*}title")
    return "" if title is None else " ".join("".join(title.itertext()).split())


def _paragraphs(text: str, drop: re.Pattern[str] | None = None) -> str:
    lines = (" ".join(block.split()) for block in text.split(BREAK))
    return "\n".join(line for line in lines if line and not (drop and drop.match(line)))


def _encoding(data: bytes) -> str:
    """UTF-8 where the bytes are UTF-8, else what the page declares, else Latin-1."""
    try:
        data.decode("utf-8")
        return "utf-8"
    except UnicodeDecodeError:
        declared = re.search(rb"charset=[\"']?([\w-]+)", data[:4096])
        return declared[1].decode() if declared else "iso-8859-1"


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
        pairs.append([data[at : at + size] for size, at in zip(entries[::2], entries[1::2], strict=True)])
    header = next((t for o, t in zip(*pairs, strict=True) if not o), b"")
    declared = re.search(rb"charset=([\w-]+)", header)
    charset = declared[1].decode() if declared else "utf-8"
    yield from _runs(
        _message(translation.split(b"\0")[-1].decode(charset))
        for original, translation in zip(*pairs, strict=True)
        if original and translation.split(b"\0")[0] != original.split(b"\x04")[-1].split(b"\0")[0]
    )


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
        data = gzip.decompress(data)
    parts: list[str] = []
    until = ""  # the request that ends the listing we are in
    for line in data.decode(_encoding(data)).splitlines():
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
