"""Reading: what is a document in each format, and what becomes of input that cannot be read."""

import gzip
import hashlib
import json
import struct
import subprocess
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import zstandard

from jaxbert.config import Corpus
from jaxbert.data import debian, markup, readers
from jaxbert.errors import BadInput


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read_all(*inputs: str, **fields) -> list[readers.Document | readers.Unread]:
    corpus = Corpus(input=inputs, language="gl", **fields)
    return [d for source in readers.sources(corpus, log=lambda line: None) for d in readers.read(source, corpus)]


def texts(*inputs: str, **fields) -> list[str]:
    return [d.text for d in read_all(*inputs, **fields)]


# --- plain text and JSON lines ---

THREE = "Un parágrafo.\nOutro.\n\n \nSegundo bloque.\r\nRemate.\n"


def test_a_block_between_blank_lines_is_a_document_by_default(tmp_path):
    assert texts(write(tmp_path / "a.txt", THREE)) == ["Un parágrafo.\nOutro.", "Segundo bloque.\nRemate."]


def test_a_line_is_a_document_on_request(tmp_path):
    lines = ["Un parágrafo.", "Outro.", "Segundo bloque.", "Remate."]
    assert texts(write(tmp_path / "a.txt", THREE), document="line") == lines


def test_a_file_is_a_document_on_request(tmp_path):
    whole = "Un parágrafo.\nOutro.\n\n \nSegundo bloque.\nRemate."
    assert texts(write(tmp_path / "a.txt", THREE), document="file") == [whole]


def test_a_byte_order_mark_is_not_text(tmp_path):
    assert texts(write(tmp_path / "a.txt", b"\xef\xbb\xbfOla a todos")) == ["Ola a todos"]


def test_json_lines_give_the_named_field_and_skip_blank_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"body": "Ola\\nmundo", "n": 1}\n\n{"body": "Adeus"}\n')
    assert texts(path, text_field="body") == ["Ola\nmundo", "Adeus"]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_compressed_files_read_as_plain_ones_even_in_several_members(tmp_path, suffix, compression):
    compress = gzip.compress if compression == "gz" else zstandard.ZstdCompressor().compress
    halves = [b'{"text": "Ola"}\n{"te', b'xt": "Adeus"}\n'] if suffix == ".jsonl" else [b"Ola\n\nAd", b"eus\n"]
    path = write(tmp_path / f"a{suffix}.{compression}", compress(halves[0]) + compress(halves[1]))
    assert texts(path) == ["Ola", "Adeus"]


def test_ids_are_unique_and_name_the_file(tmp_path):
    write(tmp_path / "b.txt", "Un\n\nDous")
    write(tmp_path / "a.txt", "Tres")
    ids = [d.id for d in read_all(f"{tmp_path}/*.txt")]
    assert ids == [f"{tmp_path}/a.txt#1", f"{tmp_path}/b.txt#1", f"{tmp_path}/b.txt#2"]


def test_a_directory_stands_for_the_files_below_it_in_sorted_order(tmp_path):
    for name in ("z.txt", "b/y.jsonl", "b/.hidden"):
        write(tmp_path / name, '{"text": "ipsilon"}' if name.endswith("jsonl") else "zeta")
    assert texts(str(tmp_path)) == ["ipsilon", "zeta"]


def test_a_file_that_two_entries_match_is_read_once(tmp_path):
    path = write(tmp_path / "a.txt", "Ola")
    write(tmp_path / "b.txt", "Adeus")
    assert texts(path, f"{tmp_path}/*.txt") == ["Ola", "Adeus"]


def test_a_source_records_hash_size_and_licence_but_not_every_file(tmp_path):
    path = write(tmp_path / "a.txt", "abc")
    (source,) = readers.sources(Corpus(input=(path,), licence="CC0-1.0", attribution="Nós"))
    record = source.record()
    assert record["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (record["bytes"], record["licence"], record["attribution"], record["files"]) == (3, "CC0-1.0", "Nós", 1)


def test_a_missing_licence_is_recorded_as_unknown(tmp_path):
    (source,) = readers.sources(Corpus(input=(write(tmp_path / "a.txt", "abc"),)))
    assert source.licence.startswith("unknown")


# --- bad input that stops, with one message ---


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{}/none.txt", ["nothing matches", "none.txt"]),
        ("{}/empty.txt", ["empty.txt", "is empty"]),
        ("{}/bare", ["directory", "bare", "is empty"]),
        ("ftp:anything", ["no reader", "ftp"]),
        ("deb:", ["names no package"]),
        ("deb:Not_A_Name", ["deb:Not_A_Name", "not a package name"]),
    ],
)
def test_an_entry_that_names_no_text_stops_with_its_name(tmp_path, entry, words):
    write(tmp_path / "empty.txt", "")
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadInput) as error:
        texts(entry.format(tmp_path))
    assert all(word in str(error.value) for word in words)


