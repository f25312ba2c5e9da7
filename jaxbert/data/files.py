"""Where the bytes of `corpus.input` come from: local and remote files, compression, lines, encodings.

A path is local, or a URL of fsspec (gs://, s3://, memory://): every function here takes both. Nothing is held that is
larger than the limit a caller gives, whatever a compressed file claims to hold.
"""

import bz2
import codecs
import dataclasses
import functools
import glob
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from jaxbert.config import Corpus
from jaxbert.errors import BadInput

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
TOO_LONG_REMEDY = "the limit is corpus.max_document_megabytes"


@dataclasses.dataclass(frozen=True)
class Document:
    """One document as it was found, before cleaning."""

    text: str
    id: str  # unique in a corpus: "<file>#<number in the file>", for a package "<package>/<path inside>#<number>"
    source: str  # readers.Source.name
    meta: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Unread:
    """Something in the input that is no readable document. It counts like a document, with `reason` as its fate."""

    id: str
    source: str
    reason: str  # of formats.REASONS
    detail: str  # where, and what was found
    text: str = ""  # as far as there is any, for --keep-rejected


@dataclasses.dataclass(frozen=True)
class Unparsed:
    """One document whose parsing takes longer than its reading, so that it is done where the document is cleaned."""

    text: bytes  # as it was found
    parse: Callable[..., "Document | Unread"]  # of `text` and `arguments`; importable by name
    arguments: tuple[Any, ...]
    name: Callable[["str | Document | Unread"], "Document | Unread"] | None = None  # readers.read fills it in

    def parsed(self) -> "Document | Unread":
        """The document, named if that is known."""
        found = self.parse(self.text, *self.arguments)
        return self.name(found) if self.name else found


def unread(reason: str, detail: str, text: str = "") -> Unread:
    """An Unread of which `readers.read` fills in the rest."""
    return Unread(id="", source="", reason=reason, detail=detail, text=text)


def limit(corpus: Corpus) -> int:
    """Bytes of the longest document."""
    return int(corpus.max_document_megabytes * 1e6)


# --- files ---


def is_remote(path: str) -> bool:
    """Whether fsspec opens it."""
    return "://" in path


def matching(entry: str) -> list[str]:
    """The files that a path, a directory, a glob or a URL of one of these names, sorted. Raises BadInput for none."""
    if is_remote(entry):
        return _remote_matching(entry)
    path = os.path.expanduser(entry)
    if os.path.isdir(path):
        found = [str(p) for p in Path(path).rglob("*") if _is_file(str(p)) and not p.name.startswith(".")]
        if not found:
            raise BadInput(f"corpus.input: the directory {entry!r} is empty; put text into it or name another")
        return sorted(found)
    if os.path.exists(path):
        return [path]
    found = [p for p in glob.glob(path, recursive=True) if _is_file(p)]
    if not found:
        raise BadInput(f"corpus.input: nothing matches {entry!r} (from {os.getcwd()}); give an existing file or glob")
    return sorted(found)


def _is_file(path: str) -> bool:
    if os.path.islink(path) and not os.path.exists(path):
        raise BadInput(f"{path}: a link to a file that is not there; remove it or name other files in corpus.input")
    return os.path.isfile(path)


