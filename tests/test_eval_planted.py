"""Videos that are wrong on purpose, at known rates: the metric says the rate, and nothing about the clean video."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longtake.evaluation import METRICS, Boundaries, Settings
from longtake.pocket.world import render, sample_scenes
from tests.helpers_videos import FPS, HEIGHT, WIDTH, clean, metrics, minutes, texture

SECONDS = 20

QUIET = {
    "brightness_change": 0.5,
    "brightness_drift": 0.5,
    "saturation_change": 5,
    "saturation_drift": 5,
    "contrast_change": 5,
    "contrast_drift": 5,
    "sharpness_change": 5,
    "sharpness_drift": 5,
    "detail_change": 5,
    "detail_drift": 5,
    "noise_change": 0.2,
    "noise_drift": 0.2,
    "histogram_distance": 0.1,
    "still_windows": 0,
    "flicker": 0.05,
    "seam_chunk": 0.1,
    "seam_decoder": 0.1,
    "jumps": 0,
    "returns": 0,
    "loop_strength": 0.3,
}
"""The most that a clean video may show, either way."""


def quiet(found: dict[str, float], *but: str) -> None:
    """Nothing is wrong but what is named by the beginning of its name."""
    for name, most in QUIET.items():
        if not name.startswith(but):
            assert abs(found[name]) <= most, (name, found[name])


@pytest.fixture(scope="module")
def good() -> np.ndarray:
    return clean(SECONDS)


@pytest.fixture(scope="module")
def own(good: np.ndarray) -> dict[str, float]:
    return metrics(good)


def test_a_clean_video_is_quiet(own: dict[str, float]) -> None:
    found = own
    quiet(found, "nothing")
    assert found["consistency_start"] > 0.95 and found["consistency_end"] > 0.95
    assert found["consistency_neighbour"] > 0.95
    assert found["motion"] > 1 and found["motion_top"] > found["motion"]
    assert np.isnan(found["loop_period"])
    assert list(found) == [name for name in METRICS if not name.startswith("vbench_")]


@pytest.mark.parametrize("seed", [5, 8])
def test_a_rendered_world_is_quiet(seed: int) -> None:
    """Its motions repeat within a chunk or two, so what repeats with chunks is no judge here."""
    video = render(sample_scenes(1, seed=seed, level="plain"), torch.arange(320), size=64).video[0]
    found = metrics((video.permute(0, 2, 3, 1) * 255).numpy())
    quiet(found, "seam")
    assert found["consistency_start"] > 0.95 and found["motion"] > 1


@pytest.mark.parametrize("rate", [60, -30])
def test_saturation(good: np.ndarray, own: dict[str, float], rate: float) -> None:
    """In per cent a minute, beside the little that the clean video shows; the change is between the first and the last
    window's middle."""
    grey = good @ np.array([0.2126, 0.7152, 0.0722])
    found = metrics(grey[..., None] + (good - grey[..., None]) * (1 + rate / 100 * minutes(good)))
    assert found["saturation_drift"] == pytest.approx(own["saturation_drift"] + rate, abs=3)
    assert found["saturation_change"] == pytest.approx(own["saturation_change"] + rate * (SECONDS - 2) / 60, abs=1)
    quiet(found, "saturation", "contrast", "histogram")


@pytest.mark.parametrize("rate", [-40])
def test_contrast(good: np.ndarray, own: dict[str, float], rate: float) -> None:
    found = metrics((good - 120) * (1 + rate / 100 * minutes(good)) + 120)
    assert found["contrast_drift"] == pytest.approx(own["contrast_drift"] + rate, abs=3)
    assert found["contrast_change"] == pytest.approx(own["contrast_change"] + rate * (SECONDS - 2) / 60, abs=1)
    quiet(found, "contrast", "saturation", "sharpness", "detail", "histogram")


@pytest.mark.parametrize("rate", [-20])
def test_brightness(good: np.ndarray, own: dict[str, float], rate: float) -> None:
    """In per cent of full scale a minute."""
    found = metrics(good + 2.55 * rate * minutes(good))
    assert found["brightness_drift"] == pytest.approx(own["brightness_drift"] + rate, abs=0.3)
    assert found["brightness_change"] == pytest.approx(own["brightness_change"] + rate * (SECONDS - 2) / 60, abs=0.3)
    quiet(found, "brightness", "histogram")


def test_blurring() -> None:
    """Fine detail whose energy falls by 30 % a minute, before what has none."""
    coarse, fine = clean(SECONDS), 6 * texture(HEIGHT, WIDTH, 9, 0.6)[..., None]
    found = metrics(coarse + fine * np.sqrt(1 - 0.3 * minutes(coarse)))
    assert found["sharpness_drift"] == pytest.approx(-30, abs=3)
    assert found["sharpness_change"] == pytest.approx(-30 * (SECONDS - 2) / 60, abs=3)
    assert -30 < found["detail_drift"] < -15  # of the luma's variance, which falls as well
    quiet(found, "sharpness", "detail", "contrast", "saturation", "noise")


