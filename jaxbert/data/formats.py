"""Readers: one function a format, from a file to the texts in it.

What cannot be read is never skipped in silence: it is in the stream as an `Unread`, or it stops the run as `BadInput`,
whichever the user can act on. A reader that raises anything else is ended by `readers.read` with an Unread.
"""

import itertools
import json
import numbers
import os
import posixpath
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jaxbert.config import Corpus
from jaxbert.data import debian, files, markup, wiki
from jaxbert.data.files import TOO_LONG_REMEDY, Document, Unparsed, Unread, unread
from jaxbert.errors import BadInput

BATCH_ROWS = 64  # of a parquet file, decoded at once
SENTENCES = 24  # of a CoNLL-U file without `# newdoc`, in one document

BESIDE = (
    "id",
    "url",
)  # fields beside the text that go into Document.meta, where there are any: corpus.remove reads them

# Why a reader gives an Unread.
REASONS = (
    "too_long",  # over corpus.max_document_megabytes, or a line is
    "unreadable",  # broken, or the rest of a broken archive
    "redirect",  # a wiki's page that only names another
    "not_an_article",  # a wiki's page outside namespace 0 (talk, files, templates), or a program or data in it
)

# From a path or URL to what is in the file; `readers.read` fills in ids and sources. A Document brings meta of its own.
Reader = Callable[[str, Corpus], Iterator[str | Document | Unread | Unparsed]]


def text(path: str, corpus: Corpus) -> Iterator[str | Document | Unread]:
    """Plain text, a document a file, a line or a block between blank lines (`corpus.document`), compressed or not."""
    limit = files.limit(corpus)
    block: list[str] = []
    size = 0

    def finish() -> Iterator[str | Unread]:
        if size > limit:
            found = f"{path} up to line {number}: a document of {size:,} bytes; {TOO_LONG_REMEDY}"
            yield unread("too_long", f"{found}, where a document ends is corpus.document={corpus.document!r}")
        elif block or corpus.document == "file":
            yield "\n".join(block)

    number = 0
    for number, offset, content in files.lines(path, limit):
        if isinstance(content, Unread):
            yield content
            continue
        line = files.decode(content, path, f"line {number}", offset, corpus)
        if corpus.document == "line":
            if line.strip():
                yield line
        elif corpus.document == "block" and not line.strip():
            yield from finish()
            block, size = [], 0
        else:
            size += len(content) + 1
            if size > limit:
                block = []  # too long already: only its size matters
            else:
                block.append(line)
    if corpus.document != "line":
        yield from finish()


def jsonl(path: str, corpus: Corpus) -> Iterator[str | Document | Unread]:
    """JSON lines, compressed or not: the text is in the field `corpus.text_field`. Blank lines are skipped."""
    for number, offset, content in files.lines(path, files.limit(corpus)):
        if isinstance(content, Unread):
            yield content
            continue
        line = files.decode(content, path, f"line {number}", offset, corpus).strip("\0 \t\r")
        if not line:
            if b"\0" in content:  # what a crash leaves behind: counted as an empty document, not passed over
                yield ""
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line, strict=False)  # not strict: NUL and other control characters may stand in a string
        except json.JSONDecodeError as error:
            raise BadInput(f"{where}: not JSON: {error.msg} at character {error.pos}; correct the line") from None
        except (RecursionError, ValueError) as error:  # nested too deep, or a number of too many digits
            yield unread("unreadable", f"{where}: {type(error).__name__}: {error}")
            continue
        if not isinstance(value, dict) or corpus.text_field not in value:
            fields = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise BadInput(f"{where}: no field {corpus.text_field!r} (found: {fields}); set corpus.text_field")
        found = value[corpus.text_field]
        if not isinstance(found, str):
            raise BadInput(f"{where}: field {corpus.text_field!r} is {found!r:.40}, not text; set corpus.text_field")
        yield Document(found, "", "", _beside(value, corpus))


def _beside(values: Mapping[str, Any], corpus: Corpus) -> dict[str, str]:
    """Those of BESIDE that are text, bytes or whole numbers."""
    found = {}
    for name in BESIDE:
        value = values.get(name) if name != corpus.text_field else None
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if isinstance(value, str | numbers.Integral) and value != "":
            found[name] = str(value)
    return found


