"""--profile: which steps are traced, and that the trace names them."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbert import config, profiling, train
from jaxbert.errors import BadInput
from tests.conftest import FLAGS
from tests.test_train import records


@pytest.mark.parametrize("text", ["", "5", "a:b", "5:5", "7:3", "-1:3", "1:2:3", "1.5:3"])
def test_what_is_no_stretch_of_steps_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--profile: .*START:STOP"):
        profiling.parse(text)


def traced_steps(workdir: Path) -> set[int]:
    (file,) = workdir.glob("profile/plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return {int(e["args"]["step_num"]) for e in events if e.get("name") == "train" and "step_num" in e.get("args", {})}


@pytest.mark.slow
def test_a_trace_of_the_steps_asked_for_lies_in_the_run_and_changes_nothing_else(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        f"from jaxbert.config import *\ndef get_config(): return from_dict({config.to_dict(tiny_corpus)})"
    )
    # In a process of its own: jax's profiler ends one in which libtpu was loaded to compile for absent devices.
    command = [sys.executable, "-m", "jaxbert.train", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    environment = os.environ | {"XLA_FLAGS": FLAGS}
    done = subprocess.run([*command, "--profile=12:15"], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert traced_steps(tmp_path / "run") == {12, 13, 14}
    assert records(tmp_path / "run") == records(tiny_run)
    assert "of the steps to 15 in" in done.stdout.replace("\n", " ")


def test_steps_that_are_done_are_not_traced_and_steps_past_the_end_are_refused(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    train.train(tiny_corpus, tmp_path / "run", profile=range(0, 2))
    assert not (tmp_path / "run/profile").exists() and "nothing is traced" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"--profile: starts after step 20, but the run has 20"):
        train.train(tiny_corpus, tmp_path / "run", profile=range(20, 24))
