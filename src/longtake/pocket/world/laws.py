"""The laws of the pocket world: where subjects, camera and daylight are at any frame.

Coordinates: x to the right and y downwards; y is in [-1, 1] over the picture, x in the same units around the place's
middle. Time is in frames at `names.FPS`. All laws are periodic in whole frames, and a frame is taken modulo its period
as a whole number before it becomes a float: an hour in is as exact as the first second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from longtake.pocket.world.names import (
    DIRECTED,
    GROUND,
    HOVERS,
    LIGHT_PERIOD,
    LIGHTS,
    MOTIONS,
    PAN_PERIOD,
    PERIODS,
    SHAPES,
    STRIDE,
    TRAVEL,
)
from longtake.pocket.world.scenes import Scenes

SWAY = 0.45  # how far a rolling subject goes to either side
LEAP = 0.75  # how high a bounce goes
CIRCLE = 0.34  # radius of circling
ROPE = 0.95  # length of a pendulum
WALK = 0.5  # how far a walk goes to either side
AWAY = 2.6  # how far a leaving subject goes: out of any picture up to 16:9
PASS = 0.8  # how far to either side of the thing that it hides behind
WHEEL = 0.3  # radius of a car's wheel, in subject radii


@dataclass
class Pose:
    """Where the subjects are, each ``[scenes, frames, 2]``.

    Attributes:
        x, y: the centre.
        angle: in radians, clockwise on the screen.
        face: 1 looks to the right, -1 to the left; in between while it turns round (never nearer to 0 than 0.25).
        gait: of legs, wings, fins and wheels, in radians.
        height: of the lowest point above the ground, for the shadow.
    """

    x: torch.Tensor
    y: torch.Tensor
    angle: torch.Tensor
    face: torch.Tensor
    gait: torch.Tensor
    height: torch.Tensor


def as_frames(scenes: Scenes, frames: torch.Tensor) -> torch.Tensor:
    """Frame indices ``[frames]`` or ``[scenes, frames]`` as whole numbers ``[scenes, frames]`` beside the scenes."""
    return frames.to(device=scenes.place.device, dtype=torch.long).expand(len(scenes), -1)


def turns(frames: torch.Tensor, period: torch.Tensor | int, phase: torch.Tensor) -> torch.Tensor:
    """The part of its period, in [0, 1), at which something is."""
    return torch.remainder((frames % period) / period + phase, 1.0)


def _smooth(u: torch.Tensor) -> torch.Tensor:
    u = u.clamp(0, 1)
    return u * u * (3 - 2 * u)


def _triangle(u: torch.Tensor) -> torch.Tensor:
    """From 0 at 0 to 1 at a quarter, to -1 at three quarters, in straight lines."""
    return 1 - 4 * (torch.remainder(u + 0.25, 1.0) - 0.5).abs()


def _excursion(u: torch.Tensor) -> torch.Tensor:
    """0 while at home, 1 while away: a rest, the way out, a long absence, the way back."""
    return ((u - 0.12) / 0.23).clamp(0, 1) - ((u - 0.72) / 0.23).clamp(0, 1)


def pose(scenes: Scenes, frames: torch.Tensor) -> Pose:
    """The laws of motion, for ``frames`` ``[frames]`` or ``[scenes, frames]``."""
    at = as_frames(scenes, frames)[:, :, None]
    device = at.device
    period = torch.tensor(PERIODS, device=device)[scenes.motion][:, None]
    u = turns(at, period, scenes.phase[:, None])
    way, anchor, radius = scenes.way[:, None], scenes.anchor[:, None], scenes.radius[:, None]
    shape = scenes.shape[:, None]
    hovers = torch.tensor([s in HOVERS for s in SHAPES], device=device)[shape]
    directed = torch.tensor([s in DIRECTED for s in SHAPES], device=device)[shape]
    rolls_on_wheels = shape == SHAPES.index("car")
    wave = 2 * math.pi * u
    zero, one = torch.zeros_like(u), torch.ones_like(u)
    floor = (GROUND - radius) + zero  # the centre of what stands on the ground
    level = torch.where(hovers, 0.1 + zero, floor)
    # flapping, wagging: two beats a second, in step with the seconds and not with the path
    beat = 2 * math.pi * turns(at, 12, scenes.phase[:, None]) + zero
    step = 2 * math.pi / STRIDE

    sway = way * SWAY * torch.sin(wave)
    heading = way * torch.cos(wave)
    theta = way * 0.5 * torch.sin(wave)
    stroll = way * WALK * _triangle(u)
    stroll_way = way * (4 * (torch.remainder(u + 0.5, 1.0) - 0.5).abs() - 1)
    out = _excursion(u)
    trip = way * (AWAY * out - 0.2)
    # looks where it goes; it turns round while away, and again at home just before it leaves
    trip_way = way * torch.where(u < 0.5, one, (50 * u - 49).clamp(-1, 1))
    behind = scenes.occluder_at[:, None, None] - way * PASS * torch.cos(wave)
    around = anchor[..., :1] + zero  # a place-holder; an orbit is about the first subject, put in below
    spin = torch.where(rolls_on_wheels, zero, one)

    # one row per motion, in the order of MOTIONS: x, y, angle, heading, ground covered
    options = [
        (anchor + sway, floor, spin * sway / radius, one, sway),
        (anchor + zero, floor - LEAP * 4 * u * (1 - u), zero, way + zero, zero),
        (anchor + way * CIRCLE * torch.cos(wave), CIRCLE * torch.sin(wave) - 0.12, zero, -way * torch.sin(wave), zero),
        (anchor + 1.1 * sway, 0.12 + 0.05 * torch.sin(2 * wave), zero, heading, zero),
        (anchor + 1.1 * sway, -0.28 + 0.26 * torch.cos(2 * wave), zero, heading, zero),
        (anchor + stroll, floor, zero, stroll_way, stroll),
        (anchor + ROPE * torch.sin(theta), ROPE * torch.cos(theta) - 1.1, -theta, way + zero, zero),
        (trip + zero, level, zero, trip_way, trip),
        (behind, level, zero, way * torch.sin(wave), behind),
        (around, zero, zero, -way * torch.sin(wave), zero),
    ]
    motion = scenes.motion[:, None].expand_as(u)[None]

    def choose(column: int) -> torch.Tensor:
        return torch.stack([row[column].expand_as(u) for row in options]).gather(0, motion)[0]

    x, y, angle, head, covered = (choose(i) for i in range(5))
    # an orbit: a true circle about the first subject, wherever that is
    gap = radius[..., :1] + radius[..., 1:] + 0.2
    orbits = scenes.motion[:, None] == MOTIONS.index("orbits")
    x = torch.where(orbits, x[..., :1] + gap * torch.cos(way * wave), x)
    y = torch.where(orbits, y[..., :1] + gap * torch.sin(way * wave), y)
    legs = torch.where(rolls_on_wheels, covered / (WHEEL * radius), step * covered)
    on_foot = ((scenes.motion == MOTIONS.index("walks")) | (scenes.motion == MOTIONS.index("rolls")))[:, None]
    on_foot = (
        on_foot | ((scenes.motion >= MOTIONS.index("leaves")) & (scenes.motion < MOTIONS.index("orbits")))[:, None]
    )
    gait = torch.where(on_foot & ~hovers, legs, beat)
    turn = (4 * head).clamp(-1, 1)
    face = torch.where(turn >= 0, turn.clamp(min=0.25), turn.clamp(max=-0.25))
    return Pose(x, y, angle, torch.where(directed, face, one), gait, (GROUND - radius - y).clamp(min=0))


def camera_x(scenes: Scenes, frames: torch.Tensor) -> torch.Tensor:
    """Where the camera looks, ``[scenes, frames]``: it rests at 0, goes to a side, rests there, and comes back."""
    u = turns(as_frames(scenes, frames), PAN_PERIOD, torch.zeros_like(scenes.light_phase)[:, None])
    away = _smooth((u - 0.2) / 0.25) - _smooth((u - 0.7) / 0.25)
    return TRAVEL * away * (scenes.camera * scenes.camera_way)[:, None]


def daylight(scenes: Scenes, frames: torch.Tensor) -> torch.Tensor:
    """How light it is, ``[scenes, frames]``: 1 by day, 0.5 at dusk, 0 by night."""
    u = turns(as_frames(scenes, frames), LIGHT_PERIOD, scenes.light_phase[:, None])
    turning = 1 - _smooth((u - 0.2) / 0.3) + _smooth((u - 0.75) / 0.25)
    fixed = torch.tensor([1.0, 0.5, 0.0, 1.0], device=u.device)[scenes.light][:, None].expand_as(u)
    return torch.where((scenes.light == LIGHTS.index("turning"))[:, None], turning, fixed)


def repeats_after(scenes: Scenes) -> torch.Tensor:
    """Frames after which a scene shows the same again, ``[scenes]``: the common multiple of all its periods."""
    period = torch.tensor(PERIODS, device=scenes.place.device)[scenes.motion]
    both = torch.where(scenes.second, torch.lcm(period[:, 0], period[:, 1]), period[:, 0])
    both = torch.where(scenes.camera > 0, torch.lcm(both, torch.full_like(both, PAN_PERIOD)), both)
    turning = scenes.light == LIGHTS.index("turning")
    return torch.where(turning, torch.lcm(both, torch.full_like(both, LIGHT_PERIOD)), both)