def test_no_input_at_all_stops():
    with pytest.raises(BadInput, match="corpus.input: empty"):
        readers.sources(Corpus())


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_text_that_is_not_utf8_stops_with_file_and_byte_in_the_decompressed_text(tmp_path, ending):
    content = "ñandú\n".encode() + b"caf\xe9 con leite\n"
    path = write(tmp_path / f"a{ending}", gzip.compress(content) if ending.endswith("gz") else content)
    with pytest.raises(BadInput, match=rf"a{ending}: byte 11 \(line 2\) is 0xE9.*iconv.*invalid_utf8"):
        texts(path)


def test_repair_reads_the_odd_byte_in_the_former_encoding_of_the_language(tmp_path):
    path = write(tmp_path / "a.txt", "ñu e ".encode() + b"caf\xe9")
    assert texts(path, invalid_utf8="repair") == ["ñu e café"]
    corpus = Corpus(input=(write(tmp_path / "b.txt", "łódź".encode("cp1250")),), language="pl", invalid_utf8="repair")
    assert [d.text for d in readers.read(readers.sources(corpus)[0], corpus)] == ["łódź"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"body": "x"}', ["line 2", "no field 'text'", "body"]),
        ('["x"]', ["line 2", "no field 'text'", "list"]),
        ('{"text": 3}', ["line 2", "is 3, not text"]),
        ('{"text": "x"', ["line 2", "not JSON"]),
    ],
)
def test_a_json_line_without_its_text_stops_with_file_and_line(tmp_path, line, words):
    path = write(tmp_path / "a.jsonl", f'{{"text": "Ola"}}\n{line}\n')
    with pytest.raises(BadInput) as error:
        texts(path)
    assert all(word in str(error.value) for word in ["a.jsonl", *words])


# --- bad input that is counted and goes on ---


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_line_of_50_mb_is_counted_and_its_neighbours_are_read(tmp_path, name):
    good = '{"text": "Ola"}' if name == "a.jsonl" else "Ola"
    path = write(tmp_path / name, f"{good}\n\n".encode() + b"x" * 50_000_000 + f"\n\n{good}\n".encode())
    first, long, last = read_all(path)
    assert (first.text, last.text) == ("Ola", "Ola")
    assert long.reason == "too_long" and f"{name} line 3: 50,000,000 bytes" in long.detail


