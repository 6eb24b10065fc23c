"""The benchmark runs, and what it writes can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ENVIRONMENT

ROOT = Path(__file__).parent.parent


def run(*arguments: str | Path, name: str = "cost") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def test_quick(tiny_folder: Path, tmp_path: Path) -> None:
    made = run(
        "--quick",
        "--model",
        tiny_folder,
        "--memories",
        "memrope;sliding:window=6",
        "--dtype",
        "float32",
        "--json",
        tmp_path / "new" / "x",
    )
    assert made.returncode == 0, made.stderr
    assert "memrope" in made.stdout and "sliding:window=6" in made.stdout
    report = json.loads((tmp_path / "new" / "x").read_text())
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


def test_soak(tmp_path: Path) -> None:
    made = run("--tiny", "--chunks", "60", "--memory", "memrope;longlive", "--json", tmp_path / "x", name="soak")
    assert made.returncode == 0, made.stderr
    report = json.loads((tmp_path / "x").read_text())
    marks = [(row["memory"], row["chunk"]) for row in report["rows"]]
    assert marks == [(memory, chunk) for memory in ("memrope", "longlive") for chunk in (50, 60)]
    assert all(f"{row['rss_mb']:.1f} MB" in made.stdout and row["rss_mb"] > 50 for row in report["rows"])


def test_a_day_goes_on_where_it_was_stopped(tiny_folder: Path, tmp_path: Path) -> None:
    def rows(out: str, *seconds: float) -> list[dict[str, float]]:
        for hours in seconds:
            words = ("--hours", str(hours / 3600), "--every", "0.1", "--model", str(tiny_folder), "--threads", "1")
            made = run("--out", tmp_path / out, *words, name="endurance")
            assert made.returncode == 0, made.stderr
        found: list[dict[str, float]] = json.loads((tmp_path / out / "rows.json").read_text())["rows"]
        return found

    whole, parts = rows("whole", 19), rows("parts", 12, 19)
    assert [round(row["minutes"], 1) for row in whole] == [0.1, 0.2, 0.3, 0.3]
    ours = ("ms", "rss_mb")  # not the video's
    for a, b in zip(whole, parts, strict=True):
        assert {k: v for k, v in a.items() if k not in ours} == {k: v for k, v in b.items() if k not in ours}
    assert whole[0]["colours"] == 0 < whole[1]["colours"] and whole[0]["largest"] > 0
    assert len(list((tmp_path / "whole" / "frames").iterdir())) == 4
    assert (tmp_path / "whole" / "sheet.png").exists() and (tmp_path / "whole" / "curves" / "ms.svg").exists()


def test_others_refuse() -> None:
    for name, *arguments in (
        ("soak", "--memory", "nothing"),
        ("soak", "--chunks", "0"),
        ("endurance", "--out", "nowhere", "--every", "0.01"),
        ("pocket_quality", "--seeds", "x"),
        ("pocket_quality", "--memories", "memrope,sliding"),
    ):
        made = run(*arguments, name=name)
        assert made.returncode == 2 and "error:" in made.stderr and "Traceback" not in made.stderr


def test_large(tmp_path: Path) -> None:
    """Two blocks of the 1.3B model with the real autoencoder, split in the way that several GPUs would be."""
    options = ("--size", "32x32", "--chunks", "8", "--layers", "2", "--devices", "cpu,cpu", "--quantize", "fp8")
    made = run(*options, "--json", tmp_path / "large.json", name="large")
    assert made.returncode == 0, made.stderr
    report = json.loads((tmp_path / "large.json").read_text())
    assert report["rows"][0]["chunk"] == 8 and report["machine"]["arithmetic_bytes"]["cpu"] > 0.2e9
    assert run("--chunks", "3", name="large").returncode == 2
