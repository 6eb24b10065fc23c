"""Memories by name: what is accepted, what is refused, and how early."""

import subprocess
import sys
from dataclasses import replace

import pytest

from longtake.memory import MEMORIES, MemRoPE, Sliding, parse_memory


def test_every_name_parses_and_survives_its_own_spec() -> None:
    for name, info in MEMORIES.items():
        policy = parse_memory(name)
        assert parse_memory(policy.spec()) == policy
        assert info.description
        assert info.paper
    for policy in (Sliding(8, 1), MemRoPE(2, 3, pooling="position", ids="absolute"), MemRoPE(adaptive=True, long=0.5)):
        assert parse_memory(policy.spec()) == policy
    assert parse_memory("self-forcing") == Sliding(21, 0, "absolute")
    assert parse_memory("longlive") == Sliding(12, 3, "absolute")
    assert parse_memory("infinity-rope: window = 9") == Sliding(9, 1, "relative")
    full = "memrope:sink=3,recent=4,long=0.01,short=0.1,pooling=position,adaptive=true"
    assert parse_memory(full) == replace(MemRoPE(), pooling="position", adaptive=True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("elephant", "Unknown memory 'elephant'; accepted are memrope, sliding"),
        ("", "accepted are memrope"),
        ("memrope:", "key=value"),
        ("memrope:sink", "key=value"),
        ("memrope:window=3", "unknown setting 'window'; accepted are sink, recent"),
        ("memrope:sink=3,sink=4", "given twice"),
        ("memrope:sink=many", "must be a whole number, not 'many'"),
        ("memrope:sink=-1", "must be a whole number of frames, 0 or more"),
        ("memrope:long=2", "rate above 0 and at most 1"),
        ("memrope:short=nan", "rate above 0 and at most 1"),
        ("memrope:long=slow", "must be a number"),
        ("memrope:adaptive=perhaps", "must be true or false"),
        ("memrope:pooling=none", "pooling must be global or position"),
        ("sliding:ids=odd", "ids must be absolute or relative"),
        ("sliding:window=5,sink=3", "window must be at least 6"),
    ],
)
def test_bad_names_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_memory(spec)
    assert str(error.value).endswith(".")


def test_names_are_checked_without_torch() -> None:
    code = "import sys, longtake.memory as m; m.parse_memory('memrope'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