def test_a_line_over_the_limit_is_never_held_in_memory(tmp_path):
    path = write(tmp_path / "a.txt", b"x" * 20_000_000)
    tracemalloc.start()
    (long,) = read_all(path, max_document_megabytes=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert long.reason == "too_long" and peak < 8_000_000


def test_a_block_over_the_limit_is_counted_though_its_lines_are_short(tmp_path):
    path = write(tmp_path / "a.txt", "Ola\n\n" + "unha liña curta\n" * 100 + "\nAdeus\n")
    first, long, last = read_all(path, max_document_megabytes=0.001)
    assert (first.text, long.reason, last.text) == ("Ola", "too_long", "Adeus")
    assert "corpus.max_document_megabytes" in long.detail


def test_nul_bytes_reach_cleaning_in_text_and_in_json_strings(tmp_path):
    assert texts(write(tmp_path / "a.txt", b"a\0b")) == ["a\0b"]
    assert texts(write(tmp_path / "a.jsonl", b'\0\0{"text": "a\0b"}\0\n\0\0\n')) == ["a\0b", ""]


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_what_was_read_before_a_corruption_counts_and_the_file_is_named(tmp_path, compression, damage):
    compress = gzip.compress if compression == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    data = b"".join(compress("".join(f"Liña {i} de {j}\n" for i in range(999)).encode()) for j in range(40))
    damaged = data[: len(data) - 40] if damage == "cut" else data[:-1500] + b"\xff" * 40 + data[-1460:]
    *before, rest = read_all(write(tmp_path / f"a.txt.{compression}", damaged), document="line")
    assert len(before) >= 38 * 999
    assert [d.text for d in before[:2]] == ["Liña 0 de 0", "Liña 1 de 0"]
    assert isinstance(rest, readers.Unread) and rest.reason == "unreadable" and f"a.txt.{compression}" in rest.detail


def test_a_file_that_its_parser_refuses_is_counted_and_the_next_is_read(tmp_path):
    write(tmp_path / "a.mo", b"nothing of the kind")
    write(tmp_path / "b.txt", "Ola")
    broken, good = read_all(f"{tmp_path}/*")
    assert broken.reason == "unreadable" and "a.mo" in broken.detail
    assert good.text == "Ola"


# --- formats of documentation ---


def test_html_gives_blocks_without_navigation_listings_and_search_lines():
    page = """<html><head><title>x</title><script>f()</script></head><body><nav>Menú</nav><h1>Título</h1>
      <p>Un <b>parágrafo</b> en
      dúas liñas.</p>Title is: Título
      <div>Solto<p>dentro</p>despois</div><pre>code()</pre><ul><li>un<li>dous</ul></body>"""
    found = next(markup.html(page.encode(), Path("a.html")))
    assert found.split("\n") == ["Título", "Un parágrafo en dúas liñas.", "Solto", "dentro", "despois", "un", "dous"]


def test_html_that_is_not_utf8_is_read_as_it_declares():
    page = '<meta charset="iso-8859-2"><p>łódź</p>'.encode("iso-8859-2")
    assert next(markup.html(page, Path("a.html"))) == "łódź"


def test_a_mallard_page_loses_credits_and_shows_titles_of_linked_pages(tmp_path):
    ns = 'xmlns="http://projectmallard.org/1.0/"'
    write(tmp_path / "other.page", f"<page {ns}><title>Outra páxina</title></page>")
    page = f"""<page {ns} id="a"><info><credit><name>Ana</name><email>a@b.gl</email></credit><desc>Resumo.</desc></info>
      <title>Título</title><p>Prema <keyseq><key>Ctrl</key><key>C</key></keyseq>,
      consulte <link xref="other#s"/>.</p><screen>ls -l</screen></page>"""
    found = next(markup.xml(page.encode(), tmp_path / "a.page"))
    assert found.split("\n") == ["Resumo.", "Título", "Prema Ctrl+C, consulte Outra páxina."]


def test_docbook_entities_are_expanded_and_those_of_other_files_are_their_names():
    page = """<!DOCTYPE book [<!ENTITY k "<application>&n;runner</application>"><!ENTITY n 'Gold'>]><book><bookinfo>
      <author><firstname>Ian</firstname></author><legalnotice>&FDL;</legalnotice></bookinfo>
      <para>Xogar ao &k; &amp; premer &Ctrl; &aacute;s 3.</para><programlisting>x = 1</programlisting></book>"""
    assert next(markup.xml(page.encode(), Path("index.docbook"))) == "Xogar ao Goldrunner & premer Ctrl ás 3."


def test_entities_that_expand_without_end_are_counted(tmp_path):
    page = f"<!DOCTYPE p [<!ENTITY a '{'&a;' * 400}'>]><p>{'&a;' * 400}</p>"
    (found,) = read_all(write(tmp_path / "a.page", page))
    assert found.reason == "unreadable" and "50 MB" in found.detail


def test_xml_reads_no_other_file(tmp_path):
    secret = write(tmp_path / "secret", "segredo")
    page = f'<!DOCTYPE p [<!ENTITY s SYSTEM "file://{secret}">]><p>Ola &s;</p>'
    assert "segredo" not in next(markup.xml(page.encode(), tmp_path / "a.page"))


def catalogue(pairs: dict[str, str], order: str = "<") -> bytes:
    """A compiled catalogue as GNU msgfmt writes it."""
    header = "Last-Translator: Ana e outras\nContent-Type: text/plain; charset=UTF-8\n"
    entries = sorted(({"": header} | pairs).items())
    table, body, start = [], b"", 28 + 16 * len(entries)
    for column in (0, 1):
        for entry in entries:
            data = entry[column].encode()
            table += [len(data), start + len(body)]
            body += data + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(entries), 28, 28 + 8 * len(entries), 0, 0)
    return head + struct.pack(f"{order}{len(table)}I", *table) + body


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_catalogue_gives_translations_of_four_words_and_no_labels(order):
    pairs = {
        "Open the &file now": "Abrir agora o &ficheiro",
        "File": "Ficheiro",
        "Never translated at all": "Never translated at all",
        "menu\x04Save it in a file": "Gardalo <b>nun</b>\nficheiro novo",
        "%d file was found\0%d files were found": "Atopouse %d ficheiro aquí\0Atopáronse %d ficheiros aquí",
    }
    (found,) = markup.gettext(catalogue(pairs, order), Path("a.mo"))
    expected = ["Atopáronse %d ficheiros aquí", "Abrir agora o ficheiro", "Gardalo nun ficheiro novo"]
    assert sorted(found.split("\n")) == sorted(expected)


