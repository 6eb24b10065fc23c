"""Optical flow in plain NumPy: Lucas and Kanade (1981) on a pyramid (Bouguet 2001), with median filtering between steps
(Sun, Roth and Black 2010). Errors on known translations are in ``docs/eval.md``."""

from __future__ import annotations

import numpy as np

_SMALLEST = 12  # pixels of the coarsest level
_RADIUS = 4  # of the windows that move as one: 9x9
_STEADY = 8.0  # squared levels per pixel: gradients well below this do not move the estimate, noise least of all
_STEP = 1.0  # pixels an iteration may add, beyond which a linear model of the picture means nothing


def optical_flow(a: np.ndarray, b: np.ndarray, iterations: int = 4) -> np.ndarray:
    """How far everything moves from one picture to another, in pixels.

    Where there is nothing to see, nothing moves.

    Args:
        a, b: ``[height, width]``, luma from 0 to 255.
        iterations: per level of the pyramid.

    Returns:
        float32 ``[2, height, width]``: x and y of what is at each pixel of ``a``, so that ``a(p) = b(p + flow(p))``.
    """
    pyramid = [(a.astype(np.float32), b.astype(np.float32))]
    while min(pyramid[-1][0].shape) >= 2 * _SMALLEST:
        pyramid.append((_half(pyramid[-1][0]), _half(pyramid[-1][1])))
    flow = np.zeros((2, *pyramid[-1][0].shape), np.float32)
    for first, second in reversed(pyramid):
        if flow.shape[1:] != first.shape:
            flow = 2 * np.stack([_resized(f, first.shape) for f in flow])
        for _ in range(iterations):
            flow = _median(flow + _step(first, *_warped(second, flow)))
    return flow


def _step(first: np.ndarray, second: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The motion between two pictures that are nearly aligned; what came from outside the second one has no say."""
    gy, gx = np.gradient((first + second) / 2) * inside
    gt = second - first
    xx, xy, yy, xt, yt = _box(np.stack([gx * gx, gx * gy, gy * gy, gx * gt, gy * gt]))
    xx, yy = xx + _STEADY, yy + _STEADY
    det = xx * yy - xy * xy
    return np.stack([(xy * yt - yy * xt) / det, (xy * xt - xx * yt) / det]).clip(-_STEP, _STEP)


def _box(values: np.ndarray) -> np.ndarray:
    """Means over 9x9 pixels of ``[n, height, width]``, as far as these lie in the picture."""
    for axis in (1, 2):
        size = values.shape[axis]
        start = np.zeros_like(values.take([0], axis))
        total = np.cumsum(np.concatenate([start, values], axis), axis=axis)
        at = np.arange(size)
        low, high = np.maximum(at - _RADIUS, 0), np.minimum(at + _RADIUS + 1, size)
        length = (high - low).astype(np.float32)
        values = (total.take(high, axis) - total.take(low, axis)) / (length if axis == 2 else length[:, None])
    return values


def _median(flow: np.ndarray) -> np.ndarray:
    """Over 3x3 pixels."""
    padded = np.pad(flow, ((0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = flow.shape[1:]
    around = np.stack([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)])
    return np.partition(around, 4, axis=0)[4]


def _half(picture: np.ndarray) -> np.ndarray:
    """Half as large, smoothed by [1 3 3 1] / 8, which is centred between pixels as the coarser grid is."""
    for axis in (0, 1):
        size = picture.shape[axis] // 2
        padded = np.pad(picture, [(1, 1) if i == axis else (0, 0) for i in (0, 1)], mode="edge")
        p = [np.take(padded, np.arange(size) * 2 + k, axis) for k in range(4)]
        picture = (p[0] + 3 * p[1] + 3 * p[2] + p[3]) / 8
    return picture


def _resized(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Enlarged linearly, pixel centres where they belong."""
    y, x = (((np.arange(n) + 0.5) * 0.5 - 0.5).astype(np.float32) for n in shape)
    return _sampled(values, *np.meshgrid(y, x, indexing="ij"))


def _warped(picture: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture seen along a flow, and where that is inside of it."""
    y, x = np.indices(picture.shape, np.float32) + flow[::-1]
    inside = (y >= 0) & (y <= picture.shape[0] - 1) & (x >= 0) & (x <= picture.shape[1] - 1)
    return _sampled(picture, y, x), inside


def _sampled(picture: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear; outside, what is at the edge."""
    height, width = picture.shape
    y, x = y.clip(0, height - 1), x.clip(0, width - 1)
    top, left = np.floor(y), np.floor(x)
    fy, fx = y - top, x - left
    top, left = top.astype(np.int64), left.astype(np.int64)
    flat, at = picture.ravel(), top * width + left
    right, down = (left < width - 1).astype(np.int64), (top < height - 1) * width
    upper = flat[at] * (1 - fx) + flat[at + right] * fx
    lower = flat[at + down] * (1 - fx) + flat[at + down + right] * fx
    return upper * (1 - fy) + lower * fy
