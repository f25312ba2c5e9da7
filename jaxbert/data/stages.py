"""What every stage of a preparation needs: folders that are whole or absent, records, blocks, progress.

A stage is a folder of the corpus directory: written under a temporary name, renamed when whole, never touched again.
Beside it, stages/<folder>.json records the recipe fields and the input that it was made from, and what was counted.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxbert import config as recipes
from jaxbert.errors import BadInput

ORDER = ("documents", "tokenizer", "tokens")  # each is made from those before; rows and validation from tokens
BLOCK_DOCUMENTS, BLOCK_CHARACTERS = 2048, 1 << 19  # of text that is worked on at once
LINE_EVERY = 5.0  # seconds between lines of progress where there is no terminal
FULL_OR_READ_ONLY = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def run_stage(
    directory: Path,
    name: str,
    recipe: dict[str, Any],
    made_from: str,
    make: Callable[[Path], dict[str, Any]],
    defaults: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The report of the finished stage `directory/name`, or of `make(empty folder)`, run now.

    `recipe` are the fields, by their full names, that decide about the stage's bytes; `made_from` is the fingerprint of
    the stages before it. A field that a finished stage's record lacks came with a later version, whose `defaults` do
    what was done before. Raises BadInput where the finished stage had others.
    """
    if (directory / name).is_dir():
        record = read_record(directory, name)
        for field, old, new in recipes.differences(_filled(record["recipe"], defaults or {}), recipe):
            raise BadInput(
                f"{field}: {new!r}, but {directory / name} was made with {old!r}; give another corpus.directory, or "
                f"delete {and_later(directory, name)}"
            )
        if record["made_from"] != made_from:
            raise BadInput(
                f"{directory / name}: made from another input or tokenizer than what is there now; delete "
                f"{and_later(directory, name)} and run prepare again"
            )
        say(f"{name}: finished earlier")
        return record["report"]
    with written_whole(directory / name) as folder:
        report = make(folder)
        # Before the rename, which is what finishes a stage: a record without its folder says nothing.
        (directory / "stages").mkdir(exist_ok=True)
        write_json(_record_path(directory, name), {"recipe": recipe, "made_from": made_from, "report": report})
    return report