def test_a_catalogue_is_cut_into_runs_of_neighbouring_messages():
    pairs = {f"The message number {i:03}": f"A mensaxe número {i:03}" for i in range(2 * markup.MESSAGES + 1)}
    found = list(markup.gettext(catalogue(pairs), Path("a.mo")))
    assert [len(d.split("\n")) for d in found] == [markup.MESSAGES, markup.MESSAGES, 1]
    assert found[0].startswith("A mensaxe número 000\nA mensaxe número 001\n")


def test_a_language_pack_gives_messages_with_terms_put_in(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.xpi", "w") as pack:
        pack.writestr("brand.ftl", "-brand = Firefox\n")
        pack.writestr(
            "a.ftl",
            "# comment of four words\nopen = Abrir { -brand } nunha\n    xanela nova\n"
            "    .title = Un título con { $n }\n"
            "count = { $n ->\n    [one] Hai un ficheiro só\n   *[other] Hai { $n } ficheiros aquí\n  }\n",
        )
        pack.writestr("b.properties", "# a comment of words\nkey=Unha mensaxe\\nde catro palabras\n")
    first, second = markup.langpack((tmp_path / "a.xpi").read_bytes(), tmp_path / "a.xpi")
    assert first.split("\n") == [
        "Abrir Firefox nunha xanela nova", "Un título con $n", "Hai un ficheiro só", "Hai $n ficheiros aquí",
    ]  # fmt: skip
    assert second == "Unha mensaxe de catro palabras"


def test_mediawiki_messages_lose_their_markup():
    values = {
        "@metadata": {"authors": []},
        "a": "'''Vexa''' a [[Help:X|páxina de axuda]] de $1",
        "b": "Hai {{PLURAL:$1|unha páxina|$1 páxinas}} nesta categoría",
    }
    (found,) = markup.messages(json.dumps(values).encode(), Path("gl.json"))
    assert found.split("\n") == ["Vexa a páxina de axuda de $1", "Hai unha páxina nesta categoría"]


def test_gretl_help_is_a_document_an_entry():
    text = '\n# add Tests\n\nArgumento: \t<@var="lista"> \n\nUn texto.\n# adf Tests\nOutro <@lit="x">.\n'
    assert list(markup.gretl(text.encode(), Path("a"))) == ["Argumento: lista\nUn texto.", "Outro x."]


def test_a_manual_page_gives_headings_and_filled_paragraphs():
    page = r""".TH LS 1 "2020"
.SH NOME
ls \- lista o contido
.\" comment
.PP
Use \fB\-l\fR para ver
.BR máis (1)
datos.
.nf
ls -l
.fi
.TP
.I opción
Explicación dela.
"""
    found = next(markup.roff(gzip.compress(page.encode()), Path("ls.1.gz")))
    assert found.split("\n") == [
        "NOME",
        "ls - lista o contido",
        "Use -l para ver máis(1) datos.",
        "opción Explicación dela.",
    ]


# --- Debian packages ---


@pytest.fixture
def cache(tmp_path):
    """A cache that already holds a package with a page and a catalogue in Galician and one in Spanish."""
    root = tmp_path / "root"
    write(root / "DEBIAN/control", "Package: tiny\nVersion: 1:2.0-1\nArchitecture: all\nMaintainer: A <a@b.gl>\n"
          "Description: test\n")  # fmt: skip
    for language in ("gl", "es"):
        write(root / f"usr/share/help/{language}/tiny/a.page", f"<page><p>Un texto {language}</p></page>")
        messages = catalogue({"Some words of English": "Unhas palabras en galego"})
        write(root / f"usr/share/locale/{language}/LC_MESSAGES/tiny.mo", messages)
    write(root / "usr/share/doc/tiny/copyright", "Files: *\nCopyright: 2020 Ana <a@b.gl>\nLicense: GPL-2+\n\n"
          "License: GFDL-1.2+\n\nLicense: GPL-2+\n text\n")  # fmt: skip
    (tmp_path / "cache").mkdir()
    name = tmp_path / "cache" / "tiny_1%3a2.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", root, name], check=True, capture_output=True)
    return tmp_path / "cache"


