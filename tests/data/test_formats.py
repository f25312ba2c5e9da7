"""Formats: what is a document in each, the same from anywhere and compressed, and what becomes of malformed files."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pytest
import zstandard
from pyarrow import parquet as arrow

from jaxbert import prepare
from jaxbert.config import Corpus
from jaxbert.data import files, formats, markup, readers, wiki
from jaxbert.errors import BadInput


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read_all(*inputs: str, **fields) -> list[files.Document | files.Unread]:
    corpus = Corpus(input=inputs, **{"language": "gl"} | fields)
    return [d for source in readers.sources(corpus, log=lambda line: None) for d in readers.read(source, corpus)]


def read_bytes(tmp_path: Path, name: str, content: str | bytes, **fields) -> list[files.Document | files.Unread]:
    return read_all(write(tmp_path / name, content), **fields)


# --- samples: small files as the tools of each format write them ---

SENTENCES = [
    "Galicia é unha comunidade autónoma situada no noroeste da península Ibérica.",
    "A súa capital é Santiago de Compostela, unha cidade coñecida en todo o mundo.",
    "O galego fálase tamén nalgunhas comarcas de Asturias, León e Zamora.",
]


def page(title: str, text: str, ns: int = 0, more: str = "", model: str = "wikitext") -> str:
    return (
        f"  <page>\n    <title>{title}</title>\n    <ns>{ns}</ns>\n    <id>7</id>\n{more}    <revision>\n"
        f"      <id>9</id>\n      <model>{model}</model>\n      <format>text/x-wiki</format>\n"
        f'      <text bytes="{len(text)}" xml:space="preserve">{text}</text>\n    </revision>\n  </page>\n'
    )


WIKI_HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="gl">
  <siteinfo><sitename>Wikipedia</sitename><namespaces>
    <namespace key="0" case="first-letter" /><namespace key="6" case="first-letter">Ficheiro</namespace>
    <namespace key="14" case="first-letter">Categoría</namespace></namespaces></siteinfo>
"""


def dump(*pages: str) -> str:
    return f"{WIKI_HEAD}{''.join(pages)}</mediawiki>\n"


def table(texts: list[Any], name: str = "text", group: int = 2, **options) -> bytes:
    out = io.BytesIO()
    values = texts if isinstance(texts, pyarrow.Array) else pyarrow.array(texts, options.pop("type", None))
    arrow.write_table(pyarrow.table({"n": range(len(texts)), name: values}), out, row_group_size=group, **options)
    return out.getvalue()


def chapter(text: str) -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?><!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"><head><title/>'
        f'<script src="a.js"/></head><body><p>{text}</p></body></html>'
    )


def book(chapters: dict[str, str | bytes], spine: list[str] | None = None, place: str = "OEBPS/p.opf", **more) -> bytes:
    """An EPUB; `spine`: hrefs as the package has them; `more`: further members, `_` for `/`."""
    folder = os.path.dirname(place)
    hrefs = spine if spine is not None else [os.path.relpath(name, folder) for name in chapters]
    items = "".join(f'<item id="i{i}" href="{href}"/>' for i, href in enumerate(hrefs))
    refs = "".join(f'<itemref idref="i{i}"/>' for i in range(len(hrefs)))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            f'<rootfile full-path="{place}"/></rootfiles></container>',
        )
        archive.writestr(
            place,
            '<package xmlns="http://www.idpf.org/2007/opf"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/">'
            f"<dc:title>Un libro</dc:title></metadata><manifest>{items}</manifest><spine>{refs}</spine></package>",
        )
        for name, content in (chapters | {k.replace("_", "/"): v for k, v in more.items()}).items():
            archive.writestr(name, content)
    return out.getvalue()


def sentence(text: str, *marks: str) -> str:
    words = "".join(f"{i}\t{w}\t_\t_\t_\t_\t_\t_\t_\t_\n" for i, w in enumerate(text.split(), 1))
    return "".join(f"# {m}\n" for m in marks) + f"# text = {text}\n{words}\n"


def alto_page(*blocks: str, order: str = "") -> str:
    return (
        '<?xml version="1.0" encoding="UTF-8"?><alto xmlns="http://www.loc.gov/standards/alto/ns-v4#">'
        f'{order}<Layout><Page ID="p"><PrintSpace>{"".join(blocks)}</PrintSpace></Page></Layout></alto>'
    )


def alto_block(id: str, *lines: str) -> str:
    return f'<TextBlock ID="{id}">{"".join(f"<TextLine>{line}</TextLine>" for line in lines)}</TextBlock>'


def strings(text: str, confidence: str = "0.9") -> str:
    return "<SP/>".join(f'<String CONTENT="{word}" WC="{confidence}"/>' for word in text.split())


def hocr_page(*paragraphs: list[tuple[str, int]]) -> str:
    """Paragraphs of lines (text, confidence), as tesseract writes them."""

    def line(text: str, confidence: int) -> str:
        words = (f"<span class='ocrx_word' title='bbox 1 2 3 4; x_wconf {confidence}'>{w}</span>" for w in text.split())
        return f"<span class='ocr_line' title='bbox 0 0 9 9'>{' '.join(words)}</span>"

    body = "".join(f"<p class='ocr_par'>{''.join(line(*li) for li in p)}</p>" for p in paragraphs)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/>'
        "<meta name='ocr-system' content='tesseract 5.3'/></head><body><div class='ocr_page'><div class='ocr_carea'>"
        f"{body}</div></div></body></html>"
    )


PO = """# Translations
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

#: a.c:1
msgid "Open the file"
msgid_plural "Open %d files"
msgstr[0] "Abrir o _ficheiro agora mesmo"
msgstr[1] "Abrir os %d ficheiros "
"agora \\"mesmo\\""

#, fuzzy
msgid "A fuzzy message of words"
msgstr "Unha mensaxe dubidosa de palabras"

msgctxt "menu"
msgid "Another message that is long"
msgstr "Outra mensaxe que é longa"

msgid "Not translated at all here"
msgstr ""

#~ msgid "An obsolete message it is"
#~ msgstr "Unha mensaxe vella de todo"
"""

