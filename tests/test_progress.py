"""The watchdog's decision by a clock of ours, and the heartbeat file."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxbert import progress
from jaxbert.config import Limits
from jaxbert.progress import Moment, overdue


@pytest.fixture(autouse=True)
def _at_the_start():
    yield
    progress.enter("start")


@pytest.mark.parametrize("phase", ["compile", "restore", "evaluate", "save", "step"])
def test_each_phase_has_its_limit_and_what_is_over_it_is_named(phase: str) -> None:
    limits = Limits(**{phase: 60.0})
    moment = Moment(phase, 1234, 1000.0)
    assert overdue(moment, limits, 1060.0) is None
    reason = overdue(moment, limits, 1061.0)
    assert reason.startswith(f"no progress: 61 s in phase '{phase}' at step 1,234 (limits.{phase} is 60 s)")


def test_waiting_for_data_counts_as_the_step() -> None:
    assert "in phase 'data' at step 7 (limits.step is 60 s)" in overdue(Moment("data", 7, 0), Limits(step=60), 61)


def test_a_limit_of_0_and_a_phase_without_one_never_end_a_process() -> None:
    assert overdue(Moment("save", 1, 0), Limits(save=0), 1e9) is None
    assert overdue(Moment("start", 0, 0), Limits(), 1e9) is None


def test_a_process_that_stands_still_is_ended_after_the_stacks_of_its_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons, ended = [], threading.Event()

    def end(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr(sys, "__stderr__", stderr)
        with progress.watched(tmp_path, 0, 1, Limits(step=0.1), end):
            progress.enter("step", 3)
            assert ended.wait(5)
    assert "in phase 'step' at step 3" in reasons[0]
    assert "test_a_process_that_stands_still" in (tmp_path / "stderr").read_text()


def test_the_heartbeat_file_says_where_the_process_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "processes" / "3.json"
    with progress.watched(tmp_path, 3, 4, Limits(), lambda reason: None):
        assert json.loads(path.read_text())["phase"] == "start"
        progress.enter("save", 500)
        assert progress.write_heartbeat(path, 3, 4)
        told = json.loads(path.read_text())
    assert {name: told[name] for name in ("process", "processes", "phase", "step")} == {
        "process": 3,
        "processes": 4,
        "phase": "save",
        "step": 500,
    }
    assert told["time"] > 1.7e9 and told["phase_seconds"] >= 0 and "pid" in told["who"]
    assert json.loads(path.read_text())["phase"] == "done"
    assert [p.name for p in path.parent.iterdir()] == ["3.json"]


def test_a_heartbeat_that_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    with progress.watched(Path("/proc/run"), 0, 1, Limits(), lambda reason: None):
        assert not progress.write_heartbeat(Path("/proc/run/processes/0.json"), 0, 1)
    full = Path("/dev/full")
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes" / "0.tmp").symlink_to(full)  # every write: no space left on device
    assert not progress.write_heartbeat(tmp_path / "processes" / "0.json", 0, 1)
    assert not (tmp_path / "processes" / "0.json").exists()


def test_a_process_that_stands_still_ends_with_75_and_the_phase_on_its_last_line(tmp_path: Path) -> None:
    program = (
        "import sys, threading; from pathlib import Path\n"
        "from jaxbert import distributed, progress\n"
        "from jaxbert.config import Config, Limits\n"
        "with distributed.joined(None, Config(), Path(sys.argv[1]), 1) as end:\n"
        "    with progress.watched(Path(sys.argv[1]), 0, 1, Limits(save=0.5), end):\n"
        "        progress.enter('save', 40)\n"
        "        threading.Event().wait(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 75, done.stderr
    *stacks, last = done.stderr.splitlines()
    assert last.startswith("error: no progress: 1 s in phase 'save' at step 40 (limits.save is 0.5 s)")
    assert last.endswith("start this process again")
    assert any('File "<string>", line 7 in <module>' in line for line in stacks)


def test_a_process_that_cannot_say_why_it_ends_ends_all_the_same_with_its_code() -> None:
    code = "import os; from jaxbert import errors; os.close(2); errors.end(errors.StartAgain('lost'))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 75