def parquet(path: str, corpus: Corpus) -> Iterator[str | Document | Unread]:
    """Parquet, read in batches of rows: the text is in the column `corpus.text_field`; null is an empty document.

    A row group that is broken ends in an Unread, the others are read.
    """
    try:
        import pyarrow
        from pyarrow import parquet as arrow
    except ImportError:
        raise BadInput(f"{path}: needs pyarrow; pip install 'jaxbert[prepare]'") from None
    field, number = corpus.text_field, 0
    with files.open_binary(path) as file:
        table = arrow.ParquetFile(file, page_checksum_verification=True)
        if field not in table.schema_arrow.names:
            known = ", ".join(table.schema_arrow.names)
            raise BadInput(f"{path}: no column {field!r} (found: {known}); set corpus.text_field")
        kind = table.schema_arrow.field(field).type
        if not (pyarrow.types.is_null(kind) or _holds_text(kind)):
            raise BadInput(f"{path}: column {field!r} is of type {kind}, not text; set corpus.text_field")
        beside = [name for name in BESIDE if name in table.schema_arrow.names and name != field]
        for group in range(table.num_row_groups):
            read = 0
            try:
                for batch in table.iter_batches(
                    BATCH_ROWS, row_groups=[group], columns=[field, *beside], use_threads=False
                ):
                    # text as bytes: a value that is not UTF-8 must not take the batch with it
                    columns = {
                        name: column.cast(pyarrow.large_binary()) if _holds_text(column.type) else column
                        for name, column in zip(batch.schema.names, batch.columns, strict=True)
                    }
                    for i in range(batch.num_rows):
                        read += 1
                        content = columns[field][i].as_py() or b""
                        meta = _beside({name: columns[name][i].as_py() for name in beside}, corpus)
                        found = files.decode(content, path, f"row {number + read}", 0, corpus)
                        yield Document(found, "", "", meta)
            except (pyarrow.ArrowException, OSError) as error:
                left = table.metadata.row_group(group).num_rows - read
                where = f"{path} row group {group}, {left:,} rows from row {number + read + 1} on"
                yield unread("unreadable", f"{where}: {type(error).__name__}: {error}")
            number += table.metadata.row_group(group).num_rows


def _holds_text(kind: Any) -> bool:
    """Whether an Arrow type is that of strings or bytes, of any layout."""
    kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
    return str(kind).removesuffix("_view").endswith(("string", "binary"))


def conllu(path: str, corpus: Corpus) -> Iterator[str | Document | Unread]:
    """CoNLL-U (universaldependencies.org/format.html): the sentences' text; a document ends at the next `# newdoc`.

    A paragraph (`# newpar`) is a line; without such marks a sentence is. Sentences outside any document come in runs of
    SENTENCES: shuffled ones belong to none, and a whole treebank as one would go to a single split.
    """
    limit = files.limit(corpus)
    paragraphs: list[str] = []  # of the document
    sentences = size = 0  # in it
    in_document = in_paragraph = False

    def finish() -> Iterator[str | Unread]:
        if size > limit:
            yield unread("too_long", f"{path}: sentences of {size:,} bytes in one document; {TOO_LONG_REMEDY}")
        elif paragraphs:
            yield "\n".join(paragraphs)

    for newdoc, newpar, found in _sentences(path, corpus):
        if newdoc or (not in_document and sentences == SENTENCES):
            yield from finish()
            paragraphs, sentences, size = [], 0, 0
        in_document |= newdoc
        in_paragraph = newpar or (in_paragraph and not newdoc)
        if isinstance(found, Unread):
            yield found
            continue
        sentences += 1
        size += len(found.encode("utf-8", "surrogatepass")) + 1
        if size > limit:
            paragraphs = []  # too long already: only its size matters
        elif paragraphs and in_paragraph and not newpar:
            paragraphs[-1] += f" {found}"
        else:
            paragraphs.append(found)
    yield from finish()


def _sentences(path: str, corpus: Corpus) -> Iterator[tuple[bool, bool, str | Unread]]:
    """(whether a document starts, whether a paragraph starts, the text) of each sentence of a CoNLL-U file."""
    newdoc = newpar = False
    text = ""
    words: list[list[str]] = []
    number = start = 0
    end: tuple[int, int, bytes | Unread] = (0, 0, b"")
    for number, offset, content in itertools.chain(files.lines(path, files.limit(corpus)), [end]):
        if isinstance(content, Unread):
            yield False, False, content
            continue
        line = files.decode(content, path, f"line {number}", offset, corpus)
        if not line.strip():
            if text or words:
                wrong = unread("unreadable", f"{path} line {start}: a sentence without `# text =` and ten columns")
                yield newdoc, newpar, text or _joined(words) or wrong
                newdoc = newpar = False
            text, words = "", []
        elif line.startswith("#"):
            name, _, value = line[1:].partition("=")
            name = name.split()[0] if name.split() else ""
            newdoc, newpar = newdoc or name == "newdoc", newpar or name == "newpar"
            text = value.strip() if name == "text" else text
        else:
            start = start if words else number
            words.append(line.split("\t"))