A, B, C = SENTENCES
# name → (content, the texts in it)
SAMPLES: dict[str, tuple[str | bytes, list[str]]] = {
    "dump.xml": (dump(page("A", f"'''{A}'''"), page("B", B)), [A, B]),
    "dump.xml-p1p9.bz2": (bz2.compress(dump(page("C", C)).encode()), [C]),
    "table.parquet": (table([A, B, C]), [A, B, C]),
    "page.html": (f"<html><body><h1>Galicia</h1><p>{A}</p></body></html>", [f"Galicia\n{A}"]),
    "page.xhtml": (chapter(B), [B]),
    "book.epub": (book({"OEBPS/b.xhtml": chapter(B), "OEBPS/a.xhtml": chapter(A)}), [B, A]),
    "bank.conllu": (sentence(A, "newdoc id = a", "newpar") + sentence(B) + sentence(C, "newdoc"), [f"{A} {B}", C]),
    "scan.xml": (alto_page(alto_block("a", strings(A)), alto_block("b", strings(B))), [f"{A}\n{B}"]),
    "scan.hocr": (hocr_page([(C, 90)]), [C]),
    "words.po": (PO, ["Outra mensaxe que é longa\nAbrir os %d ficheiros agora \"mesmo\""]),
    "manual.docbook": (f"<book><chapter><title>Galicia</title><para>{C}</para></chapter></book>", [f"Galicia\n{C}"]),
    "plain.xml": (f"<?xml version='1.0'?><!-- a --><article><para>{B}</para></article>", [B]),
    "ls.1": (f'.TH LS 1\n.SH NOME\n{A}\n.PP\n{B}\n', [f"NOME\n{A}\n{B}"]),
    "text.txt.xz": (lzma.compress(f"{A}\n\n{B}\n".encode()), [A, B]),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_of_each_format_gives_its_texts(tmp_path, name):
    content, texts = SAMPLES[name]
    assert [d.text for d in read_bytes(tmp_path, name, content)] == texts


@pytest.mark.parametrize("name", SAMPLES)
def test_a_url_gives_what_the_file_gives(tmp_path, name):
    content, _ = SAMPLES[name]
    local = read_bytes(tmp_path, name, content)
    with fsspec.open(f"memory://{tmp_path}/{name}", "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    remote = read_all(f"memory://{tmp_path}/*")
    assert [d.id for d in remote] == [f"memory://{d.id}" for d in local]
    assert [(d.text, d.meta) for d in remote] == [(d.text, d.meta) for d in local]


@pytest.mark.parametrize("suffix", files.COMPRESSED)
@pytest.mark.parametrize(
    "name", ["dump.xml", "page.html", "bank.conllu", "scan.xml", "scan.hocr", "words.po", "ls.1", "manual.docbook"]
)
def test_a_compressed_file_gives_what_the_file_gives(tmp_path, name, suffix):
    content, texts = SAMPLES[name]
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}[suffix]
    assert [d.text for d in read_bytes(tmp_path, name + suffix, compress(content.encode()))] == texts


RECIPE = """
from jaxbert.config import *
def get_config():
    return Config(
        corpus=Corpus(input=("{input}",), language="gl", directory="{corpus}", validation_share=0.2, workers=1,
                      clean=Clean(identify_language=False, duplicates="off")),
        tokenizer=Tokenizer(kind="bpe", vocab_size=400), data=Data(row_length=32),
        model=named_model("bert_mini", max_positions=128), train=Train(steps=1), evaluation=Evaluation(piece_length=24),
    )
"""


def test_a_folder_of_every_format_is_prepared_and_every_document_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "check_against_transformers", lambda *_: "left out")  # seconds, and another's test
    for name, (content, _) in SAMPLES.items():
        write(tmp_path / "in" / name, content)
    for i in range(30):
        write(tmp_path / "in" / f"more{i:02}.txt", f"{A} {i}\n\n{B} {i * i}\n\n{C} {i + 1}\n")
    write(tmp_path / "in/redirects.xml", dump(page("R", "#REDIRECT [[A]]", more='<redirect title="A" />')))
    write(tmp_path / "in/broken.epub", b"PK\3\4 nothing")
    (tmp_path / "recipe.py").write_text(RECIPE.format(input=tmp_path / "in", corpus=tmp_path / "corpus"))
    prepare.main([f"--config={tmp_path / 'recipe.py'}"])
    corpus = prepare.load_corpus(tmp_path / "corpus")
    documents = sum(len(texts) for _, texts in SAMPLES.values()) + 90
    assert corpus["fates"]["kept"] == documents and corpus["documents"] == documents + 2
    assert corpus["fates"]["redirect"] == 1 and corpus["fates"]["unreadable"] == 1
    assert corpus["documents"] == sum(corpus["fates"].values())


# --- wikis ---


def test_a_wiki_page_is_its_text_without_tables_templates_references_files_and_categories(tmp_path):
    source = """{{Infobox|nome=[[A]]|x={{y|[[z]]}}}}
'''Galicia''' é unha [[nación histórica|comunidade]] ({{lang|pt|Galiza}}), no [[noroeste]].&lt;ref&gt;Nota.&lt;/ref&gt;
[[Ficheiro:Mapa.png|miniatura|Mapa de [[Galicia]]]]
== Historia ==
* Un elemento con 4&amp;nbsp;% &amp; [http://a.gl outro]
{| class="wikitable"
| cela || outra
|}
Unha liña&lt;br/&gt;e outra.&lt;!-- nada --&gt; Sen pechar {{aquí
[[:Categoría:Visible|unha categoría]] [[Categoría:Galicia]]
[[en:Galicia]] __NOTOC__"""
    (found,) = read_bytes(tmp_path, "a.xml", dump(page("Galicia", source)))
    assert found.meta == {"format": "wiki", "title": "Galicia"}
    assert found.text.split("\n") == [
        "Galicia é unha comunidade, no noroeste.",
        "Historia",
        "Un elemento con 4 % & outro",
        "Unha liña",
        "e outra. Sen pechar",
        "unha categoría",
    ]


