"""Video files: what is left after a crash, on a full disk, and in memory."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from longtake.video import VideoWriter, probe
from tests.helpers_mp4 import CHUNK, HEIGHT, HERE, WIDTH, decoded, fill, in_process, moving, write_whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished file of 40 chunks."""
    return write_whole(tmp_path_factory.mktemp("whole") / "whole.mp4")


def test_killed_at_any_moment(tmp_path: Path, whole: Path) -> None:
    """A process that writes and is killed; its file plays, and goes on where the last report says."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from helpers_mp4 import *\n"
        "w = VideoWriter(sys.argv[2], width=WIDTH, height=HEIGHT)\n"
        "for chunk in range(40):\n"
        "    fill(w, range(chunk, chunk + 1)); print(w.position['bytes'], w.position['frames'], flush=True)\n"
        "import time; time.sleep(60)"
    )
    rng = random.Random(0)
    for attempt in range(4):
        path = tmp_path / f"{attempt}.mp4"
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(HERE), str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 20)):
            report = process.stdout.readline()
        try:
            process.wait(rng.random() / 50)
        except subprocess.TimeoutExpired:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        size, frames = map(int, report.split())
        info = probe(path)
        assert info.frames >= frames and info.frames % CHUNK == 0
        assert np.array_equal(decoded(path), decoded(whole)[: info.frames])
        with VideoWriter.resume(path, {"bytes": size, "frames": frames}, width=WIDTH, height=HEIGHT) as writer:
            fill(writer, range(frames // CHUNK, 40))
        assert path.read_bytes() == whole.read_bytes()


def test_a_fragment_cut_off_anywhere_is_not_seen(tmp_path: Path) -> None:
    path, torn = tmp_path / "a.mp4", tmp_path / "torn.mp4"
    writer = VideoWriter(path, width=WIDTH, height=HEIGHT)
    fill(writer, range(2))
    two = writer.position["bytes"]
    fill(writer, range(2, 3))
    data = path.read_bytes()
    frames = decoded(path)
    for length in [*range(two, two + 200, 7), *range(two + 200, len(data), 97), len(data) - 1]:
        torn.write_bytes(data[:length])
        assert probe(torn).frames == 2 * CHUNK
    assert np.array_equal(decoded(torn), frames[: 2 * CHUNK])
    # Players know nothing of us: what was whole must play there as well.
    with av.open(str(torn)) as container:
        shown = []
        with contextlib.suppress(av.error.InvalidDataError):
            for frame in container.decode(video=0):
                shown.append(frame.pts)
    assert len(shown) >= 2 * CHUNK


def test_file_that_may_not_grow(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "a.mp4"
    size, frames = in_process("limited(Path(sys.argv[2]), 30000)", path)
    assert 0 < path.stat().st_size == size <= 30000
    assert probe(path).frames == frames > 0
    with VideoWriter.resume(path, {"bytes": size, "frames": frames}, width=WIDTH, height=HEIGHT) as writer:
        fill(writer, range(frames // CHUNK, 40))
    assert path.read_bytes() == whole.read_bytes()


def test_first_frames_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    assert in_process("limited(Path(sys.argv[2]), 500)", path) == [0, 0]
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=32k", "none", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("a small file system can only be mounted by root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(small_disk: Path) -> None:
    path = small_disk / "a.mp4"
    size, frames = in_process("overfill(Path(sys.argv[2]))", path)
    assert path.stat().st_size == size
    assert probe(path).frames == len(decoded(path)) == frames > 0


def test_memory_does_not_grow(tmp_path: Path) -> None:
    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    frames = moving(0, 1, 16, 16)
    with VideoWriter(tmp_path / "a.mp4", width=16, height=16) as writer:
        for _ in range(200):
            writer.write(frames)
        before = pages()
        for _ in range(800):
            writer.write(frames)
        grown = (pages() - before) * resource.getpagesize()
        opened = len(os.listdir("/proc/self/fd"))
        writer.write(frames)
        assert len(os.listdir("/proc/self/fd")) == opened
    # 800 encoders of some 100 KB each, had they been kept, would be 80 MB.
    assert grown < 4 << 20
    assert probe(tmp_path / "a.mp4").frames == 1001