needs_dpkg = pytest.mark.skipif(not debian.shutil.which("dpkg-deb"), reason="needs dpkg-deb")


@needs_dpkg
def test_a_package_in_the_cache_is_read_without_network_in_one_language(cache, monkeypatch):
    monkeypatch.setattr(debian, "_download", lambda *_: pytest.fail("went to the network"))
    corpus = Corpus(input=("deb:tiny",), language="gl")
    for _ in range(2):  # unpacked, then found unpacked
        (source,) = readers.sources(corpus, cache)
        found = {d.id: d.text for d in readers.read(source, corpus)}
        assert found == {
            "tiny/usr/share/help/gl/tiny/a.page#1": "Un texto gl",
            "tiny/usr/share/locale/gl/LC_MESSAGES/tiny.mo#1": "Unhas palabras en galego",
        }
    assert (source.name, source.kind, source.version) == ("tiny", "deb", "1:2.0-1")
    assert source.licence == "GPL-2+, GFDL-1.2+"
    assert "2020 Ana;" in source.attribution and "/usr/share/doc/tiny/copyright" in source.attribution


@needs_dpkg
def test_a_package_without_the_language_stops(cache):
    with pytest.raises(BadInput, match="deb:tiny.*holds no text in 'pl'"):
        readers.sources(Corpus(input=("deb:tiny",), language="pl"), cache)


@needs_dpkg
def test_a_damaged_package_stops_with_its_path(cache):
    (deb,) = cache.glob("*.deb")
    deb.write_bytes(deb.read_bytes()[:-200])
    with pytest.raises(BadInput, match="tiny_1%3a2.0-1_all.deb: cannot be unpacked.*delete the file"):
        readers.sources(Corpus(input=("deb:tiny",), language="gl"), cache)


def test_lists_need_the_helper_of_apt(tmp_path, monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda tool: None if "helper" in tool else tool)
    with pytest.raises(BadInput, match="deb:Translation-gl needs /usr/lib/apt/apt-helper"):
        readers.sources(Corpus(input=("deb:Translation-gl",), language="gl"), tmp_path, log=lambda line: None)


def test_packages_need_apt(monkeypatch):
    monkeypatch.setattr(debian.shutil, "which", lambda tool: None)
    with pytest.raises(BadInput, match="deb:tiny needs apt-get"):
        readers.sources(Corpus(input=("deb:tiny",), language="gl"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("License: GPL-2+ \n text\n\nLicense: MIT\n\nlicense: GPL-2+\n", ["GPL-2+", "MIT"]),
        ("it's in\nthe public domain.", ["public domain"]),
        ("under the GNU General Public License, see /usr/share/common-licenses/GPL-2'.", ["GPL-2"]),
        ("All rights are somewhere.", []),
    ],
)
def test_licences_come_from_the_copyright_file_alone(text, names):
    assert debian.licences(text) == names


# --- apt's lists of package descriptions ---

LIST = """Package: 0ad
Description-md5: d943033bedada21853d2ae54a2578a7b
Description-gl: Xogo de estratexia en tempo real
 0 A.D. é un xogo libre: con barcos o
 con cabalos - e con elefantes.
 .
 Ten:
  * moitas civilizacións, e cada unha
    coas súas unidades;
  - mapas.
 Fin da descrición.

Package: empty
Description-md5: 00000000000000000000000000000000

Package: short
Description-gl: Só unha liña
"""


@pytest.fixture
def listed(tmp_path: Path, monkeypatch) -> Path:
    """A cache with a list in it, and no apt."""
    monkeypatch.setattr(debian, "_apt", lambda *_: pytest.fail("went to the network"))
    monkeypatch.setattr(debian.shutil, "which", lambda tool: tool)
    write(tmp_path / "Translation-gl_bookworm%2012.15.txt", LIST)
    write(tmp_path / "Translation-gl_ES_trixie%2013.txt", "Package: other\nDescription-gl_ES: Outra\n")
    return tmp_path


