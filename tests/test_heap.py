"""Freed memory is kept for the next tensor: counted in page faults, in a process of its own."""

import subprocess
import sys

import pytest

from tests.conftest import ENVIRONMENT

FAULTS = """
import resource, sys, torch
from longtake.heap import keep_heap
kept = keep_heap() if sys.argv[1] == "kept" else None
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(1 << 24).add_(1)
before = faults()
for _ in range(30):
    torch.zeros(1 << 24).add_(1)  # 64 MB, whose pages are all touched
print(kept, faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")
def test_memory_is_not_faulted_in_again() -> None:
    def run(how: str) -> tuple[str, int]:
        made = subprocess.run(
            [sys.executable, "-c", FAULTS, how],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        kept, faults = made.stdout.split()
        return kept, int(faults)

    kept, fewer = run("kept")
    if kept == "False":
        pytest.skip("another C library than glibc")
    _, more = run("plain")
    assert more > 30 * 1000 and fewer < more / 4, (fewer, more)
