"""Rows on a host's own disk: whole, the same bytes, and only where there is room."""

import collections
import json
import shutil
from pathlib import Path

import pytest

from jaxbert.data import staging
from jaxbert.errors import BadInput


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus" / "single_64"
    for bucket in ("16", "64"):
        (folder / bucket).mkdir(parents=True)
        (folder / bucket / "tokens.bin").write_bytes(bucket.encode() * 1000)
        (folder / bucket / "rows.json").write_text(json.dumps({"rows": 10}))
    (folder / "single.json").write_text("{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_staged_folder_has_the_name_and_the_bytes_of_the_corpus(rows: Path, tmp_path: Path) -> None:
    copy = staging.stage(rows, tmp_path / "disk")
    assert copy.is_relative_to(tmp_path / "disk") and copy.name == rows.name and contents(copy) == contents(rows)


def test_staged_again_it_copies_what_is_missing_or_short_and_nothing_else(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = staging.stage(rows, tmp_path / "disk")
    (copy / "16" / "tokens.bin").write_bytes(b"torn")
    (copy / "single.json").unlink()
    copied, real = [], staging._copy
    monkeypatch.setattr(staging, "_copy", lambda source, target: (copied.append(source.name), real(source, target)))
    assert staging.stage(rows, tmp_path / "disk") == copy and contents(copy) == contents(rows)
    assert copied == ["tokens.bin", "single.json"]


def test_rows_that_say_something_else_of_themselves_are_another_copy(rows: Path, tmp_path: Path) -> None:
    before = staging.stage(rows, tmp_path / "disk")
    (rows / "16" / "rows.json").write_text(json.dumps({"rows": 11}))
    assert staging.stage(rows, tmp_path / "disk") != before


def test_too_small_a_disk_is_refused_with_the_bytes_needed_and_free(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10_000, 9_000, 1_000))
    with pytest.raises(BadInput, match=r"data.stage: .*needs 4,026 more bytes, and .*disk has 1,000 free"):
        staging.stage(rows, tmp_path / "disk")
    assert not contents(tmp_path / "disk")


def test_a_copy_that_reads_back_otherwise_is_refused_and_leaves_nothing(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = staging.os.fsync

    def flip(descriptor: int) -> None:
        real(descriptor)
        staging.os.pwrite(descriptor, b"?", 5)

    monkeypatch.setattr(staging.os, "fsync", flip)
    with pytest.raises(BadInput, match=r"data.stage: .*does not hold what was copied into it; check that disk"):
        staging.stage(rows, tmp_path / "disk")
    assert not contents(tmp_path / "disk")


def test_a_place_that_cannot_be_written_is_refused(rows: Path) -> None:
    with pytest.raises(BadInput, match="data.stage: cannot copy .* to /proc/disk"):
        staging.stage(rows, Path("/proc/disk"))
