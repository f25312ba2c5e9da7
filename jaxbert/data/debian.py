"""Text out of Debian packages: download with a private apt state, unpack, licences from the copyright file.

`deb:Translation-XX` is apt's list of package descriptions in a language; packages' own names are lower case.

Nothing is pinned: the first download fixes the version (security updates remove old ones from the archive), later runs
use the file that is in the cache, without any network. `corpus.json` records version and sha256.
"""

import dataclasses
import hashlib
import itertools
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from jaxbert.config import Corpus
from jaxbert.data import files
from jaxbert.data.files import Document, Unread
from jaxbert.errors import BadInput

# (path inside a package, key of formats.READERS); {} stands for the language, perhaps with a country: gl, gl_ES.
PLACES = (
    (r"usr/share/libreoffice/help/{}/.*\.html", "html"),
    (r"usr/share/help/{}/.*\.(?:page|docbook)", "xml"),
    (r"usr/share/doc/HTML/{}/.*\.docbook", "xml"),
    (r".*/{}/LC_MESSAGES/[^/]*\.mo", "gettext"),
    (r"usr/share/man/{}/man[^/]*/[^/]*\.gz", "man"),
    (r"usr/share/gretl/gretl_gui_[^/]*\.{}", "gretl"),
    (r"usr/share/mediawiki/.*/i18n/(?:.*/)?{}\.json", "messages"),
    (r"usr/lib/.*/langpack-{}@[^/]*\.xpi", "langpack"),
    (r"usr/share/doc/(?:.*/)?(?:[^/]*-)?{}/.*\.html", "html"),
)
LIST = re.compile(r"Translation-([a-z]{2,3})(?:_[A-Z]{2})?")
APT_HELPER = "/usr/lib/apt/apt-helper"  # reads lists, however apt has compressed them


@dataclasses.dataclass(frozen=True)
class Package:
    """A downloaded package and its files of one language, or a list of descriptions: then its only file is itself."""

    name: str
    version: str
    sha256: str  # of the .deb, or of the list as text
    bytes: int
    licence: str  # short names from the copyright file, or "unknown, see …"
    attribution: str
    files: tuple[tuple[str, Path, str], ...]  # (path inside the package, path on disk, key of formats.READERS), sorted


def packages(
    names: list[str], language: str, cache: Path | None = None, log: Callable[[str], None] = print
) -> list[Package]:
    """Packages by name, in the given order; those that are not in the cache are downloaded, all at once.

    Raises BadInput without apt-get or dpkg-deb, for a package or list that does not exist, and for one without text in
    the language.
    """
    if not language:
        raise BadInput("corpus.language: empty; packages hold many languages, give the code of one, such as gl")
    cache = cache or Path(os.environ.get("JAXBERT_CACHE") or "~/.cache/jaxbert").expanduser() / "debian"
    for name in names:
        if of := LIST.fullmatch(name):
            if of[1] != language:
                raise BadInput(f"corpus.input: deb:{name}: is in {of[1]!r}, but corpus.language is {language!r}")
        elif not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
            wanted = "deb:NAME or deb:NAME,NAME, or deb:Translation-pl for descriptions"
            raise BadInput(f"corpus.input: deb:{name}: not a package name; write {wanted}")
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            names_ = ",".join(names)
            raise BadInput(f"corpus.input: deb:{names_} needs {tool}, which only Debian and its kin have; use files")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if missing := [n for n in names if _cached(n, cache) is None]:
            log(f"downloading {len(missing)} Debian packages: {' '.join(missing)}")
            if debs := [n for n in missing if not LIST.fullmatch(n)]:
                _download(debs, cache)
            for name in [n for n in missing if LIST.fullmatch(n)]:
                _download_list(name, cache)
        return [_open_list(n, cache) if LIST.fullmatch(n) else _open(n, language, cache) for n in names]
    except OSError as error:
        raise BadInput(f"{cache}: {error.strerror}; set JAXBERT_CACHE to a directory with room") from None


def _cached(name: str, cache: Path) -> Path | None:
    """The newest .deb of a package in the cache, or text of a list."""
    if LIST.fullmatch(name):  # not Translation-pt_BR for Translation-pt
        found = (p for p in cache.glob(f"{name}_*.txt") if p.name.rpartition("_")[0] == name)
    else:
        found = (p for p in cache.glob(f"{name}_*.deb"))
    return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name), default=None)