def test_a_list_gives_a_document_a_description_whose_lines_are_paragraphs_again(listed):
    corpus = Corpus(input=("deb:Translation-gl",), language="gl")
    (source,) = readers.sources(corpus, listed)
    first, short = readers.read(source, corpus)
    assert first.text.split("\n") == [
        "Xogo de estratexia en tempo real",
        "0 A.D. é un xogo libre: con barcos o con cabalos - e con elefantes.",
        "Ten:",
        "moitas civilizacións, e cada unha coas súas unidades;",
        "mapas.",
        "Fin da descrición.",
    ]
    assert (short.text, short.meta["id"]) == ("Só unha liña", "short")
    assert (source.version, source.bytes, source.kind) == ("bookworm 12.15", len(LIST.encode()), "deb")
    assert source.sha256 == hashlib.sha256(LIST.encode()).hexdigest()
    assert source.licence.startswith("unknown") and "Description Translation Project" in source.attribution


def test_a_list_of_a_country_is_another_list(listed):
    corpus = Corpus(input=("deb:Translation-gl_ES",), language="gl")
    (source,) = readers.sources(corpus, listed)
    assert [d.text for d in readers.read(source, corpus)] == ["Outra"]


def test_a_list_of_another_language_stops(listed):
    with pytest.raises(BadInput, match="deb:Translation-gl: is in 'gl', but corpus.language is 'pl'"):
        readers.sources(Corpus(input=("deb:Translation-gl",), language="pl"), listed)


class Apt:
    """apt-get and apt-helper, as far as lists go: `files` are what the archives have of one."""

    def __init__(self, **files: str):
        self.files, self.calls = files, []

    def __call__(self, *arguments, program="apt-get", languages="none", **more):
        self.calls.append((program, languages, *arguments))
        out, errors, code = "", "", 0
        if arguments[0] == "update":
            errors = "W: harmless\n" if self.files else "E: Could not resolve 'deb.debian.org'\n"
        elif arguments[0] == "indextargets":
            out = "".join(f"{name}\tbookworm\t12.15\n" for name in reversed(self.files))
        elif self.files[arguments[1]]:
            out = self.files[arguments[1]]
        else:
            errors, code = "E: Unable to read\n", 100
        return subprocess.CompletedProcess(arguments, code, out, errors)


def test_a_list_is_what_all_archives_have_of_it_and_is_fetched_once(tmp_path, monkeypatch):
    apt = Apt(a=LIST, b="Package: more\nDescription-gl: Máis\n")
    monkeypatch.setattr(debian, "_apt", lambda cache: apt)
    monkeypatch.setattr(debian.shutil, "which", lambda tool: tool)
    corpus = Corpus(input=("deb:Translation-gl",), language="gl")
    for _ in range(2):
        (source,) = readers.sources(corpus, tmp_path, log=lambda line: None)
        assert [d.meta["id"] for d in readers.read(source, corpus)] == ["0ad", "short", "more"]
    assert source.version == "bookworm 12.15"
    assert [call[2] for call in apt.calls] == ["update", "indextargets", "cat-file", "cat-file"]
    assert apt.calls[0][1] == "gl"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "E: Could not resolve 'deb.debian.org'; check the language and the network"),
        ({"a": ""}, "deb:Translation-gl: a: E: Unable to read; delete the file"),
        ({"a": "\n"}, "no archive in apt's sources has this list"),
    ],
)
def test_a_list_that_cannot_be_had_stops_with_the_reason(tmp_path, monkeypatch, files, says):
    monkeypatch.setattr(debian, "_apt", lambda cache: Apt(**files))
    monkeypatch.setattr(debian.shutil, "which", lambda tool: tool)
    with pytest.raises(BadInput, match=says):
        readers.sources(Corpus(input=("deb:Translation-gl",), language="gl"), tmp_path, log=lambda line: None)
    assert not list(tmp_path.glob("Translation-*"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "Upstream-Name: Tiny\n\nFiles: *\nCopyright: 2020 Ana <a@b.gl>\n 2021 Breo\nLicense: X\n",
            "Tiny, 2020 Ana 2021 Breo",
        ),
        (
            "It was made by Ana.\n\nCopyright (C) 2000 - 2009 Ana\n* Copyright © Breo\n",
            "Copyright (C) 2000 - 2009 Ana; Copyright © Breo",
        ),
        ("= Copyright and licensing information\nGPL\n", ""),
    ],
)
def test_holders_are_those_of_all_files_or_those_that_a_text_names(text, named):
    assert debian.holders(text) == named
