"""Training through tpu/launch.py, as on a slice: of two processes one is killed, and the run ends all the same."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbert import checkpoint, config
from tests.drills.processes import REPOSITORY, until
from tests.test_train import change, records

pytestmark = pytest.mark.slow
LIMIT = 600.0  # seconds for two starts of two processes, on a busy machine


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


def test_one_of_two_is_killed_both_are_started_again_and_the_losses_are_the_same(
    tiny_corpus: config.Config, tmp_path: Path
) -> None:
    settings = change(
        tiny_corpus, train={"steps": 100, "log_every": 1}, checkpoint={"every": 10}, evaluation={"every": 100}
    )
    undisturbed = launch(tmp_path / "undisturbed", tmp_path / "one", settings)
    out, _ = undisturbed.communicate(timeout=LIMIT)
    assert undisturbed.returncode == 0, out

    process = launch(tmp_path / "disturbed", tmp_path / "two", settings)
    try:
        saved = tmp_path / "two" / "checkpoints"
        until(lambda: saved.exists() and bool(checkpoint.steps_in(saved)), LIMIT, "a checkpoint")
        state = tmp_path / "disturbed" / ".launch" / "drill"
        os.kill(json.loads((state / "worker-1" / "run.json").read_text())["pid"], signal.SIGKILL)
        out, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert "137 (worker 1)" in out and "75 (worker 0)" in out and "process 1" in out, out
    assert json.loads((state / "worker-0" / "run.json").read_text())["attempt"] == 2
    ours, theirs = ([r["loss"] for r in records(tmp_path / name, "train")] for name in ("two", "one"))
    assert len(theirs) == 100 and ours == theirs
