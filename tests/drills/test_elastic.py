"""Several processes: a notice to one saves all, and a checkpoint goes on with any number of processes and devices."""

import socket
from pathlib import Path
from signal import SIGTERM

import numpy as np
import pytest

from jaxbert import checkpoint, config
from jaxbert.errors import START_AGAIN
from tests.drills.starter import happening, start
from tests.test_train import change, fingerprints, records

pytestmark = pytest.mark.slow


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def together(
    settings: config.Config, place: Path, processes: int, devices: int, preempted: bool = False
) -> list[tuple[int, str]]:
    """Exit codes and outputs of all processes of a run in `place`; `preempted`: the last one is, in its second step.

    Each has a run directory of its own, as hosts without a shared disk have; the checkpoints are shared.
    """
    settings = change(settings, checkpoint={"directory": str(place / "checkpoints")})
    address, started = free_address(), []
    place.mkdir(exist_ok=True)
    try:
        for number in range(processes):
            join = f"{address}|{processes}|{number}" if processes > 1 else ""
            happens = happening("step", 2, SIGTERM) if preempted and number == processes - 1 else ""
            # jaxlib looks once a second for a notice, so a step must not be over in a millisecond.
            pace = 1.0 if preempted and processes > 1 else 0.0
            log = place / f"log{number}"
            started.append(start(settings, place / f"run{number}", log, happens, join, devices, pace))
        codes = [process.wait(300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(code, (place / f"log{number}").read_text()) for number, code in enumerate(codes)]


@pytest.fixture(scope="module")
def settings(tiny_corpus: config.Config) -> config.Config:
    return change(tiny_corpus, train={"log_every": 1, "steps": 24}, checkpoint={"every": 100})


def test_a_notice_to_one_process_saves_the_same_step_of_all_and_none_is_lost(
    settings: config.Config, tmp_path: Path
) -> None:
    assert [code for code, _ in together(settings, tmp_path / "whole", 2, 2)] == [0, 0]
    preempted = together(settings, tmp_path / "run", 2, 2, preempted=True)
    assert [code for code, _ in preempted] == [START_AGAIN] * 2, preempted
    (step,) = checkpoint.steps_in(tmp_path / "run/checkpoints")
    assert 2 <= step < 24
    for _, output in preempted:
        assert f"error: preempted after step {step}: its checkpoint is saved, no step is lost" in output
    again = together(settings, tmp_path / "run", 2, 2)
    assert [code for code, _ in again] == [0, 0], again
    assert f"resuming    at step {step}\n" in again[0][1]
    assert records(tmp_path / "run/run0") == records(tmp_path / "whole/run0")
    assert fingerprints(tmp_path / "run/run0") == fingerprints(tmp_path / "whole/run0")


def test_a_run_goes_on_with_other_processes_devices_and_meshes(settings: config.Config, tmp_path: Path) -> None:
    assert [code for code, _ in together(settings, tmp_path / "one", 1, 1)] == [0]
    stages = [
        (2, 4, {"data": -1}),
        (4, 1, {"fsdp": 4}),
        (1, 1, {}),
        (2, 4, {"data": 2, "fsdp": 2, "tensor": 2}),
    ]
    for number, (processes, devices, mesh) in enumerate(stages):
        last = number == len(stages) - 1
        ended = together(change(settings, sharding=mesh), tmp_path / "run", processes, devices, preempted=not last)
        assert [code for code, _ in ended] == [0 if last else START_AGAIN] * processes, ended
        # A restore computes the fingerprints on its own mesh: had one differed, the checkpoint would be called broken.
        assert all("is broken" not in output for _, output in ended)
        assert ("resuming    at step" in ended[0][1]) == (number > 0) and "done again" not in ended[0][1]
    one, run = ([r["loss"] for r in records(tmp_path / place / "run0")] for place in ("one", "run"))
    assert len(one) == 24 + 3
    np.testing.assert_allclose(run, one, rtol=1e-5)
