"""MediaWiki: the pages of a dump, and a page's source as text.

The dump is cut into pages, each of which is parsed by itself: the XML with lxml, the wiki markup with mwparserfromhell.
"""

import dataclasses
import re
from collections.abc import Iterator
from html import unescape
from typing import Any

from jaxbert.config import Corpus
from jaxbert.data import files, markup
from jaxbert.data.files import TOO_LONG_REMEDY, Document, Unparsed, Unread, unread
from jaxbert.errors import BadInput


def dump(path: str, corpus: Corpus) -> Iterator[Unparsed | Unread]:
    """A MediaWiki XML dump (mediawiki.org/wiki/Help:Export): a document an article, its last revision.

    Pages are cut out of the stream one by one and parsed by themselves, later, so memory is bounded by the longest and
    a broken one costs no other. Redirects and pages that are no articles are an Unread each. meta: `title`, and `url`
    where the dump says where its wiki is.
    """
    skipped: frozenset[str] | None = None
    place = ""  # the wiki's URL, up to a page's title
    for head, page in _pages(path, files.limit(corpus)):
        if skipped is None:
            # The dump names its namespaces in its own language; 6 is File, 14 is Category.
            names = re.findall(r'<namespace key="(?:6|14)"[^>]*>([^<]*)<', head.decode("utf-8", "replace"))
            base = re.search(rb"<base>([^<]*)/[^</]*</base>", head)
            place = unescape(base[1].decode("utf-8", "replace")) if base else ""
            skipped = frozenset(name.lower() for name in (*names, "file", "image", "category"))
        if isinstance(page, Unread):
            yield page
            continue
        yield Unparsed(page, _page, (path, corpus, skipped, place))
    if skipped is None:
        raise ValueError("no <page> in it: not a MediaWiki dump")


def _page(page: bytes, path: str, corpus: Corpus, skipped: frozenset[str], place: str) -> Document | Unread:
    try:
        if corpus.invalid_utf8 == "repair":
            page = files.decode(page, path, "a page", 0, dataclasses.replace(corpus, encoding="utf-8")).encode()
        return _article(page.decode("utf-8"), path, skipped, place)
    except BadInput:
        raise
    except Exception as error:
        return unread("unreadable", f"{path}{_title_of(page)}: {type(error).__name__}: {error}")


def _article(page: str, path: str, skipped: frozenset[str], place: str) -> Document | Unread:
    values: dict[str, str] = {"model": "wikitext"}
    for element in markup.xml_root(page.encode()).iter():
        values[element.tag] = (element.text or "") if len(element) == 0 else ""  # of several revisions the last stays
    where = f"{path}: {values.get('title', '')!r}"
    if "redirect" in values:
        return unread("redirect", where)
    if values.get("ns", "0") != "0" or values["model"] != "wikitext":
        return unread("not_an_article", f"{where}, namespace {values.get('ns')}, {values['model']}")
    if "text" not in values:
        raise ValueError("a page without <text>")
    title = values.get("title", "")
    url = {"url": f"{place}/{title.replace(' ', '_')}"} if place else {}
    return Document(article(values["text"], skipped), "", "", {"title": title, **url})


def _title_of(page: bytes) -> str:
    found = re.search(rb"<title>([^<]{0,300})", page)
    return f": {found[1].decode('utf-8', 'replace')!r}" if found else ""


def _pages(path: str, limit: int) -> Iterator[tuple[bytes, bytes | Unread]]:
    """(what stands before the first page, `<page>…</page>`) of a dump; < in a page's text is always written &lt;."""
    head, held, dropped = b"", b"", 0  # dropped: bytes of a page that is over the limit
    inside = False
    try:
        for chunk in files.chunks(path):
            seen, held = max(0, len(held) - 7), held + chunk  # a tag may be cut by the chunk's end
            while True:
                tag = b"</page>" if inside else b"<page>"
                at = held.find(tag, seen)
                if at < 0:
                    break
                if inside:
                    found, held = held[: at + len(tag)], held[at + len(tag) :]
                    *broken, last = found.split(b"<page>")
                    for page in broken if dropped else broken[1:]:  # pages without an end
                        yield head, unread("unreadable", f"{path}: no </page>{_title_of(page)}")
                    page = b"<page>" + last
                    size = len(page) if broken else dropped + len(last)
                    too_long = unread("too_long", f"{path}: a page of {size:,} bytes; {TOO_LONG_REMEDY}")
                    yield head, page if size <= limit else too_long
                else:
                    head, held = head or held[:at] or b" ", held[at:]
                inside, dropped, seen = not inside, 0, 0
            if not inside and len(head + held) > 1 << 20:
                held = held[-7:]
            elif inside and len(held) > limit:
                dropped, held = dropped + len(held) - 7, held[-7:]
    except files.Corrupted as error:
        yield head, unread("unreadable", f"{path}: the rest of the dump{_title_of(held)}: {error}")
        return
    if inside:
        yield head, unread("unreadable", f"{path}: ends in the middle of a page{_title_of(held)}")
    elif head and b"</mediawiki>" not in held:
        yield head, unread("unreadable", f"{path}: ends without </mediawiki>, so the rest of the dump is missing")


