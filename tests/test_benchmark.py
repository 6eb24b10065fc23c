"""The benchmark runs, and what it writes can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ENVIRONMENT

ROOT = Path(__file__).parent.parent


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.cost", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def test_quick(tiny_folder: Path, tmp_path: Path) -> None:
    made = run("--quick", "--model", tiny_folder, "--memories", "memrope;sliding:window=6", "--json", tmp_path / "x")
    assert made.returncode == 0, made.stderr
    assert "memrope" in made.stdout and "sliding:window=6" in made.stdout
    report = json.loads((tmp_path / "x").read_text())
    assert report["machine"]["threads"] == 1 and report["machine"]["torch"]
    assert [(row["memory"], row["chunk"]) for row in report["rows"]] == [
        (memory, chunk) for memory in ("memrope", "sliding:window=6") for chunk in (5, 10)
    ]
    for row in report["rows"]:
        assert set(row["stages"]) == {"memory", "forward", "commit", "decode", "write"} and row["measured"] == 4
        assert row["total_ms"] > 0 and row["frames_per_second"] > 0


def test_refuses() -> None:
    for arguments in (("--memories", "nothing"), ("--chunks", "x"), ("--dtype", "int8")):
        made = run(*arguments)
        assert made.returncode == 2 and "error:" in made.stderr
