"""Moving pictures to write, and what the processes that write them and are stopped run."""

from __future__ import annotations

import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from longtake.video import VideoWriter, read_frames

WIDTH, HEIGHT, CHUNK = 64, 48, 6
HERE = Path(__file__).parent


def moving(start: int, count: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Frames `start` to `start + count` of an endless moving pattern, [count, height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    t = np.arange(start, start + count)[:, None, None]
    waves = [np.sin(x / 9 + t / 5), np.cos(y / 7 - t / 8), np.sin((x + y) / 13 + t / 3)]
    return (127.5 + 100 * np.stack(np.broadcast_arrays(*waves), -1)).astype(np.uint8)


def fill(writer: VideoWriter, chunks: range) -> None:
    for chunk in chunks:
        writer.write(moving(chunk * CHUNK, CHUNK))


def decoded(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path)))


def times(path: Path) -> list[Fraction]:
    """Moment of each decoded frame, by PyAV alone."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def write_whole(path: Path) -> Path:
    with VideoWriter(path, width=WIDTH, height=HEIGHT) as writer:
        fill(writer, range(40))
    return path


def limited(path: Path, size: int) -> None:
    """In a process of its own: writes until the system refuses to let the file grow beyond `size`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    overfill(path)


def overfill(path: Path) -> None:
    writer = VideoWriter(path, width=WIDTH, height=HEIGHT)
    for chunk in range(1000):
        before = writer.position
        try:
            fill(writer, range(chunk, chunk + 1))
        except OSError as error:
            assert error.errno
            assert writer.position == before
            assert chunk == 0 or path.stat().st_size == before["bytes"]
            print(before["bytes"], before["frames"])
            return
    raise AssertionError("never refused")


def in_process(call: str, *arguments: object) -> list[int]:
    script = f"import sys; sys.path.insert(0, sys.argv[1]); from helpers_mp4 import *; {call}"
    done = subprocess.run(
        [sys.executable, "-c", script, str(HERE), *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    )
    return [int(word) for word in done.stdout.split()]
