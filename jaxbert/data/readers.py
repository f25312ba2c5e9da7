"""From `corpus.input` and `corpus.sources` to one stream of documents.

An entry of `corpus.input`, or of the `input` of one of `corpus.sources`, is a path, a directory or a glob, local or as
a URL of fsspec; `deb:name,name`; or `tfds:name:split`. Every entry (every package of a `deb:`) becomes a `Source`, and
`read` streams its files in sorted order. What a file holds is for its reader to say (formats.py). What cannot be read
is never skipped in silence: it is in the stream as an `Unread`, or it stops the run as `BadInput`, whichever the user
can act on.
"""

import dataclasses
import functools
import hashlib
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxbert import config
from jaxbert.config import Corpus
from jaxbert.data import debian, files, formats
from jaxbert.data.files import TOO_LONG_REMEDY, Document, Unparsed, Unread, unread
from jaxbert.data.formats import READERS, Reader, format_of
from jaxbert.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Source:
    """One entry of `corpus.input` or of one of `corpus.sources`, or one Debian package of it."""

    name: str
    kind: str  # "files", "deb" or "tfds"
    location: str  # the path, glob, URL or "tfds:…" as given; "deb:<package>"
    version: str  # of the package or data set; empty for files
    sha256: str  # of the file or package; of several files, of the lines "<sha256>  <path>"
    bytes: int
    licence: str
    attribution: str
    files: tuple[tuple[str, str, str], ...] = dataclasses.field(repr=False)  # (id, path, format) in reading order
    own: config.Source | None = None  # of `corpus.sources`; None: from `corpus.input`

    def record(self) -> dict[str, Any]:
        """What corpus.json and the model card say about the source: every field but `files`, which becomes a count,
        and `own`, of which the label says which of `corpus.sources` it is from."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "own"}
        return values | {"files": len(self.files)} | ({"group": self.own.label} if self.own else {})

    def settings(self, corpus: Corpus) -> Corpus:
        """The corpus's settings as they are for this source."""
        return self.own.applied(corpus) if self.own else corpus


def sources(corpus: Corpus, cache: Path | None = None, log: Callable[[str], None] = print) -> list[Source]:
    """Everything that `corpus.input` and then `corpus.sources` name, in their order, with hashes and licences; packages
    are downloaded. What one of `corpus.sources` names has its name; if that is several sources, with their own behind.

    Args:
      corpus: `input`, `sources`, `language`, `licence` and `attribution` are used, `encoding` is checked.
      cache: where packages are kept; None: $JAXBERT_CACHE/debian, else ~/.cache/jaxbert/debian.
      log: is told of each download.

    Raises BadInput for an entry that names nothing, an empty file or directory, a file that cannot be opened, a package
    that cannot be had or holds no text in the language, a data set that is not prepared on this machine.
    """
    if not corpus.input and not corpus.sources:
        raise BadInput("corpus.input: empty; give a file, a directory, a glob or deb:PACKAGE")
    taken: set[str] = set()  # a file that two entries match is read once
    found = _entries(corpus, taken, cache, log)
    for own in corpus.sources:
        named = _entries(dataclasses.replace(own.applied(corpus), input=own.input), taken, cache, log)
        for s in named:
            name = own.name if own.name and len(named) == 1 else f"{own.name}: {s.name}" if own.name else s.name
            found.append(dataclasses.replace(s, name=name, own=own))
    if repeated := sorted({s.name for s in found if [f.name for f in found].count(s.name) > 1}):
        raise BadInput(f"corpus.input: {repeated[0]!r} is given twice; keep one")
    return found


def _entries(corpus: Corpus, taken: set[str], cache: Path | None, log: Callable[[str], None]) -> list[Source]:
    """The sources of `corpus.input`; `taken` holds, and gets, the files that are named."""
    files.check_encoding(corpus.encoding)
    found: list[Source] = []
    for entry in corpus.input:
        scheme, _, rest = entry.partition(":")
        if scheme == "deb":
            names = [n for n in re.split(r"[,\s]+", rest) if n]
            if not names:
                raise BadInput(f"corpus.input: {entry!r} names no package; write deb:NAME or deb:NAME,NAME")
            found += [_package_source(p) for p in debian.packages(names, corpus.language, cache, log)]
        elif scheme == "tfds":
            found.append(_tfds_source(entry, corpus))
        elif re.fullmatch(r"[a-z]{2,10}", scheme) and rest and not files.is_remote(entry) and not os.path.exists(entry):
            known = "deb:, tfds:, paths, globs and URLs (gs://…)"
            raise BadInput(f"corpus.input: no reader is called {scheme!r} (in {entry!r}); known: {known}")
        else:
            found.append(_file_source(entry, corpus, taken))
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
    paths = {p: p if files.is_remote(p) else os.path.realpath(p) for p in files.matching(entry)}
    new = [p for p, real in paths.items() if real not in taken]
    if not new:
        raise BadInput(f"corpus.input: every file of {entry!r} is named by an earlier entry too; keep one of them")
    taken.update(paths[p] for p in new)
    sha256, size = _hash({p: p if files.is_remote(p) else Path(p).as_posix() for p in new})
    return Source(
        name=entry,
        kind="files",
        location=entry,
        version="",
        sha256=sha256,
        bytes=size,
        licence=corpus.licence or "unknown, not given in corpus.licence",
        attribution=corpus.attribution,
        files=tuple((p if files.is_remote(p) else Path(p).as_posix(), p, format_of(p)) for p in new),
    )


