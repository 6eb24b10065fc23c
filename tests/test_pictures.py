"""Pictures and videos that a user brings: sizes, orientation, transparency, rates, and everything that can be wrong."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from longtake.pictures import portions, read_clip, read_picture, to_clip, to_picture
from longtake.video import VideoWriter
from tests.conftest import ENVIRONMENT

RED, BLUE, GREEN = (220, 20, 20), (20, 20, 220), (20, 160, 20)


def halves(height: int, width: int, left: tuple[int, ...] = RED, right: tuple[int, ...] = BLUE) -> np.ndarray:
    picture = np.empty((height, width, 3), np.uint8)
    picture[:, : width // 2], picture[:, width // 2 :] = left, right
    return picture


def near(pixel: np.ndarray, color: tuple[int, ...], tolerance: int = 30) -> bool:
    return bool(np.abs(pixel.astype(int) - color).max() <= tolerance)


# Pictures


def test_a_picture_of_the_right_size_is_read_as_it_is(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png", 32, 48), picture)
    for form in (picture, Image.fromarray(picture), tmp_path / "a.png", str(tmp_path / "a.png"), picture / 255.0):
        assert np.array_equal(to_picture(form, 32, 48), picture)


def test_a_picture_is_resized_to_cover_and_cropped_in_the_middle(tmp_path: Path) -> None:
    wide = np.concatenate([halves(40, 40, GREEN, GREEN), halves(40, 80), halves(40, 40, GREEN, GREEN)], 1)
    made = to_picture(wide, 20, 40)  # the middle half of its width
    assert made.shape == (20, 40, 3) and made.dtype == np.uint8
    assert near(made[10, 3], RED) and near(made[10, 36], BLUE)
    tall = np.concatenate([halves(40, 80, GREEN, GREEN), halves(40, 80), halves(40, 80, GREEN, GREEN)], 0)
    made = to_picture(tall, 16, 32)
    assert near(made[2, 3], RED) and near(made[13, 29], BLUE)
    assert to_picture(halves(1, 2), 64, 64).shape == (64, 64, 3)
    assert to_picture(halves(3, 900), 16, 16).shape == (16, 16, 3)


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(halves(32, 32)).save(tmp_path / "a.jpg", exif=exif, quality=95)
    made = read_picture(tmp_path / "a.jpg", 32, 32)
    assert near(made[3, 16], RED) and near(made[28, 16], BLUE)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[:, 8:] = (*BLUE, 255)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture).quantize(8).save(tmp_path / "palette.png")
    for name in ("a.png", "palette.png"):
        made = read_picture(tmp_path / name, 16, 16)
        assert near(made[8, 2], (255, 255, 255), 3) and near(made[8, 12], BLUE, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "LA", "RGBA", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    low, high = {"1": (0, 255), "P": (51, 204)}.get(mode, (40, 200))  # what these modes can hold
    grey = np.full((16, 16), high, np.uint8)
    grey[:, :8] = low
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    name = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr") else "a.png")
    image.save(name)
    made = read_picture(name, 16, 16)
    assert made.shape == (16, 16, 3) and near(made[8, 3], (low,) * 3, 3) and near(made[8, 12], (high,) * 3, 3)


def test_of_an_animation_the_first_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert near(read_picture(tmp_path / "a.gif", 16, 16)[0, 0], RED, 5)


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(ValueError) as error:
        result = call(*arguments)
        list(result)
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 300, text
    return text


def huge_png() -> bytes:
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    whole = struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + whole + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def test_what_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert "There is no picture" in refused(read_picture, path, 32, 32)
    assert "not a file" in refused(read_picture, tmp_path, 32, 32)
    path.write_bytes(b"")
    assert "empty" in refused(read_picture, path, 32, 32)
    path.write_bytes(b"not a picture at all" * 20)
    assert "PNG, JPEG or WebP" in refused(read_picture, path, 32, 32)
    path.write_bytes(huge_png())
    assert "megapixels" in refused(read_picture, path, 32, 32)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        file = io.BytesIO()
        noise.save(file, kind)
        for share in (0.2, 0.5, 0.9):
            path.write_bytes(file.getvalue()[: int(len(file.getvalue()) * share)])
            assert str(path) in refused(read_picture, path, 32, 32)


@pytest.mark.parametrize(
    "odd", [3, None, b"abc", [[1]], np.zeros((4, 4)), np.zeros((4, 4, 3)) + 2, np.zeros((4, 4, 3)) - 1,
            np.full((4, 4, 3), np.nan), np.zeros((4, 4, 3), np.int64), np.zeros((3, 4, 4), np.uint8),
            np.zeros((0, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)],
)  # fmt: skip
def test_what_is_no_picture_in_python(odd: Any) -> None:
    assert "A picture must be a file, a PIL image, or" in refused(to_picture, odd, 16, 16)


# Videos


def write_video(path: Path, frames: np.ndarray, fps: int | Fraction = 16, portion: int = 12) -> Path:
    with VideoWriter(path, width=frames.shape[2], height=frames.shape[1], fps=fps, quality=5) as writer:
        for start in range(0, len(frames), portion):
            writer.write(frames[start : start + portion])
    return path


def levels(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame i is grey of level 4 i, so that a frame can be told by its brightness."""
    return np.broadcast_to((np.arange(count) * 4).astype(np.uint8)[:, None, None, None], (count, height, width, 3))


