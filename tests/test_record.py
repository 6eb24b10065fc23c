"""Recordings: whatever happens on the way, the file is the one an undisturbed run writes."""

from __future__ import annotations

import itertools
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import psutil
import pytest

from longtake import LongTakePipeline
from longtake.lock import is_locked, lock_path
from longtake.prompts import parse_script
from longtake.record import Recorded, Recording, snapshot_path
from longtake.snapshot import read_snapshot, read_snapshot_data
from longtake.video import probe, read_frames

PROMPT = "a red ball rolls over a meadow"


def record(pipe: LongTakePipeline, path: Path, seconds: float, seed: int = 1, **options: object) -> Path:
    assert Recording.start(pipe.start(PROMPT, "memrope", seed), path, **options).run(seconds)  # type: ignore[arg-type]
    return path


def test_exact_length(tiny: LongTakePipeline, tmp_path: Path) -> None:
    for frames in (1, 9, 10, 21, 22, 48):
        path = record(tiny, tmp_path / f"{frames}.mp4", frames / 16)
        assert probe(path).frames == frames


def test_longer_take_begins_with_the_shorter_one(tiny: LongTakePipeline, tmp_path: Path) -> None:
    short, long = (list(read_frames(record(tiny, tmp_path / f"{s}.mp4", s))) for s in (2, 4))
    whole = (len(short) - 9) // 12 * 12 + 9  # the last portion is encoded by itself, so it may differ in rounding
    assert np.array_equal(short[:whole], long[:whole])
    assert np.abs(np.subtract(short[whole:], long[whole : len(short)], dtype=np.float64)).mean() < 3


def test_same_settings_same_bytes(tiny: LongTakePipeline, tmp_path: Path) -> None:
    a, b = (record(tiny, tmp_path / name, 3, snapshot_every=e).read_bytes() for name, e in (("a.mp4", 1), ("b.mp4", 9)))
    assert a == b
    assert record(tiny, tmp_path / "c.mp4", 3, seed=2).read_bytes() != a


@pytest.mark.parametrize("lengths", [(0.5, 3.0), (2.0, 4.0), (21 / 16, 4.0), (1.0, 1.5, 2.2, 4.0)])
def test_extended_take_is_the_long_one(tiny: LongTakePipeline, tmp_path: Path, lengths: tuple[float, ...]) -> None:
    path = record(tiny, tmp_path / "take.mp4", lengths[0])
    for seconds in lengths[1:]:
        assert Recording.resume(tiny, path).run(seconds)
    assert path.read_bytes() == record(tiny, tmp_path / "whole.mp4", lengths[-1]).read_bytes()


def test_stopped_take_goes_on(tiny: LongTakePipeline, tmp_path: Path) -> None:
    path = tmp_path / "take.mp4"
    answers = itertools.count()
    recording = Recording.start(tiny.start(PROMPT, "memrope", 1), path)
    assert not recording.run(4, should_stop=lambda: next(answers) == 3)
    assert probe(path).frames == 9 + 12 + 12
    found = Recorded.look(path)
    assert found is not None and found.frames == 33 and found.finished is None
    assert Recording.resume(tiny, path).run(4)
    assert path.read_bytes() == record(tiny, tmp_path / "whole.mp4", 4).read_bytes()
    found = Recorded.look(path)
    assert found is not None and found.finished == 64


def test_what_was_changed_on_resume_survives_a_crash(tiny: LongTakePipeline, tmp_path: Path) -> None:
    path = record(tiny, tmp_path / "take.mp4", 1)
    recording = Recording.resume(tiny, path, settings={"seconds": 9.0})
    recording.take.steer(parse_script("a red ball rolls over a meadow [1s] | a blue box swings in a room [8s]"))

    def crash(_: object) -> None:
        raise Crash

    with pytest.raises(Crash):
        recording.run(9, on_chunk=crash)
    found = Recorded.look(path)
    assert found is not None and found.settings == {"seconds": 9.0}
    assert [s["prompt"] for s in found.data["script"]["segments"]][1:] == ["a blue box swings in a room"]


def test_one_writer_per_file(tiny: LongTakePipeline, tmp_path: Path) -> None:
    path = tmp_path / "take.mp4"
    first = Recording.start(tiny.start(PROMPT, "memrope", 1), path)
    with pytest.raises(ValueError, match="Another process is writing"):
        Recording.start(tiny.start(PROMPT, "memrope", 1), path)
    assert is_locked(path) and first.run(1) and not is_locked(path)
    assert not lock_path(path).exists()
    lock_path(path).touch()  # left by a killed process
    assert Recording.resume(tiny, path).run(2)


class Crash(Exception):
    pass


def test_crash_between_snapshots(tiny: LongTakePipeline, tmp_path: Path) -> None:
    whole = record(tiny, tmp_path / "whole.mp4", 5).read_bytes()
    path = tmp_path / "take.mp4"

    def crash(_: object) -> None:
        if next(count) == 3:
            raise Crash

    for attempt in range(20):
        count = itertools.count()
        if attempt == 0:
            recording = Recording.start(tiny.start(PROMPT, "memrope", 1), path, snapshot_every=0.5)
        else:
            recording = Recording.resume(tiny, path, snapshot_every=0.5)
        try:
            if recording.run(5, on_chunk=crash):
                break
        except Crash:
            assert list(read_frames(path))
    else:
        raise AssertionError("it never came to its end")
    assert path.read_bytes() == whole