def _remote_matching(entry: str) -> list[str]:
    system, root = _file_system(entry)
    try:
        if system.isfile(root):
            found = [root]
        elif any(c in root for c in "*?["):
            found = [name for name, info in system.glob(root, detail=True).items() if info["type"] == "file"]
        else:
            found = [name for name in system.find(root) if not name.rpartition("/")[2].startswith(".")]
    except Exception as error:  # every file system has its own
        raise BadInput(f"corpus.input: {entry!r} cannot be listed: {type(error).__name__}: {error}") from None
    if not found:
        raise BadInput(f"corpus.input: nothing matches {entry!r}; give the URL of an existing file, directory or glob")
    return sorted(system.unstrip_protocol(name) for name in found)


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises BadInput for one that is not known or installed."""
    if "::" in url:
        raise BadInput(f"corpus.input: {url!r} is a chain of file systems; give the URL of the file itself")
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        missing = f"pip install {error.name}" if error.name == "fsspec" else str(error)
        raise BadInput(f"corpus.input: {url!r} needs a package that is not installed: {missing}") from None
    except Exception as error:
        raise BadInput(f"corpus.input: {url!r}: {error}; give a path, or a URL that fsspec knows") from None


class _Remote(io.RawIOBase):
    """A remote file. What fails while it is read stops the run: the file is whole, and the next try may read it."""

    def __init__(self, url: str):
        self.url = url
        system, path = _file_system(url)
        self.file = self._tried(lambda: system.open(path, "rb"))

    def _tried(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            raise BadInput(f"{self.url}: cannot be read: {type(error).__name__}: {error}; start again") from None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.file.seekable()

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._tried(lambda: self.file.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        data = self._tried(lambda: self.file.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and hasattr(self, "file"):
            self.file.close()
        super().close()


def open_binary(path: str) -> BinaryIO:
    """A seekable file, local or remote, as its bytes are. Raises BadInput if it cannot be opened."""
    if is_remote(path):
        return io.BufferedReader(_Remote(path), 1 << 20)
    try:
        return open(path, "rb")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}; correct corpus.input or the file's rights") from None


def digest(path: str) -> tuple[str, int]:
    """(sha256, bytes) of a file; a remote one passes through the network for it."""
    with open_binary(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        return found, file.tell()


# --- bytes and lines ---

BOMB_RATIO, BOMB_BYTES = 250, 100_000_000  # text repeats itself less than this; deflate reaches 1032, zstd 30,000
_PIECE = 1 << 18  # bytes that come out of a decompressor at once, in about


class Corrupted(Exception):
    """The rest of a compressed file cannot be had."""


def _zstd() -> Any:
    return zstandard.ZstdDecompressor().decompressobj()


# suffix → (a new decompressor, bytes it is given at once). zstd's cannot be told to stop; 256 make 8 MB at most.
_DECOMPRESSORS: dict[str, tuple[Callable[[], Any], int]] = {
    ".gz": (lambda: zlib.decompressobj(wbits=31), 1 << 16),
    ".bz2": (bz2.BZ2Decompressor, 1 << 16),
    ".xz": (lambda: lzma.LZMADecompressor(memlimit=1 << 28), 1 << 16),
    ".zst": (_zstd, 1 << 8),
}
COMPRESSED = tuple(_DECOMPRESSORS)


def chunks(path: str) -> Iterator[bytes]:
    """A file's bytes, decompressed by its suffix. Raises Corrupted after all that could be decompressed."""
    suffix = os.path.splitext(path)[1]
    with open_binary(path) as file:
        if suffix not in _DECOMPRESSORS:
            while chunk := file.read(1 << 20):
                yield chunk
            return
        held: list[bytes] = []
        size, failure = 0, None
        try:
            for data in _decompressed(file, *_DECOMPRESSORS[suffix]):
                held.append(data)
                size += len(data)
                if size >= _PIECE:
                    yield b"".join(held)
                    held, size = [], 0
        except (Corrupted, zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, MemoryError) as error:
            failure = str(error)
        if held:
            yield b"".join(held)
        if failure is not None:
            raise Corrupted(failure)


def _decompressed(file: BinaryIO, new: Callable[[], Any], step: int) -> Iterator[bytes]:
    """The members of a compressed file one after the other, in pieces of a bounded size."""
    decompressor = new()
    started = False  # inside a member
    size, read = 0, 0
    while chunk := file.read(step):
        read += len(chunk)
        while chunk:
            if not started and not chunk.strip(b"\0"):  # padding after the last member
                break
            started = True
            for data in _pieces(decompressor, chunk):
                size += len(data)
                if size > max(BOMB_BYTES, BOMB_RATIO * read):
                    raise Corrupted(f"{read:,} bytes decompress to over {size:,}: a bomb; decompress it yourself")
                yield data
            chunk = b""
            if decompressor.eof:
                chunk, decompressor, started = decompressor.unused_data, new(), False
    if started:
        raise Corrupted("the file ends in the middle of the compressed data")


