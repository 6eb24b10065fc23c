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

from longtake.plan import count, format_seconds
from longtake.record import Progress

_PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal to redraw one in
_DRAW_EVERY = 0.1
_SPEED_OVER = 30  # chunks; the first one, which warms up, soon leaves


def _put(text: str, end: str = "\n") -> None:
    """Prints to stderr. A terminal that was closed, or a full disk behind a log, must not stop a take."""
    if sys.stderr is None:  # closed from the start; print() would take stdout instead
        return
    with contextlib.suppress(OSError, ValueError):
        print(text, end=end, file=sys.stderr, flush=True)


def say(text: str, code: int = 0) -> int:
    """Prints to stderr; returns ``code``, so that a command can end with it."""
    _put(text if code == 0 else f"Error: {text}")
    return code


def tell(text: str) -> None:
    """Prints to stdout what a command was asked for.

    Raises:
        SystemExit: with code 1, after one sentence on stderr, if stdout does not take it.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever reads has read enough
        raise SystemExit(1) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SystemExit(say(f"The output could not be written ({reason}).", 1)) from None


def open_streams() -> None:
    """Opens what is closed of the three standard streams: else the next file, a video, gets their number, and what a
    library prints as an error goes into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one


def settle_streams() -> None:
    """Lets go of what stdout and stderr could not take, so that Python does not complain of it when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


def warn(text: str) -> None:
    """Prints a warning to stderr."""
    say(f"Warning: {text}")


class PastLine:
    """Says every 5 seconds how far the reading of a given video is; nothing if it takes less."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown >= _PLAIN_EVERY:
            self._shown = now
            _put(f"Remembering the video: {done} of {count(total, 'chunk')} ({100 * done // total}%)")


class ProgressLine:
    """One line that says how far a recording is: redrawn in a terminal, a new one every 5 seconds elsewhere."""

    def __init__(self, name: str, frames: int, quiet: bool = False) -> None:
        self._name, self._first, self._quiet = name, frames, quiet
        self._live = False
        with contextlib.suppress(OSError, ValueError):  # closed
            self._live = sys.stderr is not None and sys.stderr.isatty()
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
            _put(f"\r{line[:width]}\x1b[K", end="")
        else:
            _put(line)

    def end(self) -> None:
        """Leaves the line as it was at the last chunk."""
        if not self._quiet and self._live and self._last is not None:
            self._draw(self._last)
            _put("")

    def summary(self) -> str:
        """One sentence on what was made, and how fast."""
        assert self._last is not None
        made, took = self._last.frames - self._first, max(time.monotonic() - self._start, 1e-9)
        speed = made / took
        return (
            f"Made {count(made, 'frame')} in {format_seconds(took)}: {speed:.1f} frames/s, "
            f"{speed / self._last.fps:.2f}x real time."
        )


class Stop:
    """Ctrl-C, SIGTERM and a closed terminal: an interruption at once, or within ``gently()`` after the current chunk.

    Called, it tells whether to stop. ``signal`` is the number of the signal that came, 0 before; ``unit`` is what is
    finished first.
    """

    def __init__(self, unit: str = "chunk") -> None:
        self.signal = 0
        self._unit = unit
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
        # A closed terminal may tell twice: the system, and the shell that goes with it.
        again = self.signal != 0 and number != getattr(signal, "SIGHUP", None)
        self.signal = number
        if again or not self._gently:
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):  # print() may be interrupted halfway by this very handler
            os.write(2, f"\nStopping after this {self._unit} (once more: at once) ...\n".encode())
