"""From `corpus.input` to one stream of documents.

An entry of `corpus.input` is a path, a directory, a glob or `deb:name,name`. Every entry (every package of a `deb:`)
becomes a `Source`, and `read` streams its files in sorted order. A reader is one function from a file to the texts in
it; adding a format is one such function and one entry in READERS. What cannot be read is never skipped in silence: it
is in the stream as an `Unread`, or it stops the run as `BadInput`, whichever the user can act on.
"""

import codecs
import dataclasses
import glob
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from jaxbert.config import Corpus
from jaxbert.data import debian, markup
from jaxbert.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Document:
    """One document as it was found, before cleaning."""

    text: str
    id: str  # unique in a corpus: "<file>#<number in the file>", for a package "<package>/<path inside>#<number>"
    source: str  # `Source.name`
    meta: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Unread:
    """Something in the input that is no readable document. It counts like a document, with `reason` as its fate."""

    id: str
    source: str
    reason: str  # "too_long" or "unreadable"
    detail: str  # where, and what was found
    text: str = ""  # as far as there is any, for --keep-rejected


@dataclasses.dataclass(frozen=True)
class Source:
    """One entry of `corpus.input`, or one Debian package of it."""

    name: str
    kind: str  # "files" or "deb"
    location: str  # the path or glob as given; "deb:<package>"
    version: str  # of the package; empty for files
    sha256: str  # of the file or package; of several files, of the lines "<sha256>  <path>"
    bytes: int
    licence: str
    attribution: str
    files: tuple[tuple[str, str, str], ...] = dataclasses.field(repr=False)  # (id, path, format) in reading order

    def record(self) -> dict[str, Any]:
        """What corpus.json and the model card say about the source: every field but `files`, which becomes a count."""
        values = dataclasses.asdict(self)
        return values | {"files": len(self.files)}


Reader = Callable[[Path, Corpus], Iterator[str | Unread]]

# What repair reads a byte that is not UTF-8 as: the 8-bit encoding that text of a language used to be in.
LEGACY = {
    "cp1250": "bs cs hr hu pl ro sk sl sq",
    "cp1251": "be bg mk ru sr uk",
    "cp1253": "el",
    "cp1254": "az tr",
    "cp1255": "he",
    "cp1256": "ar fa ur",
    "cp1257": "et lt lv",
    "cp874": "th",
}


def sources(corpus: Corpus, cache: Path | None = None, log: Callable[[str], None] = print) -> list[Source]:
    """Everything that `corpus.input` names, in its order, with hashes and licences; packages are downloaded.

    Args:
      corpus: `input`, `language`, `licence` and `attribution` are used.
      cache: where packages are kept; None: $JAXBERT_CACHE/debian, else ~/.cache/jaxbert/debian.
      log: is told of each download.

    Raises BadInput for an entry that names nothing, an empty file or directory, a file that cannot be opened, a package
    that cannot be had or holds no text in the language.
    """
    if not corpus.input:
        raise BadInput("corpus.input: empty; give a file, a directory, a glob or deb:PACKAGE")
    found: list[Source] = []
    taken: set[str] = set()  # a file that two entries match is read once
    for entry in corpus.input:
        scheme, _, rest = entry.partition(":")
        if scheme == "deb":
            names = [n for n in re.split(r"[,\s]+", rest) if n]
            if not names:
                raise BadInput(f"corpus.input: {entry!r} names no package; write deb:NAME or deb:NAME,NAME")
            found += [_package_source(p) for p in debian.packages(names, corpus.language, cache, log)]
        elif re.fullmatch(r"[a-z]{2,10}", scheme) and rest and not os.path.exists(entry):
            raise BadInput(f"corpus.input: no reader is called {scheme!r} (in {entry!r}); known: deb:, paths and globs")
        else:
            found.append(_file_source(entry, corpus, taken))
    if repeated := sorted({s.name for s in found if [f.name for f in found].count(s.name) > 1}):
        raise BadInput(f"corpus.input: {repeated[0]!r} is given twice; keep one")
    return found


def _package_source(package: debian.Package) -> Source:
    return Source(
        name=package.name,
        kind="deb",
        location=f"deb:{package.name}",
        version=package.version,
        sha256=package.sha256,
        bytes=package.bytes,
        licence=package.licence,
        attribution=package.attribution,
        files=tuple((f"{package.name}/{inside}", str(path), form) for inside, path, form in package.files),
    )


