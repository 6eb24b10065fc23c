"""Video files: exact frames and times, true colours, and what is refused; sheets and animations."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from longtake.sheet import contact_sheet, save_animation
from longtake.video import VideoWriter, pick_codec, probe, read_frames
from tests.helpers_mp4 import CHUNK, HEIGHT, HERE, WIDTH, decoded, fill, moving, times, write_whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished file of 40 chunks."""
    return write_whole(tmp_path_factory.mktemp("whole") / "whole.mp4")


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("fps", [16, Fraction(30000, 1001), 12.5])
def test_frames_and_times_are_exact(tmp_path: Path, codec: str, fps: float | Fraction) -> None:
    path = tmp_path / "a.mp4"
    portions = [5, 1, 1, 12, 3]
    with VideoWriter(path, width=WIDTH, height=HEIGHT, fps=fps, codec=codec) as writer:
        for start, count in zip(np.cumsum([0, *portions]), portions, strict=False):
            writer.write(moving(int(start), count))
            assert writer.position == {"bytes": path.stat().st_size, "frames": int(start) + count}
        writer.write(moving(0, 0))
        assert writer.position["frames"] == 22
    rate = Fraction(fps)
    assert times(path) == [i / rate for i in range(22)]
    info = probe(path)
    assert (info.frames, info.width, info.height) == (22, WIDTH, HEIGHT)
    assert info.codec == {"libx264": "h264", "mpeg4": "mpeg4"}[codec]
    assert info.fps == pytest.approx(float(rate)) and info.seconds == pytest.approx(22 / float(rate))
    assert np.abs(decoded(path).astype(int) - moving(0, 22)).mean() < 6  # chroma is halved


def test_every_packet_in_order_and_each_fragment_closed(whole: Path) -> None:
    with av.open(str(whole)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert [p.pts for p in packets] == [p.dts for p in packets] == [i * packets[0].duration for i in range(40 * CHUNK)]
    assert [i for i, p in enumerate(packets) if p.is_keyframe] == list(range(0, 40 * CHUNK, CHUNK))


def test_finished_file_tells_its_length(whole: Path) -> None:
    with av.open(str(whole)) as container:
        assert container.duration == 40 * CHUNK / 16 * av.time_base
    # Players that do not look past the header: cut off all fragments.
    data = whole.read_bytes()
    assert b"mehd" in data[: data.index(b"moof")]
    head = whole.with_name("head.mp4")
    head.write_bytes(data[: data.index(b"moof") - 4])
    with av.open(str(head)) as container:
        assert container.duration == 40 * CHUNK / 16 * av.time_base


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_colours_come_back(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.mp4"
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 30, 90)]
    frames = np.broadcast_to(np.array(colours, np.uint8)[:, None, None], (len(colours), HEIGHT, WIDTH, 3))
    with VideoWriter(path, width=WIDTH, height=HEIGHT, codec=codec) as writer:
        for frame in frames:
            writer.write(frame[None])
    assert np.abs(decoded(path).astype(int) - frames).max() <= 5
    with av.open(str(path)) as container:
        for colour, frame in zip(colours, container.decode(video=0), strict=True):
            assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
            # The luma that ITU-R BT.709 gives: 16 + 219 (0.2126 R + 0.7152 G + 0.0722 B).
            luma = 16 + 219 / 255 * (np.array(colour) @ [0.2126, 0.7152, 0.0722])
            assert np.abs(frame.to_ndarray()[:HEIGHT, :WIDTH] - luma).max() <= 3


def test_same_frames_give_the_same_file(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "a.mp4"
    # Encoders that race do so on a busy machine only.
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        for _ in range(3):
            with VideoWriter(path, width=WIDTH, height=HEIGHT) as writer:
                fill(writer, range(40))
            assert path.read_bytes() == whole.read_bytes()
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_resumed_file_is_the_uninterrupted_one(tmp_path: Path, codec: str) -> None:
    settings: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "codec": codec}
    straight, broken = tmp_path / "straight.mp4", tmp_path / "broken.mp4"
    with VideoWriter(straight, **settings) as writer:
        fill(writer, range(6))
    with VideoWriter(broken, **settings) as writer:
        fill(writer, range(2))
        early = writer.position
        fill(writer, range(9, 12))  # lost again
    # A finished file, cut back; without a codec the file's own is used.
    writer = VideoWriter.resume(broken, early, width=WIDTH, height=HEIGHT)
    assert writer.codec == codec and writer.position == early
    with av.open(str(broken)) as container:
        assert container.duration == 2 * CHUNK / 16 * av.time_base
    fill(writer, range(2, 3))
    position = writer.position
    del writer  # left without close, in another process
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from helpers_mp4 import *\n"
        f"w = VideoWriter.resume(sys.argv[2], {position}, **{settings}); fill(w, range(3, 6)); w.close()"
    )
    subprocess.run([sys.executable, "-c", script, str(HERE), str(broken)], check=True)
    assert broken.read_bytes() == straight.read_bytes()
    assert np.array_equal(decoded(broken), decoded(straight))
    # A finished take that is extended.
    with VideoWriter.resume(broken, {"bytes": broken.stat().st_size, "frames": 6 * CHUNK}, **settings) as writer:
        fill(writer, range(6, 8))
    assert times(broken) == [Fraction(i, 16) for i in range(8 * CHUNK)]


def test_quality_may_change_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, width=WIDTH, height=HEIGHT, quality=16) as writer:
        fill(writer, range(1))
        position = writer.position
    with VideoWriter.resume(path, position, width=WIDTH, height=HEIGHT, quality=30) as writer:
        fill(writer, range(1, 2))
    assert np.abs(decoded(path).astype(int) - moving(0, 2 * CHUNK)).mean() < 6


