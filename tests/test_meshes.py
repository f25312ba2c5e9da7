"""A mesh changes no number: what eight devices compute is what one does, for every encoder and with dropout.

Only some of the cases and meshes of tests/meshes.py run here, for time; `python -m tests.meshes CASE DTYPE MESHES`
takes any. tests/test_train.py does the same with the whole loop, in float32.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import FLAGS

ONE = (1, 1, 1)  # data × fsdp × tensor


def losses(case: str, dtype: str, *meshes: tuple[int, int, int]) -> np.ndarray:
    """(meshes, steps), from a process with eight devices."""
    command = [sys.executable, "-m", "tests.meshes", case, dtype, json.dumps(meshes)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_FLAGS": FLAGS}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return np.array([json.loads(line) for line in done.stdout.splitlines()])


CHOSEN = ("bert", "convbert", "amlp", "m2_additions", "hypermixer")  # one of each family


@pytest.mark.slow
@pytest.mark.parametrize("case", CHOSEN)
def test_every_encoder_has_the_losses_of_one_device_in_float64(case: str) -> None:
    one, many = losses(case, "float64", ONE, (2, 2, 2))
    assert len(one) == 20 and len(set(one)) == 20
    np.testing.assert_allclose(many, one, rtol=1e-10)


@pytest.mark.slow
def test_bert_has_the_losses_of_one_device_in_float32_on_fsdp_alone() -> None:
    one, many = losses("bert", "float32", ONE, (1, 8, 1))
    np.testing.assert_allclose(many, one, rtol=1e-5)
