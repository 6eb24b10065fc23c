"""Statistics of single pictures. NumPy only; formulas and sources are in :mod:`longtake.evaluation.registry`."""

from __future__ import annotations

import numpy as np

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)
"""ITU-R BT.709."""

_BINS = 8
_MOST_COLOURS = 1 << 14  # pixels of a picture that go into its histogram


def luma(frame: np.ndarray) -> np.ndarray:
    """Luma of uint8 RGB ``[height, width, 3]``, float32 ``[height, width]`` from 0 to 255."""
    return frame @ LUMA


def looks(frame: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The statistics of `registry.LOOKS`.

    Args:
        frame: uint8 RGB ``[height, width, 3]``, at least 5x5.
        y: its luma.
    """
    red, green, blue = (frame[..., c] for c in range(3))
    most, least = (f(f(red, green), blue) for f in (np.maximum, np.minimum))
    variance = float(y.var(dtype=np.float64))
    across = y[:, :-2] - 2 * y[:, 1:-1] + y[:, 2:]
    down = y[:-2] - 2 * y[1:-1] + y[2:]
    noise = across[:-2] - 2 * across[1:-1] + across[2:]
    high = y[2:-2, 2:-2] - _binomial(y)
    return {
        "brightness": float(y.mean(dtype=np.float64)) / 2.55,
        "saturation": float((most - least).mean(dtype=np.float64)) / 2.55,
        "contrast": variance**0.5 / 2.55,
        "sharpness": float((across[1:-1] + down[:, 1:-1]).var(dtype=np.float64)),
        # a picture of one colour has no frequencies to share
        "detail": 100 * float(np.square(high).mean(dtype=np.float64)) / variance if variance > 1e-3 else float("nan"),
        "noise": float(np.median(np.abs(noise))) / (6 * 0.6745),
    }


def _binomial(y: np.ndarray) -> np.ndarray:
    """Smoothed by [1 4 6 4 1] / 16 both ways, without the two outer pixels."""
    rows = (y[:-4] + y[4:] + 4 * (y[1:-3] + y[3:-1]) + 6 * y[2:-2]) / 16
    return (rows[:, :-4] + rows[:, 4:] + 4 * (rows[:, 1:-3] + rows[:, 3:-1]) + 6 * rows[:, 2:-2]) / 16


def lab(colours: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of sRGB colours, uint8 ``[n, 3]`` to float32 ``[n, 3]``; IEC 61966-2-1 and CIE 15:2004."""
    coded = np.arange(256) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4).astype(np.float32)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
    white = matrix.sum(1)
    relative = linear[colours] @ (matrix / white[:, None]).T
    bent = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = bent.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def lab_histogram(frame: np.ndarray) -> np.ndarray:
    """How many of a picture's pixels lie in each of 8x8x8 boxes of CIELAB, float64 ``[512]``; at most 16,384 pixels
    are looked at, on a regular grid."""
    step = max(1, int(np.ceil((frame.shape[0] * frame.shape[1] / _MOST_COLOURS) ** 0.5)))
    values = lab(frame[::step, ::step].reshape(-1, 3))
    low, span = np.array([0, -128, -128], np.float32), np.array([100, 256, 256], np.float32)
    index = ((values - low) / span * _BINS).astype(np.int64).clip(0, _BINS - 1)
    return np.bincount(index @ [_BINS**2, _BINS, 1], minlength=_BINS**3).astype(np.float64)


def hellinger(p: np.ndarray, q: np.ndarray) -> float:
    """Hellinger distance of two histograms of any height, from 0 (the same) to 1 (nothing in common)."""
    overlap = np.sqrt(p * q).sum() / np.sqrt(p.sum() * q.sum())
    return float(np.sqrt(max(0.0, 1 - overlap)))


def block_means(frame: np.ndarray, blocks: int = 16) -> np.ndarray:
    """Mean colours of blocks, float64 ``[rows, columns, 3]`` from 0 to 255; fewer blocks if there are fewer pixels."""
    height, width = frame.shape[:2]
    rows, columns = ((np.arange(min(blocks, n)) * n) // min(blocks, n) for n in (height, width))
    sums = np.add.reduceat(np.add.reduceat(frame, rows, axis=0, dtype=np.int64), columns, axis=1)
    return sums / (np.diff(rows, append=height)[:, None, None] * np.diff(columns, append=width)[None, :, None])
