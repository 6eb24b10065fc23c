"""The readings of benchmarks.pocket_quality, on video whose truth is known because the world rendered it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.pocket_quality import PROMPTS, read, truth_of

from longtake.pocket.first.words import COLORS, MOTIONS, PATTERNS, PLACES, SHAPES, unknown_words
from longtake.pocket.first.world import render, sample_scenes


def _rendered(color: str, shape: str, motion: str, place: str) -> tuple[np.ndarray, float]:
    scenes = sample_scenes(1, 3)
    for name, group, value in (
        ("color", COLORS, color),
        ("shape", SHAPES, shape),
        ("motion", MOTIONS, motion),
        ("place", PLACES, place),
        ("pattern", PATTERNS, "plain"),
    ):
        getattr(scenes, name)[:] = list(group).index(value)
    video, cover = render(scenes, torch.arange(96))
    return (video[0].permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy(), float(cover.mean())


@pytest.mark.parametrize(("prompt", "color", "shape", "motion", "place"), PROMPTS)
def test_rendered_truth_reads_as_itself(prompt: str, color: str, shape: str, motion: str, place: str) -> None:
    video, area = _rendered(color, shape, motion, place)
    found = read(video, color, place, truth_of(color, shape, motion, place).untouched)
    assert not unknown_words(prompt)
    assert found["place"] > 35
    assert found["colour"] > 0.95
    assert found["area"] == pytest.approx(area, rel=0.2)
    assert found["motion"] > 0.004


def test_wrong_videos_read_as_wrong() -> None:
    video, _ = _rendered("red", "ball", "circles", "meadow")
    untouched = truth_of("red", "ball", "circles", "meadow").untouched
    assert untouched.float().mean() > 0.1
    assert read(video, "blue", "meadow", untouched)["colour"] < 0.05
    assert read(video, "red", "night", untouched)["place"] < 15
    frozen = np.repeat(video[:1], 96, axis=0)
    assert read(frozen, "red", "meadow", untouched)["motion"] == 0
    faded = read(video // 2 + 60, "red", "meadow", untouched)
    assert faded["place"] < read(video, "red", "meadow", untouched)["place"] - 10
