"""What a running command shows on stderr, and how it is stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from longtake.plan import format_seconds
from longtake.record import Progress

_PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal to redraw one in
_DRAW_EVERY = 0.1
_SPEED_OVER = 30  # chunks; the first one, which warms up, soon leaves


def say(text: str, code: int = 0) -> int:
    """Prints to stderr; returns ``code``, so that a command can end with it."""
    print(text if code == 0 else f"Error: {text}", file=sys.stderr, flush=True)
    return code


def warn(text: str) -> None:
    """Prints a warning to stderr."""
    say(f"Warning: {text}")


class ProgressLine:
    """One line that says how far a recording is: redrawn in a terminal, a new one every 5 seconds elsewhere."""

    def __init__(self, name: str, frames: int, quiet: bool = False) -> None:
        self._name, self._first, self._quiet = name, frames, quiet
        self._live = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque([(self._start, frames)], maxlen=_SPEED_OVER)
        self._last: Progress | None = None

    def update(self, progress: Progress) -> None:
        """Takes note of a chunk."""
        now = time.monotonic()
        self._last = progress
        self._recent.append((now, progress.frames))
        if not self._quiet and now - self._shown >= (_DRAW_EVERY if self._live else _PLAIN_EVERY):
            self._shown = now
            self._draw(progress)

    def _draw(self, progress: Progress) -> None:
        (before, frames), (now, latest) = self._recent[0], self._recent[-1]
        speed = (latest - frames) / max(now - before, 1e-9)
        left = (progress.total - progress.frames) / max(speed, 1e-9)
        line = (
            f"{self._name}  {progress.frames / progress.fps:.1f} of {format_seconds(progress.total / progress.fps)}  "
            f"{100 * progress.frames // progress.total}%  {speed:.1f} frames/s  {speed / progress.fps:.2f}x real time  "
            f"{format_seconds(round(left))} left"
        )
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leaves the line as it was at the last chunk."""
        if not self._quiet and self._live and self._last is not None:
            self._draw(self._last)
            print(file=sys.stderr, flush=True)

    def summary(self) -> str:
        """One sentence on what was made, and how fast."""
        assert self._last is not None
        made, took = self._last.frames - self._first, max(time.monotonic() - self._start, 1e-9)
        speed = made / took
        return (
            f"Made {made} frames in {format_seconds(took)}: {speed:.1f} frames/s, "
            f"{speed / self._last.fps:.2f}x real time."
        )


class Stop:
    """Ctrl-C, SIGTERM and a closed terminal: an interruption at once, or within ``gently()`` after the current chunk.

    Called, it tells whether to stop. ``signal`` is the number of the signal that came, 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._gently = False
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> Stop:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # Under nohup, SIGHUP stays ignored.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def gently(self) -> Iterator[None]:
        """Inside, the first signal only sets what a call tells; a second one interrupts."""
        self._gently = True
        try:
            yield
        finally:
            self._gently = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.signal != 0
        self.signal = number
        if again or not self._gently:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):  # print() may be interrupted halfway by this very handler
            os.write(2, b"\nStopping after this chunk (once more: at once) ...\n")