def _tfds_source(entry: str, corpus: Corpus) -> Source:
    builder, split = formats.data_set(entry)
    info, paths = builder.info, {}
    for path in sorted(str(p) for p in builder.info.splits[split].filepaths):
        paths[path] = posixpath.basename(path)
    sha256, size = _hash(paths)
    return Source(
        name=entry,
        kind="tfds",
        location=entry,
        version=str(info.version),
        sha256=sha256,
        bytes=size,
        licence=corpus.licence
        or (info.redistribution_info.license or "").strip()
        or "unknown, the data set names none",
        attribution=corpus.attribution or " ".join((info.citation or info.homepage or "").split()),
        files=((entry, entry, "tfds"),),
    )


def _hash(names: dict[str, str]) -> tuple[str, int]:
    """(Source.sha256, Source.bytes) of files: {path: its name in the list}. Raises BadInput for an empty file."""
    hashes, size = [], 0
    for path, name in names.items():
        digest, length = files.digest(path)
        if length == 0:
            raise BadInput(f"{path}: the file is empty; remove it or name other files in corpus.input")
        hashes.append(f"{digest}  {name}")
        size += length
    listing = "\n".join(hashes).encode("utf-8", "surrogateescape")
    return hashes[0].split()[0] if len(hashes) == 1 else hashlib.sha256(listing).hexdigest(), size


def read(source: Source, corpus: Corpus) -> Iterator[Document | Unread]:
    """The documents of a source, streamed in a fixed order and read by its own settings. Peak memory: a document, or a
    file of a markup format.

    A parquet file costs a batch of rows, a book a chapter.

    Raises BadInput where the user has to decide: text that is not UTF-8 (file and byte; `corpus.invalid_utf8`), JSON
    lines that are broken or lack the field (file and line).
    """
    return map(parsed, read_unparsed(source, corpus))


def read_unparsed(source: Source, corpus: Corpus) -> Iterator[Document | Unread | Unparsed]:
    """As `read`, but documents whose parsing takes longer than reading them are left for `parsed`, elsewhere."""
    corpus = source.settings(corpus)
    for name, path, form in source.files:
        number = 0
        for found in _guarded(READERS[form], path, corpus):
            number += 1
            named = functools.partial(
                _named, id=f"{name}#{number}", source=source.name, form=form, limit=files.limit(corpus)
            )
            yield dataclasses.replace(found, name=named) if isinstance(found, Unparsed) else named(found)


def parsed(found: Document | Unread | Unparsed) -> Document | Unread:
    """The document itself. Raises BadInput as `read` does."""
    return found.parsed() if isinstance(found, Unparsed) else found


def _named(found: str | Document | Unread, id: str, source: str, form: str, limit: int) -> Document | Unread:
    """What a reader found with its id and source; too long a document is an Unread."""
    if isinstance(found, Unread):
        return dataclasses.replace(found, id=id, source=source)
    text, meta = (found.text, found.meta) if isinstance(found, Document) else (found, {})
    if len(text) * 4 > limit and (size := len(text.encode("utf-8", "surrogatepass"))) > limit:
        name = id.rpartition("#")[0]
        return Unread(id, source, "too_long", f"{name}: a document of {size:,} bytes; {TOO_LONG_REMEDY}")
    return Document(text, id, source, {"format": form} | meta)


def _guarded(reader: Reader, path: str, corpus: Corpus) -> Iterator[str | Document | Unread | Unparsed]:
    """What the reader yields; a file that it fails on ends in an Unread instead of ending the run."""
    try:
        yield from reader(path, corpus)
    except BadInput:
        raise
    except Exception as error:
        yield unread("unreadable", f"{path}: {type(error).__name__}: {error}")