def _apt(cache: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs apt-get (or `program`) with lists, caches and locks of our own: no root, the user's apt is
    untouched."""
    state = cache / "apt"
    for directory in ("lists/partial", "archives/partial"):
        (state / directory).mkdir(parents=True, exist_ok=True)
    settings = state / "apt.conf"
    settings.write_text(
        f'Dir::State "{state}";\nDir::State::status "/var/lib/dpkg/status";\nDir::Cache "{state}";\n'
        'Acquire::Retries "3";\nAPT::Sandbox::User "root";\n'
    )
    environment = {**os.environ, "APT_CONFIG": str(settings), "LC_ALL": "C.UTF-8"}

    def apt(*arguments: str, program: str = "apt-get", languages: str = "none", directory: Path = state) -> Any:
        # An option on the command line: the system's own files are read after ours, and often say "none" themselves.
        command = [program, "-q", "-o", f"Acquire::Languages={languages}", *arguments]
        return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)

    return apt


def _reason(default: str, *done: subprocess.CompletedProcess[str]) -> str:
    errors = [line for d in done for line in d.stderr.splitlines() if line.startswith("E:")]
    return " ".join(errors[:3]) or default


def _download(names: list[str], cache: Path) -> None:
    """`apt-get update` and `download`."""
    apt = _apt(cache)
    # One list of many that cannot be had does not matter, so only the download decides.
    update = apt("update")
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as directory:
        done = apt("download", *names, directory=Path(directory))
        found = sorted(Path(directory).glob("*.deb"))
        if done.returncode or len(found) < len(names):
            reason = _reason(f"apt-get download ended with {done.returncode}", done, update)
            raise BadInput(f"corpus.input: deb:{','.join(names)}: {reason}; check the names and the network")
        for file in found:
            file.rename(cache / file.name)


def _download_list(name: str, cache: Path) -> None:
    """`apt-get update` with the list's language; what its archives have of it, end to end, goes into the cache."""
    if not shutil.which(APT_HELPER):
        raise BadInput(f"corpus.input: deb:{name} needs {APT_HELPER}, which comes with apt; leave the list out")
    apt, language = _apt(cache), name.partition("-")[2]
    update = apt("update", languages=language)
    form = "$(FILENAME)\t$(CODENAME)\t$(VERSION)"
    of = ("Created-By: Translations", f"Language: {language}")
    targets = sorted(tuple(t.split("\t")) for t in apt("indextargets", "--format", form, *of, languages=language)
                     .stdout.splitlines())  # fmt: skip
    texts = []
    for file, *_ in targets:
        done = apt("cat-file", file, program=APT_HELPER)
        if done.returncode:
            raise BadInput(f"corpus.input: deb:{name}: {file}: {_reason('apt-helper failed', done)}; delete the file")
        texts.append(done.stdout)
    if not any(text.strip() for text in texts):
        reason = _reason("no archive in apt's sources has this list", update)
        raise BadInput(f"corpus.input: deb:{name}: {reason}; check the language and the network")
    versions = dict.fromkeys(" ".join(filter(None, version)) for _, *version in targets)
    path = cache / f"{name}_{quote(', '.join(versions), safe='').replace('_', '%5f')}.txt"
    with tempfile.TemporaryDirectory(dir=cache, prefix="download-") as directory:
        text = Path(directory) / "text"
        text.write_text("\n".join(texts), "utf-8")
        text.rename(path)


def _open_list(name: str, cache: Path) -> Package:
    path = _cached(name, cache)
    assert path is not None
    sha256, size = files.digest(str(path))
    version = unquote(path.stem.rpartition("_")[2])
    return Package(
        name=name,
        version=version,
        sha256=sha256,
        bytes=size,
        licence="unknown, the list names none",
        attribution=f"Debian Description Translation Project; package descriptions of Debian {version}",
        files=((name, path, "descriptions"),),
    )


def descriptions(path: str, corpus: Corpus) -> Iterator[Document | Unread]:
    """The reader of a list: a document a description, its short one first; meta: the package as `id`.

    The format is https://wiki.debian.org/DebianRepository/Format, Translation indices; inside it that of Debian policy
    5.6.13: lines that start with one space belong together, those with more stand as they are, " ." ends a paragraph.
    """
    paragraphs: list[str] = []
    package, indented, new = "", False, True
    for number, offset, line in itertools.chain(files.lines(path, files.limit(corpus)), [(0, 0, b"")]):
        if isinstance(line, Unread):
            yield line
            continue
        text = files.decode(line, path, f"line {number}", offset, corpus).rstrip()
        field, colon, value = text.partition(":")
        if not text:
            if paragraphs:
                yield Document("\n".join(paragraphs), "", "", {"id": package})
            package, paragraphs = "", []
        elif text == " .":
            new = True
        elif text.startswith(" "):
            starts = new or text.startswith("  ") != indented or _BULLET.match(text)
            indented, new = text.startswith("  "), False
            words = _BULLET.sub("", text).strip()
            paragraphs[-1:] = [*paragraphs[-1:], words] if starts or not paragraphs else [f"{paragraphs[-1]} {words}"]
        elif colon and field == "Package":
            package = value.strip()
        elif colon and field.startswith("Description-") and field != "Description-md5":
            paragraphs, indented, new = [value.strip()], False, True


_BULLET = re.compile(r" (?:\s+[*+•o-]|\*)\s+")  # of a list: after one space "o" and "-" are words


def _open(name: str, language: str, cache: Path) -> Package:
    deb = _cached(name, cache)
    assert deb is not None
    version = unquote(deb.name.split("_")[1])
    with deb.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    root = _unpack(deb, name, sha256, language)
    files = []
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        inside = path.relative_to(root).as_posix()
        if form := _format(inside, language):
            files.append((inside, path, form))
    if not files:
        raise BadInput(
            f"corpus.input: deb:{name}: {name} {version} holds no text in {language!r} that a reader knows;"
            f" remove it from corpus.input or correct corpus.language"
        )
    where = f"usr/share/doc/{name}/copyright"
    copyright = (root / where).read_text("utf-8", "replace") if (root / where).is_file() else ""
    return Package(
        name=name,
        version=version,
        sha256=sha256,
        bytes=deb.stat().st_size,
        licence=", ".join(licences(copyright)) or f"unknown, see /{where} of the package",
        attribution=f"{holders(copyright) or 'holders as named'}; /{where} of the Debian package {name} {version}",
        files=tuple(files),
    )


def _format(inside: str, language: str) -> str | None:
    code = rf"{re.escape(language)}(?:[_-][A-Za-z]{{2,4}})?(?:\.UTF-8)?"
    return next((form for pattern, form in PLACES if re.fullmatch(pattern.replace("{}", code), inside)), None)


def _unpack(deb: Path, name: str, sha256: str, language: str) -> Path:
    """The package's files of the language and its copyright file, on disk. The folder's name says what made it."""
    made_from = hashlib.sha256(f"{sha256} {language} {PLACES}".encode()).hexdigest()[:12]
    folder = deb.with_name(f"{deb.stem}-{language}-{made_from}")
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=deb.parent, prefix="unpack-") as temporary:
        target = Path(temporary) / "root"
        target.mkdir()
        command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            reason = ""
            try:
                for inside, data in _members(process.stdout, name, language):
                    (target / inside).parent.mkdir(parents=True, exist_ok=True)
                    (target / inside).write_bytes(data)
            except tarfile.TarError as error:
                reason = str(error)
            process.stdout.close()
            said = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        if process.returncode or reason:
            why = said[-1] if said else reason
            raise BadInput(f"{deb}: cannot be unpacked: {why}; delete the file, it is downloaded again")
        if not folder.is_dir():  # another process may have been faster
            target.rename(folder)
    return folder


