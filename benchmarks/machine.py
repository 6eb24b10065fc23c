"""What every benchmark says of the machine it ran on, and how results are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from longtake.machine import machine

__all__ = ["RESULTS", "machine", "resident_mb", "write_results"]

RESULTS = Path(__file__).parent / "results"


def resident_mb() -> float:
    """Memory of this process that is in RAM, in MB; NaN where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError, IndexError, AttributeError):
        return float("nan")


def write_results(path: Path, info: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Writes what :func:`machine` said, with whatever else holds for all rows, and the rows, as JSON."""
    path.write_text(json.dumps({"machine": info, "rows": rows}, indent=2))
