"""A clean moving picture whose truth is known, and what can be wrong with one, at known rates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from longtake.evaluation import Settings
from longtake.evaluation.meter import Measured, Meter
from longtake.video import VideoWriter

FPS = 16
HEIGHT, WIDTH = 64, 96


def texture(height: int, width: int, seed: int = 0, smooth: float = 3.0) -> np.ndarray:
    """A smooth random pattern that repeats at its edges, mean 0 and deviation 1, [height, width]."""
    noise = np.fft.rfft2(np.random.default_rng(seed).normal(size=(height, width)))
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    picture = np.fft.irfft2(noise * np.exp(-2 * (np.pi * smooth) ** 2 * (fy**2 + fx**2)), (height, width))
    picture -= picture.mean()
    return picture / picture.std()


def clean(seconds: float, seed: int = 0) -> np.ndarray:
    """A still place and two spots on paths that never repeat; float64 [frames, height, width, 3], from 50 to 200."""
    t = np.arange(round(seconds * FPS))[:, None, None, None] / FPS
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    place = 120 + np.stack([18 * texture(HEIGHT, WIDTH, seed + c) for c in range(3)], -1) + np.array([6, 0, -6])
    video = np.broadcast_to(place, (len(t), *place.shape)).copy()
    for colour, (a, b, c, d) in (((60, -30, -30), (3.0, 4.854, 2.1, 3.639)), ((-40, 20, 50), (1.731, 4.11, 2.49, 5.7))):
        across = WIDTH * (0.5 + 0.22 * np.sin(a * t) + 0.18 * np.sin(b * t + 1))
        down = HEIGHT * (0.5 + 0.2 * np.sin(c * t + 2) + 0.15 * np.sin(d * t))
        spot = np.exp(-((x[..., None] - across) ** 2 + (y[..., None] - down) ** 2) / 50)
        video += spot * np.array(colour)
    return video


def to_bytes(video: np.ndarray) -> np.ndarray:
    """As a file would have it."""
    return video.round().clip(0, 255).astype(np.uint8)


def measure(video: np.ndarray, settings: Settings | None = None) -> Measured:
    """All frames, one by one."""
    meter = Meter(FPS, settings)
    for frame in to_bytes(video) if video.dtype != np.uint8 else video:
        meter.add(frame)
    return meter.result()


def metrics(video: np.ndarray, settings: Settings | None = None) -> dict[str, float]:
    """The numbers alone."""
    return measure(video, settings).metrics


def minutes(video: np.ndarray) -> np.ndarray:
    """When each frame is shown, [frames, 1, 1, 1]."""
    return np.arange(len(video))[:, None, None, None] / FPS / 60


def write(path: Path, video: np.ndarray, chunks: Iterable[int] | None = None) -> Path:
    """A file of H.264, a fragment per chunk of 12."""
    frames = to_bytes(video) if video.dtype != np.uint8 else video
    with VideoWriter(path, width=frames.shape[2], height=frames.shape[1], fps=FPS) as writer:
        for portion in np.split(frames, range(9, len(frames), 12)):
            writer.write(portion)
    return path