def numbers(clip: Any) -> list[int]:
    return [round(float(frame.mean()) / 4) for frame in clip]


def test_a_video_of_the_models_rate_is_read_frame_by_frame(tmp_path: Path) -> None:
    clip = read_clip(write_video(tmp_path / "a.mp4", levels(45)), 32, 48, 16)
    assert len(clip) == 45 and numbers(clip) == list(range(45))
    assert numbers(clip) == list(range(45))  # again
    assert all(f.shape == (16, 16, 3) and f.dtype == np.uint8 for f in read_clip(tmp_path / "a.mp4", 16, 16, 16))
    assert numbers(to_clip(str(tmp_path / "a.mp4"), 32, 48, 16)) == list(range(45))
    assert numbers(to_clip(clip, 16, 32, 16)) == list(range(45))


@pytest.mark.parametrize("fps", [8, 12, 24, 30, 60, Fraction(30000, 1001)])
def test_a_video_of_another_rate_is_resampled_by_time(fps: int | Fraction, tmp_path: Path) -> None:
    count = 50
    clip = read_clip(write_video(tmp_path / "a.mp4", levels(count), fps), 32, 48, 16)
    assert len(clip) == round(count / fps * 16)
    expected = [min(count - 1, int((i + 0.5) / 16 * fps)) for i in range(len(clip))]
    assert numbers(clip) == expected