def test_redirects_and_pages_that_are_no_articles_are_counted_and_left_out(tmp_path):
    content = dump(
        page("R", "#REDIRECT [[A]]", more='    <redirect title="A" />\n'),
        page("Conversa:A", "ola", ns=1),
        page("Q1", "{}", model="json"),
        page("A", A),
    )
    found = read_bytes(tmp_path, "a.xml", content)
    assert [getattr(d, "reason", "") for d in found] == ["redirect", "not_an_article", "not_an_article", ""]
    assert "'R'" in found[0].detail and "namespace 1" in found[1].detail and found[3].text == A


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Sexa <math>{{x}^{{2}</math> un <ce>{{</ce>número.", "Sexa un número."),
        ("Sexa <math>x sen fin.", "Sexa x sen fin."),
        ("Un </math> e <math/> dous.", "Un e dous."),
        ("Un <!-- {{ <math> --> e <!-- dous.", "Un e dous."),
        ("<nowiki>[[non é]]</nowiki> unha ligazón", "[[non é]] unha ligazón"),
        ("Un &#x1F600; e &nbsp;&bogus; e &#xD800;.", "Un 😀 e &bogus; e \ufffd."),
    ],
)
def test_formulas_go_and_what_is_no_markup_stays(source, text):
    assert wiki.article(source) == text


def test_of_several_revisions_the_last_is_read(tmp_path):
    older = "    <revision><id>1</id><model>wikitext</model><text>Vello de todo.</text></revision>\n"
    assert [d.text for d in read_bytes(tmp_path, "a.xml", dump(page("A", A, more=older)))] == [A]


@pytest.mark.parametrize("size", [1, 7, 8, 100, 10**6])
def test_pages_are_the_same_however_the_dump_is_cut_into_chunks(tmp_path, monkeypatch, size):
    path = write(tmp_path / "a.xml", dump(page("A", A), page("B", B), page("C", C)))
    whole = files.chunks

    def cut(path: str):
        for chunk in whole(path):
            yield from (chunk[i : i + size] for i in range(0, len(chunk), size))

    monkeypatch.setattr(files, "chunks", cut)
    assert [d.text for d in read_all(path)] == SENTENCES


def test_a_dump_is_streamed_and_its_memory_is_that_of_a_page(tmp_path):
    lines = "Unha liña curta do artigo.\n" * 4000
    content = dump(*(page(f"P{i}", lines, ns=1) for i in range(40)), page("L", "x" * 5_000_000), page("A", A))
    path = write(tmp_path / "a.xml.bz2", bz2.compress(content.encode()))
    del content
    tracemalloc.start()
    found = read_all(path, max_document_megabytes=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 42 and peak < 6_000_000
    assert found[40].reason == "too_long" and found[41].text == A


# --- parquet, CoNLL-U ---


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "binary", "dictionary"])
def test_text_columns_of_every_kind_are_read(tmp_path, kind):
    made = pyarrow.array([A, B, A])
    types = {"string_view": pyarrow.string_view(), "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string())}
    column = made.dictionary_encode() if kind == "dictionary" else made.cast(types.get(kind, kind))
    assert [d.text for d in read_bytes(tmp_path, "a.parquet", table(column))] == [A, B, A]


def test_a_null_in_a_column_is_an_empty_document(tmp_path):
    found = read_bytes(tmp_path, "a.parquet", table([A, None, B], name="body"), text_field="body")
    assert [d.text for d in found] == [A, "", B]


def test_ids_and_urls_beside_the_text_go_into_meta(tmp_path):
    rows = [{"text": A, "id": 7, "url": "https://a.gl/1"}, {"text": B, "id": "b", "url": ""}, {"text": C, "id": None}]
    lines = "\n".join(json.dumps(row) for row in rows)
    expected = [{"id": "7", "url": "https://a.gl/1"}, {"id": "b"}, {}]
    assert [d.meta for d in read_bytes(tmp_path, "a.jsonl", lines)] == [{"format": "jsonl"} | e for e in expected]
    columns = {"id": ["7", "b", None], "text": [A, B, C], "url": ["https://a.gl/1", "", None], "n": [1, 2, 3]}
    arrow.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = read_all(str(tmp_path / "a.parquet"))
    assert [(d.text, d.meta) for d in found] == [
        (text, {"format": "parquet"} | e) for text, e in zip([A, B, C], expected, strict=True)
    ]
    content = dump(page("A b", A)).replace(
        "<namespaces>", "<base>https://gl.wikipedia.org/wiki/Portada</base><namespaces>"
    )
    (found,) = read_bytes(tmp_path, "a.xml", content)
    assert found.meta["url"] == "https://gl.wikipedia.org/wiki/A_b"


def test_a_treebank_without_documents_comes_in_runs_of_sentences_one_a_line(tmp_path):
    content = "".join(sentence(f"Unha frase número {i}") for i in range(formats.SENTENCES + 2))
    first, rest = read_bytes(tmp_path, "a.conllu", content)
    assert len(first.text.split("\n")) == formats.SENTENCES
    assert rest.text.split("\n") == [f"Unha frase número {i}" for i in (24, 25)]


def test_marks_of_paragraphs_divide_a_document_into_lines(tmp_path):
    content = sentence("Un.", "newdoc", "newpar") + sentence("Dous.") + sentence("Tres.", "newpar id = p2")
    (found,) = read_bytes(tmp_path, "a.conllu", content + sentence("Catro."))
    assert found.text == "Un. Dous.\nTres. Catro."


def test_a_sentence_without_its_text_is_put_together_from_its_words(tmp_path):
    rows = ["1-2\tDo", "1\tDe", "2\to", "3\tmar", "3.1\tnada", "4\t."]
    rest = ["_", "_", "_", "_", "_", "_", "_"]
    lines = ["\t".join([*row.split("\t"), *rest, "SpaceAfter=No" if "mar" in row else "_"]) for row in rows]
    (found,) = read_bytes(tmp_path, "a.conllu", "\n".join(lines))  # no newline at the end either
    assert found.text == "Do mar."


# --- EPUB, gettext, OCR ---


def test_a_book_gives_its_chapters_in_the_order_of_the_spine_with_its_title(tmp_path):
    content = book({"OEBPS/text/z.xhtml": chapter(A), "OEBPS/a b.xhtml": chapter(B)}, ["text/z.xhtml#x", "a%20b.xhtml"])
    found = read_bytes(tmp_path, "a.epub", content)
    assert [(d.text, d.meta["title"]) for d in found] == [(A, "Un libro"), (B, "Un libro")]


def test_a_page_of_xhtml_may_use_the_entities_of_html_and_need_not_be_well_formed():
    content = (
        "<html xmlns='http://www.w3.org/1999/xhtml'><head><title/></head><body><p>Un&nbsp;caf&eacute;</p></body></html>"
    )
    assert next(markup.xhtml(content.encode(), Path("a"))) == "Un café"
    assert next(markup.xhtml("<html><p>Un <b>café</p></html>".encode(), Path("a"))) == "Un café"


def test_text_nested_deeper_than_libxml2_likes_is_counted_or_read_but_never_lost(tmp_path):
    found = read_bytes(tmp_path, "a.html", f"<body>{'<div>' * 300}<p>{A}</p>{'</div>' * 300}<p>{B}</p></body>")
    assert [d.text for d in found] == [f"{A}\n{B}"]
    (found,) = read_bytes(tmp_path, "b.html", f"<body>{'<div>' * 20000}<p>{A}</p></body>")
    assert found.reason == "unreadable"


def test_a_po_file_in_another_charset_is_read_as_it_declares(tmp_path):
    content = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=CP1250\\n"\n\n'
    content += 'msgid "a"\nmsgstr "łódź i jeszcze trzy słowa"\n'
    assert [d.text for d in read_bytes(tmp_path, "a.po", content.encode("cp1250"))] == ["łódź i jeszcze trzy słowa"]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["unha pala-", "bra longa"], "unha palabra longa"),
        (["de Baden-", "Baden a Ourense"], "de Baden-Baden a Ourense"),
        (["unha pala\xad", "bra"], "unha palabra"),
        (["unha pala¬", "Bra"], "unha palaBra"),
        (["de 1990 -", "ata agora"], "de 1990 - ata agora"),
        (["páxinas 3-", "4"], "páxinas 3- 4"),
        (["fin.", "", "  Novo "], "fin. Novo"),
        (["-", "a"], "- a"),
        ([], ""),
    ],
)
def test_words_that_a_lines_end_divides_are_whole_again(lines, text):
    assert markup.dehyphenated(lines) == text


