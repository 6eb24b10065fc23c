"""What is kept of a video while it is read: sums of a fixed size, however long the video is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


class Means:
    """Running means of named numbers; those that are not a number are left out."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._sums, self._counts = np.zeros(len(self.names)), np.zeros(len(self.names), np.int64)

    def add(self, values: Mapping[str, float]) -> None:
        """Takes note of some or all of the numbers."""
        for name, value in values.items():
            if value == value:
                index = self.names.index(name)
                self._sums[index] += value
                self._counts[index] += 1

    def clear(self) -> None:
        """Starts anew."""
        self._sums[:], self._counts[:] = 0, 0

    def values(self) -> dict[str, float]:
        """The means; nan for what was never given."""
        with np.errstate(invalid="ignore"):
            return dict(zip(self.names, (self._sums / self._counts).tolist(), strict=True))


class Trends:
    """Least-squares slopes of several series against the same times, in one pass (Chan, Golub and LeVeque 1983)."""

    def __init__(self, count: int) -> None:
        self._n, self._time, self._value, self._tt, self._tx = (np.zeros(count) for _ in range(5))

    def add(self, time: float, values: np.ndarray) -> None:
        """One number of each series, nan where there is none."""
        there = ~np.isnan(values)
        self._n += there
        n = np.maximum(self._n, 1)
        off = np.where(there, time - self._time, 0)
        self._time += off / n
        self._value += np.where(there, values - self._value, 0) / n
        self._tt += off * np.where(there, time - self._time, 0)
        self._tx += off * np.where(there, values - self._value, 0)

    def slopes(self) -> np.ndarray:
        """Per unit of time; nan of series with fewer than two numbers."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self._n > 1, self._tx / self._tt, np.nan)


class Windows:
    """A row of numbers per window of time, ``capacity`` rows at most.

    When they are full, neighbouring rows are put together (the mean of what is a number), and from then on a row
    stands for twice as many windows: a long video is kept as coarsely as is needed.
    """

    def __init__(self, names: Sequence[str], capacity: int) -> None:
        self.names = tuple(names)
        self.windows = 0  # that were added
        self.per_row = 1
        self._sums = np.zeros((capacity, len(self.names)))
        self._counts = np.zeros((capacity, len(self.names)), np.int64)

    def add(self, values: Mapping[str, float]) -> None:
        """The numbers of the next window, nan for what it has none of."""
        row = self.windows // self.per_row
        if row == len(self._sums):
            for kept in (self._sums, self._counts):
                half = len(kept) // 2
                kept[:half] = kept[0::2] + kept[1::2]
                kept[half:] = 0
            self.per_row *= 2
            row = self.windows // self.per_row
        numbers = np.array([values[name] for name in self.names])
        self._sums[row] += np.nan_to_num(numbers)
        self._counts[row] += ~np.isnan(numbers)
        self.windows += 1

    def table(self) -> dict[str, np.ndarray]:
        """The rows, by name, ``[rows]``; the last one may stand for fewer windows than the others."""
        rows = -(-self.windows // self.per_row)
        with np.errstate(invalid="ignore"):
            return dict(zip(self.names, (self._sums[:rows] / self._counts[:rows]).T, strict=True))


class Correlogram:
    """How alike vectors of length 1 are at every lag, against a limited number of earlier ones.

    A vector is compared with at most ``references`` earlier ones, spread evenly: when there is no room for another,
    every second one is forgotten. So every lag is seen exactly, by fewer pairs the longer the video is; memory and work
    per vector do not grow.
    """

    def __init__(self, references: int, lags: int) -> None:
        self._room, self._kept, self._every = references, 0, 1
        self._vectors: np.ndarray | None = None
        self._times = np.zeros(references, np.int64)
        self._sums, self._counts = np.zeros(lags), np.zeros(lags, np.int64)
        self._total: np.ndarray | None = None
        self.count = 0

    def add(self, vector: np.ndarray) -> None:
        """The next vector, float32 ``[n]`` of length 1."""
        if self._vectors is None or self._total is None:
            self._vectors = np.zeros((self._room, len(vector)), np.float32)
            self._total = np.zeros(len(vector))
        self._total += vector
        lags = self.count - self._times[: self._kept]
        near = lags < len(self._sums)
        alike = self._vectors[: self._kept] @ vector
        self._sums[lags[near]] += alike[near]  # no lag occurs twice
        self._counts[lags[near]] += 1
        if self.count % self._every == 0:
            if self._kept == self._room:
                half = self._room // 2
                self._vectors[:half], self._times[:half] = self._vectors[::2], self._times[::2].copy()
                self._kept, self._every = half, self._every * 2
            if self.count % self._every == 0:
                self._vectors[self._kept], self._times[self._kept] = vector, self.count
                self._kept += 1
        self.count += 1

    @property
    def variance(self) -> float:
        """Mean squared distance of the vectors from their mean."""
        if self._total is None:
            return 0.0
        return max(0.0, 1 - float(np.square(self._total / self.count).sum()))

    def alike(self, lag: int) -> float:
        """Mean cosine of vectors that are ``lag`` apart; nan if no two were compared."""
        return float(self._sums[lag] / self._counts[lag]) if self._counts[lag] else math.nan

    def correlation(self) -> np.ndarray:
        """Autocorrelation by lag, ``[lags]``, 1 at lag 0; nan where no pair was compared or nothing changes.

        By the variogram: ``1 - mean |f(t) - f(t - lag)|^2 / (2 variance)``, which asks for no mean that is constant.
        """
        last = min(len(self._sums), max(self.count, 1))
        if self.variance < 1e-6:
            return np.full(last, np.nan)
        with np.errstate(invalid="ignore"):
            found = 1 - (1 - self._sums[:last] / self._counts[:last]) / self.variance
        found[0] = 1
        return found
