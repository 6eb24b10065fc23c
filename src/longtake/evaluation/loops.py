"""What repeats: loops over long lags, and returns to the start."""

from __future__ import annotations

import math

import numpy as np

_FROM = 4.0  # seconds; below, motion repeats by nature: steps, swings, waves
_NEARLY = 0.9  # of the highest peak; the first one this high is the period, later ones are its multiples
_SURE = 0.3  # a weaker loop has no period to speak of
_AWAY = 3.0  # times what a second changes; nearer to the start, a video has not left it


def find_loop(correlation: np.ndarray, step: float) -> tuple[float, float]:
    """How strongly a video repeats itself, and after how long.

    Args:
        correlation: autocorrelation by lag, ``[lags]``; as long as the video.
        step: seconds from lag to lag.

    Returns:
        Strength, 0 to 1, and period in seconds; nan for a strength that cannot be told (a video that is shorter than
        8 s, or nothing changes) and for the period of a weak loop.
    """
    first, half = math.ceil(_FROM / step), len(correlation) // 2
    if half < first or np.isnan(correlation).any():
        return math.nan, math.nan
    # a video that changes slowly is like itself at all short lags: only what came back counts
    score = np.minimum(correlation, correlation - np.minimum.accumulate(correlation))
    inner = score[1:-1]
    peak = np.zeros(len(score), bool)
    peak[1:-1] = (inner > score[:-2]) & (inner >= score[2:])  # the end of a rise that goes on is none
    peaks = np.where(peak, score, 0)[: half + 1]
    far = peaks[first:]
    strength = float(max(0.0, far.max() - peaks[:first].max()))
    if strength < _SURE:
        return strength, math.nan
    high = score[first : half + 1] >= _NEARLY * far.max()
    start = int(high.argmax())
    length = int((~high[start:]).argmax()) or len(high) - start
    return strength, (first + start + int(score[first + start : first + start + length].argmax())) * step


def count_returns(to_start: np.ndarray, after_a_second: float) -> int:
    """How often a video that had left its first second came back to it.

    Args:
        to_start: cosine of each window to the first second, ``[windows]``.
        after_a_second: mean cosine of pictures that are a second apart.
    """
    distance = 1 - to_start[~np.isnan(to_start)]
    if not len(distance):
        return 0
    far = float(np.quantile(distance, 0.9))
    if not far > _AWAY * (1 - after_a_second):
        return 0
    away, count = False, 0
    for value in distance:
        if value > far / 2:
            away = True
        elif away and value < far / 4:
            away, count = False, count + 1
    return count
