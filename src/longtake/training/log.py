"""What a run writes down step by step: a CSV file, and curves for TensorBoard where it is installed."""

from __future__ import annotations

import csv
import io
import math
import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from longtake.training.checkpoint import write_text

STEP = "step"


class Log:
    """``STAGE.csv``, one line per step.

    Args:
        folder: of the run.
        stage: names the file.
        step: how many steps there are already; lines after that are of a run that was killed, and are taken out.
        tensorboard: curves too, in ``tensorboard/STAGE``, if it is installed.
        note: told once if it is not.

    Raises:
        OSError: if the file cannot be written.
    """

    def __init__(
        self, folder: Path, stage: str, step: int, tensorboard: bool = True, note: Callable[[str], object] = print
    ) -> None:
        self.path = folder / f"{stage}.csv"
        self._columns: list[str] = []
        rows = read_log(self.path)[:] if self.path.exists() else []
        kept = [row for row in rows if int(row[STEP]) <= step]
        if rows:
            self._columns = list(rows[0])
            self._rewrite(kept)
        elif self.path.exists():
            self.path.unlink()  # a header at most
        self._curves = _curves(folder / "tensorboard" / stage, step, note) if tensorboard else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line. A value that was not there before gets a column of its own; one that is missing stays empty.

        Raises:
            OSError: if the disk is full.
        """
        new = [name for name in values if name not in self._columns]
        if new:
            rows = read_log(self.path) if self.path.exists() else []
            self._columns = [*self._columns, *new] if self._columns else [STEP, *new]
            self._rewrite(rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            cells = {name: _cell(value) for name, value in values.items()}
            csv.DictWriter(file, self._columns).writerow({STEP: step, **cells})
        if self._curves is not None:
            for name, value in values.items():
                self._curves.add_scalar(name, value, step)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())

    def close(self) -> None:
        """Writes what waits."""
        if self._curves is not None:
            self._curves.close()


def read_log(path: Path) -> list[dict[str, str]]:
    """The lines of a log, by column. A line that was torn by a kill is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    whole = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(io.StringIO(whole)) if (row.get(STEP) or "").isdigit()]


def _cell(value: float) -> str:
    return f"{value:.9g}" if math.isfinite(value) else "nan"


def _curves(folder: Path, step: int, note: Callable[[str], object]) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        note("TensorBoard is not installed (pip install 'longtake[train]'): the log is the CSV file alone.")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def memory_gb(device: torch.device) -> float:
    """The most memory that was in use: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