def _filled(old: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    filled = {name: value for name, value in defaults.items() if name not in old}
    for name, value in old.items():
        nested = isinstance(value, dict) and isinstance(defaults.get(name), dict)
        filled[name] = _filled(value, defaults[name]) if nested else value
    return filled


def read_record(directory: Path, name: str) -> dict[str, Any]:
    """What a stage was made from and its report: {recipe, made_from, report}. Raises BadInput if that is missing."""
    path = _record_path(directory, name)
    if not path.is_file():
        raise BadInput(f"{path}: missing, so nothing says how {directory / name} was made; delete that, prepare again")
    return json.loads(path.read_text(encoding="utf-8"))


def _record_path(directory: Path, name: str) -> Path:
    return directory / "stages" / f"{name}.json"


def and_later(directory: Path, name: str) -> str:
    """The folders that exist of a stage and of those made from it, for a message."""
    later = (*ORDER[ORDER.index(name) + 1 :], "rows_*", "single_*", "validation") if name in ORDER else ()
    return " ".join(sorted(str(path) for pattern in (name, *later) for path in directory.glob(pattern)))


# --- folders and files ---


@contextlib.contextmanager
def written_whole(directory: Path) -> Iterator[Path]:
    """A temporary folder that becomes `directory` when the block ends, and disappears when it raises.

    A killed process leaves `directory` absent or whole, and a temporary folder that `sweep` removes.
    """
    temporary = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            _sync(path)
        if directory.exists():
            shutil.rmtree(directory)
        temporary.rename(directory)
        _sync(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` when the block ends: several processes may write the same at once."""
    temporary = path.with_name(f"{path.name}.tmp-{os.uname().nodename}-{os.getpid()}-{threading.get_ident()}")
    yield temporary
    temporary.rename(path)


@contextlib.contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """A fresh folder next to `target`, gone afterwards whatever happens; what killed processes left goes, too."""
    folder = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    for leftover in target.parent.glob(f".{target.name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(directory: Path) -> None:
    """Remove what killed processes left. Only under the lock: a living process's folder looks the same."""
    for path in [*directory.glob("*.tmp-*"), *directory.glob("stages/*.tmp-*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_json(path: Path, values: dict[str, Any]) -> None:
    """JSON in its given order, whole or not at all: written beside and renamed."""
    with whole_file(path) as beside:
        beside.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _sync(beside)


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_lines(lines: Iterable[str]) -> str:
    """Of lines of text, in hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(directory: Path, *, wait_for_it: bool) -> Iterator[None]:
    """The only process that writes into `directory`; a killed one loses the lock. Raises BadInput, or waits."""
    with open(directory / ".lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait_for_it else fcntl.LOCK_NB))
        except BlockingIOError:
            raise BadInput(f"corpus.directory: another process is writing into {directory}; wait for it") from None
        yield


@contextlib.contextmanager
def disk_trouble_is_bad_input(directory: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one message."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number not in FULL_OR_READ_ONLY and "No space left" not in str(error):  # array_record's own error
            raise
        reason = os.strerror(number) if number else str(error)
        raise _disk_trouble(directory, reason) from None


def _disk_trouble(directory: Path, reason: str) -> BadInput:
    return BadInput(
        f"corpus.directory: cannot write into {str(directory)!r}: {reason}; make room or give another directory, "
        "then start again: finished stages stay"
    )


def check_writable(directory: Path) -> None:
    """Make the directory and really write into it: access bits say nothing about full disks and network disks.

    Raises BadInput.
    """
    probe = directory / f"probe.tmp-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(1 << 20))
        _sync(probe)
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise _disk_trouble(directory, os.strerror(error.errno or 0)) from None


# --- blocks ---


def blocks(documents: Iterable[Any], characters: int = BLOCK_CHARACTERS) -> Iterator[list[Any]]:
    """Documents (texts, or with a `text`; dicts, too) in blocks of nearly so many characters, at most 2,048."""
    block: list[Any] = []
    size = 0
    for document in documents:
        block.append(document)
        if isinstance(document, str):
            size += len(document)
        else:
            size += len(document["text"] if isinstance(document, dict) else document.text)
        if len(block) == BLOCK_DOCUMENTS or size >= characters:
            yield block
            block, size = [], 0
    if block:
        yield block


# --- what the user sees ---


def say(message: str) -> None:
    """A line for the user, at once."""
    print(message, flush=True)


class Progress:
    """A bar on a terminal; elsewhere a line every few seconds and one at the end."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        """`total` units are to come."""
        self.title, self.total, self.unit = title, total, unit
        self.done, self.note, self.started, self.last = 0, "", time.monotonic(), time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> "Progress":
        """Show the bar."""
        if sys.stdout.isatty():
            from rich import progress

            columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn())
            self.bar = progress.Progress(*columns, "{task.fields[note]}", progress.TimeElapsedColumn())
            self.bar.start()
            self.bar.add_task(self.title, total=self.total, note="")
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        """Remove the bar; say what was done unless it failed."""
        if self.bar:
            self.bar.stop()
        elif kind is None:
            self._line(f", {time.monotonic() - self.started:.1f} s")

    def update(self, done: int, note: str) -> None:
        """`done` units in all so far; `note` says what is in them."""
        self.done, self.note = done, note
        if self.bar:
            self.bar.update(0, completed=done, note=note)
        elif time.monotonic() - self.last >= LINE_EVERY:
            self.last = time.monotonic()
            self._line("")

    def count(self, items: Iterable[Any], note: str) -> Iterator[Any]:
        """`items`, counted as they pass."""
        for done, item in enumerate(items, 1):
            if done % 64 == 0 or done == self.total:
                self.update(done, note)
            yield item

    def _line(self, end: str) -> None:
        say(f"{self.title}: {self.done:,} of {self.total:,} {self.unit}, {self.note}{end}")
