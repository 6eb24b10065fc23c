"""Measures a video frame by frame, in memory that does not depend on its length."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from longtake.evaluation.features import Extract, fixed_feature
from longtake.evaluation.flow import optical_flow
from longtake.evaluation.loops import count_returns, find_loop
from longtake.evaluation.pictures import hellinger, lab_histogram, looks, luma
from longtake.evaluation.registry import LOOKS, METRICS, RELATIVE, VBENCH
from longtake.evaluation.settings import Settings
from longtake.evaluation.steps import Steps
from longtake.evaluation.streams import Correlogram, Means, Trends, Windows

SMALLEST = 16
"""Pixels: the least height and width of a picture."""

SERIES = (
    *(look.name for look in LOOKS),
    "histogram_distance",
    "motion",
    "motion_top",
    "frame_difference",
    "flicker",
    "consistency_start",
    "consistency_neighbour",
)
"""What is kept of every window."""

_LOOK_NAMES = tuple(look.name for look in LOOKS)
_FLOW_SIZE = 128  # pixels of the shorter side
_TOP = 0.05
_STILL = 2.0  # per cent of the height per second


@dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
        metrics: by name of `registry.METRICS` (without VBench's), nan for what cannot be told of this video.
        seconds: when each of the windows in ``windows`` begins, ``[rows]``.
        windows: series of `SERIES`, each ``[rows]``.
        correlation: autocorrelation of features by lag, ``[lags]``.
        lag: seconds from lag to lag.
    """

    metrics: dict[str, float]
    seconds: np.ndarray
    windows: dict[str, np.ndarray]
    correlation: np.ndarray
    lag: float


class Meter:
    """Takes the frames of one video in order.

    Args:
        fps: frames per second.
        settings: what to measure.
        extract: features of a picture; the fixed ones by default.
    """

    def __init__(self, fps: float, settings: Settings | None = None, extract: Extract = fixed_feature) -> None:
        self.settings = settings or Settings()
        self.fps = fps
        self._extract = extract
        self._every = max(1, round(fps / self.settings.samples))
        self._per_window = max(2, round(self.settings.window * fps))
        self._steps = Steps(self.settings.chunk, self.settings.decoder)
        self._all, self._window = Means(SERIES), Means(SERIES)
        self._rows = Windows(SERIES, self.settings.windows)
        self._trends = Trends(len(SERIES))
        self._opening: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._colours, self._first_colours = np.zeros(512), np.zeros(512)
        self._correlogram = Correlogram(self.settings.references, self.settings.lags)
        self._start: np.ndarray | None = None  # features of the first second
        self._feature: np.ndarray | None = None
        self._before: np.ndarray | None = None
        self._still = self._moving = 0
        self._in_window = 0
        self.frames = 0

    def add(self, frame: np.ndarray) -> None:
        """The next frame, uint8 RGB ``[height, width, 3]``."""
        self._note(self._steps.add(frame))
        if self.frames % self._every == 0:
            self._note(looks(frame, luma(frame)))
            self._colours += lab_histogram(frame)
            self._identify(frame)
        # Two neighbours from the middle between samples: they lie in one window, and, at 16 frames a second, in what
        # the decoder made at once, so that seams and the encoder's key frames are not taken for motion.
        if self._before is not None and self.frames % self._every == (self._every // 2 + 1) % self._every:
            self._move(luma(self._before), luma(frame))
        self._before = frame
        self.frames += 1
        self._in_window += 1
        if self._in_window == self._per_window:
            self._end_window()

    def _note(self, values: dict[str, float]) -> None:
        self._window.add(values)
        self._all.add(values)

    def _move(self, before: np.ndarray, now: np.ndarray) -> None:
        height, width = now.shape
        scale = min(1.0, _FLOW_SIZE / min(height, width))
        size = (round(width * scale), round(height * scale))
        first, second = (np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in (before, now))
        speed = np.hypot(*optical_flow(first, second)).ravel() * (100 * self.fps / size[1])
        top = max(1, round(_TOP * speed.size))
        self._note(
            {
                "motion": float(speed.mean()),
                "motion_top": float(np.partition(speed, speed.size - top)[-top:].mean()),
            }
        )

    def _identify(self, frame: np.ndarray) -> None:
        feature = self._extract(frame)
        self._correlogram.add(feature)
        if self._feature is not None:
            self._note({"consistency_neighbour": float(feature @ self._feature)})
        self._feature = feature
        if self._start is None:
            self._start = np.zeros_like(feature)
        if self.frames < self.fps:
            self._start += feature
        else:
            start = self._start / max(float(np.linalg.norm(self._start)), 1e-12)
            self._note({"consistency_start": float(feature @ start)})

    def _end_window(self) -> None:
        values = self._window.values()
        if not self._rows.windows:
            self._first_colours = self._colours.copy()
            self._opening = values
        values["histogram_distance"] = hellinger(self._first_colours, self._colours)
        middle = (self.frames - self._in_window / 2) / self.fps / 60
        self._rows.add(values)
        self._trends.add(middle, np.array([values[name] for name in SERIES]))
        if values["motion_top"] == values["motion_top"]:
            self._moving += 1
            self._still += values["motion_top"] < _STILL
        self._last = values
        self._window.clear()
        self._colours[:] = 0
        self._in_window = 0

    def so_far(self) -> Measured:
        """What :meth:`result` would say if the video ended here; the measuring can go on.

        Raises:
            ValueError: no frames.
        """
        return copy.deepcopy(self, {id(self._extract): self._extract}).result()  # a network is not copied

    def result(self) -> Measured:
        """Of the whole video. Ends the measuring: a last window counts if at least half of it is there.

        Raises:
            ValueError: no frames.
        """
        if not self.frames:
            raise ValueError("There are no frames to measure.")
        if self._in_window >= self._per_window / 2 or not self._rows.windows:
            self._end_window()
        table = self._rows.table()
        correlation = self._correlogram.correlation()
        lag = self._every / self.fps
        strength, period = find_loop(correlation, lag)
        levels = self._all.values()
        second = self._correlogram.alike(max(1, round(1 / lag)))
        minutes = self.frames / self.fps / 60
        several = self._rows.windows > 1
        found = {name: levels[name] for name in (*_LOOK_NAMES, "motion", "motion_top")}
        slopes = dict(zip(SERIES, self._trends.slopes(), strict=True))
        for name in _LOOK_NAMES:
            change, slope = self._last[name] - self._opening[name], float(slopes[name])
            unit = self._opening[name] / 100 if RELATIVE[name] else 1.0
            known = several and unit > 1e-9
            found[f"{name}_change"] = change / unit if known else math.nan
            found[f"{name}_drift"] = slope / unit if known else math.nan
        found |= {
            "histogram_distance": self._last["histogram_distance"] if several else math.nan,
            "still_windows": 100 * self._still / self._moving if self._moving else math.nan,
            "consistency_start": levels["consistency_start"],
            "consistency_end": self._last["consistency_start"] if several else math.nan,
            "consistency_neighbour": levels["consistency_neighbour"],
            "returns": count_returns(table["consistency_start"], second) / minutes if several else math.nan,
            "loop_strength": strength,
            "loop_period": period,
            **self._steps.metrics(self.fps),
        }
        begin = np.arange(len(table["brightness"])) * self._rows.per_row * self._per_window / self.fps
        ordered = {name: found[name] for name in METRICS if not name.startswith(VBENCH)}
        return Measured(ordered, begin, table, correlation, lag)