def test_file_appears_with_the_first_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, width=WIDTH, height=HEIGHT)
    assert os.listdir(tmp_path) == [] and writer.position == {"bytes": 0, "frames": 0}
    start = writer.position
    writer.sync()
    fill(writer, range(1))
    assert os.listdir(tmp_path) == ["a.mp4"] and probe(path).frames == CHUNK
    writer.sync()
    VideoWriter(tmp_path / "b.mp4", width=WIDTH, height=HEIGHT).close()
    assert os.listdir(tmp_path) == ["a.mp4"]
    with VideoWriter.resume(path, start, width=WIDTH, height=HEIGHT) as writer:
        fill(writer, range(2))
    assert probe(path).frames == 2 * CHUNK
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        fill(writer, range(1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"width": 63}, "even"), ({"height": 0}, "even"), ({"fps": 0}, "rate"), ({"fps": float("nan")}, "rate"),
        ({"quality": 52}, "quality"), ({"codec": "no-such-codec"}, "no-such-codec"),
        ({"path": "no/such/directory/a.mp4"}, "directory"),
    ],
)  # fmt: skip
def test_settings_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    settings: dict[str, Any] = {"path": tmp_path / "a.mp4", "width": WIDTH, "height": HEIGHT, **change}
    with pytest.raises(ValueError, match=says):
        VideoWriter(**settings)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((1, HEIGHT, WIDTH, 3)), np.zeros((1, WIDTH, HEIGHT, 3), "u1")],
)
def test_frames_refused(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Frames must be uint8"):
        VideoWriter(tmp_path / "a.mp4", width=WIDTH, height=HEIGHT).write(frames)


def test_files_that_are_not_resumed(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "a.mp4"
    shutil.copy(whole, path)
    fits: dict[str, Any] = {"width": WIDTH, "height": HEIGHT}
    size, frames = path.stat().st_size, 40 * CHUNK
    for position, settings, says in (
        ((size + 1, frames), fits, "fewer"),
        ((size - 1, frames), fits, "recorded"),
        ((size, frames - 1), fits, "recorded"),
        ((10, 1), fits, "not a video that Longtake wrote"),
        ((size, frames), {**fits, "width": 32}, "64x48"),
        ((size, frames), {**fits, "fps": 24}, "rate"),
        ((size, frames), {**fits, "codec": "mpeg4"}, "encoder"),
    ):
        with pytest.raises(ValueError, match=says):
            VideoWriter.resume(path, {"bytes": position[0], "frames": position[1]}, **settings)
    assert path.read_bytes() == whole.read_bytes()
    with av.open(str(path), "w", format="mp4") as container:  # a plain MP4
        stream = container.add_stream("mpeg4", rate=16, width=WIDTH, height=HEIGHT, pix_fmt="yuv420p")
        container.mux(stream.encode(av.VideoFrame.from_ndarray(moving(0, 1)[0])))
        container.mux(stream.encode(None))
    assert probe(path).frames == len(decoded(path)) == 1
    with pytest.raises(ValueError, match="not a video that Longtake wrote"):
        VideoWriter.resume(path, {"bytes": path.stat().st_size, "frames": 1}, **fits)
    with pytest.raises(FileNotFoundError):
        VideoWriter.resume(tmp_path / "none.mp4", {"bytes": 9, "frames": 1}, **fits)


def test_what_is_not_a_video_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for data in (b"", b"hello", bytes(1000)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read"):
            probe(path)
        with pytest.raises(ValueError, match="cannot be read"):
            next(read_frames(path))
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "none.mp4")


def test_codec_choice_is_told() -> None:
    assert pick_codec()[0] == "libx264" and "H.264" in pick_codec()[1]
    name, note = pick_codec(("no-such-codec", "mpeg4"))
    assert name == "mpeg4" and "no H.264" in note
    with pytest.raises(ValueError, match="no-such-codec"):
        pick_codec(("no-such-codec",))


def test_contact_sheet() -> None:
    frames = moving(0, 5)
    sheet = np.asarray(contact_sheet(frames, 3))
    assert sheet.shape == (2 * (HEIGHT + 4) + 4, 3 * (WIDTH + 4) + 4, 3)
    assert np.array_equal(sheet[4 : 4 + HEIGHT, 4 : 4 + WIDTH], frames[0])
    y, x = 4 + HEIGHT + 4, 4 + WIDTH + 4
    assert np.array_equal(sheet[y : y + HEIGHT, x : x + WIDTH], frames[4])
    labelled = np.asarray(contact_sheet(frames, 9, ["one", "two", "three", "a caption too long for one picture", ""]))
    caption = labelled[4 + HEIGHT : -4]
    assert (caption[:, 4 : 4 + WIDTH] < 128).any() and (caption[:, 3 * (WIDTH + 4) + WIDTH : -WIDTH - 4] == 255).all()
    for bad in ({"columns": 0}, {"columns": 2, "labels": ["one"]}):
        with pytest.raises(ValueError, match=r"\.$"):
            contact_sheet(frames, **bad)
    with pytest.raises(ValueError, match="no frames"):
        contact_sheet([], 1)
    with pytest.raises(ValueError, match="same size"):
        contact_sheet([frames[0], frames[1, 2:]], 1)


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_animation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = moving(0, 24)
    save_animation(frames, path, fps=16)
    with Image.open(path) as image:
        assert image.n_frames == 24 and image.info["loop"] == 0
        length = 0.0
        for index in range(24):
            image.seek(index)
            length += image.info["duration"] if suffix == "gif" else 0
            assert np.abs(np.asarray(image.convert("RGB"), int) - frames[index]).mean() < 12
        assert suffix == "webp" or length == 1500
    with pytest.raises(ValueError, match=r"as \.webp or \.gif"):
        save_animation(frames, tmp_path / "a.png", fps=16)