def _file_source(entry: str, corpus: Corpus, taken: set[str]) -> Source:
    paths = _files(entry)
    new = [p for p in paths if os.path.realpath(p) not in taken]
    if not new:
        raise BadInput(f"corpus.input: every file of {entry!r} is named by an earlier entry too; keep one of them")
    taken.update(os.path.realpath(p) for p in new)
    hashes, size = [], 0
    for path in new:
        digest, length = _hash(path)
        if length == 0:
            raise BadInput(f"{path}: the file is empty; remove it or name other files in corpus.input")
        hashes.append(f"{digest}  {Path(path).as_posix()}")
        size += length
    listing = "\n".join(hashes).encode()
    return Source(
        name=entry,
        kind="files",
        location=entry,
        version="",
        sha256=hashes[0].split()[0] if len(new) == 1 else hashlib.sha256(listing).hexdigest(),
        bytes=size,
        licence=corpus.licence or "unknown, not given in corpus.licence",
        attribution=corpus.attribution,
        files=tuple((Path(p).as_posix(), p, format_of(p)) for p in new),
    )


def _files(entry: str) -> list[str]:
    path = os.path.expanduser(entry)
    if os.path.isdir(path):
        found = [str(p) for p in Path(path).rglob("*") if p.is_file() and not p.name.startswith(".")]
        if not found:
            raise BadInput(f"corpus.input: the directory {entry!r} is empty; put text into it or name another")
        return sorted(found)
    if os.path.exists(path):
        return [path]
    found = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
    if not found:
        raise BadInput(f"corpus.input: nothing matches {entry!r} (from {os.getcwd()}); give an existing file or glob")
    return sorted(found)


def _hash(path: str) -> tuple[str, int]:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}; correct corpus.input or the file's rights") from None


def read(source: Source, corpus: Corpus) -> Iterator[Document | Unread]:
    """The documents of a source, streamed in a fixed order. Peak memory: a document, or a file of a markup format.

    Raises BadInput where the user has to decide: text that is not UTF-8 (file and byte; `corpus.invalid_utf8`), JSON
    lines that are broken or lack the field (file and line).
    """
    limit = _limit(corpus)
    for name, path, form in source.files:
        number = 0
        for found in _guarded(READERS[form], Path(path), corpus):
            number += 1
            id = f"{name}#{number}"
            if isinstance(found, Unread):
                yield dataclasses.replace(found, id=id, source=source.name)
            elif len(found) * 4 > limit and (size := len(found.encode("utf-8", "surrogatepass"))) > limit:
                yield Unread(id, source.name, "too_long", f"a document of {size:,} bytes; {_TOO_LONG_REMEDY}")
            else:
                yield Document(found, id, source.name, {"format": form})


def _guarded(reader: Reader, path: Path, corpus: Corpus) -> Iterator[str | Unread]:
    """What the reader yields; a file that it fails on ends in an Unread instead of ending the run."""
    try:
        yield from reader(path, corpus)
    except BadInput:
        raise
    except Exception as error:
        yield _unread("unreadable", f"{path}: {type(error).__name__}: {error}")


_TOO_LONG_REMEDY = "the limit is corpus.max_document_megabytes"


def _unread(reason: str, detail: str, text: str = "") -> Unread:
    return Unread(id="", source="", reason=reason, detail=detail, text=text)  # `read` fills in the rest


def _limit(corpus: Corpus) -> int:
    return int(corpus.max_document_megabytes * 1e6)


# --- bytes and lines ---


class _Corrupted(Exception):
    pass


