"""Frames read back from a recording, also from one that is growing, in memory that does not depend on its length."""

from __future__ import annotations

import io
import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from longtake.mp4 import Fragment, Header, fragments
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
    """Reads chunks of a recording, from several threads if need be.

    It keeps a number of places in the file, evenly spread over what has been read so far, and where the last reads
    ended: going on is cheap, and going elsewhere is a short walk however long the recording is.

    Args:
        path: the video, as ``VideoWriter`` writes it. It may grow, or be cut and grow again, meanwhile.
        places: that are kept, at most.
        readers: about how many go on through it at a time.
    """

    def __init__(self, path: Path, places: int = 256, readers: int = 32) -> None:
        self._path, self._most, self._readers = path, places, readers
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        # Each a frame and the byte where its fragment begins, or will begin.
        self._places = [(0, 0)]
        self._ends: deque[tuple[int, int]] = deque(maxlen=self._readers)
        self._apart = 1  # frames between places, at least

    def read(self, frame: int) -> Part | None:
        """The chunk with this frame; None if the recording does not have it (yet).

        Raises:
            OSError, ValueError: if the file is not there, or damaged.
        """
        with self._path.open("rb") as file:
            with self._lock:
                try:
                    found = self._find(file, frame)
                except ValueError:
                    # Cut and written again in the middle of what was read.
                    self._forget()
                    found = self._find(file, frame)
            if found is None:
                return None
            # Not under the lock: decoding takes longer than finding.
            header = _header(file)
            file.seek(found.start)
            content = file.read(found.end - found.start)
        return Part(found.first, list(read_frames(io.BytesIO(header + content))))

    def _find(self, file: BinaryIO, frame: int) -> Fragment | None:
        place = self._places[bisect_right(self._places, frame, key=itemgetter(0)) - 1]
        start = max([place, *(end for end in self._ends if end[0] <= frame)])
        if start[1] > os.fstat(file.fileno()).st_size:
            raise ValueError("The video is not what it was.")
        for found in fragments(file, start[1]):
            if found.first > frame or found.first != start[0]:
                raise ValueError("The video is not what it was.")
            start = (found.last + 1, found.end)
            self._keep(start)
            if frame <= found.last:
                self._ends.append(start)
                return found
        return None

    def _keep(self, place: tuple[int, int]) -> None:
        if place[0] < self._places[-1][0] + self._apart:
            return
        self._places.append(place)
        if len(self._places) > self._most:
            del self._places[1::2]
            self._apart = self._places[-1][0] // (len(self._places) - 1)


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