def test_alto_is_read_in_its_reading_order_with_whole_words_and_the_share_of_doubtful_ones(tmp_path):
    order = (
        '<ReadingOrder><OrderedGroup ID="g"><ElementRef ID="r1" REF="b2"/><ElementRef ID="r2" REF="b1"/>'
        "</OrderedGroup></ReadingOrder>"
    )
    parts = [f'<String CONTENT="{part}" SUBS_TYPE="HypPart{i}" SUBS_CONTENT="palabra" WC="{confidence}"/>'
             for i, (part, confidence) in enumerate([("pala", 0.8), ("bra", 0.3)], 1)]  # fmt: skip
    divided = [parts[0] + '<HYP CONTENT="-"/>', parts[1] + strings("longa")]
    undivided = [strings("Outra pala") + '<HYP CONTENT="¬"/>', strings("bra curta", "0.5")]
    content = alto_page(alto_block("b1", *divided), alto_block("b2", *undivided), alto_block("b3"), order=order)
    (found,) = read_bytes(tmp_path, "a.xml", content)
    assert found.text.split("\n") == ["Outra palabra curta", "palabra longa"]
    assert found.meta == {"format": "alto", "doubtful_words": "0.429"}  # 3 of 7


def test_hocr_is_read_by_paragraphs_with_the_share_of_doubtful_words(tmp_path):
    content = hocr_page([("Unha pala-", 90), ("bra longa", 59)], [("Outro parágrafo", 60)])
    for name in ("a.hocr", "b.html", "c.xml"):
        (found,) = read_bytes(tmp_path, name, content)
        assert found.text.split("\n") == ["Unha palabra longa", "Outro parágrafo"]
        assert found.meta == {"format": "hocr", "doubtful_words": "0.333"}


def test_hocr_with_an_element_a_character_and_without_confidences_is_read(tmp_path):
    letters = "\n".join(f"<span class='ocrx_cinfo'>{c}</span>" for c in "Ola")
    content = (
        f"<div class='ocr_page'><span class='ocr_line'><span class='ocrx_word'>\n{letters}\n</span> a</span></div>"
    )
    (found,) = read_bytes(tmp_path, "a.hocr", content)
    assert found.text == "Ola" and found.meta == {"format": "hocr"}


# --- what a suffix says too little about ---


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("a.1", ".TH LS 1\n.SH NOME\nTexto\n", "man"),
        ("a.3pm", '\'\\" t\n.\\" comment\n.TH X 3\n', "man"),
        ("corpus.1", "Texto normal\n", "text"),
        ("a.man", "calquera", "man"),
        ("a.xml", '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]>\n<a:alto xmlns:a="x"/>', "alto"),
        ("a.xml", "<!-- <alto> --><book/>", "xml"),
        ("a.xml", "\ufeff<mediawiki/>", "wiki"),
        ("a.xml", '<?xml version="1.0" encoding="utf-16"?><alto/>'.encode("utf-16"), "alto"),
        ("a.xml", "<!-- " * 40, "xml"),
        ("a.xml", "<!--x-->" * 8000, "xml"),
        ("A.HTML", "<p>x</p>", "html"),
        ("a.PARQUET", "x", "parquet"),
        ("a.unknown", "x", "text"),
    ],
)
def test_a_format_follows_from_the_suffix_and_where_that_says_too_little_from_the_beginning(
    tmp_path, name, content, form
):
    assert formats.format_of(write(tmp_path / name, content)) == form


