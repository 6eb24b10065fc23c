"""What every benchmark says of the machine it ran on, and how results are written."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from longtake.machine import machine

__all__ = ["RESULTS", "machine", "resident_mb", "write_results"]

RESULTS = Path(__file__).parent / "results"

# Operations per second of dense bfloat16 products with float32 sums, as the vendors state them for the fastest variant.
PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 5090": 209e12,
    "B200": 2250e12,
}


def stated_peak(gpu: str | None) -> float | None:
    """Of a GPU by its name, for bfloat16; None if it is not known here."""
    found = [name for name in PEAKS if gpu is not None and name in gpu]
    return PEAKS[max(found, key=len)] if found else None


def peak_bytes() -> int:
    """The most memory that this process has had in RAM, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if platform.system() == "Darwin" else 1024)


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
