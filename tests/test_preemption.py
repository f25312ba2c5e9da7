"""SIGTERM: at once before the first step, at the end of a step afterwards."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbert import config
from jaxbert.errors import START_AGAIN
from tests.drills.moments import run, signal_at
from tests.test_train import change, fingerprints, records

REPOSITORY = Path(__file__).parents[1]


def listener(body: str) -> subprocess.CompletedProcess:
    """A process that listens, and does `body`."""
    program = f"""
import os, signal, time
from jaxbert import errors, preemption
with preemption.listen(lambda why: errors.end(errors.StartAgain(why))) as notice:
    terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
    def heard():
        for _ in range(500):
            if notice.reached(1): return True
            time.sleep(0.01)
    {body}
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)


def test_before_the_first_step_a_process_that_python_does_not_reach_ends_at_once() -> None:
    # A pattern that takes hours holds the main thread, and Python's lock is given up for no signal handler.
    ended = listener("terminate(); time.sleep(60)")
    assert ended.returncode == START_AGAIN
    assert ended.stderr == "error: preempted before the first step; start this process again\n"


def test_once_steps_have_begun_sigterm_is_a_flag_however_often_it_comes() -> None:
    ended = listener(
        "notice.begin(); assert not notice.reached(1); terminate(); terminate(); print(heard()); terminate()"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


def test_afterwards_sigterm_is_what_it_was() -> None:
    ended = listener("notice.begin()\nterminate(); time.sleep(60)")
    assert ended.returncode == -signal.SIGTERM


@pytest.mark.slow
def test_a_preempted_run_saves_its_step_and_goes_on_from_there_bit_for_bit(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path
) -> None:
    # The tenth step is also one that is scored, which the next process does.
    code, output = run(tiny_corpus, tmp_path / "run", signal_at("step", 10, signal.SIGTERM))
    assert code == START_AGAIN, output
    last = output.splitlines()[-1]
    assert last.startswith("error: preempted after step 1") and "is saved, no step is lost; start this process" in last
    code, output = run(tiny_corpus, tmp_path / "run")
    assert code == 0 and "resuming    at step 1" in output and "done again" not in output
    assert records(tmp_path / "run") == records(tiny_run)
    assert fingerprints(tmp_path / "run") == fingerprints(tiny_run)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["compile", "restore"])
def test_sigterm_before_the_first_step_ends_a_run_at_once(
    tiny_corpus: config.Config, tiny_run: Path, tmp_path: Path, moment: str
) -> None:
    settings = change(tiny_corpus, checkpoint={"every": 5})
    run(settings, tmp_path / "run", signal_at("save", 2, signal.SIGKILL))
    code, output = run(settings, tmp_path / "run", signal_at(moment, 1, signal.SIGTERM))
    assert code == START_AGAIN
    assert output.splitlines()[-1] == "error: preempted before the first step; start this process again"
    assert "\ntrain " not in output


@pytest.mark.slow
def test_a_second_sigterm_during_the_save_does_not_break_it(tiny_corpus: config.Config, tmp_path: Path) -> None:
    settings = change(tiny_corpus, checkpoint={"every": 1000}, evaluation={"every": 1000})
    first, second = signal_at("step", 7, signal.SIGTERM), signal_at("save", 1, signal.SIGTERM)
    code, output = run(settings, tmp_path / "run", first, second)
    assert code == START_AGAIN and "is saved, no step is lost" in output
    saved = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert saved == [5]
