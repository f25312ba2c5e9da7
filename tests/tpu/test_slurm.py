"""tpu/slurm.sbatch with programs in the place of SLURM's: when it asks for another go, and when not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tpu" / "slurm.sbatch"
SRUN = """\
[ "$1" = --kill-on-bad-exit=0 ] || exit 9
shift
for i in 0 1; do SLURM_PROCID=$i "$@" & echo $! >>pids; all="$all $!"; done
most=0
for pid in $all; do wait $pid; code=$?; [ $code -gt $most ] && most=$code; done
exit $most
"""
TRAIN = """\
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
code = int(sys.argv[1 + int(os.environ["SLURM_PROCID"])])
open("on-" + os.environ["SLURM_PROCID"], "w").close()
if code == 99:
    time.sleep(60)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.fixture
def job(tmp_path):
    (tmp_path / "bin").mkdir()
    fakes = {
        "srun": SRUN,
        "scontrol": 'echo "scontrol $*" >>calls',
        "scancel": 'echo "$*" >>calls; kill -TERM $(cat pids)',
    }
    for name, text in fakes.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def start(*codes, restarts="0"):
        environment = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": restarts}
        environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        command = ["bash", str(SCRIPT), sys.executable, "-ISE", "-c", TRAIN, *map(str, codes)]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    start.folder = tmp_path
    return start


def calls(job):
    path = job.folder / "calls"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [
        ((0, 0), 0, False),
        ((75, 75), 0, True),
        ((134, 75), 0, True),
        ((-9, 75), 0, True),
        ((2, 75), 2, False),
        ((75, 3), 3, False),
        ((1, 75), 1, False),
        ((127, 75), 1, False),
    ],
)
def test_the_worst_code_of_any_process_decides_though_srun_tells_the_highest(job, codes, code, requeued):
    process = job(*codes)
    process.communicate(timeout=120)
    assert process.returncode == code
    assert calls(job) == ("scontrol requeue 7\n" if requeued else "")
    assert not list(job.folder.glob(".jaxbert-*"))


def test_before_the_time_limit_all_processes_are_asked_to_save_and_the_job_is_requeued(job):
    process = job(99, 99)
    deadline = time.monotonic() + 60
    while not all((job.folder / f"on-{i}").exists() for i in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "processes ended with: 75" in err
    assert calls(job) == "--signal=TERM 7.0\nscontrol requeue 7\n"


def test_a_job_is_not_requeued_for_ever(job):
    process = job(75, 75, restarts="100")
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 75 and "JAXBERT_RESTARTS" in err and not calls(job)


def test_bash_reads_the_script_and_slurm_its_options():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    told = [line for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert "#SBATCH --signal=B:TERM@120" in told and "#SBATCH --requeue" in told
    assert not any("gpus-per-task" in line for line in told)
