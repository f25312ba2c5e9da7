"""A mesh changes no number: what eight devices compute is what one does, for every encoder and with dropout."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.meshes import CASES

ONE = (1, 1, 1)
MESHES = [(2, 1, 1), (1, 4, 1), (8, 1, 1), (1, 8, 1), (1, 1, 2), (4, 1, 2), (2, 2, 2)]  # data × fsdp × tensor
# Compiling is nearly all of the time; what is tested is how programs are split, not how they are made fast.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def losses(case: str, dtype: str, *meshes: tuple[int, int, int]) -> np.ndarray:
    """(meshes, steps), from a process with eight devices."""
    command = [sys.executable, "-m", "tests.meshes", case, dtype, json.dumps(meshes)]
    environment = {**os.environ, "XLA_FLAGS": QUICK, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return np.array([json.loads(line) for line in done.stdout.splitlines()])


def test_bert_in_float64_has_the_losses_of_one_device_on_a_mesh_of_all_axes() -> None:
    one, many = losses("bert", "float64", ONE, (2, 2, 2))
    assert len(one) == 20 and not (one == one[0]).any(where=np.arange(20) > 0)
    np.testing.assert_allclose(many, one, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_encoder_in_float32_has_the_losses_of_one_device_on_a_mesh_of_all_axes(case: str) -> None:
    one, many = losses(case, "float32", ONE, (2, 2, 2))
    np.testing.assert_allclose(many, one, rtol=1e-5)
