"""One pass over a file measures every length as if the file ended there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from longtake.comparison.measure import STRIP_HEIGHT, measure, strip, strip_times
from longtake.evaluation import Settings
from longtake.evaluation.meter import Meter
from longtake.evaluation.source import look
from longtake.video import read_frames
from tests.helpers_videos import FPS, clean, write


def test_lengths_are_videos_of_their_own(tmp_path: Path) -> None:
    """Whatever the windows, of frames that were decoded before; also where a window is cut in the middle."""
    path = write(tmp_path / "a.mp4", clean(7))
    frames = list(read_frames(path))
    settings = Settings(window=1.5)
    seen: list[int] = []
    found = measure(look(path), [2, 6, 3.5], settings, [0, 3, 6], progress=seen.append)
    assert list(found.measured) == [2, 3.5, 6] and seen == list(range(1, 97))
    for seconds, measured in found.measured.items():
        alone = Meter(FPS, settings)
        for frame in frames[: round(seconds * FPS)]:
            alone.add(frame)
        expected = alone.result()
        np.testing.assert_equal(measured.metrics, expected.metrics)
        np.testing.assert_equal(measured.windows, expected.windows)
        np.testing.assert_equal(measured.correlation, expected.correlation)
    for picture, index in zip(found.pictures, (0, 48, 95), strict=True):
        assert np.array_equal(picture, frames[index])


def test_too_short(tmp_path: Path) -> None:
    source = look(write(tmp_path / "a.mp4", clean(2)))
    with pytest.raises(ValueError, match=r"a\.mp4 has 32 frames, 2 s, and 2\.5 s were to be measured\."):
        measure(source, [1, 2.5], Settings())


def test_strips() -> None:
    small = [np.full((32, 48, 3), shade, np.uint8) for shade in (0, 100, 200)]
    made = np.asarray(strip(small))
    assert made.shape == (32, 144, 3) and made[5, [0, 50, 143], 0].tolist() == [0, 100, 200]
    large = [np.full((480, 832, 3), shade, np.uint8) for shade in (0, 100, 200)]
    made = np.asarray(strip(large))
    width = round(832 * STRIP_HEIGHT / 480)
    assert made.shape == (STRIP_HEIGHT, 3 * width, 3)
    assert made[9, width // 2 :: width, 0].tolist() == [0, 100, 200]


def test_strip_times() -> None:
    assert strip_times([60]) == [0, 15, 30, 45, 60]
    assert strip_times([30, 60, 240]) == [0, 15, 30, 60, 120, 180, 240]
    assert strip_times([2]) == [0, 0.5, 1, 1.5, 2]
    many = strip_times([1, 10, 30, 60, 240, 3600])
    assert len(many) <= 10 and {0, 900, 1800, 2700, 3600, 120, 240} <= set(many)
