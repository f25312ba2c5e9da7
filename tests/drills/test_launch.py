"""Training through tpu/launch.py, as on a slice: of two processes one is told to go, then one is killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jaxbert import checkpoint, config
from tests.drills.processes import REPOSITORY, until
from tests.test_train import change, records

pytestmark = pytest.mark.slow
LIMIT = 600.0  # seconds for two starts of two processes, on a busy machine
NOTICE, GONE = 30.0, 60.0  # seconds from a notice until all have saved and ended, and from a loss until none is left


def launch(folder: Path, workdir: Path, settings: config.Config) -> subprocess.Popen[str]:
    """The launcher of two local processes of one device each, in `folder`."""
    folder.mkdir()
    values = json.dumps(config.to_dict(settings))
    (folder / "recipe.py").write_text(
        "import json\nfrom jaxbert import config\n\n\n"
        f"def get_config():\n    return config.from_dict(json.loads({values!r}))\n"
    )
    flags = ["--name=drill", "--accelerator=local:2", "--poll=0.5"]
    command = [sys.executable, "-m", "jaxbert.train", "--config=recipe.py", f"--workdir={workdir}"]
    return subprocess.Popen(
        [sys.executable, REPOSITORY / "tpu" / "launch.py", *flags, "--", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def attempt(state: Path, worker: int, number: int) -> dict[str, Any]:
    """What a worker's supervisor wrote of its `number`th attempt, once that trains."""

    def read() -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((state / f"worker-{worker}" / "run.json").read_text())
        return {}

    until(lambda: read().get("attempt") == number and "pid" in read(), LIMIT, f"attempt {number} of worker {worker}")
    return read()


def seconds_to_end(pid: int, most: float) -> float:
    """How long a process is still there; fails after `most` seconds."""
    begin = time.monotonic()
    until(lambda: not Path(f"/proc/{pid}").exists(), most, f"the end of {pid}")
    return time.monotonic() - begin


def test_a_notice_and_then_a_kill_of_one_of_two_cost_a_start_each_and_the_losses_are_the_same(
    tiny_corpus: config.Config, tmp_path: Path
) -> None:
    settings = change(
        tiny_corpus, train={"steps": 200, "log_every": 1}, checkpoint={"every": 20}, evaluation={"every": 200}
    )
    undisturbed = launch(tmp_path / "undisturbed", tmp_path / "one", settings)
    out, _ = undisturbed.communicate(timeout=LIMIT)
    assert undisturbed.returncode == 0, out

    process = launch(tmp_path / "disturbed", tmp_path / "two", settings)
    saved, state = tmp_path / "two" / "checkpoints", tmp_path / "disturbed" / ".launch" / "drill"

    def newest() -> int:
        return max(checkpoint.steps_in(saved), default=0) if saved.exists() else 0

    try:
        until(lambda: newest() >= 20, LIMIT, "a checkpoint")
        pids = [attempt(state, worker, 1)["pid"] for worker in (0, 1)]
        os.kill(pids[1], signal.SIGTERM)  # as TPUs are told that they will be taken away
        assert sum(seconds_to_end(pid, NOTICE) for pid in pids) < NOTICE
        noticed = newest()
        pids = [attempt(state, worker, 2)["pid"] for worker in (0, 1)]
        until(lambda: newest() > noticed, LIMIT, "a checkpoint of the second attempt")
        os.kill(pids[1], signal.SIGKILL)
        seconds_to_end(pids[0], GONE)
        out, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert "its checkpoint is saved, no step is lost" in out, out
    assert "137 (worker 1)" in out and "75 (worker 0)" in out and "process 1" in out, out
    assert attempt(state, 0, 3)["attempt"] == 3
    ours, theirs = ([r["loss"] for r in records(tmp_path / name, "train")] for name in ("two", "one"))
    assert len(theirs) == 200 and ours == theirs
