"""What the process asks of its system, seen in the system's own counts."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import ENVIRONMENT

FAULTS = """
import resource, sys, torch
from longtake.process import keep_freed_memory
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def work():
    for _ in range(30):
        held = [torch.ones(6_000_000) for _ in range(3)]
        del held
before = faults(); work(); plain = faults() - before
assert keep_freed_memory()
work()
before = faults(); work()
print(plain, faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc")
def test_freed_memory_is_used_again_without_the_system() -> None:
    made = subprocess.run([sys.executable, "-c", FAULTS], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    plain, kept = map(int, made.stdout.split())
    if not plain:
        pytest.skip("this system does not count page faults")
    assert kept < plain / 10


def test_waiting_is_passive_unless_told_otherwise() -> None:
    code = "import os, sys; from longtake.process import wait_passively as w; w(); print(os.environ['OMP_WAIT_POLICY'])"
    for given, expected in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
        environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
        made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert made.stdout.strip() == expected