def _joined(words: list[list[str]]) -> str:
    """A sentence from its words (CoNLL-U: ID, FORM, …, MISC); "" where a line has not ten columns."""
    parts, covered = [], 0
    for word in words:
        numbers = re.fullmatch(r"(\d+)(?:-(\d+)|\.\d+)?", word[0])
        if len(word) != 10 or not numbers:
            return ""
        if "." in word[0] or int(numbers[1]) <= covered:  # an empty node, or part of a word that has been there
            continue
        covered = int(numbers[2] or 0)
        parts.append(word[1] + ("" if "SpaceAfter=No" in word[9].split("|") else " "))
    return "".join(parts).strip()


def epub(path: str, corpus: Corpus) -> Iterator[str | Document | Unread]:
    """EPUB (w3.org/TR/epub-33): a document a file of the spine, in its order. meta: the book's `title`.

    Everything is read inside the archive, so no name in it can reach another file. Chapters that are missing,
    encrypted, links or over the limit are an Unread each.
    """
    limit = files.limit(corpus)
    with files.open_binary(path) as file, zipfile.ZipFile(file) as book:

        def member(name: str) -> bytes | Unread:
            where = f"{path}: {name!r}"
            try:
                info = book.getinfo(name)
                if stat.S_ISLNK(info.external_attr >> 16):
                    return unread("unreadable", f"{where} is a link")
                with book.open(info) as opened:
                    data = opened.read(limit + 1)
            except KeyError:
                return unread("unreadable", f"{where} is not in the archive")
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error, OSError) as error:
                return unread("unreadable", f"{where}: {type(error).__name__}: {error}")
            if len(data) > limit:
                return unread("too_long", f"{where} is over {limit:,} bytes; {TOO_LONG_REMEDY}")
            return data

        def needed(name: str) -> Any:
            data = member(name)
            if isinstance(data, Unread):
                raise ValueError(f"not an EPUB: {data.detail}")
            return markup.xml_root(data, recover=True)

        place = next((e.get("full-path", "") for e in needed("META-INF/container.xml").iter("{*}rootfile")), "")
        package = needed(place)
        title = next((" ".join((e.text or "").split()) for e in package.iter("{*}title")), "")
        hrefs = {item.get("id"): item.get("href", "") for item in package.iter("{*}item")}
        encrypted = set()
        if "META-INF/encryption.xml" in book.namelist():  # fonts may be, and the book is readable all the same
            encrypted = {
                unquote(e.get("URI", "")) for e in needed("META-INF/encryption.xml").iter("{*}CipherReference")
            }
        spine = dict.fromkeys(reference.get("idref") for reference in package.iter("{*}itemref"))
        if not spine:
            raise ValueError("not an EPUB: its package names no chapter")
        for idref in spine:
            href = unquote(hrefs.get(idref, "").partition("#")[0])
            name = posixpath.normpath(posixpath.join(posixpath.dirname(place), href)) if href else f"idref {idref}"
            data = unread("unreadable", f"{path}: {name!r} is encrypted") if name in encrypted else member(name)
            if isinstance(data, Unread):
                yield data
                continue
            try:
                for found in markup.xhtml(data, Path(name)):
                    yield Document(found, "", "", {"title": title})
            except Exception as error:
                yield unread("unreadable", f"{path}: {name!r}: {type(error).__name__}: {error}")


def _markup(parse: Callable[[bytes, Path], Iterator[str | markup.Recognised]], is_text: bool = True) -> Reader:
    """The reader of a format whose files are parsed whole; `is_text`: `corpus.encoding` may say what its bytes are."""

    def reader(path: str, corpus: Corpus) -> Iterator[str | Document | Unread]:
        data = b""
        try:
            for chunk in files.chunks(path):
                data += chunk
                if len(data) > files.limit(corpus):
                    yield unread("too_long", f"{path}: over {len(data):,} bytes; {TOO_LONG_REMEDY}")
                    return
        except files.Corrupted as error:
            yield unread("unreadable", f"{path}: {error}", data.decode("utf-8", "replace"))
            return
        declared = files.check_encoding(corpus.encoding) != "utf-8" or corpus.invalid_utf8 == "repair"
        if is_text and declared and markup.says_nothing(data):
            data = files.decode(data, path, "markup", 0, corpus).encode()
        for found in parse(data, Path(path)):
            yield found if isinstance(found, str) else Document(found[0], "", "", found[1])

    return reader


# --- data sets of tensorflow_datasets ---