def _chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, decompressed by its suffix. Raises _Corrupted after all that could be decompressed."""
    new: dict[str, Callable[[], Any]] = {
        ".gz": lambda: zlib.decompressobj(wbits=31),
        ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
    }
    with open(path, "rb") as file:
        if path.suffix not in new:
            while chunk := file.read(1 << 20):
                yield chunk
            return
        decompressor = new[path.suffix]()
        started = False  # inside a member or frame
        while chunk := file.read(1 << 16):
            while chunk:
                if not started and not chunk.strip(b"\0"):  # padding after the last member
                    break
                started = True
                try:
                    data = decompressor.decompress(chunk)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise _Corrupted(str(error)) from None
                if data:
                    yield data
                chunk = b""
                if decompressor.eof:
                    chunk, decompressor, started = decompressor.unused_data, new[path.suffix](), False
        if started:
            raise _Corrupted("the file ends in the middle of the compressed data")


def _lines(path: Path, limit: int) -> Iterator[tuple[int, int, bytes | Unread]]:
    """(line number from 1, byte offset in the decompressed text, line without its newline).

    A line over `limit` bytes comes as an Unread and is never held in memory; so does the rest of a corrupted archive.
    """
    number, offset, tail, dropped = 1, 0, b"", 0

    def line(content: bytes) -> bytes | Unread:
        size = dropped + len(content)
        if size <= limit:
            return content[:-1] if content.endswith(b"\r") else content
        return _unread("too_long", f"{path} line {number}: {size:,} bytes in one line; {_TOO_LONG_REMEDY}")

    try:
        for chunk in _chunks(path):
            first, *rest = chunk.split(b"\n")
            if not rest:
                tail += first
            else:
                for content in (tail + first, *rest[:-1]):
                    yield number, offset, line(content)
                    number, offset, dropped = number + 1, offset + dropped + len(content) + 1, 0
                tail = rest[-1]
            if len(tail) > limit:
                dropped, tail = dropped + len(tail), b""
        if tail or dropped:
            yield number, offset, line(tail)
    except _Corrupted as error:
        where = f"{path}: corrupted after {offset + dropped + len(tail):,} bytes of text, in line {number}: {error}"
        yield number, offset, _unread("unreadable", where, tail.decode("utf-8", "replace"))


def _decode(content: bytes, path: Path, number: int, offset: int, corpus: Corpus) -> str:
    if number == 1:
        content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        if corpus.invalid_utf8 == "repair":
            return content.decode("utf-8", _repairing(corpus.language))
        found = f"{path}: byte {offset + error.start} (line {number}) is 0x{content[error.start]:02X}, not UTF-8"
        remedy = "convert the file with iconv, or set corpus.invalid_utf8=repair"
        raise BadInput(f"{found}; {remedy}") from None


def _repairing(language: str) -> str:
    """The name of a decoding error handler that reads each invalid byte in the language's former 8-bit encoding."""
    encoding = next((e for e, languages in LEGACY.items() if language in languages.split()), "cp1252")

    def handler(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        return error.object[error.start : error.end].decode(encoding, "replace"), error.end

    codecs.register_error(f"jaxbert-{encoding}", handler)
    return f"jaxbert-{encoding}"


# --- readers ---


def text(path: Path, corpus: Corpus) -> Iterator[str | Unread]:
    """Plain text, a document a file, a line or a block between blank lines (`corpus.document`), .gz and .zst too."""
    limit = _limit(corpus)
    block: list[str] = []
    size = 0

    def finish() -> Iterator[str | Unread]:
        if size > limit:
            found = f"{path} up to line {number}: a document of {size:,} bytes; {_TOO_LONG_REMEDY}"
            yield _unread("too_long", f"{found}, where a document ends is corpus.document={corpus.document!r}")
        elif block or corpus.document == "file":
            yield "\n".join(block)

    number = 0
    for number, offset, content in _lines(path, limit):
        if isinstance(content, Unread):
            yield content
            continue
        line = _decode(content, path, number, offset, corpus)
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


def jsonl(path: Path, corpus: Corpus) -> Iterator[str | Unread]:
    """JSON lines, .gz and .zst too: the text is in the field `corpus.text_field`. Blank lines are skipped."""
    for number, offset, content in _lines(path, _limit(corpus)):
        if isinstance(content, Unread):
            yield content
            continue
        line = _decode(content, path, number, offset, corpus).strip("\0 \t\r")
        if not line:
            if b"\0" in content:  # what a crash leaves behind: counted as an empty document, not passed over
                yield ""
            continue
        where = f"{path} line {number}"
        try:
            value = json.loads(line, strict=False)  # not strict: NUL and other control characters may stand in a string
        except json.JSONDecodeError as error:
            raise BadInput(f"{where}: not JSON: {error.msg} at character {error.pos}; correct the line") from None
        if not isinstance(value, dict) or corpus.text_field not in value:
            fields = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise BadInput(f"{where}: no field {corpus.text_field!r} (found: {fields}); set corpus.text_field")
        found = value[corpus.text_field]
        if not isinstance(found, str):
            raise BadInput(f"{where}: field {corpus.text_field!r} is {found!r:.40}, not text; set corpus.text_field")
        yield found


def _markup(parse: Callable[[bytes, Path], Iterator[str]]) -> Reader:
    def reader(path: Path, corpus: Corpus) -> Iterator[str | Unread]:
        data = b""
        try:
            for chunk in _chunks(path):
                data += chunk
                if len(data) > _limit(corpus):
                    yield _unread("too_long", f"{path}: over {len(data):,} bytes; {_TOO_LONG_REMEDY}")
                    return
        except _Corrupted as error:
            yield _unread("unreadable", f"{path}: {error}", data.decode("utf-8", "replace"))
            return
        yield from parse(data, path)

    return reader


READERS: dict[str, Reader] = {
    "text": text,
    "jsonl": jsonl,
    "html": _markup(markup.html),
    "xml": _markup(markup.xml),  # Mallard and DocBook
    "gettext": _markup(markup.gettext),
    "messages": _markup(markup.messages),  # MediaWiki's i18n files
    "langpack": _markup(markup.langpack),  # of Mozilla's programs
    "gretl": _markup(markup.gretl),
    "man": _markup(markup.roff),
}
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".page": "xml",
    ".docbook": "xml",
    ".mo": "gettext",
    ".xpi": "langpack",
}


def format_of(path: str) -> str:
    """The key of READERS for a file, by its suffix (before .gz or .zst); "text" for every other suffix."""
    name = Path(path)
    return SUFFIXES.get((Path(name.stem) if name.suffix in (".gz", ".zst") else name).suffix.lower(), "text")