def test_snapshot_before_the_first_frame(tiny: LongTakePipeline, tmp_path: Path) -> None:
    recording = Recording.start(tiny.start(PROMPT, "memrope", 1), tmp_path / "take.mp4")
    assert not recording.run(1, should_stop=lambda: True)
    assert not (tmp_path / "take.mp4").exists()
    assert Recording.resume(tiny, tmp_path / "take.mp4").run(1)
    assert probe(tmp_path / "take.mp4").frames == 16


def test_look_refuses(tiny: LongTakePipeline, tmp_path: Path) -> None:
    path = tmp_path / "take.mp4"
    assert Recorded.look(path) is None
    record(tiny, path, 3)
    snapshot = snapshot_path(path)
    good, video = snapshot.read_bytes(), path.read_bytes()
    header = struct.unpack("<Q", good[:8])[0]
    damaged = {
        "cut off": good[:-1],
        "cut in the header": good[: header // 2],
        "empty": b"",
        "longer": good + b"x",
        "no header": b"\xff" * len(good),
        "not ours": struct.pack("<Q", 2) + b"{}",
        "no JSON": struct.pack("<Q", 5) + b"hello",
        "a list": struct.pack("<Q", 2) + b"[]",
    }
    for content in damaged.values():
        snapshot.write_bytes(content)
        with pytest.raises(ValueError, match="not a Longtake snapshot"):
            Recorded.look(path)
        with pytest.raises(ValueError, match="not a Longtake snapshot"):
            tiny.resume(snapshot)
    flipped = bytearray(good)
    flipped[-5] ^= 16
    snapshot.write_bytes(flipped)
    with pytest.raises(ValueError, match="not those that were written"):
        Recording.resume(tiny, path)
    tiny.start(PROMPT).snapshot(snapshot)
    with pytest.raises(ValueError, match="not recorded to a file"):
        Recorded.look(path)
    snapshot.write_bytes(good)
    path.write_bytes(video[:1000])
    with pytest.raises(ValueError, match="fewer than"):
        Recorded.look(path)
    path.unlink()
    with pytest.raises(ValueError, match="not there"):
        Recorded.look(path)
    path.write_bytes(video)
    snapshot.unlink()
    with pytest.raises(ValueError, match="no snapshot"):
        Recorded.look(path)


def test_a_foreign_video_is_left_alone(tiny: LongTakePipeline, tmp_path: Path) -> None:
    path = record(tiny, tmp_path / "take.mp4", 3)
    content = bytes(1_000_000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a video that Longtake wrote"):
        Recording.resume(tiny, path)
    assert path.read_bytes() == content


def test_header_is_read_like_safetensors_reads_it(tiny: LongTakePipeline, tmp_path: Path) -> None:
    take = tiny.start(PROMPT)
    take.next_chunk()
    take.snapshot(tmp_path / "x", note={"a": [1, 2]})
    data = read_snapshot_data(tmp_path / "x")
    assert data == read_snapshot(tmp_path / "x")[1] and data["extra"] == {"note": {"a": [1, 2]}}
    json.dumps(data)


def test_full_disk(tiny: LongTakePipeline, tmp_path: Path, small_disk: Path) -> None:
    path = small_disk / "take.mp4"
    recording = Recording.start(tiny.start(PROMPT, "memrope", 1), path, snapshot_every=2)
    with pytest.raises(OSError, match="space"):
        recording.run(600)
    frames = len(list(read_frames(path)))
    assert frames == recording.frames > 0
    found = Recorded.look(path)
    assert found is not None and 0 < found.frames <= frames
    assert not list(small_disk.glob("*.part"))
    for file in (path, snapshot_path(path)):
        shutil.copy(file, tmp_path)
    path = tmp_path / path.name
    seconds = frames / 16 + 2
    assert Recording.resume(tiny, path).run(seconds)
    assert path.read_bytes() == record(tiny, tmp_path / "whole.mp4", seconds).read_bytes()


def test_memory_does_not_grow(tiny: LongTakePipeline, tmp_path: Path) -> None:
    process, sizes = psutil.Process(), []
    chunks = 300
    recording = Recording.start(tiny.start(PROMPT, "memrope", 1), tmp_path / "take.mp4", snapshot_every=20)
    assert recording.run((12 * chunks - 3) / 16, on_chunk=lambda _: sizes.append(process.memory_info().rss))
    assert len(sizes) == chunks
    # One kept picture per chunk would be 29 MB, one kept latent frame or key 4 MB.
    assert max(sizes[-50:]) - max(sizes[50:100]) < 3e6


@pytest.mark.parametrize("memory", ["memrope", "longlive"])
def test_memory_of_the_take_does_not_grow(tiny: LongTakePipeline, memory: str) -> None:
    """Far longer than above, without the slow part, pictures."""
    process, sizes = psutil.Process(), []
    take = tiny.start(PROMPT, memory, 1)
    for _ in range(1500):
        text = take.begin()
        take.commit(take.denoise(text), text)
        take.index += 1
        sizes.append(process.memory_info().rss)
    assert max(sizes[-200:]) - max(sizes[300:500]) < 3e6