# --- encodings ---


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "zażółć gęślą jaźń"),
        ("a.jsonl", '{"text": "zażółć gęślą jaźń"}'),
        ("a.conllu", "# text = zażółć gęślą jaźń\n1\tx\n"),
        ("a.html", "<p>zażółć gęślą jaźń</p>"),
        ("a.man", "zażółć gęślą jaźń"),
        ("a.docbook", "<para>zażółć gęślą jaźń</para>"),
    ],
)
def test_files_that_declare_no_encoding_are_read_in_that_of_the_recipe(tmp_path, name, content):
    (found,) = read_bytes(tmp_path, name, content.encode("cp1250"), encoding="windows-1250")
    assert found.text == "zażółć gęślą jaźń"


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("a.html", '<meta charset="iso-8859-2"><p>łódź</p>', "iso-8859-2"),
        ("a.docbook", '<?xml version="1.0" encoding="iso-8859-2"?><para>łódź</para>', "iso-8859-2"),
        ("a.docbook", '<?xml version="1.0" encoding="UTF-16"?><para>łódź</para>', "utf-16"),
        ("a.html", "<p>łódź</p>", "utf-8"),
    ],
)
def test_what_a_file_declares_or_plainly_is_counts_more_than_the_recipe(tmp_path, name, content, encoding):
    assert [d.text for d in read_bytes(tmp_path, name, content.encode(encoding), encoding="latin-1")] == ["łódź"]


@pytest.mark.parametrize("name", ["utf-16", "utf-7", "cp037", "no-such", "base64", ""])
def test_an_encoding_that_cannot_work_stops_with_its_name(tmp_path, name):
    with pytest.raises(BadInput, match=rf"corpus\.encoding: .*{name!r}.*(iconv|try utf-8)"):
        read_bytes(tmp_path, "a.txt", "x", encoding=name)


def test_bytes_that_are_not_in_the_encoding_stop_or_are_replaced(tmp_path):
    path = write(tmp_path / "a.txt", b"ol\xe1 \x81")
    with pytest.raises(BadInput, match=r"a\.txt: byte 4 \(line 1\) is 0x81, not cp1250; give corpus\.encoding"):
        read_all(path, encoding="cp1250")
    assert read_all(path, encoding="cp1250", invalid_utf8="repair")[0].text == "olá \ufffd"


# --- remote files, data sets ---


def test_a_url_of_a_directory_stands_for_the_files_below_it(tmp_path):
    for name in ("b.txt", "a/x.txt", "a/.hidden"):
        with fsspec.open(f"memory://{tmp_path}/{name}", "w") as file:
            file.write(name)
    assert [d.text for d in read_all(f"memory://{tmp_path}")] == ["a/x.txt", "b.txt"]
    assert [d.text for d in read_all(f"memory://{tmp_path}/b.txt")] == ["b.txt"]


