"""Pieces of an HTML page that stands alone: escaping, tables, charts, and a style for phone, desk, dark and paper.

Written as XML that browsers read as HTML. Bars are inline SVG whose widths are shares of the column, so that they fit
any screen and are printed.
"""

import html
import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any

from jaxbert.charts import Chart

STYLE = """
:root { --paper: #fff; --ink: #1c1e21; --soft: #5c636b; --line: #dfe2e6; --tint: #f3f5f7; --mark: #ffe08a;
  --a: #2a6fb5; --b: #d98a1f; --c: #8557a8; --d: #9aa1a9; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e6e8ea; --soft: #a0a7af; --line: #33383e;
  --tint: #202428; --mark: #6b5410; --a: #5b9fe0; --b: #e0a24a; --c: #b48ad4; --d: #6d757d; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 46rem; margin: 0 auto; padding: 1rem 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
small, .note, figcaption, i { color: var(--soft); font-style: normal; font-weight: normal; font-size: .85em; }
nav { margin: -.4rem 0 1.2rem; font-size: .9rem; } nav a { color: var(--a); margin-right: .9rem; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .6rem; margin-bottom: 1rem; }
@media (min-width: 34rem) { .tiles { grid-template-columns: repeat(3, 1fr); } }
.tiles div { background: var(--tint); border-radius: .4rem; padding: .6rem .8rem; }
.tiles b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .28rem .5rem .28rem 0; border-bottom: 1px solid var(--line);
  font-weight: normal; }
thead th { overflow-wrap: normal; color: var(--soft); font-size: .85rem; }
th:nth-last-child(2) { min-width: 8.5rem; }
td { text-align: right; padding-right: 0; padding-left: .5rem; font-variant-numeric: tabular-nums;
  overflow-wrap: break-word; }
thead th:not(:first-child) { text-align: right; padding: .28rem 0 .28rem .5rem; }
table + table { margin-top: 1rem; }
.bars { table-layout: fixed; }
.bars th { width: 36%; }
.bars td:last-child { width: 9.5rem; overflow-wrap: normal; }
.bars td:nth-child(2) { padding: .45rem 0 0 .5rem; }
th small, .bars i { display: block; }
.bars i { display: inline-block; min-width: 3.6rem; }
svg.bar { display: block; width: 100%; height: .8rem; background: var(--tint); border-radius: 2px; }
svg.square { width: .8rem; height: .8rem; margin-right: .35rem; vertical-align: -1px; }
.a { fill: var(--a); } .b { fill: var(--b); } .c { fill: var(--c); } .d { fill: var(--d); }
.legend { margin: .2rem 0 .4rem; font-size: .85rem; } .key { display: inline-block; margin-right: 1rem; }
figure { margin: .7rem 0; } blockquote, .tokens { margin: 0; }
blockquote { border-left: 3px solid var(--b); padding-left: .7rem; } .stays blockquote { border-color: var(--a); }
figure.stays { margin: -.3rem 0 1.3rem; } figcaption { margin-top: .15rem; }
mark { background: var(--mark); color: inherit; border-radius: 2px; padding: 0 .1em; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Noto Sans Mono", monospace; font-size: .88em; }
.entries code { display: inline-block; background: var(--tint); border-radius: 3px; padding: 0 .35em;
  margin: 0 .1rem .3rem 0; }
.tokens { line-height: 2; } .tokens span { display: inline-block; margin-right: .25rem; }
.tokens code { border: 1px solid var(--line); background: var(--tint); padding: .1em .25em; }
.tokens code + code { border-left-style: dashed; border-left-color: var(--a); margin-left: -1px; }
.source h3 { margin-bottom: .2rem; }
dl { margin: 0; display: grid; grid-template-columns: 6.2rem 1fr; gap: .1rem .6rem; font-size: .88rem; }
dt { color: var(--soft); } dd { margin: 0; }
@media (max-width: 34rem) { .bars th { width: 34%; } .bars td:last-child { width: 6.8rem; } .bars i { display: block; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .3rem; } }
p { max-width: 46rem; } .entries, .tokens { max-width: none; }
@media (min-width: 68rem) { main { max-width: 74rem; padding: 1.5rem 2rem 4rem; }
  .pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 0 3rem; align-items: start; }
  .pair > div > :first-child { margin-top: .4rem; }
  figure.stays { margin: .7rem 0 1.3rem; }
  .bars th { width: 38%; } .pair .bars td:last-child { width: 8.8rem; } .tiles div { padding: .9rem 1rem; } }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --line: #ccc; --tint: #f3f5f7; --mark: #ffe08a;
    --a: #2a6fb5; --b: #d98a1f; --c: #8557a8; --d: #9aa1a9; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } nav { display: none; }
  h2, h3 { break-after: avoid; }
  tr, figure, .source, .tiles { break-inside: avoid; } svg.bar, mark, .tokens code { print-color-adjust: exact; } }
"""

SHOWN = 40  # words of a text that is quoted

