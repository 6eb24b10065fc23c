"""What can be said of means and differences from a few videos: intervals, a sign test, corrected p-values.

Videos of one prompt are alike, so numbers are first averaged per *unit*, see :func:`units`, and everything else takes
units for independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.95
"""Of intervals."""

LEAST = 5
"""Units that an interval needs: of fewer, resampling knows next to nothing."""

RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean, and between what it may lie.

    Attributes:
        mean: of the units; nan if there are none.
        low, high: ends of the interval; nan with fewer than `LEAST` units.
        count: units.
    """

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Signs:
    """A sign test.

    Attributes:
        above, below: units above and below zero; ties are neither.
        p: two-sided; 1 if there are only ties, nan if there is nothing at all.
    """

    above: int
    below: int
    p: float


def units(values: Mapping[tuple[Any, Any], float]) -> tuple[np.ndarray, str]:
    """Averages what is not independent.

    With `LEAST` prompts or more a unit is a prompt, the mean over its seeds, and what is found speaks of prompts like
    these. With fewer, a unit is a video: what is found then speaks of other seeds of these very prompts only.

    Args:
        values: by (prompt, seed); nan for what is not known.

    Returns:
        The units ``[n]`` in the order of the prompts, and what they are: "prompts" or "videos".
    """
    return unit_rows({key: np.asarray(value, dtype=float) for key, value in values.items() if not math.isnan(value)})


def unit_rows(values: Mapping[tuple[Any, Any], np.ndarray]) -> tuple[np.ndarray, str]:
    """As :func:`units`, of arrays of one shape: ``[n, ...]``."""
    by_prompt: dict[Any, list[np.ndarray]] = {}
    for (prompt, _), value in values.items():
        by_prompt.setdefault(prompt, []).append(value)
    if len(by_prompt) >= LEAST:
        return np.stack([np.mean(rows, axis=0) for rows in by_prompt.values()]), "prompts"
    return np.stack(list(values.values())) if values else np.zeros(0), "videos"


def bootstrap(values: np.ndarray, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean with the expanded percentile interval of the bootstrap.

    Plain percentile intervals of few values are too narrow; here the percentiles are those that make up for it if the
    values are normal (Hesterberg, What teachers should know about the bootstrap, The American Statistician 69(4),
    2015): Phi(-sqrt(n / (n - 1)) t), with t the quantile of Student's distribution with n - 1 degrees of
    freedom, in place of 0.025.

    Args:
        values: independent, ``[n]``; nan is left out.
        level: share of intervals that should cover the true mean.
        resamples: how many.
        seed: of the resamples; the same values have the same interval.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    count = len(values)
    if not count:
        return Estimate(math.nan, math.nan, math.nan, 0)
    middle = math.fsum(values) / count
    if count < LEAST:
        return Estimate(middle, math.nan, math.nan, count)
    if values.min() == values.max():  # without the rounding of sums
        return Estimate(float(values[0]), float(values[0]), float(values[0]), count)
    tail = NormalDist().cdf(-math.sqrt(count / (count - 1)) * student_quantile((1 + level) / 2, count - 1))
    means = middle + _weights(count, resamples, seed) @ (values - middle)
    low, high = np.quantile(means, (tail, 1 - tail))
    return Estimate(middle, float(low), float(high), count)


@lru_cache(maxsize=8)
def _weights(count: int, resamples: int, seed: int) -> np.ndarray:
    """How much of every value is in every resample, ``[resamples, count]``; the same for all values of one number."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples) / count


def sign_test(differences: np.ndarray) -> Signs:
    """Whether differences are above zero as often as below; exact and two-sided, ties left out (Conover, Practical
    nonparametric statistics, 1999, section 3.4).

    Args:
        differences: independent, ``[n]``; nan is left out.
    """
    differences = np.asarray(differences, dtype=float)
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    count = above + below
    if not count:
        return Signs(0, 0, 1.0 if (differences == 0).any() else math.nan)
    tail = sum(math.comb(count, i) for i in range(min(above, below) + 1)) / 2**count
    return Signs(above, below, min(1.0, 2 * tail))


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are, so that the chance of any false one among them stays what each says
    (Holm, A simple sequentially rejective multiple test procedure, 1979). nan stays nan and does not count.
    """
    order = sorted((p, index) for index, p in enumerate(ps) if not math.isnan(p))
    corrected = [math.nan] * len(ps)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[index] = largest
    return corrected


def student_quantile(p: float, freedom: int) -> float:
    """The quantile of Student's t distribution with a whole number of degrees of freedom, for p from 0.5 to below 1.

    Raises:
        ValueError: another p, or no degree of freedom.
    """
    if not (0.5 <= p < 1 and freedom >= 1):
        raise ValueError(f"A quantile needs p from 0.5 to below 1 and a degree of freedom, not {p} and {freedom}.")
    low, high = 0.0, 1.0
    while _student(high, freedom) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _student(middle, freedom) < p else (low, middle)
    return high


def _student(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term = total = 0.0
    for k in range(freedom // 2):
        if k == 0:
            term = cosine if odd else 1.0
        else:
            term *= cosine**2 * (2 * k / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + inside) / 2
