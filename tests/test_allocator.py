"""The allocator keeps what is freed."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from jaxbert.allocator import keep_freed_memory
if not keep_freed_memory():
    sys.exit(77)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 << 20)  # not numpy, which asks for huge pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    if result.returncode == 77:
        pytest.skip("no glibc")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 1000  # 64 MiB are 16,384 pages