def muxed(path: Path, frames: np.ndarray, stamps: list[int], **options: str) -> Path:
    """A video whose frames are shown at `stamps`, in milliseconds; with B-frames, so stored in another order."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264" if path.suffix != ".avi" else "mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = options
        for frame, stamp in zip(frames, stamps, strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = stamp, Fraction(1, 1000)
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_a_video_of_a_changing_rate_and_a_late_start(tmp_path: Path) -> None:
    """As telephones make them: slow, then fast, beginning at 3.21 s."""
    steps = [125] * 10 + [31] * 30
    stamps = [3210 + sum(steps[:i]) for i in range(40)]
    path = muxed(tmp_path / "a.mkv", levels(40), stamps, crf="5", bf="2")
    clip = read_clip(path, 32, 48, 16)
    found = numbers(clip)
    moments = [3210 + (i + 0.5) * 62.5 for i in range(len(found))]
    assert found == [max(n for n, stamp in enumerate(stamps) if stamp <= moment) for moment in moments]
    assert len(found) == pytest.approx((stamps[-1] - stamps[0]) / 1000 * 16, abs=1)


def test_a_video_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", np.repeat(halves(32, 32)[None], 12, 0))
    content = path.read_bytes()
    one, zero = struct.pack(">i", 1 << 16), struct.pack(">i", 0)
    last = struct.pack(">i", 1 << 30)
    plain = one + zero * 3 + one + zero * 3 + last
    quarter = zero + one + zero + struct.pack(">i", -(1 << 16)) + zero * 2 + struct.pack(">i", 32 << 16) + zero + last
    at = content.rindex(plain)  # the track's; the film's comes before
    path.write_bytes(content[:at] + quarter + content[at + len(plain) :])
    frame = next(iter(read_clip(path, 32, 32, 16)))
    assert near(frame[3, 16], RED, 60) and near(frame[28, 16], BLUE, 60)


def test_a_video_torn_by_a_crash_is_read_as_far_as_it_plays(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", levels(36))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.8)])
    found = numbers(read_clip(path, 32, 48, 16))
    assert found in (list(range(12)), list(range(24)))


def test_what_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert "There is no video" in refused(read_clip, path, 32, 32, 16)
    assert "not a file" in refused(read_clip, tmp_path, 32, 32, 16)
    path.write_bytes(b"")
    assert "empty" in refused(read_clip, path, 32, 32, 16)
    path.write_bytes(b"not a video at all" * 20)
    assert "cannot be read as a video" in refused(read_clip, path, 32, 32, 16)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    assert "no video in it" in refused(read_clip, tmp_path / "sound.wav", 32, 32, 16)
    whole = write_video(tmp_path / "whole.mp4", levels(48)).read_bytes()
    rng = np.random.default_rng(0)
    for share in (0.02, 0.1, 0.5, 0.95):  # cut off, and with noise inside: frames, or one sentence
        for broken in (whole[: int(len(whole) * share)], bytearray(whole)):
            if isinstance(broken, bytearray):
                at = int(len(whole) * share)
                broken[at : at + 200] = rng.bytes(min(200, len(whole) - at))
            path.write_bytes(bytes(broken))
            try:
                assert len(list(read_clip(path, 32, 32, 16))) >= 1
            except ValueError as error:
                assert str(path) in str(error) and str(error).endswith(".") and "\n" not in str(error)


def test_a_video_in_python(tmp_path: Path) -> None:
    frames = levels(5)
    for form in (frames, list(frames), (f for f in frames), [Image.fromarray(f) for f in frames], frames / 255.0):
        clip = to_clip(form, 32, 48, 16)
        assert len(clip) == 5 and numbers(clip) == [0, 1, 2, 3, 4]
        assert all(f.dtype == np.uint8 and f.shape == (32, 48, 3) for f in clip)
    assert "at least one frame" in refused(to_clip, [], 32, 48, 16)
    assert "A video must be" in refused(to_clip, 7, 32, 48, 16)
    assert "A picture must be" in refused(to_clip, frames[0], 32, 48, 16)


# Portions


def test_portions() -> None:
    def cut(count: int, sizes: list[int], drop: int = 0) -> list[list[int]]:
        return [numbers(part) for part in portions(iter(levels(count)), sizes, 32, 48, drop)]

    assert cut(5, [2, 3]) == [[0, 1], [2, 3, 4]]
    assert cut(9, [2, 3], drop=4) == [[4, 5], [6, 7, 8]]
    assert cut(2, [2, 3], drop=-3) == [[0, 0], [0, 0, 1]]
    assert "after 4 of 5 frames" in refused(cut, 4, [2, 3])
    assert "after 6 of 7 frames" in refused(cut, 6, [2, 3], 2)
    assert "after 0 of 5 frames" in refused(cut, 0, [2, 3], -3)
    for odd in (levels(3, 16), levels(3).astype(float), [1, 2, 3]):
        assert "uint8 [32, 48, 3]" in refused(lambda odd: list(portions(odd, [3], 32, 48)), odd)


def test_a_long_video_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with VideoWriter(path, width=128, height=128, fps=16) as writer:
        for level in range(20):
            writer.write(np.full((60, 128, 128, 3), 10 * level, np.uint8))
    clip = read_clip(path, 128, 128, 16)
    tracemalloc.start()
    assert sum(len(part) for part in portions(clip, [12] * 100, 128, 128)) == len(clip) == 1200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 600_000 < peak < 6_000_000  # bytes; one portion has 590 kB, the whole 59 MB


def test_checking_loads_no_torch(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", levels(3))
    Image.fromarray(halves(32, 32)).save(tmp_path / "a.png")
    code = (
        "import sys; from longtake.pictures import *; read_picture('a.png', 32, 32); read_clip('a.mp4', 32, 32, 16);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
