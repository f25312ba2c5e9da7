"""A run that is killed again and again: its losses are the undisturbed run's, and what was done twice is counted."""

import re
import signal
from pathlib import Path

import numpy as np
import pytest

from jaxbert import config
from tests.drills.moments import run, signal_at
from tests.test_train import change, fingerprints, records

KILLS, STEPS = 20, 64


@pytest.mark.slow
def test_twenty_sigkills_in_one_run_change_nothing(tiny_corpus: config.Config, tmp_path: Path) -> None:
    settings = change(
        tiny_corpus, train={"steps": STEPS, "log_every": 1}, checkpoint={"every": 2}, evaluation={"every": 16}
    )
    assert run(settings, tmp_path / "undisturbed")[0] == 0
    # Steps, saves and restores take tenths of a second here: a kill this long after one began is mostly inside it.
    random, done, inside = np.random.default_rng(6), 0, {"restore": 0, "save": 0, "step": 0}
    moments = random.permutation(["save"] * 9 + ["restore"] * 6 + ["step"] * 5)
    for number, moment in enumerate(moments):
        count = 1 if moment == "restore" else int(random.integers(1, 3))
        seconds = random.uniform(0.001, 0.1 if moment == "restore" else 0.2)
        if number == 0 and moment == "restore":
            moment = "save"  # there is nothing to restore yet
        code, output = run(settings, tmp_path / "run", signal_at(moment, count, signal.SIGKILL, seconds))
        assert code == -signal.SIGKILL, output
        done += len(re.findall("^train ", output, re.MULTILINE))
        left = any("tmp" in path.name for path in (tmp_path / "run/checkpoints").iterdir())
        inside[moment] += left if moment == "save" else f"now past {moment}" not in output
    code, output = run(settings, tmp_path / "run")
    assert code == 0, output
    done += len(re.findall("^train ", output, re.MULTILINE))
    print(f"{KILLS} kills, of them inside {inside}; {done - STEPS} of {STEPS} steps were done again")
    assert inside["save"] >= 2 and inside["restore"] >= 2
    assert records(tmp_path / "run") == records(tmp_path / "undisturbed")
    assert fingerprints(tmp_path / "run") == fingerprints(tmp_path / "undisturbed")
    # Never more than `checkpoint.every` steps and those of the save that was under way.
    assert 0 < done - STEPS <= KILLS * 4
