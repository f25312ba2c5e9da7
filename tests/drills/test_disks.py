"""Disks that fill, forbid writing, or give back other bytes than they took."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxbert import checkpoint, config, train
from jaxbert.errors import BAD_INPUT, BadInput
from tests.drills.moments import run
from tests.drills.processes import free_address, launcher
from tests.test_train import change, fingerprints, records

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root mounts a small tmpfs")
pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB: six checkpoints of the tiny model and what else a run writes."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


def before_save(monkeypatch: pytest.MonkeyPatch, happens: dict[int, Callable[[], None]]) -> None:
    """What happens before the save of a step begins."""
    real = checkpoint.Checkpoints.save

    def save(self, step, *arguments):
        self.wait()
        happens.get(step, lambda: None)()
        return real(self, step, *arguments)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save)


@pytest.fixture(scope="module")
def settings(tiny_corpus: config.Config) -> config.Config:
    return change(tiny_corpus, train={"steps": 24, "log_every": 1}, checkpoint={"every": 3})


@pytest.fixture(scope="module")
def undisturbed(settings: config.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    train.train(settings, workdir)
    return workdir


@as_root
def test_a_disk_that_is_full_for_a_while_costs_warnings_and_nothing_else(
    settings: config.Config, undisturbed: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    workdir, filler = small_disk / "run", small_disk / "filler"
    before_save(monkeypatch, {9: lambda: fill(small_disk), 15: filler.unlink})
    train.train(settings, workdir)
    for step in (9, 12):
        assert f"checkpoint of step {step} was not saved" in caplog.text and "No space left" in caplog.text
    assert "checkpoint of step 6 was" not in caplog.text and "checkpoint of step 15 was" not in caplog.text
    assert records(workdir) == records(undisturbed)  # lines of the full minutes, too
    assert fingerprints(workdir) == fingerprints(undisturbed)


@as_root
def test_a_disk_that_stays_full_ends_the_run_which_goes_on_when_there_is_room(
    settings: config.Config, undisturbed: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    workdir = small_disk / "run"
    few = change(settings, checkpoint={"max_failures": 1})
    with monkeypatch.context() as patch:
        before_save(patch, {9: lambda: fill(small_disk)})
        with pytest.raises(
            BadInput, match=r"step 12 was not saved: .*No space left.*2 saves failed in a row.*goes on at step 6"
        ):
            train.train(few, workdir)
    with pytest.raises(BadInput, match="--workdir: cannot write to .*No space left"):
        train.train(few, workdir)
    (small_disk / "filler").unlink()
    train.train(few, workdir)
    assert "resuming    at step 6" in capsys.readouterr().out
    assert records(workdir) == records(undisturbed)
    assert fingerprints(workdir) == fingerprints(undisturbed)


@as_root
def test_a_last_checkpoint_that_does_not_fit_is_no_success(
    settings: config.Config, undisturbed: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = small_disk / "run"
    with monkeypatch.context() as patch:
        before_save(patch, {24: lambda: fill(small_disk)})
        with pytest.raises(BadInput, match="step 24 was not saved; make room at .*goes on at step 21"):
            train.train(settings, workdir)
    assert not (workdir / "summary.json").exists()
    (small_disk / "filler").unlink()
    train.train(settings, workdir)
    assert records(workdir) == records(undisturbed)


# A limit of its own on what one process may write to a file, below what a checkpoint takes.
SHORT_OF_ROOM = """
import resource
from jaxbert import checkpoint
real = checkpoint.Checkpoints.save
def save(self, step, *arguments):
    self.wait()
    limit = 100_000 if step == 9 else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return real(self, step, *arguments)
checkpoint.Checkpoints.save = save
"""


def test_a_save_that_fails_in_one_process_alone_is_given_up_by_all_and_named(
    settings: config.Config, undisturbed: Path, tmp_path: Path
) -> None:
    few = change(settings, checkpoint={"timeout": 15}, sharding={"data": 1, "fsdp": 2})
    address = free_address()
    with launcher(tmp_path / "processes") as processes:
        for number, before in enumerate(("", SHORT_OF_ROOM)):
            flags = (f"--coordinator={address}", "--processes=2", f"--process={number}")
            processes.start(few, tmp_path / "run", *flags, number=number, devices=1, before=before)
        for process in processes.started:
            assert process.wait(600) == 0, process.output()
    told = [line for line in processes.started[0].output().splitlines() if "not saved" in line]
    assert len(told) == 1 and "checkpoint of step 9 was not saved: process 1: " in told[0], told
    assert "Failed to write" in told[0] and "training goes on (failure 1 in a row" in told[0], told
    assert checkpoint.steps_in(tmp_path / "run" / "checkpoints")[-1] == 24
    ours, theirs = ([r["loss"] for r in records(d, "train")] for d in (tmp_path / "run", undisturbed))
    assert len(ours) == 24
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@as_root
@pytest.mark.parametrize("field", ["--workdir", "checkpoint.directory"])
def test_a_read_only_disk_is_one_message(settings: config.Config, small_disk: Path, tmp_path: Path, field: str) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    workdir = small_disk / "run"
    if field != "--workdir":
        workdir, settings = tmp_path / "run", change(settings, checkpoint={"directory": str(small_disk / "saves")})
    code, output = run(settings, workdir, logs=tmp_path / "logs")
    assert code == BAD_INPUT
    assert [line.partition(" /")[0] for line in output.splitlines()] == [f"error: {field}: cannot write to"]
    assert "Read-only file system" in output


def largest(directory: Path) -> Path:
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda d: shutil.rmtree(d / "optimizer"), id="torn"),
        pytest.param(lambda d: os.truncate(largest(d), largest(d).stat().st_size // 2), id="truncated"),
        pytest.param(lambda d: flip(largest(d)), id="flipped"),
        pytest.param(lambda d: (d / "loop").joinpath("data.json").write_text("{"), id="half a JSON file"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_its_steps_are_done_again(
    settings: config.Config, undisturbed: Path, tmp_path: Path, damage: Callable[[Path], None], caplog, capsys
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    damage(tmp_path / "run/checkpoints/24")
    train.train(settings, tmp_path / "run")
    assert "run/checkpoints/24 is broken" in caplog.text and "moved to broken-24" in caplog.text
    assert "going on from step 21: 3 steps are done again" in caplog.text
    assert "resuming    at step 21; 3 logged steps are done again" in capsys.readouterr().out
    assert records(tmp_path / "run") == records(undisturbed)
    assert fingerprints(tmp_path / "run") == fingerprints(undisturbed)
