"""What becomes of a run of several processes when one is missing, odd, killed or frozen: code, last line, time."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jaxbert import checkpoint, config
from tests.drills.processes import REPOSITORY, Launcher, Process, free_address, launcher
from tests.test_train import change, records

pytestmark = pytest.mark.slow
GONE = 60.0  # seconds within which every survivor of a lost peer is to have ended
START = 600.0  # seconds for imports, compiling and the first steps, on a busy machine


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Launcher]:
    with launcher(tmp_path / "processes") as found:
        yield found


@pytest.fixture
def endless(tiny_corpus: config.Config) -> config.Config:
    """A run that no drill sees the end of; its first checkpoint is at step 10."""
    return change(
        tiny_corpus,
        train={"steps": 1_000_000, "log_every": 10},
        checkpoint={"every": 10},
        evaluation={"every": 1_000_000},
        optimizer={"learning_rate": 1e-4},
    )


def training(started: list[Process], workdir: Path) -> list[Process]:
    """The processes, once they have saved a checkpoint."""
    started[0].says("step      20/", START)
    assert checkpoint.steps_in(workdir / "checkpoints")
    return started


def assert_ends(process: Process, code: int, seconds: float, *words: str) -> None:
    began = time.monotonic()
    assert process.wait(seconds) == code, process.output()
    assert time.monotonic() - began < seconds
    for word in words:
        assert word in process.last_line(), process.output()


def test_two_processes_of_two_devices_give_the_losses_of_one_of_four(
    tiny_corpus: config.Config, processes: Launcher, tmp_path: Path
) -> None:
    settings = change(tiny_corpus, train={"log_every": 1})
    one = processes.start(settings, tmp_path / "one", devices=4)
    assert one.wait(START) == 0, one.output()
    two = processes.start_all(settings, tmp_path / "two", devices=2)
    for process in two:
        assert process.wait(START) == 0, process.output()
    for split, count in (("train", 20), ("validation", 2)):
        ours, theirs = ([r["loss"] for r in records(tmp_path / name, split)] for name in ("two", "one"))
        assert len(theirs) == count
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert checkpoint.steps_in(tmp_path / "two/checkpoints") == checkpoint.steps_in(tmp_path / "one/checkpoints")
    assert [line for line in two[1].output().splitlines() if not line.startswith("[Gloo]")] == []  # one speaks
    for number in (0, 1):
        told = json.loads((tmp_path / f"two/processes/{number}.json").read_text())
        assert (told["process"], told["processes"], told["phase"], told["step"]) == (number, 2, "done", 20)

    # Both find their checkpoint again, and nothing to do.
    for process in processes.start_all(settings, tmp_path / "two", devices=2):
        assert process.wait(START) == 0, process.output()
    assert "nothing to do" in processes.started[-2].output()


@pytest.mark.parametrize("victim", [0, 1])
def test_the_survivor_of_a_killed_process_ends_with_75_and_its_name(
    endless: config.Config, processes: Launcher, tmp_path: Path, victim: int
) -> None:
    started = training(processes.start_all(endless, tmp_path / "run"), tmp_path / "run")
    started[victim].send(signal.SIGKILL)
    name = f"process {victim}{' (coordinator)' if victim == 0 else ''}"
    assert_ends(started[1 - victim], 75, GONE, f"process {1 - victim}: lost {name}", "start this process again")


@pytest.mark.parametrize("victim, silence", [(0, 15.0), (1, 30.0)])  # 30: the default
def test_the_survivor_of_a_frozen_process_ends_with_75_and_its_name_and_so_does_that_one_when_it_thaws(
    endless: config.Config, processes: Launcher, tmp_path: Path, victim: int, silence: float
) -> None:
    settings = change(endless, limits={"silence": silence})
    started = training(processes.start_all(settings, tmp_path / "run"), tmp_path / "run")
    started[victim].send(signal.SIGSTOP)
    name = f"process {victim}{' (coordinator)' if victim == 0 else ''}"
    assert_ends(started[1 - victim], 75, GONE, f"lost {name}: no sign of life for", "start this process again")
    started[victim].send(signal.SIGCONT)
    assert_ends(started[victim], 75, GONE, f"process {victim}: the other processes took this one for lost")


@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_never_starts_is_named_and_the_start_given_up(
    tiny_corpus: config.Config, processes: Launcher, tmp_path: Path, missing: int
) -> None:
    flags = ("--start-timeout=20",)
    (there,) = processes.start_all(tiny_corpus, tmp_path / "run", *flags, numbers=[1 - missing])
    name = "process 0 (coordinator, 127.0.0.1:" if missing == 0 else "process 1"
    there.says(f"process {1 - missing}: waiting for {name}", 60)
    assert_ends(there, 75, 30, name, "within 20 s", "start this process again")
    assert not (tmp_path / "run").exists()


def test_processes_of_another_recipe_or_version_are_named_with_both_values(
    tiny_corpus: config.Config, processes: Launcher, tmp_path: Path
) -> None:
    odd = tmp_path / "odd" / "flax-9.9.9.dist-info"  # all that importlib.metadata reads of an installed package
    odd.mkdir(parents=True)
    (odd / "METADATA").write_text("Metadata-Version: 2.1\nName: flax\nVersion: 9.9.9\n")
    address = free_address()
    for number in range(3):
        flags = [f"--coordinator={address}", "--processes=3", f"--process={number}"]
        path = f"{odd.parent}{os.pathsep}{REPOSITORY}" if number == 2 else str(REPOSITORY)
        if number == 1:
            flags.append("--config.train.batch_size=16")
        processes.start(
            tiny_corpus, tmp_path / "run", *flags, number=number, devices=1, environment={"PYTHONPATH": path}
        )
    for process in processes.started:
        assert_ends(process, 2, START, 'has flax "9.9.9", the other 2 have "', "process 2 (", "process 1 (")
        assert "has recipe train.batch_size 16, the other 2 have 8" in process.last_line()
    assert not (tmp_path / "run").exists()


def test_two_processes_with_one_number_are_refused(
    tiny_corpus: config.Config, processes: Launcher, tmp_path: Path
) -> None:
    for process in processes.start_all(tiny_corpus, tmp_path / "run", processes=3, devices=1, numbers=[0, 1, 1]):
        assert_ends(process, 2, START, "two processes say that they are process 1", "give each its own number")


def test_what_one_process_ends_by_is_told_by_the_others(
    tiny_corpus: config.Config, processes: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(  # the import of what reads ahead fails, right before step 1
        "import sys\n\n\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'grain':\n"
        "            from jaxbert.errors import BadInput\n\n"
        "            raise BadInput('the data disk is gone')\n\n\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    address = free_address()
    for number in range(2):
        path = f"{tmp_path / 'broken'}{os.pathsep}{REPOSITORY}" if number else str(REPOSITORY)
        processes.start(
            tiny_corpus,
            tmp_path / "run",
            f"--coordinator={address}",
            "--processes=2",
            f"--process={number}",
            number=number,
            environment={"PYTHONPATH": path},
        )
    first, second = processes.started
    assert_ends(second, 2, START, "error: the data disk is gone")
    assert_ends(first, 75, GONE, "process 1 ended with code 2: the data disk is gone", "start this process again")