# What XML 1.0 has no way to write.
_NO_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def page(title: str, top: str, sections: dict[str, str], made_from: str) -> str:
    """A whole page: a title, the `top`, and sections (heading → HTML), those that are empty left out.

    It says in its head what it was `made_from`, and is well-formed XML, too. Its policy lets a browser load nothing and
    run nothing, should a part ask for it.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    shown = [(name, re.sub("[^a-z]+", "-", name.lower()), part) for name, part in sections.items() if part]
    links = " ".join(f'<a href="#{anchor}">{text(name)}</a>' for name, anchor, _ in shown)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en" xmlns="http://www.w3.org/1999/xhtml">',
            "<head>",
            '<meta charset="utf-8"/>',
            f'<meta name="made-from" content="{text(made_from)}"/>',
            '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
            '<meta name="color-scheme" content="light dark"/>',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>',
            f"<title>{text(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            f"<main><h1>{text(title)}</h1>",
            f"<nav>{links}</nav>",
            top,
            *(f'<section id="{anchor}"><h2>{text(name)}</h2>\n{part}</section>' for name, anchor, part in shown),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def text(value: Any) -> str:
    """Any text as HTML text or in an attribute's double quotes."""
    return html.escape(_NO_XML.sub("\ufffd", str(value)))


def lang(language: str) -> str:
    """The attribute that names a language, if it is known."""
    return f' lang="{text(language)}"' if language else ""


def foreign(value: str, language: str) -> str:
    """Text in another language within a line of ours; its direction stays inside."""
    return f"<bdi{lang(language)}>{text(value)}</bdi>"


def ratio(part: int, of: int) -> str:
    """A ratio with three decimals, a dash where there is nothing to divide by."""
    return f"{part / of:.3f}" if of else "–"


def note(value: str) -> str:
    """A remark in small letters, of plain text."""
    return f'<p class="note">{text(value)}</p>'


def quote(content: str, caption: str, language: str, kind: str = "gone") -> str:
    """Text of a document and where it is from, both as HTML."""
    quoted = f'<blockquote dir="auto"{lang(language)}>{content}</blockquote>'
    return f'<figure class="{kind}">{quoted}<figcaption>{caption}</figcaption></figure>'


def compared(gone: str, stays: str) -> tuple[str, str]:
    """Two texts as HTML from a little before their first difference on, the words that differ marked."""
    a, b = gone.split(), stays.split()
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(0, same - 8)
    a_part, b_part = a[start : start + SHOWN], b[start : start + SHOWN]
    sides: tuple[list[str], list[str]] = ([], [])
    for kind, i, j, k, m in SequenceMatcher(None, a_part, b_part, autojunk=False).get_opcodes():
        for side, words in zip(sides, (a_part[i:j], b_part[k:m]), strict=True):
            if words:
                shown = text(" ".join(words))
                side.append(shown if kind == "equal" else f"<mark>{shown}</mark>")
    before = "… " if start else ""
    ends = [" …" if len(words) > start + SHOWN else "" for words in (a, b)]
    html_a, html_b = (before + " ".join(side) + end if side else "" for side, end in zip(sides, ends, strict=True))
    return html_a, html_b


def square(part: str) -> str:
    """The colour of a class, for a legend."""
    return f'<svg class="square" aria-hidden="true"><rect class="{part}" width="100%" height="100%"/></svg>'


def svg(parts: Sequence[tuple[str, float]]) -> str:
    """A bar of parts (class, share of the whole width) from the left; the numbers stand beside it."""
    at, rects = 0.0, []
    for part, share in parts:
        if share > 0:
            rects.append(f'<rect class="{part}" x="{at:.2%}" width="{share:.2%}" height="100%"/>')
        at += share
    return f'<svg class="bar" aria-hidden="true">{"".join(rects)}</svg>'


def heading(value: str) -> str:
    """A heading within a section, of plain text."""
    return f"<h3>{text(value)}</h3>"


def chart(data: Chart) -> str:
    """A chart with its heading, legend and note, "" where it has no bars."""
    if not data.bars:
        return ""
    legend = "".join(f'<span class="key">{square(part)}{text(meaning)}</span>' for part, meaning in data.legend)
    lines = []
    for bar in data.bars:
        remark = f" <small>{text(bar.remark)}</small>" if bar.remark else ""
        share = f" <i>{text(bar.share)}</i>" if bar.share else ""
        number = f"<td>{text(bar.number)}{share}</td>"
        lines.append(f'<tr><th scope="row">{text(bar.label)}{remark}</th><td>{svg(bar.parts)}</td>{number}</tr>')
    return (
        heading(data.title)
        + (f'<p class="legend">{legend}</p>' if legend else "")
        + f'<table class="bars">{"".join(lines)}</table>'
        + (note(data.note) if data.note else "")
    )


def pair(left: str, right: str) -> str:
    """Two pieces beside each other where there is room, else under each other."""
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>' if left and right else left or right


def many(pieces: Iterable[str]) -> str:
    """Pieces in as many columns as there is room for, two at most."""
    return f'<div class="pair">{"".join(pieces)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells, the first of each row its name."""
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'
        for first, *others in rows
    )
    if not lines:
        return ""
    names = "".join(f'<th scope="col">{text(name)}</th>' for name in head)
    top = f"<thead><tr>{names}</tr></thead>" if head else ""
    return f"<table>{top}<tbody>{lines}</tbody></table>"