def _members(stream: IO[bytes], name: str, language: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            inside = member.name.removeprefix("./")
            wanted = inside == f"usr/share/doc/{name}/copyright" or _format(inside, language)
            if wanted and member.isfile() and ".." not in inside.split("/"):
                content = tar.extractfile(member)
                assert content is not None
                yield inside, content.read()


# Names that a copyright file without `License:` fields is searched for, most specific first.
_NAMES = (
    (r"public domain", "public domain"),
    (r"Creative Commons Attribution-Share\s?Alike (\d\.\d)", r"CC-BY-SA-\1"),
    (r"common-licenses/([A-Z][\w.-]*\w)", r"\1"),
    (r"GNU Free Documentation License", "GFDL"),
    (r"GNU Lesser General Public License", "LGPL"),
    (r"GNU General Public License", "GPL"),
)


def licences(copyright: str) -> list[str]:
    """Short licence names of a Debian copyright file: its `License:` fields, else names found in its text.

    The fields follow https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/; the licence of `Files: *` is
    the first. A file in no such format is searched for a few well-known names; nothing found is an empty list.
    """
    fields = re.findall(r"^License:[ \t]*(\S.*?)[ \t]*$", copyright, flags=re.M | re.I)
    if not fields:
        flat = " ".join(copyright.split())
        fields = [match.expand(name) for pattern, name in _NAMES for match in re.finditer(pattern, flat, flags=re.I)]
        versioned = {f.split("-")[0] for f in fields if "-" in f}
        fields = [f for f in fields if f not in versioned]  # GPL says less than GPL-2
    return list(dict.fromkeys(fields))


def holders(copyright: str) -> str:
    """The upstream name and the copyright statement of `Files: *`; of a file in no known format the lines that say
    copyright and a sign or a year; "" where there is none."""
    name = re.search(r"^Upstream-Name:[ \t]*(.+)$", copyright, flags=re.M)
    stanza = re.search(r"^Files:[ \t]*\*[ \t]*\n(?:.+\n)*?Copyright:(.*(?:\n[ \t]+\S.*)*)", copyright, flags=re.M)
    lines = re.findall(r"^.*\bCopyright[ \t]*(?:\(C\)|©|[12]\d{3}).*$", copyright, flags=re.M | re.I)
    statement = stanza[1] if stanza else "; ".join(line.strip(" \t*#") for line in lines)
    statement = " ".join(re.sub(r"<\S+@\S+>", "", statement).split())
    if len(statement) > 300:
        statement = statement[:300].rsplit(" ", 1)[0] + " and others"
    return ", ".join(filter(None, (name[1].strip() if name else "", statement)))
