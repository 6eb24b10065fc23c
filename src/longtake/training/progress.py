"""How far a stage is, on stderr: a bar in a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from longtake.cli_progress import say

_EVERY = 5.0  # seconds between lines where there is no terminal


class TrainingProgress:
    """Shows a stage's progress while it is entered.

    Args:
        name: of the stage.
        quiet: nothing is shown but what :meth:`say` is told.
        mute: not even that.
    """

    def __init__(self, name: str, quiet: bool = False, mute: bool = False) -> None:
        self._name, self._quiet, self._mute = name, quiet or mute, mute
        live = False
        with contextlib.suppress(OSError, ValueError):  # closed
            live = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Progress | None = None
        if live and not self._quiet:
            columns = (TextColumn(name, markup=False), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
            more = (TextColumn("{task.fields[values]}", markup=False), TimeRemainingColumn())
            self._bar = Progress(*columns, *more, console=Console(stderr=True))
            self._task = self._bar.add_task(name, total=1.0, values="")
        self._shown = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, share: float, values: Mapping[str, float]) -> None:
        """Takes note of a step: steps done, share of the budget, logged values."""
        if self._quiet:
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if _worth_showing(name, value))
        if self._bar is not None:
            self._bar.update(self._task, completed=share, values=f"step {step}  {shown}")
        elif time.monotonic() - self._shown >= _EVERY:
            self._shown = time.monotonic()
            say(f"{self._name}  {100 * share:.0f}%  step {step}  {shown}")

    def say(self, text: str) -> None:
        """A sentence."""
        if self._mute:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)


def _worth_showing(name: str, value: float) -> bool:
    return name not in ("minutes", "memory_gb") and math.isfinite(value)