# --- a page ---

_WIKI_SKIPPED = frozenset(
    "ce chem gallery graph hiero imagemap indicator inputbox mapframe maplink math ref references score"
    " section source style syntaxhighlight table templatedata templatestyles timeline".split()
)
# Templates that the parser found no end of, rows of such tables, behaviour switches, quotes for bold and italics.
_WIKI_LEFTOVERS = re.compile(r"^[ \t]*(?:\{\||\|).*$|\{\{.*$|\}\}|__[A-Z]+__|'{2,}|^[*#:;]+[ \t]*", re.M)
_WIKI_EMPTY = re.compile(r"[ \t]*\([\s,;:·–—-]*\)")  # a parenthesis whose templates are gone
_WIKI_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z-]+)?")  # of a link to another language: [[en:Title]]


def article(text: str, namespaces: frozenset[str] = frozenset()) -> str:
    """A wiki page's source as text, a line a paragraph; tables, templates, references, files and categories go.

    `namespaces`: names, in lower case, of those whose links show no text (File, Category and their translations). The
    parser is mwparserfromhell, which knows no templates: what they would have written is missing.
    """
    try:
        import mwparserfromhell
    except ImportError:
        raise BadInput("corpus.input: a wiki's dump needs mwparserfromhell; pip install 'jaxbert[prepare]'") from None
    text = _without_hidden(text)
    _check_nesting(text)
    parts: list[str] = []
    _wiki_text(mwparserfromhell.parse(text, skip_style_tags=True), parts, namespaces)
    text = _WIKI_EMPTY.sub("", _WIKI_LEFTOVERS.sub("", "".join(parts)))
    return "\n".join(line for block in text.split("\n") if (line := " ".join(block.split())))


_WIKI_HIDDEN = re.compile(r"(<!--|-->|</?(?:ce|chem|math|score|source|syntaxhighlight|timeline)\b[^<>]{0,300}>)", re.I)


def _without_hidden(text: str) -> str:
    """Comments, formulas and listings go before the parser sees their braces; what is not closed goes alone."""
    parts = _WIKI_HIDDEN.split(text)  # text, tag, text, …, text
    kept, opened = [parts[0]], 0
    for i in range(1, len(parts), 2):
        if parts[i].startswith("</") or parts[i] == "-->":
            opened = 0
        elif not parts[i].endswith("/>") and not opened:
            opened = i
        if not opened:
            kept.append(parts[i + 1])
    return "".join(kept + (parts[opened + 1 :: 2] if opened else []))


NESTED = 100  # of one kind, in a wiki page: the parser reads to the page's end for each that it finds no end of
_WIKI_BRACKETS = re.compile(
    r"(?P<template>\{\{)|(?P<template_end>\}\})|(?P<link>\[\[)|(?P<link_end>\]\])"
    r"|(?P<url>\[(?:https?:|//))|(?P<url_end>\])"
    r"|<[a-z][^<>]{0,300}/>|<(?:br|dd|dt|hr|img|li|p|td|th|tr|wbr)\b|(?P<tag><[a-z])|(?P<tag_end></[a-z])",
    re.I,
)


def _check_nesting(text: str) -> None:
    """Raises ValueError for a page on which the parser would spend minutes: 20,000 times "{{a|" took it 286 s."""
    depth: dict[str, int] = {}
    for match in _WIKI_BRACKETS.finditer(text):
        kind = match.lastgroup or ""
        name = kind.removesuffix("_end")
        depth[name] = max(0, depth.get(name, 0) + (1 if kind == name else -1))
        if name and depth[name] > NESTED:
            raise ValueError(f"more than {NESTED} of {match[0]!r} inside each other, or without an end")


def _wiki_text(code: Any, parts: list[str], namespaces: frozenset[str]) -> None:
    from mwparserfromhell import nodes

    for node in code.nodes:
        match node:
            case nodes.Text():
                parts.append(str(node.value))
            case nodes.Wikilink():
                prefix, colon, _ = str(node.title).partition(":")
                prefix = prefix.strip().replace("_", " ").lower()
                shown = (
                    not colon
                    or prefix not in namespaces
                    and not (node.text is None and _WIKI_LANGUAGE.fullmatch(prefix))
                )
                if shown and node.text is None:
                    parts.append(str(node.title).lstrip(":"))
                elif shown:
                    _wiki_text(node.text, parts, namespaces)
            case nodes.ExternalLink():
                if node.brackets and node.title is not None:
                    _wiki_text(node.title, parts, namespaces)
            case nodes.Heading():
                parts.append("\n")
                _wiki_text(node.title, parts, namespaces)
                parts.append("\n")
            case nodes.HTMLEntity():
                parts.append(unescape(str(node)))
            case nodes.Tag():
                name = str(node.tag).strip().lower()
                if name in markup.HTML_BLOCKS and not node.wiki_markup:
                    parts.append("\n")
                if name not in _WIKI_SKIPPED and node.contents is not None:
                    _wiki_text(node.contents, parts, namespaces)