_Gzip = type(zlib.decompressobj())


def _pieces(decompressor: Any, chunk: bytes) -> Iterator[bytes]:
    if isinstance(decompressor, _Gzip):
        data = decompressor.decompress(chunk, _PIECE)
        yield data
        while decompressor.unconsumed_tail or (len(data) == _PIECE and not decompressor.eof):
            data = decompressor.decompress(decompressor.unconsumed_tail, _PIECE)
            yield data
    elif hasattr(decompressor, "needs_input"):  # bz2, xz: what was not decompressed stays inside
        yield decompressor.decompress(chunk, _PIECE)
        while not decompressor.needs_input and not decompressor.eof:
            yield decompressor.decompress(b"", _PIECE)
    else:
        yield decompressor.decompress(chunk)


def head(path: str, size: int = 1 << 16) -> bytes:
    """The first bytes of a file, decompressed; fewer where it is shorter or broken."""
    found = b""
    try:
        for chunk in chunks(path):
            found += chunk
            if len(found) >= size:
                break
    except Corrupted:
        pass
    return found[:size]


def lines(path: str, limit: int) -> Iterator[tuple[int, int, bytes | Unread]]:
    """(line number from 1, byte offset in the decompressed text, line without its newline).

    A line over `limit` bytes comes as an Unread and is never held in memory; so does the rest of a corrupted archive.
    """
    number, offset, tail, dropped = 1, 0, b"", 0

    def line(content: bytes) -> bytes | Unread:
        size = dropped + len(content)
        if size <= limit:
            return content[:-1] if content.endswith(b"\r") else content
        return unread("too_long", f"{path} line {number}: {size:,} bytes in one line; {TOO_LONG_REMEDY}")

    try:
        for chunk in chunks(path):
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
    except Corrupted as error:
        where = f"{path}: corrupted after {offset + dropped + len(tail):,} bytes of text, in line {number}: {error}"
        yield number, offset, unread("unreadable", where, tail.decode("utf-8", "replace"))


# --- encodings ---


@functools.cache
def check_encoding(name: str) -> str:
    """Python's name of `corpus.encoding`. Raises BadInput for one that is unknown, or in which ASCII is not itself."""
    ascii_ = bytes(range(128))
    try:
        found, same = codecs.lookup(name).name, ascii_.decode(name) == ascii_.decode("ascii")
    except LookupError:
        raise BadInput(f"corpus.encoding: no text encoding is called {name!r}; try utf-8, latin-1, cp1250") from None
    except ValueError:
        found, same = "", False
    if not same:  # UTF-16 and its like: lines could not be told from each other by their bytes
        raise BadInput(f"corpus.encoding: {name!r} is no superset of ASCII; convert the files to UTF-8 with iconv")
    return found


def decode(content: bytes, path: str, place: str, offset: int, corpus: Corpus) -> str:
    """Bytes at `offset` of a file as text in `corpus.encoding`; `place` ("line 3") names them in a message.

    Raises BadInput for bytes that are not in the encoding, unless `corpus.invalid_utf8` asks for repair.
    """
    encoding = check_encoding(corpus.encoding)
    if offset == 0:
        content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        if corpus.invalid_utf8 == "repair":
            return content.decode(encoding, _repairing(corpus.language) if encoding == "utf-8" else "replace")
        called = "UTF-8" if encoding == "utf-8" else encoding
        found = f"{path}: byte {offset + error.start} ({place}) is 0x{content[error.start]:02X}, not {called}"
        remedy = "give corpus.encoding, convert the file with iconv, or set corpus.invalid_utf8=repair"
        raise BadInput(f"{found}; {remedy}") from None


def _repairing(language: str) -> str:
    """The name of a decoding error handler that reads each invalid byte in the language's former 8-bit encoding."""
    encoding = next((e for e, languages in LEGACY.items() if language in languages.split()), "cp1252")

    def handler(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        return error.object[error.start : error.end].decode(encoding, "replace"), error.end

    codecs.register_error(f"jaxbert-{encoding}", handler)
    return f"jaxbert-{encoding}"
