"""What a stage's check found: in words, and in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.training.checkpoint import write_text
from longtake.training.stage import Figure


def check_path(folder: Path, stage: str) -> Path:
    """Where the figures of a stage's check are."""
    return folder / f"{stage}.check.json"


def write_check(folder: Path, stage: str, step: int, figures: Mapping[str, Figure]) -> None:
    """Writes ``STAGE.check.json``."""
    rows = {
        name: {"value": f.value, "bar": f.bar, "better": f.better, "passed": f.passed, "meaning": f.meaning}
        for name, f in figures.items()
    }
    report = {"stage": stage, "step": step, "passed": all(f.passed for f in figures.values()), "figures": rows}
    write_text(check_path(folder, stage), json.dumps(report, indent=2) + "\n")


def check_lines(stage: str, figures: Mapping[str, Figure]) -> list[str]:
    """The figures in words."""
    lines = []
    for name, f in figures.items():
        bar = "" if f.bar is None else f" ({'at most' if f.better == 'lower' else 'at least'} {f.bar:g})"
        verdict = "" if f.bar is None else "passed  " if f.passed else "FAILED  "
        lines.append(f"check of {stage}: {verdict}{name} {f.value:.4g}{bar}  {f.meaning}".rstrip())
    return lines


def read_check(folder: Path, stage: str) -> dict[str, Any] | None:
    """The report that :func:`write_check` wrote, if there is one that can be read."""
    try:
        report = json.loads(check_path(folder, stage).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) else None
