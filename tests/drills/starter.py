"""The training command in a process of its own, with something that happens to it at a chosen moment."""

import json
import os
import subprocess
import sys
from pathlib import Path

from jaxbert import config

REPOSITORY = Path(__file__).parents[2]
# argv: the recipe, the run directory, address|processes|process ("" for one process), least seconds a step, what
# happens (`;` between).
PROGRAM = """
import json, os, signal, sys, threading, time
from pathlib import Path
import jax
from jaxbert import checkpoint, config, errors, preemption, step, train

values, workdir, place, pace, happens = sys.argv[1:]
if place:
    address, processes, process = place.split("|")
    jax.distributed.initialize(address, int(processes), int(process))

def before(owner, name, count, what, pace=0.0):
    real, calls = getattr(owner, name), []
    def replaced(*args, **kwargs):
        time.sleep(pace)
        calls.append(None)
        if len(calls) == count:
            print("now in", name, flush=True)
            what()
        found = real(*args, **kwargs)
        if len(calls) == count:
            print("now past", name, flush=True)
        return found
    setattr(owner, name, replaced)

def plan(moment, count, number, seconds):
    owner, name = {
        "compile": (step.Step, "compile"), "restore": (checkpoint, "read"),
        "save": (checkpoint.Checkpoints, "save"), "step": (train.sharding, "put_batch"),
    }[moment]
    def send():
        os.kill(os.getpid(), int(number))
        while not notice.come:  # its thread has not run yet
            time.sleep(0.001)
    later = threading.Timer(float(seconds), send)
    later.daemon = True  # a process that ends before is not kept
    before(owner, name, int(count), later.start if float(seconds) else send)

before(train.sharding, "put_batch", 0, None, float(pace))
for what in happens.split(";"):
    if what:
        plan(*what.split())

with preemption.listen() as notice:
    errors.run(lambda _: train.train(config.from_dict(json.loads(values)), Path(workdir), notice))
"""


def happening(moment: str, count: int, signal: int, seconds: float = 0.0) -> str:
    """A signal `seconds` after the `count`-th "compile", "restore", "save" or "step" of the process has begun."""
    return f"{moment} {count} {int(signal)} {seconds}"


def start(
    settings: config.Config,
    workdir: Path,
    log: Path,
    happens: str = "",
    place: str = "",
    devices: int = 1,
    pace: float = 0.0,
) -> subprocess.Popen:
    """One process, its output in `log`; `place`: "HOST:PORT|processes|process" of a run of several."""
    arguments = [json.dumps(config.to_dict(settings)), str(workdir), place, str(pace), happens]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}
    variables["JAX_NUM_CPU_DEVICES"] = str(devices)
    with log.open("wb") as output:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT)


def run(settings: config.Config, workdir: Path, log: Path, happens: str = "") -> tuple[int, str]:
    """Exit code (negative: a signal's) and output of one process."""
    with start(settings, workdir, log, happens) as process:
        code = process.wait(600)
    return code, log.read_text(encoding="utf-8", errors="replace")