def test_the_url_of_a_file_with_brackets_in_its_name_is_no_glob(tmp_path):
    with fsspec.open(f"memory://{tmp_path}/a[1].txt", "w") as file:
        file.write("Ola")
    assert [d.text for d in read_all(f"memory://{tmp_path}/a[1].txt")] == ["Ola"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://nothing/here.txt", ["nothing matches", "memory://nothing/here.txt"]),
        ("memory://nothing/*", ["nothing matches"]),
        ("nosuch://a/b", ["nosuch", "fsspec"]),
        ("gs://a/b", ["gs://a/b", "gcsfs"]),
        ("s3://a/b", ["s3://a/b", "s3fs"]),
        ("zip://a::memory://b", ["chain"]),
    ],
)
def test_a_url_that_cannot_be_opened_stops_with_its_name(url, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as where they are not installed
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(BadInput) as error:
        read_all(url)
    assert all(word in str(error.value) for word in ["corpus.input", *words])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.epub", "a.html", "a.xml"])
def test_a_network_that_fails_stops_the_run_for_no_document_is_at_fault(tmp_path, monkeypatch, name):
    content = {"a.parquet": table([A]), "a.epub": book({"a.xhtml": chapter(A)})}.get(name, b'{"text": "a"}')
    with fsspec.open(f"memory://{tmp_path}/{name}", "wb") as file:
        file.write(content)
    corpus = Corpus(input=(f"memory://{tmp_path}/{name}",), language="gl")
    (source,) = readers.sources(corpus)

    def fail(*_: Any) -> bytes:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", fail)
    with pytest.raises(BadInput, match=rf"{name}: cannot be read: ConnectionResetError: reset by peer; start again"):
        list(readers.read(source, corpus))


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory):
    """A folder of tensorflow_datasets with one small data set."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in ("text", "id")})
            return tfds.core.DatasetInfo(builder=self, features=features, license="CC0-1.0", citation="Ana, 2020")

        def _split_generators(self, manager):
            return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"text": f"Unha frase en galego {i}", "id": str(i)}

    place = tmp_path_factory.mktemp("tfds")
    TinyTexts(data_dir=str(place), file_format="array_record").download_and_prepare()
    return place


def test_a_split_of_a_data_set_is_read_without_tensorflow(data_sets, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_sets))
    found = read_all("tfds:tiny_texts:train", "tfds:tiny_texts:1.2.0:test")
    assert sorted(d.text for d in found) == sorted(f"Unha frase en galego {i}" for i in [0, 1, 2, 3, 4, 5, 0, 1])
    assert [d.id for d in found[:2]] == ["tfds:tiny_texts:train#1", "tfds:tiny_texts:train#2"]
    assert [d.text for d in read_all("tfds:tiny_texts:train")] == [d.text for d in found[:6]]  # always the same order
    assert all(d.meta == {"format": "tfds", "id": d.text[-1]} for d in found)
    assert len(read_all("tfds:tiny_texts:train[:50%]+test")) == 5
    assert "tensorflow" not in sys.modules


def test_a_data_set_records_version_hash_licence_and_citation(data_sets, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_sets))
    (source,) = readers.sources(Corpus(input=("tfds:tiny_texts:train",), language="gl"))
    assert (source.kind, source.version, source.licence) == ("tfds", "1.2.0", "CC0-1.0")
    assert source.attribution == "Ana, 2020" and len(source.sha256) == 64 and source.bytes > 0


@pytest.mark.parametrize(
    ("entry", "field", "words"),
    [
        ("tfds:tiny_texts", "text", ["write tfds:NAME:SPLIT"]),
        ("tfds:tiny_texts:dev", "text", ["no split 'dev'", "train, test"]),
        ("tfds:no_such_set:train", "text", ["no data set 'no_such_set'"]),
        ("tfds:tiny_texts:train", "body", ["no feature 'body'", "text", "id", "text_field"]),
    ],
)
def test_a_data_set_that_cannot_be_read_stops_with_its_name(data_sets, monkeypatch, entry, field, words):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_sets))
    with pytest.raises(BadInput) as error:
        read_all(entry, text_field=field)
    assert all(word in str(error.value) for word in [entry, *words])


# --- malformed files ---

BOMB = (  # a kilobyte a hundredfold, twice
    "<!DOCTYPE x [<!ENTITY a '" + "x" * 1000 + "'>"
    + "".join(f"<!ENTITY {b} '{f'&{a};' * 100}'>" for a, b in zip("ab", "bc", strict=True)) + "]>"
)  # fmt: skip
QUADRATIC = f"<!DOCTYPE x [<!ENTITY a '{'x' * 50_000}'>]>"


EXTERNAL = '<!DOCTYPE x SYSTEM "http://localhost:9/a.dtd" [<!ENTITY s SYSTEM "file:///etc/passwd">]>'


def link(name: str, target: str) -> bytes:
    """An EPUB of which one chapter is a symbolic link."""
    data = io.BytesIO(book({"OEBPS/a.xhtml": chapter(A)}, ["a.xhtml", name]))
    with zipfile.ZipFile(data, "a") as archive:
        info = zipfile.ZipInfo(f"OEBPS/{name}")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, target)
    return data.getvalue()


def overwritten(data: bytes, at: int, by: bytes = b"\xff" * 40) -> bytes:
    return data[:at] + by + data[at + len(by) :]


def chapter_after(prolog: str, text: str) -> str:
    return f"{prolog}<html xmlns='http://www.w3.org/1999/xhtml'><body><p>{text}</p></body></html>"


PACK = io.BytesIO()
with zipfile.ZipFile(PACK, "w", zipfile.ZIP_DEFLATED) as _archive:
    _archive.writestr("a.ftl", "a = " + "x" * 60_000_000)
MESSAGES = {"text": A, "n": 1}
STOPS = "stops"
SPLIT = bz2.compress(dump(page("A", A)).encode()) + bz2.compress((page("B", B) * 2000).encode())
ROWS = table([A * 20, B * 20, C * 20, A, B, C], group=3, compression="none", write_page_checksum=True)

BYTES = random.Random(0).randbytes(4000)
BOOK = book({"b.xhtml": BYTES.hex(), "a.xhtml": chapter(A)})

# (name, content, recipe fields, what becomes of it: STOPS or the reasons of its Unreads in order,
#  words of the message or the details, texts that are read all the same)
MALFORMED: list[tuple[str, Any, dict[str, Any], Any, str, list[str]]] = [
    # compressed
    ("cut.txt.bz2", bz2.compress(f"{A}\n\n{B}".encode())[:-12], {}, ["unreadable"], "middle of the compressed", []),
    ("cut.txt.xz", lzma.compress(BYTES.hex().encode())[:-700], {}, ["unreadable"], "middle of", []),
    ("none.txt.gz", "no gzip at all", {}, ["unreadable"], "corrupted after 0", []),
    ("none.jsonl.bz2", "no bzip2 at all", {}, ["unreadable"], "corrupted after 0", []),
    ("bomb.txt.zst", zstandard.compress(bytes(400_000_000)), {}, ["unreadable"], "a bomb", []),
    ("bomb.txt.gz", gzip.compress(bytes(110_000_000)), {}, ["unreadable"], "a bomb", []),
    ("bomb.html.gz", gzip.compress(b"<p>" + bytes(30_000_000)), {}, ["too_long"], "max_document_megabytes", []),
    ("bomb.xml.bz2", bz2.compress(WIKI_HEAD.encode() + bytes(110_000_000)), {}, ["unreadable"], "(bomb|no <page>)", []),
    ("bomb.xpi", PACK.getvalue(), {}, ["unreadable"], "unpacks to more than", []),
    ("bomb.man", gzip.compress(b"." * 60_000_000), {}, ["unreadable"], "unpacks to more than", []),
    # wiki
    ("cut.xml", dump(page("A", A), page("B", B))[:-60], {}, ["unreadable"], "middle of a page: 'B'", [A]),
    ("cut.xml.bz2", SPLIT[:-200], {}, ["unreadable"], "rest of the dump", [A]),
    ("tag.xml", dump(page("A", A), page("T", "a < b"), page("B", B)), {}, ["unreadable"], "'T'", [A, B]),
    ("nul.xml", dump(page("A", A), page("T", "a\0b"), page("B", B)), {}, ["unreadable"], "'T'", [A, B]),
    ("mixed.xml", dump(page("A", A), page("T", "caf~"), page("B", B)).encode().replace(b"~", b"\xe9"), {},
     ["unreadable"], "'T'.*UnicodeDecodeError", [A, B]),
    ("mixed.xml", dump(page("A", A), page("T", "caf~")).encode().replace(b"~", b"\xe9"),
     {"invalid_utf8": "repair"}, [], "", [A, "café"]),
    ("open.xml", dump(page("A", A), page("T", C).replace("  </page>\n", ""), page("B", B)), {},
     ["unreadable"], "no </page>: 'T'", [A, B]),
    ("opens.xml", dump(*[page(t, C).replace("  </page>\n", "") for t in "TT"], page("B", B)), {},
     ["unreadable", "unreadable"], "no </page>: 'T'", [B]),
    ("ends.xml", dump(page("A", A)).removesuffix("</mediawiki>\n"), {}, ["unreadable"], "the rest of the dump", [A]),
    ("bomb.xml", BOMB + dump(page("A", A), page("T", "Unha &c; só.")), {}, [], "", [A, "Unha c só."]),
    ("none.xml", "<mediawiki><siteinfo/></mediawiki>", {}, ["unreadable"], "no <page>", []),
    ("notext.xml", dump("<page><title>T</title><ns>0</ns></page>", page("B", B)), {}, ["unreadable"], "<text>", [B]),
    ("long.xml", dump(page("T", "x" * 5000), page("B", B)), {"max_document_megabytes": 0.004},
     ["too_long"], "a page of 5,", [B]),
    ("braces.xml", dump(page("T", "{{" * 50 + "[[" * 50), page("B", B)), {}, [], "", ["", B]),
    *[("nested.xml", dump(page("T", opening * 50_000), page("B", B)), {}, ["unreadable"], "inside each other", [B])
      for opening in ("{{a|", "[[a|", "[http://a ", "&lt;b&gt;")],
    # parquet
    ("none.parquet", "PAR1 no parquet PAR1", {}, ["unreadable"], "none.parquet", []),
    ("zeros.parquet", bytes(2000), {}, ["unreadable"], "zeros.parquet", []),
    ("cut.parquet", table([A, B])[:-30], {}, ["unreadable"], "cut.parquet", []),
    ("flipped.parquet", overwritten(ROWS, ROWS.index(A.encode()) + 60), {},
     ["unreadable"], "row group 0, 3 rows from row 1", [A, B, C]),
    ("field.parquet", table([A], name="body"), {}, STOPS, "no column 'text' .*n, body.*text_field", []),
    ("numbers.parquet", table([1, 2]), {}, STOPS, "column 'text' is of type int64, not text", []),
    ("lists.parquet", table([[A], [B]]), {}, STOPS, "column 'text' is of type list", []),
    ("mixed.parquet", table([b"ol\xe1", A.encode()]), {}, STOPS, r"byte 2 \(row 1\) is 0xE1", []),
    ("mixed.parquet", table([b"ol\xe1", A.encode()]), {"invalid_utf8": "repair"}, [], "", ["olá", A]),
    ("long.parquet", table([A, "x" * 5000, B]), {"max_document_megabytes": 0.004}, ["too_long"], "5,000", [A, B]),
    ("empty.parquet", table([], type="string"), {}, [], "", []),
    # EPUB
    ("none.epub", "no zip at all", {}, ["unreadable"], "BadZipFile", []),
    ("cut.epub", book({"a.xhtml": chapter(A)})[:-40], {}, ["unreadable"], "BadZipFile", []),
    ("bomb.epub", book({"b.xhtml": bytes(30_000_000), "a.xhtml": chapter(A)}), {"max_document_megabytes": 1},
     ["too_long"], "b.xhtml", [A]),
    ("parent.epub", book({"OEBPS/a.xhtml": chapter(A)}, ["../../../../etc/passwd", "/etc/passwd", "a.xhtml"]), {},
     ["unreadable", "unreadable"], "etc/passwd' is not in the archive", [A]),
    ("link.epub", link("b.xhtml", "/etc/passwd"), {}, ["unreadable"], "b.xhtml' is a link", [A]),
    ("missing.epub", book({"OEBPS/a.xhtml": chapter(A)}, ["b.xhtml", "", "a.xhtml"]), {},
     ["unreadable", "unreadable"], "not in the archive", [A]),
    ("entities.epub", book({"b.xhtml": chapter_after(BOMB, "&c;" * 9), "a.xhtml": chapter(A)}), {},
     ["unreadable"], "b.xhtml.*50 MB", [A]),
    ("external.epub", book({"b.xhtml": chapter_after(EXTERNAL, "Ola &s;")}), {}, [], "", ["Ola s"]),
    ("crc.epub", overwritten(BOOK, BOOK.index(b"b.xhtml") + 200), {}, ["unreadable"], "b.xhtml", [A]),
    ("locked.epub", book({"OEBPS/a.xhtml": chapter(A), "OEBPS/b.xhtml": bytes(50)}, **{"META-INF_encryption.xml":
     '<encryption><CipherData><CipherReference URI="OEBPS/b.xhtml"/></CipherData></encryption>'}), {},
     ["unreadable"], "b.xhtml' is encrypted", [A]),
    ("container.epub", PACK.getvalue(), {}, ["unreadable"], "not an EPUB.*container.xml", []),
    ("spine.epub", book({"a.xhtml": chapter(A)}, []), {}, ["unreadable"], "names no chapter", []),
    # HTML and XML
    ("blank.html", " \n\t ", {}, ["unreadable"], "blank.html", []),
    ("nul.html", b"<p>Unha\0 frase</p><p>Outra</p>", {}, [], "", ["Unha\ufffd frase\nOutra"]),
    ("mixed.html", b"<meta charset=utf-8><p>caf\xe9 \xc3\xa1</p>", {}, ["unreadable"], "UnicodeDecodeError", []),
    ("mixed.html", b"<meta charset=utf-8><p>caf\xe9 \xc3\xa1</p>", {"invalid_utf8": "repair"}, [], "", ["café á"]),
    ("charset.html", b"<meta charset=x-nothing><p>caf\xe9</p>", {}, [], "", ["café"]),
    ("long.html", f"<p>{'x' * 5000}</p>", {"max_document_megabytes": 0.004}, ["too_long"], "long.html", []),
    ("cut.docbook", f"<book><para>{A}</para><para>{B}", {}, [], "", [f"{A}\n{B}"]),
    ("none.docbook", "no XML at all", {}, ["unreadable"], "none.docbook", []),
    ("zeros.docbook", bytes(100), {}, ["unreadable"], "zeros.docbook", []),
    ("quadratic.docbook", f"{QUADRATIC}<para>{'&a;' * 50_000}</para>", {}, ["unreadable"], "50 MB", []),
    ("bomb.xml", f"{BOMB}<article><para>{'&c;' * 9}</para></article>", {}, ["unreadable"], "50 MB", []),
    ("external.xml", f"{EXTERNAL}<article><para>Ola &s;</para></article>", {}, [], "", ["Ola s"]),
    ("include.xml", '<article xmlns:xi="http://www.w3.org/2001/XInclude"><para>Ola '
     '<xi:include href="file:///etc/passwd" parse="text"/></para></article>', {}, [], "", ["Ola"]),
    # CoNLL-U
    ("columns.conllu", sentence(A, "newdoc") + "1 Ola\n2 mundo\n\n" + sentence(B), {},
     ["unreadable"], "line 15", [f"{A}\n{B}"]),
    ("text.conllu", f"{A}\n\n{B}\n", {}, ["unreadable", "unreadable"], "text.conllu line", []),
    ("line.conllu", sentence(A, "newdoc") + "x" * 100_000 + "\n\n" + sentence(B, "newdoc"),
     {"max_document_megabytes": 0.05}, ["too_long"], "100,000 bytes in one line", [A, B]),
    ("long.conllu", sentence(A, "newdoc") + sentence("y " * 700, "newdoc") * 3 + sentence(B, "newdoc"), {}, [], "",
     [A, *[("y " * 700).strip()] * 3, B]),
    ("long.conllu", sentence(A, "newdoc") + sentence("x", "newdoc") + sentence("y " * 700) * 3 + sentence(B, "newdoc"),
     {"max_document_megabytes": 0.004}, ["too_long"], "in one document", [A, B]),
    ("cut.conllu", sentence(A, "newdoc") + f"# text = {B}\n1\tA", {}, [], "", [f"{A}\n{B}"]),
    ("mixed.conllu", b"# text = caf\xe9\n1\ta\n", {}, STOPS, r"byte 12 \(line 1\)", []),
    # gettext
    ("none.po", "no catalogue at all", {}, ["unreadable"], "no msgstr", []),
    ("line.po", PO + 'msgid "unclosed of four words\nmsgstr "Unha mensaxe sen fin', {},
     ["unreadable"], "2 lines.*line 25", SAMPLES["words.po"][1]),
    ("mixed.po", PO.encode() + b'msgid "x"\nmsgstr "caf\xe9"\n', {}, ["unreadable"], "UnicodeDecodeError", []),
    ("cut.mo", struct.pack("<4I", 0x950412DE, 0, 9**9, 28), {}, ["unreadable"], "cut.mo", []),
    ("count.mo", struct.pack("<7I", 0x950412DE, 0, 1, 20, 20, 255, 255), {}, ["unreadable"], "cut off", []),
    # OCR
    ("cut.xml", alto_page(alto_block("a", strings(A)))[:-40], {}, ["unreadable"], "XMLSyntaxError", []),
    ("entity.xml", BOMB + alto_page(alto_block("a", '<String CONTENT="' + "&c;" * 9 + '"/>')).partition("?>")[2], {},
     ["unreadable"], "50 MB", []),
    ("words.xml", alto_page(alto_block("a", strings(A, "NaN"), "<String/>")), {}, [], "", [A]),
    ("none.hocr", "<p>Unha páxina sen clases</p>", {}, ["unreadable"], "not hOCR", []),
    ("words.hocr", hocr_page([(A, 90)]).replace("x_wconf 90", "x_wconf ..9."), {}, [], "", [A]),
    # JSON lines and text
    ("deep.jsonl", json.dumps(MESSAGES) + "\n" + "[" * 100_000 + "\n" + json.dumps({"text": B}), {},
     ["unreadable"], "line 2: RecursionError", [A, B]),
    ("digits.jsonl", '{"text": "a", "n": ' + "9" * 5000 + "}\n" + json.dumps({"text": B}), {},
     ["unreadable"], "line 1", [B]),
    ("surrogate.jsonl", '{"text": "a \\ud800 b"}\n{"text": "c"}', {}, [], "", ["a \ud800 b", "c"]),
    ("bidi.jsonl", json.dumps({"text": "a \u202e b \u2066c\u2069"}), {}, [], "", ["a \u202e b \u2066c\u2069"]),
    ("wide.txt", A.encode("utf-16"), {}, STOPS, "byte 0 .*0xFF, not UTF-8.*iconv", []),
    ("line.txt", f"{A}\n\n{'x' * 200_000}\n\n{B}", {"max_document_megabytes": 0.1},
     ["too_long"], "200,000 bytes", [A, B]),
    ("bits.txt", bytes(range(128, 256)), {}, STOPS, "0x80, not UTF-8", []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "fields", "outcome", "words", "texts"),
    MALFORMED,
    ids=[f"{i}-{m[0]}" for i, m in enumerate(MALFORMED)],
)
def test_a_malformed_file_stops_or_is_counted_and_costs_no_other_document(
    tmp_path, name, content, fields, outcome, words, texts
):
    write(tmp_path / name, content)
    write(tmp_path / "zz.txt", "A veciña.")
    if outcome == STOPS:
        with pytest.raises(BadInput, match=f"{name}.*{words}"):
            read_all(f"{tmp_path}/*", **fields)
        return
    found = read_all(f"{tmp_path}/*", **fields)
    unread = [d for d in found if isinstance(d, files.Unread)]
    assert [d.text for d in found if isinstance(d, files.Document)] == [*texts, "A veciña."]
    assert [d.reason for d in unread] == outcome
    for d in unread:
        assert name in d.detail and re.search(words, d.detail), d.detail


@pytest.mark.parametrize("name", ["a.txt.zst", "a.txt.gz", "a.xml.bz2", "a.html.xz", "a.epub"])
def test_a_bomb_is_never_held_in_memory(tmp_path, name):
    compress = {".zst": zstandard.compress, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    zeros = bytes(60_000_000)
    content = book({"a.xhtml": zeros}) if name == "a.epub" else compress[os.path.splitext(name)[1]](zeros)
    path = write(tmp_path / name, content)
    del zeros, content
    tracemalloc.start()
    (found,) = read_all(path, max_document_megabytes=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, files.Unread) and peak < 25_000_000


def test_a_link_to_nothing_stops_with_its_name(tmp_path):
    write(tmp_path / "a.txt", A)
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    for entry in (str(tmp_path), f"{tmp_path}/*.txt"):
        with pytest.raises(BadInput, match=r"b\.txt: a link to a file that is not there"):
            read_all(entry)
