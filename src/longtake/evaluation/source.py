"""Video files, looked at before they are measured: what cannot be measured is refused in one sentence."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from longtake.evaluation.meter import SMALLEST
from longtake.lock import is_locked
from longtake.mp4 import without_torn_end
from longtake.plan import count
from longtake.video import read_frames

LEAST_FRAMES = 3
"""Of a video: with fewer there is no step to compare with another one."""

_REORDERED = 32  # packets; more than the B-frames any codec here allows
_OFF = 0.5  # frames; a gap between time stamps that is off by more is no rounding


@dataclass(frozen=True)
class Source:
    """A video file that can be measured.

    Attributes:
        path: as it was given.
        frames, fps, width, height, codec: what is in it, as it is shown (turned, if it says so).
        sha256: of the file.
    """

    path: Path
    frames: int
    fps: float
    width: int
    height: int
    codec: str
    sha256: str

    @property
    def seconds(self) -> float:
        """Length."""
        return self.frames / self.fps

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path), "seconds": self.seconds}

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, uint8 RGB ``[height, width, 3]``, one at a time.

        Raises:
            ValueError: the file is damaged further on.
        """
        index = 0
        for index, frame in enumerate(read_frames(self.path), 1):
            if frame.shape[:2] != (self.height, self.width):
                raise ValueError(
                    f"{self.path} changes its size from {self.width}x{self.height} to {frame.shape[1]}x"
                    f"{frame.shape[0]} at frame {index}: videos of one size can be measured."
                )
            yield frame
        if index < self.frames:
            raise ValueError(f"{self.path} is damaged: {index} of its {count(self.frames, 'frame')} can be decoded.")


def look(path: str | os.PathLike[str]) -> Source:
    """Reads a file once without decoding it, and decodes its first frame.

    Raises:
        ValueError: in one sentence, for a file that is not there, is no video, has no video stream, fewer than three
            frames or frames smaller than 16x16, is cut off, or does not show its frames at a constant rate.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no video {path}.")
    if not path.is_file():
        raise ValueError(f"{path} is not a file, and so no video.")
    if is_locked(path):
        raise ValueError(f"{path} is being written by another process: wait until it is done.")
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError(f"{path} is empty, and so no video.")
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            torn = without_torn_end(file) is not None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}).") from None
    if torn:
        raise ValueError(f"{path} is cut off: its last frames are incomplete, as after a crash.")
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                kind = "only sound" if container.streams.audio else "no video"
                raise ValueError(f"{path} has {kind} in it.")
            stream = container.streams.video[0]
            frames, fps = _timing(path, container, stream)
            codec = stream.codec_context.name
    except av.error.FFmpegError:
        raise ValueError(f"{path} cannot be read as a video.") from None
    height, width = next(read_frames(path)).shape[:2]
    if min(height, width) < SMALLEST:
        raise ValueError(f"{path} is {width}x{height}: videos are measured from {SMALLEST}x{SMALLEST} pixels on.")
    return Source(path, frames, float(fps), width, height, codec, digest.hexdigest())


def _timing(path: Path, container: Any, stream: Any) -> tuple[int, Fraction]:
    """How many frames there are, and how many a second."""
    frames, end = 0, 0
    times = _Gaps()
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        frames += 1
        if packet.pts is not None:
            times.add(packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
    times.end()
    if frames < stream.frames:
        raise ValueError(f"{path} is cut off: {frames} of its {stream.frames} frames are there.")
    if not frames:
        raise ValueError(f"{path} has no frames in it.")
    if frames < LEAST_FRAMES:
        raise ValueError(f"{path} has {count(frames, 'frame')}: a video has at least {LEAST_FRAMES}.")
    promised = stream.duration
    if promised is None and container.duration and not container.streams.audio:
        promised = container.duration / av.time_base / stream.time_base
    named = stream.average_rate or stream.guessed_rate
    if times.count < frames or not times.span:  # raw streams have no time stamps
        return frames, named or Fraction(25)
    mean = Fraction(times.span, times.count - 1)
    if promised and promised + (stream.start_time or 0) - end > max(2 * mean, end / 100):
        shown, whole = (float(t * stream.time_base) for t in (end, promised))
        raise ValueError(f"{path} is cut off: {shown:.1f} of its {whole:.1f} seconds are there.")
    if not (1 - _OFF) * mean <= times.least <= times.most <= (1 + _OFF) * mean:
        low, high = (1 / float(gap * stream.time_base) if gap else float("inf") for gap in (times.most, times.least))
        raise ValueError(
            f"{path} has a variable frame rate, from {low:.3g} to {high:.3g} frames per second: make it constant "
            "first, e.g. with ffmpeg -i IN -fps_mode cfr OUT.mp4."
        )
    measured = 1 / (mean * stream.time_base)
    # what the file says of itself is exact, time stamps may be rounded
    return frames, Fraction(named) if named and abs(named / measured - 1) < 0.01 else measured


class _Gaps:
    """Smallest and largest gap of time stamps that come nearly in order, in memory that does not grow."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._last: int | None = None
        self.count, self.span = 0, 0
        self.least, self.most = 1 << 62, 0

    def add(self, time: int) -> None:
        heapq.heappush(self._waiting, time)
        if len(self._waiting) > _REORDERED:
            self._next()

    def end(self) -> None:
        while self._waiting:
            self._next()

    def _next(self) -> None:
        time = heapq.heappop(self._waiting)
        if self._last is not None:
            gap = time - self._last
            self.least, self.most = min(self.least, gap), max(self.most, gap)
            self.span += gap
        self._last = time
        self.count += 1
