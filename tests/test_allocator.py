"""The allocator keeps what is freed, and training asks it to in time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxbert import config

STEP = """
import resource, sys
import jax, jax.numpy as jnp
from jaxbert.allocator import computes_on_cpu, keep_freed_memory
assert computes_on_cpu()
if not keep_freed_memory():
    sys.exit(77)
step = jax.jit(lambda x: jnp.sum(jnp.sin(x @ x.T) @ x))
x = jnp.ones((2048, 2048))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(3): faults()
print(min(faults() for _ in range(5)))
"""

TRAIN = """
import json, sys
from pathlib import Path
from jax._src import xla_bridge
from jaxbert import config, train
def keep_freed_memory():
    print("before" if not xla_bridge.backends_are_initialized() else "after")
    sys.exit(0)
train.keep_freed_memory = keep_freed_memory
train.train(config.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


def output_of(program: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    )
    if result.returncode == 77:
        pytest.skip("no glibc")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_steps_buffers_are_used_again_without_page_faults() -> None:
    assert int(output_of(STEP)) < 1000  # of 8,192 pages that its products take


def test_training_tells_the_allocator_before_the_backend_starts_its_threads(
    tiny_corpus: config.Config, tmp_path: Path
) -> None:
    assert output_of(TRAIN, json.dumps(config.to_dict(tiny_corpus)), str(tmp_path / "run")) == "before\n"
