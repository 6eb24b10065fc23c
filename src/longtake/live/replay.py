"""Frames read back from a recording, also from one that is growing, in memory that does not depend on its length."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from longtake.mp4 import Header, fragments
from longtake.video import read_frames


class Part(NamedTuple):
    """A chunk of a recording: its first frame, and its frames, uint8 RGB ``[height, width, 3]``."""

    first: int
    frames: list[np.ndarray]

    @property
    def end(self) -> int:
        """The frame after the last."""
        return self.first + len(self.frames)


class Replay:
    """Reads chunks of a recording; going on where it was is cheap, going elsewhere walks through the file.

    Args:
        path: the video, as ``VideoWriter`` writes it. It may grow, or be cut and grow again, meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = (0, 0)  # the frame and the byte after what was read last

    def read(self, frame: int) -> Part | None:
        """The chunk with this frame; None if the recording does not have it (yet).

        Raises:
            OSError, ValueError: if the file is not there, or damaged.
        """
        if frame < self._next[0]:
            self._next = (0, 0)
        with self._path.open("rb") as file:
            try:
                return self._find(file, frame)
            except ValueError:
                # Cut and written again in the middle of what was read.
                self._next = (0, 0)
                return self._find(file, frame)

    def _find(self, file: BinaryIO, frame: int) -> Part | None:
        header = _header(file)
        for found in fragments(file, self._next[1]):
            if found.first > frame:
                raise ValueError("The video is not what it was.")
            if frame <= found.last:
                file.seek(found.start)
                content = file.read(found.end - found.start)
                self._next = (found.last + 1, found.end)
                return Part(found.first, list(read_frames(io.BytesIO(header + content))))
        return None


def _header(file: BinaryIO) -> bytes:
    first = next(iter(fragments(file)), None)
    if first is None:
        raise ValueError("The video has no frames.")
    file.seek(0)
    return file.read(first.start)


def measure(path: Path) -> tuple[int, int]:
    """Frames and bytes of a recording, up to the end of its last whole fragment; (0, 0) if there is none.

    Raises:
        ValueError: if it is no recording of ours.
    """
    frames = size = 0
    if path.exists():
        with path.open("rb") as file:
            for found in fragments(file):
                frames, size = found.last + 1, found.end
    return frames, size


class Download:
    """The beginning of a recording as a file of its own, whose header says how long it is. It does not change when the
    recording grows.

    Args:
        path: the recording.
        fps: frames per second.
        until: the last frame that must be in it; None for all that there is.

    Attributes:
        size: in bytes.
        frames: that it has; whole chunks.

    Raises:
        OSError, ValueError: if there is no video.
    """

    def __init__(self, path: Path, fps: int, until: int | None = None) -> None:
        self._path = path
        self.frames = self.size = 0
        with path.open("rb") as file:
            begin = _header(file)
            for found in fragments(file):
                self.frames, self.size = found.last + 1, found.end
                if until is not None and until < self.frames:
                    break
        head = io.BytesIO(begin)
        try:
            Header.parse(begin).write_duration(head, self.frames, Fraction(fps))
        except (KeyError, StopIteration):
            raise ValueError("The video is not one that Longtake wrote.") from None
        self._head = head.getvalue()

    def read(self, start: int, end: int, block: int = 1 << 16) -> Iterator[bytes]:
        """The bytes from ``start`` up to ``end``, in blocks."""
        if start < len(self._head):
            yield self._head[start : min(end, len(self._head))]
        with self._path.open("rb") as file:
            place = max(start, len(self._head))
            file.seek(place)
            while place < end and (data := file.read(min(block, end - place))):
                place += len(data)
                yield data
