"""Readers of the second edition, held against rendered scenes whose truth is known."""

from __future__ import annotations

import pytest
import torch

from longtake.pocket.world import (
    read,
    read_motion,
    relative,
    render,
    sample_scenes,
    sharpness,
    truth,
)
from longtake.pocket.world.laws import daylight
from longtake.pocket.world.names import MOTIONS
from longtake.pocket.world.reader import Reading, degrade
from longtake.pocket.world.scenes import Scenes
from longtake.pocket.world.segment import HEIGHT, working_size

COUNT = 160


def one_frame_each(scenes: Scenes) -> torch.Tensor:
    return torch.randint(0, 5000, (len(scenes), 1), generator=torch.Generator().manual_seed(8))


def rates(level: str, worse: bool) -> dict[str, float]:
    scenes = sample_scenes(COUNT, 1234, level)
    frames = one_frame_each(scenes)
    video = render(scenes, frames, 128).video
    if worse:
        video = degrade(video, 1.0, 0.02, 0.92, 5)
    found = read(video)
    seen = truth(scenes, frames, 48).shown[:, 0, 0] >= 0.6
    result = {}
    for name in ("color", "shape"):
        right = getattr(found, name)[:, 0] == getattr(scenes, name)[:, 0]
        result[name] = float(right[seen].float().mean())
    result["place"] = float((found.place[:, 0] == scenes.place).float().mean())
    level_now = daylight(scenes, frames)
    light = (level_now < 0.75).long() + (level_now < 0.25).long()
    between = ((level_now - 0.75).abs() < 0.1) | ((level_now - 0.25).abs() < 0.1)
    result["light"] = float((found.light == light)[~between].float().mean())
    return result


@pytest.mark.parametrize(
    ("level", "worse", "least"),
    [
        ("plain", False, {"place": 0.97, "light": 0.97, "color": 0.97, "shape": 0.93}),
        ("full", True, {"place": 0.95, "light": 0.97, "color": 0.90, "shape": 0.75}),
    ],
)
def test_what_is_read_is_what_is_there(level: str, worse: bool, least: dict[str, float]) -> None:
    found = rates(level, worse)
    for name, share in least.items():
        assert found[name] >= share, found


def test_an_empty_place_has_no_subject_and_a_still_subject_is_where_it_is() -> None:
    scenes = sample_scenes(40, 17, "plain")
    scenes.motion[:, 0], scenes.phase[:, 0] = MOTIONS.index("leaves"), 0.0
    gone, there = torch.tensor([100]), torch.tensor([4])
    assert read(render(scenes, gone, 128).video).visible.float().mean() <= 0.3
    found, known = read(render(scenes, there, 128).video), truth(scenes, there, 96)
    assert found.visible.float().mean() >= 0.97
    assert (found.x[:, 0] - known.x[:, 0, 0]).abs().median() < 0.06
    assert (found.y[:, 0] - known.y[:, 0, 0]).abs().median() < 0.08


def test_pictures_of_other_kinds_are_refused_or_read() -> None:
    with pytest.raises(ValueError, match="height"):
        read(torch.rand(4, 3, 16, 16))
    with pytest.raises(ValueError, match="height"):
        read(torch.rand(4, 64, 64))
    assert working_size(torch.rand(2, 3, 48, 64)).shape == (2, 3, HEIGHT, 128)
    assert isinstance(read(torch.zeros(2, 3, 48, 64)), Reading)


def test_the_law_is_read_from_four_seconds() -> None:
    scenes = sample_scenes(27, 31, "moving")
    scenes.motion[:, 0] = torch.arange(27) % 9
    hides = scenes.motion[:, 0] == MOTIONS.index("hides")
    scenes.occluder |= hides
    scenes.occluder_at[hides] *= 0.25
    scenes.light[scenes.light == 3] = 0
    starts = torch.randint(0, 2000, (27, 1), generator=torch.Generator().manual_seed(3))
    found = read_motion(read(render(scenes, starts + torch.arange(64), 64).video))
    assert (found == scenes.motion[:, 0]).float().mean() >= 0.85


def test_blur_shows_in_sharpness_and_grey_in_saturation() -> None:
    scenes = sample_scenes(8, 3, "plain")
    scenes.place.fill_(0), scenes.light.fill_(0)
    video = render(scenes, torch.tensor([3]), 64).video
    usual = relative(video, 0, 0)
    assert 0.7 < usual["sharpness"].mean() < 1.3 and 0.7 < usual["saturation"].mean() < 1.3
    assert (sharpness(degrade(video, 1.5, 0, 1, 0)) < 0.8 * sharpness(video)).all()
    grey = video.mean(2, keepdim=True).expand_as(video)
    assert relative(grey, 0, 0)["saturation"].max() < 1e-4
    with pytest.raises(ValueError, match="turn"):
        relative(video, 0, 3)