def test_noise(good: np.ndarray) -> None:
    """From 2 levels on, 6 more a minute."""
    grain = np.random.default_rng(0).normal(size=good.shape[:3])[..., None]
    found = metrics(good + grain * (2 + 6 * minutes(good)))
    assert found["noise_drift"] == pytest.approx(6, abs=0.6)
    assert found["noise"] == pytest.approx(2 + 6 * SECONDS / 120, abs=0.3)
    quiet(found, "noise", "sharpness", "detail", "contrast", "saturation", "flicker")


def test_freezing(good: np.ndarray) -> None:
    """Four seconds of six stand still: of 20, windows 2, 3, 5, 6, 8 and 9 of 10."""
    shown = np.arange(len(good))
    shown -= np.maximum(shown % (6 * FPS) - 2 * FPS, 0)
    found = metrics(good[shown])
    assert found["still_windows"] == pytest.approx(100 * 6 / 10)
    quiet(found, "still", "saturation")


@pytest.mark.parametrize("every", [2.5])
def test_jumping(good: np.ndarray, every: float) -> None:
    """Everything is elsewhere, at once, so often; every jump is counted."""
    part = (np.arange(len(good)) / FPS // every).astype(int)
    moved = np.stack([np.roll(frame, 17 * n, axis=1) for frame, n in zip(good, part, strict=True)])
    found = metrics(moved)
    assert found["jumps"] == pytest.approx(part[-1] * 60 / SECONDS)
    # a jump may lie on a seam, and what was the picture's edge is in the middle now
    quiet(found, "jumps", "seam", "loop", "returns", "flicker", "sharpness", "detail")


@pytest.mark.parametrize("period", [5.0, 9.25])
def test_looping(good: np.ndarray, period: float) -> None:
    """Played again and again: the period to a sample of 0.25 s."""
    found = metrics(good[np.arange(len(good)) % round(period * FPS)])
    assert found["loop_period"] == pytest.approx(period, abs=0.25)
    assert found["loop_strength"] > 0.7


@pytest.mark.parametrize("levels", [1.5])
def test_flicker(good: np.ndarray, levels: float) -> None:
    """Light that alternates from frame to frame by so much up and down."""
    found = metrics(good + levels * (-1.0) ** np.arange(len(good))[:, None, None, None])
    assert found["flicker"] == pytest.approx(levels / 2.55, rel=0.05)
    quiet(found, "flicker")


@pytest.mark.parametrize("name", ["chunk", "decoder"])
def test_seams(good: np.ndarray, name: str) -> None:
    """Chunks, or what the decoder makes at once, are by turns 3 levels brighter; other boundaries show nothing."""
    first, rest = {"chunk": (9, 12), "decoder": (1, 4)}[name]
    part = np.maximum(np.arange(len(good)) - first + rest, 0) // rest
    wrong = good + 3.0 * (part % 2)[:, None, None, None]
    found = metrics(wrong)
    # where something moves, motion hides a part of the step
    assert 0.8 * 3 / 2.55 < found[f"seam_{name}"] < 1.05 * 3 / 2.55
    assert found[f"seam_{name}_ratio"] > 3
    if name == "chunk":
        quiet(found, "seam_chunk", "flicker")
        elsewhere = metrics(wrong, Settings(chunk=Boundaries(7, 12), decoder=None))
        assert abs(elsewhere["seam_chunk"]) < 0.4 and np.isnan(elsewhere["seam_decoder"])


def test_returns_to_the_start() -> None:
    """A camera that goes on and on, and the same one put back every 6 seconds: three times in 20."""
    wide = texture(HEIGHT, 1024, 4)
    far = np.stack([np.clip(120 + 40 * wide + 50 * texture(HEIGHT, 1024, c + 6, 60), 0, 255) for c in range(3)], -1)

    def pan(times: np.ndarray) -> np.ndarray:
        return np.stack([far[:, t : t + WIDTH] for t in times])

    on = np.arange(20 * FPS)
    straight, back = metrics(pan(on)), metrics(pan(on % (6 * FPS)))
    assert straight["returns"] == 0
    assert back["returns"] == 9  # a minute
    assert back["loop_period"] == pytest.approx(6, abs=0.25)
    # 1 pixel a frame, of 64
    assert straight["motion"] == pytest.approx(100 / HEIGHT * FPS, rel=0.05)
    assert straight["loop_strength"] < 0.3


def test_another_place_from_the_middle_on(good: np.ndarray, own: dict[str, float]) -> None:
    """A subject or place that is swapped: colours may stay, but features do not."""
    half = len(good) // 2
    elsewhere = np.concatenate([good[:half], clean(SECONDS, seed=20)[half:, :, ::-1, ::-1]])
    found = metrics(elsewhere)
    assert found["jumps"] == 60 / SECONDS
    assert found["consistency_end"] < own["consistency_end"] - 0.02
    assert found["histogram_distance"] > 2 * QUIET["histogram_distance"]
