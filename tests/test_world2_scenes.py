"""Scenes, laws and truth of the pocket world's second edition, against closed forms and their own description."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from longtake.pocket.world import change, pose, render, repeats_after, sample_scenes, truth
from longtake.pocket.world.captions import facts, hidden_facts
from longtake.pocket.world.laws import CIRCLE, LEAP, ROPE, WHEEL, camera_x, daylight
from longtake.pocket.world.names import (
    CAMERAS,
    COLORS,
    FPS,
    GROUND,
    LIGHTS,
    LONG,
    MOTIONS,
    PERIODS,
    SHAPES,
    SHORT,
    TRAVEL,
)
from longtake.pocket.world.scenes import NEAR, TOLD, Scenes

HOUR = 3600 * FPS


def moving(motion: str, count: int = 6, shape: str = "ball", seed: int = 3) -> Scenes:
    scenes = sample_scenes(count, seed)
    scenes.motion[:, 0], scenes.shape[:, 0] = MOTIONS.index(motion), SHAPES.index(shape)
    return scenes


def same(one: Scenes, other: Scenes) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Scenes))


def test_a_scene_depends_on_the_seed_and_its_number_alone() -> None:
    many = sample_scenes(40, 11)
    assert same(sample_scenes(7, 11), many.select(slice(0, 7)))
    assert same(sample_scenes(40, 11), many)
    assert not torch.equal(sample_scenes(40, 12).radius, many.radius)
    assert len(many.select(torch.tensor([1, 3]))) == 2


def test_levels_add_what_they_say() -> None:
    plain, between, full = (sample_scenes(2000, 5, level) for level in ("plain", "moving", "full"))
    short = [MOTIONS.index(m) for m in (*SHORT, "walks")]
    assert set(plain.motion[:, 0].tolist()) <= set(short)
    assert not plain.occluder.any() and not plain.second.any() and not plain.camera.any()
    assert LIGHTS.index("turning") not in plain.light.tolist()
    assert between.occluder.any() and not between.second.any() and not between.camera.any()
    assert 0.35 < full.second.float().mean() < 0.45
    assert 0.25 < full.camera.float().mean() < 0.35
    assert set(full.motion[:, 0].tolist()) == set(range(len(MOTIONS) - 1))
    hides = full.motion[:, 0] == MOTIONS.index("hides")
    assert full.occluder[hides].all()
    for name, choices in (("place", 7), ("shape", 10), ("color", 7), ("pattern", 4)):
        value = getattr(full, name)
        shares = torch.bincount(value if value.dim() == 1 else value[:, 0], minlength=choices) / 2000
        assert (shares - 1 / choices).abs().max() < 0.04
    assert (full.color[:, 0] != full.color[:, 1]).all()
    assert (full.color != full.accessory_color).all()


def test_a_calm_picture_follows_from_what_is_told_but_for_where_the_subject_is() -> None:
    calm = sample_scenes(2000, 5, "calm")
    seen = [MOTIONS.index(m) for m in (*SHORT, "walks", "leaves") if m != "orbits"]
    assert set(calm.motion[:, 0].tolist()) == set(seen)
    where = ("phase", "way", "anchor", "camera_way", "light_phase", "occluder_at", "accessory_color")
    told = torch.stack([calm.place, calm.light, *(getattr(calm, n)[:, 0] for n in TOLD if getattr(calm, n).dim() > 1)])
    for name in (f.name for f in fields(Scenes) if f.name not in (*TOLD, *where)):
        value = getattr(calm, name).float().reshape(2000, -1)
        value = value[:, :1] if name == "radius" else value
        first = {}
        assert all(
            torch.equal(first.setdefault(tuple(t), v), v) for t, v in zip(told.T.tolist(), value, strict=True)
        ), name
    after = change(calm, 3, level="calm")
    assert set(after.motion[:, 0].tolist()) == set(seen) and not after.occluder.any() and not after.second.any()
    assert not calm.pattern.any() and not after.pattern.any()


def test_what_is_near_is_painted_whole() -> None:
    """Nothing is cut off by the window it is painted in: area goes as the square of the radius."""
    near = sample_scenes(40, 5, "calm")
    near.motion[:], near.anchor[:], near.phase[:] = MOTIONS.index("circles"), 0.0, 0.25
    far = near.clone()
    far.radius = far.radius / NEAR
    times = torch.zeros(40, 1, dtype=torch.long)
    areas = [render(scenes, times, 96).whole[:, 0, 0].sum((-1, -2)) for scenes in (near, far)]
    assert torch.allclose(areas[0] / areas[1], torch.tensor(NEAR**2), rtol=0.1)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="calm, plain, moving, full"):
        sample_scenes(3, 0, "easy")


def test_periods_are_whole_chunks_and_every_motion_is_short_or_long() -> None:
    assert all(period % 12 == 0 for period in PERIODS)
    assert sorted((*SHORT, *LONG)) == sorted(MOTIONS)
    assert all(PERIODS[MOTIONS.index(m)] <= 48 for m in SHORT)
    assert all(PERIODS[MOTIONS.index(m)] >= 96 for m in LONG)


@pytest.mark.parametrize("motion", MOTIONS)
def test_an_hour_in_everything_is_as_in_the_first_second(motion: str) -> None:
    scenes = moving(motion, 12)
    scenes.light[:] = LIGHTS.index("turning")
    scenes.camera[:] = 1
    assert HOUR % int(torch.lcm(repeats_after(scenes), torch.tensor(1)).max()) == 0
    frames = torch.arange(0, 200, 3)
    early, late = pose(scenes, frames), pose(scenes, HOUR + frames)
    for f in fields(type(early)):
        assert torch.equal(getattr(early, f.name), getattr(late, f.name))
    assert torch.equal(camera_x(scenes, frames), camera_x(scenes, frames + HOUR))
    assert torch.equal(daylight(scenes, frames), daylight(scenes, frames + HOUR))


@pytest.mark.parametrize("motion", MOTIONS[:-1])
def test_a_motion_repeats_after_its_period_and_not_before(motion: str) -> None:
    period = PERIODS[MOTIONS.index(motion)]
    where = pose(moving(motion), torch.arange(2 * period))
    x, y = where.x[..., 0], where.y[..., 0]
    assert (x[:, period:] - x[:, :period]).abs().max() < 1e-5
    for part in (2, 3):
        shifted = torch.maximum((x - x.roll(period // part, 1)).abs(), (y - y.roll(period // part, 1)).abs())
        assert shifted.amax() > 0.1


def test_a_bounce_is_a_parabola_that_touches_the_ground() -> None:
    scenes = moving("bounces")
    scenes.phase.zero_()
    y = pose(scenes, torch.arange(25)).y[..., 0]
    floor = GROUND - scenes.radius[:, 0]
    assert torch.allclose(y[:, 0], floor) and torch.allclose(y[:, 24], floor)
    assert torch.allclose(y[:, 12], floor - LEAP)
    speed = y.diff(dim=1)[:, :24]
    assert torch.allclose(speed.diff(dim=1), torch.full_like(speed[:, 1:], 8 * LEAP / 24**2), atol=1e-5)


def test_what_rolls_turns_by_what_it_covers() -> None:
    where, scenes = pose(moving("rolls"), torch.arange(48)), moving("rolls")
    covered, turned = where.x[..., 0].diff(dim=1), where.angle[..., 0].diff(dim=1)
    assert torch.allclose(turned * scenes.radius[:, :1], covered, atol=1e-5)
    car = moving("rolls", shape="car")
    where = pose(car, torch.arange(48))
    wheels = where.gait[..., 0].diff(dim=1) * WHEEL * car.radius[:, :1]
    assert torch.allclose(wheels, where.x[..., 0].diff(dim=1), atol=1e-5)
    assert where.angle[..., 0].abs().max() == 0


def test_circles_and_orbits_are_round_and_a_pendulum_keeps_its_length() -> None:
    circles = moving("circles")
    where = pose(circles, torch.arange(48))
    radius = torch.hypot(where.x[..., 0] - circles.anchor[:, :1], where.y[..., 0] + 0.12)
    assert torch.allclose(radius, torch.full_like(radius, CIRCLE), atol=1e-5)
    both = moving("rolls")
    both.motion[:, 1] = MOTIONS.index("orbits")
    where = pose(both, torch.arange(96))
    gap = torch.hypot(where.x[..., 1] - where.x[..., 0], where.y[..., 1] - where.y[..., 0])
    assert torch.allclose(gap, both.radius.sum(1, keepdim=True).expand_as(gap) + 0.2, atol=1e-5)
    swings = moving("swings")
    where = pose(swings, torch.arange(24))
    rope = torch.hypot(where.x[..., 0] - swings.anchor[:, :1], where.y[..., 0] + 1.1)
    assert torch.allclose(rope, torch.full_like(rope, ROPE), atol=1e-5)


def test_who_leaves_is_out_of_sight_for_more_than_four_seconds_and_comes_back() -> None:
    scenes = moving("leaves", 8)
    scenes.camera.zero_()
    scenes.occluder[:] = False
    seen = truth(scenes, torch.arange(0, 192, 4), 32).in_picture[..., 0]
    away = (~seen).float().sum(1) * 4 / FPS
    assert (away > 4).all() and seen.any(1).all()


def test_the_camera_rests_at_home_and_aside() -> None:
    scenes = sample_scenes(5, 2)
    scenes.camera[:] = CAMERAS.index("pan")
    x = camera_x(scenes, torch.arange(288))
    assert (x[:, :50] == 0).all()
    assert torch.allclose(x[:, 140:190].abs(), torch.full((5, 50), TRAVEL))
    scenes.camera.zero_()
    assert camera_x(scenes, torch.arange(288)).abs().max() == 0


def test_a_change_keeps_what_no_prompt_tells() -> None:
    scenes = sample_scenes(400, 4)
    after = change(scenes, 9)
    for i in range(400):
        assert {k: v for k, v in hidden_facts(scenes, i).items() if not k.startswith("landmark")} == {
            k: v for k, v in hidden_facts(after, i).items() if not k.startswith("landmark")
        }
    for f in fields(Scenes):
        if f.name not in (*TOLD, "radius", "occluder", "occluder_at"):
            assert torch.equal(getattr(scenes, f.name), getattr(after, f.name)), f.name
    seen = scenes.occluder
    assert torch.equal(after.occluder_at[seen], scenes.occluder_at[seen]) and after.occluder[seen].all()
    assert 0.2 < (after.place != scenes.place).float().mean() < 0.45
    assert same(after, change(scenes, 9))


@pytest.mark.parametrize("name", TOLD)
def test_one_attribute_alone_can_change(name: str) -> None:
    scenes = sample_scenes(200, 4)
    after = change(scenes, 9, only=name)
    for i in range(200):
        was, now = facts(scenes, i), facts(after, i)
        first = {k for k in was if not k.endswith("2") and was[k] != now[k]}
        assert first == (set() if name == "second" else {name})
    if name == "second":
        assert (scenes.second != after.second).all()
    assert (after.color != after.accessory_color)[:, 0].all()
    with pytest.raises(ValueError, match="place"):
        change(scenes, 9, only="weather")


def test_truth_of_what_can_be_computed_by_hand() -> None:
    scenes = moving("swings", 3)
    scenes.second[:], scenes.camera[:], scenes.occluder[:] = False, 0, False
    scenes.light[:] = torch.tensor([0, 1, 2])
    found = truth(scenes, torch.tensor([0, 5, 11]), 96)
    assert found.daylight[:, 0].tolist() == [1.0, 0.5, 0.0]
    assert found.visible[..., 0].all() and not found.visible[..., 1].any()
    assert found.occluded.abs().max() < 1e-4 and (found.shown[..., 0] > 0.85).all()
    middle = (found.box[..., 0, 0] + found.box[..., 0, 2]) / 2
    assert (middle - found.x[..., 0]).abs().max() < 0.16
    where = (5 / 24 + scenes.phase[:, 0]) % 1.0
    assert torch.allclose(found.phase[:, 1, 0], where, atol=1e-6)
    assert math.isclose(float(found.radius[0, 0, 0]), float(scenes.radius[0, 0]))
    assert facts(scenes, 0)["color"] == COLORS[int(scenes.color[0, 0])]