def data_set(entry: str) -> tuple[Any, str]:
    """(builder, split) of `tfds:name:split`. Raises BadInput if the data set is not prepared, or not readable as it is.

    Nothing is downloaded: a catalogue's download needs TensorFlow or Beam more often than not.
    """
    parts = re.fullmatch(
        r"tfds:([^:]+(?::\d[\w.*]*)?):([A-Za-z_]\w*(?:\[[^]]*\])?(?:\+[A-Za-z_]\w*(?:\[[^]]*\])?)*)", entry
    )
    if not parts:
        raise BadInput(f"corpus.input: {entry!r}: write tfds:NAME:SPLIT, such as tfds:wikipedia/20230601.gl:train")
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise BadInput(f"corpus.input: {entry!r} needs tensorflow-datasets; pip install 'jaxbert[tfds]'") from None
    name, split = parts[1], parts[2]
    try:
        builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except Exception as error:
        found = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise BadInput(f"corpus.input: {entry!r}: no data set {name!r}: {type(error).__name__}: {found}") from None
    if not builder.is_prepared():
        raise BadInput(
            f"corpus.input: {entry!r} is not prepared at {builder.data_path}; run tfds.builder({name!r}, "
            "file_format='array_record').download_and_prepare(), or set TFDS_DATA_DIR to where it is"
        )
    try:
        builder.info.splits[split]
    except Exception:
        known = ", ".join(builder.info.splits)
        raise BadInput(f"corpus.input: {entry!r}: no split {split!r}; there are {known}") from None
    return builder, split


def tfds(path: str, corpus: Corpus) -> Iterator[str | Document | Unread]:
    """A split of a prepared data set, `tfds:name:split`, without TensorFlow: text is in the feature `text_field`."""
    import tensorflow_datasets

    builder, split = data_set(path)
    field = corpus.text_field
    if field not in builder.info.features:
        known = ", ".join(builder.info.features)
        raise BadInput(f"{path}: no feature {field!r} (found: {known}); set corpus.text_field")
    # pictures and sounds beside the text stay as they are
    wanted = (field, *BESIDE)
    skip = {name: tensorflow_datasets.decode.SkipDecoding() for name in builder.info.features if name not in wanted}
    try:
        data = builder.as_data_source(split=split, decoders=skip)
    except NotImplementedError as error:
        raise BadInput(f"{path}: {error}; prepare the data set with file_format='array_record'") from None
    for i in range(len(data)):
        try:
            record = data[i]
            value = record[field]
        except Exception as error:
            yield unread("unreadable", f"{path} record {i}: {type(error).__name__}: {error}")
            continue
        if not isinstance(value, bytes | str):
            raise BadInput(f"{path}: feature {field!r} is {type(value).__name__}, not text; set corpus.text_field")
        found = value if isinstance(value, str) else files.decode(value, path, f"record {i}", 0, corpus)
        yield Document(found, "", "", _beside(record, corpus))


READERS: dict[str, Reader] = {
    "text": text,
    "jsonl": jsonl,
    "parquet": parquet,
    "conllu": conllu,
    "wiki": wiki.dump,
    "epub": epub,
    "html": _markup(markup.html),
    "xhtml": _markup(markup.xhtml),
    "xml": _markup(markup.xml),  # Mallard and DocBook
    "alto": _markup(markup.alto),
    "hocr": _markup(markup.hocr),
    "po": _markup(markup.po),
    "gettext": _markup(markup.gettext, is_text=False),
    "messages": _markup(markup.messages),  # MediaWiki's i18n files
    "langpack": _markup(markup.langpack, is_text=False),  # of Mozilla's programs
    "gretl": _markup(markup.gretl),
    "man": _markup(markup.roff),
    "descriptions": debian.descriptions,  # apt's lists of them
    "tfds": tfds,
}
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".conllu": "conllu",
    ".epub": "epub",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "xhtml",
    ".hocr": "hocr",
    ".xml": "xml",
    ".page": "xml",
    ".docbook": "xml",
    ".po": "po",
    ".mo": "gettext",
    ".xpi": "langpack",
    ".man": "man",
}
ROOTS = {"mediawiki": "wiki", "alto": "alto", "html": "xhtml"}  # first element of a .xml → format


def format_of(path: str) -> str:
    """The key of READERS for a file, by its suffix before .gz, .bz2, .xz or .zst; "text" for every suffix not known.

    Where a suffix says too little the file's beginning decides: which XML a .xml is, whether a .html is a page or hOCR,
    and a .1 a manual page or the first of several text files.
    """
    name = path.rpartition("/")[2]
    stem, suffix = posixpath.splitext(name)
    suffix = (posixpath.splitext(stem)[1] if suffix in files.COMPRESSED else suffix).lower()
    if re.fullmatch(r"\.xml-p\d+p\d+", suffix):  # part of a large wiki's dump
        return "wiki"
    if re.fullmatch(r"\.[1-9][a-z]{0,2}", suffix):
        is_page = re.search(rb"^[.'](?:TH|Dd|SH|so)\s", files.head(path), flags=re.M)
        return "man" if is_page else "text"
    form = SUFFIXES.get(suffix, "text")
    if suffix == ".xml":
        form = ROOTS.get(markup.first_element(files.head(path)), form)
    if form in ("html", "xhtml") and re.search(rb"ocr-system|class=[\"']?ocr_page", files.head(path)):
        return "hocr"
    return form
