"""One video, measured at several lengths in one pass, and a strip of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from longtake.evaluation.features import Extract, fixed_feature
from longtake.evaluation.meter import Measured, Meter
from longtake.evaluation.settings import Settings
from longtake.evaluation.source import Source
from longtake.plan import count, format_seconds, frames_in

STRIP_HEIGHT = 96
"""Pixels; larger pictures are made smaller for a strip, smaller ones stay."""


@dataclass(frozen=True)
class Lengths:
    """What was found.

    Attributes:
        measured: by length in seconds.
        pictures: uint8 RGB ``[height, width, 3]``, one for each of the times that were asked for.
    """

    measured: dict[float, Measured]
    pictures: list[np.ndarray]


def measure(
    source: Source,
    lengths: Sequence[float],
    settings: Settings,
    times: Sequence[float] = (),
    extract: Extract = fixed_feature,
    progress: Callable[[int], None] | None = None,
) -> Lengths:
    """Measures the first seconds of a video, for each of several lengths as if it ended there.

    The first seconds of a longer take are the shorter take, so one video serves for all lengths.

    Args:
        source: the video; may be longer.
        lengths: in seconds.
        settings: how to measure.
        times: seconds from which pictures are kept; beyond the longest length, its last one.
        extract: features of a picture.
        progress: called after every frame with their number.

    Raises:
        ValueError: the video is shorter than the longest length, or damaged; in one sentence.
    """
    ends = {frames_in(seconds, source.fps): seconds for seconds in lengths}
    last = max(ends)
    if source.frames < last:
        raise ValueError(
            f"{source.path} has {count(source.frames, 'frame')}, {format_seconds(source.seconds)}, and "
            f"{format_seconds(max(lengths))} were to be measured."
        )
    wanted = [min(round(time * source.fps), last - 1) for time in times]
    kept: dict[int, np.ndarray] = {}
    found: dict[float, Measured] = {}
    meter = Meter(source.fps, settings, extract)
    for index, frame in enumerate(source):
        meter.add(frame)
        if index in wanted:
            kept[index] = frame
        if meter.frames in ends:
            found[ends[meter.frames]] = meter.so_far()
        if progress is not None:
            progress(meter.frames)
        if meter.frames == last:
            break
    return Lengths(found, [kept[index] for index in wanted])


def strip(pictures: Sequence[np.ndarray]) -> Image.Image:
    """Pictures side by side, as `measure` gives them."""
    whole = Image.fromarray(np.concatenate(pictures, axis=1))
    if whole.height <= STRIP_HEIGHT:
        return whole
    width = round(pictures[0].shape[1] * STRIP_HEIGHT / whole.height)
    return whole.resize((width * len(pictures), STRIP_HEIGHT), Image.Resampling.LANCZOS)


def strip_times(lengths: Sequence[float], most: int = 10) -> list[float]:
    """Of which seconds a strip has pictures: the beginning, the quarters of the longest length, and middle and end of
    the others, longest first, as long as there are no more than ``most``."""
    chosen: list[float] = []
    parts = {seconds: (0.5, 1.0) for seconds in sorted(lengths, reverse=True)[1:]}
    longest = max(lengths)
    for seconds, shares in {longest: (0.0, 0.25, 0.5, 0.75, 1.0), **parts}.items():
        for share in shares:
            time = round(share * seconds, 3)
            if len(chosen) < most and all(abs(time - other) >= longest / 100 for other in chosen):
                chosen.append(time)
    return sorted(chosen)
