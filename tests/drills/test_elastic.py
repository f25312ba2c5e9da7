"""Several processes: a notice to one saves all, and a checkpoint goes on with any number of processes and devices."""

from pathlib import Path
from signal import SIGTERM

import numpy as np
import pytest

from jaxbert import checkpoint, config
from jaxbert.errors import START_AGAIN
from tests.drills.moments import PROGRAM, signal_at
from tests.drills.processes import free_address, launcher
from tests.test_train import change, fingerprints, records

pytestmark = pytest.mark.slow


def together(
    settings: config.Config, workdir: Path, processes: int, devices: int, preempted: bool = False
) -> list[tuple[int, str]]:
    """Exit codes and outputs of all processes of a run; `preempted`: the last one is, in its second step."""
    with launcher(workdir.with_name(f"{workdir.name}-output")) as starts:
        address = free_address()
        join = (f"--coordinator={address}", f"--processes={processes}") if processes > 1 else ()
        # jaxlib looks once a second for a notice, so a step must not be over in a millisecond.
        pace = 1.0 if processes > 1 else 0.0
        for number in range(processes):
            last = number == processes - 1
            signal = signal_at("step", 2 if last else 0, SIGTERM, pace=pace)
            flags = (*join, f"--process={number}") if join else ()
            before = PROGRAM + signal if preempted else ""
            starts.start(settings, workdir, *flags, number=number, devices=devices, before=before)
        return [(process.wait(1200), process.output()) for process in starts.started]


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
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    assert fingerprints(tmp_path / "run") == fingerprints(tmp_path / "whole")


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
    one, run = ([r["loss"] for r in records(tmp_path / place)] for place in ("one", "run"))
    assert len(one) == 24 + 3
    np.testing.assert_allclose(run, one, rtol=1e-5)
