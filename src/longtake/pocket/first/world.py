"""The pocket world: a procedural, captioned, endlessly running toy universe with exact ground truth.

Every clip shows one subject that moves by a law in one place. Scenes are described by small integers and floats
(:class:`Scenes`), rendered from signed distance functions, vectorised over clips and frames, deterministic from a seed.
The laws are periodic, so a frame at any time, an hour in included, has a ground truth.

Coordinates: x to the right and y downwards, both in [-1, 1] over the picture; time in frames at :data:`FPS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from longtake.pocket.first.words import COLORS, MOTIONS, PATTERNS, PLACES, SHAPES

FPS = 16
SIZE = 64

# sRGB in [0, 1]; in the order of `words.COLORS`
COLOR_RGB = torch.tensor(
    [
        [0.90, 0.12, 0.12],  # red
        [1.00, 0.55, 0.05],  # orange
        [1.00, 0.90, 0.10],  # yellow
        [0.08, 0.62, 0.20],  # green
        [0.12, 0.25, 0.95],  # blue
        [0.62, 0.15, 0.80],  # purple
    ]
)
# frames in one period of each motion, in the order of `words.MOTIONS`: whole chunks of 12 frames
PERIODS = torch.tensor([48, 24, 36, 36, 24])


@dataclass
class Scenes:
    """A batch of scenes: one entry of every field per scene, shape ``[scenes]``.

    ``size`` is the subject's radius, ``phase`` in [0, 1) is where in its period the motion starts, ``way`` is -1 or 1
    (mirrored motion) and ``offset`` in [-1, 1] shifts the path: none of these four is told by a caption.
    """

    place: torch.Tensor
    shape: torch.Tensor
    color: torch.Tensor
    pattern: torch.Tensor
    motion: torch.Tensor
    size: torch.Tensor
    phase: torch.Tensor
    way: torch.Tensor
    offset: torch.Tensor

    def __len__(self) -> int:
        return len(self.place)

    def select(self, index: torch.Tensor) -> Scenes:
        """The scenes at ``index`` (any index a tensor takes)."""
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def sample_scenes(count: int, seed: int) -> Scenes:
    """Draws ``count`` scenes, the same for the same seed."""
    g = torch.Generator().manual_seed(seed)

    def pick(n: int) -> torch.Tensor:
        return torch.randint(n, (count,), generator=g)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=g)

    return Scenes(
        place=pick(len(PLACES)),
        shape=pick(len(SHAPES)),
        color=pick(len(COLORS)),
        pattern=pick(len(PATTERNS)),
        motion=pick(len(MOTIONS)),
        size=uniform(0.36, 0.44),
        phase=uniform(0.0, 1.0),
        way=pick(2) * 2.0 - 1.0,
        offset=uniform(-1.0, 1.0),
    )


@dataclass
class Pose:
    """Where the subject is: each ``[scenes, frames]``; ``angle`` in radians, ``scale`` multiplies the size."""

    x: torch.Tensor
    y: torch.Tensor
    angle: torch.Tensor
    scale: torch.Tensor


def pose(scenes: Scenes, frames: torch.Tensor) -> Pose:
    """The laws of motion. ``frames`` are frame indices, ``[frames]`` or ``[scenes, frames]``."""
    # whole frames modulo the period before any float: an hour in, a phase is as exact as in the first second
    period = PERIODS[scenes.motion][:, None]
    u = torch.remainder(frames.expand(len(scenes), -1) % period / period + scenes.phase[:, None], 1.0)
    way, offset, size = scenes.way[:, None], scenes.offset[:, None], scenes.size[:, None]
    wave = 2 * math.pi * u
    ground = 0.55 - size  # the subject's centre when it stands on the ground
    zero = torch.zeros_like(u)
    reach = 1.0 + 1.1 * size  # far enough to be out of the picture
    x_roll = way * (2 * u - 1) * reach
    # a bounce is a parabola that touches the ground once a period
    hop = 4 * u * (1 - u)
    options = [
        Pose(x_roll, ground + zero, x_roll / size, zero + 1),
        Pose(0.35 * offset + zero, ground - 0.7 * hop, zero, 1 + zero),
        Pose(0.45 * torch.cos(wave) * way, 0.36 * torch.sin(wave) - 0.15, zero, 1 + zero),
        Pose(
            0.55 * torch.sin(wave) * way, -0.4 + 0.35 * torch.cos(2 * wave).add(1) / 2, 0.5 * torch.sin(wave), 1 + zero
        ),
        Pose(0.3 * offset + zero, -0.05 + zero, zero, 0.95 + 0.4 * torch.sin(wave)),
    ]
    motion = scenes.motion[None, :, None].expand(1, -1, u.shape[1])

    def choose(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([v.expand_as(u) for v in values]).gather(0, motion)[0]

    return Pose(*(choose([getattr(o, f.name) for o in options]) for f in fields(Pose)))


def _cover(distance: torch.Tensor, pixel: float) -> torch.Tensor:
    """Share of a pixel inside a shape, from its signed distance: one pixel of anti-aliasing."""
    return (0.5 - distance / pixel).clamp(0, 1)


def _shape_distance(shape: torch.Tensor, px: torch.Tensor, py: torch.Tensor) -> torch.Tensor:
    """Signed distance to the unit shapes, in the order of `words.SHAPES`; ``shape`` broadcasts against the points."""
    ball = torch.hypot(px, py) - 0.95
    box = torch.maximum(px.abs(), py.abs()) - 0.84
    # equilateral triangle that points up: the largest of three half planes
    triangle = torch.maximum(py, px.abs() * math.cos(math.pi / 6) - py * 0.5) - 0.56
    # five-pointed star: fold into one tenth of the plane, then a half plane through tip and notch
    angle = torch.atan2(px, -py)
    sector = math.pi / 5
    folded = torch.remainder(angle + sector, 2 * sector) - sector
    radius = torch.hypot(px, py)
    sx, sy = radius * torch.sin(folded).abs(), radius * torch.cos(folded)
    tip, notch = 1.2, 0.62
    nx, ny = notch * math.sin(sector), notch * math.cos(sector)
    ex, ey = nx, ny - tip
    star = (sx * -ey + (sy - tip) * ex) / math.hypot(ex, ey)
    return torch.where(shape == 0, ball, torch.where(shape == 1, box, torch.where(shape == 2, star, triangle)))


def _mix(base: torch.Tensor, colour: tuple[float, float, float], amount: torch.Tensor) -> torch.Tensor:
    return base + (torch.tensor(colour)[:, None, None] - base) * amount


def backgrounds(size: int = SIZE) -> torch.Tensor:
    """Every place without its subject, ``[places, 3, size, size]`` in [0, 1]."""
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    pixel = 2.0 / size

    def sky(top: tuple[float, float, float], low: tuple[float, float, float]) -> torch.Tensor:
        k = ((y + 1) / 1.5).clamp(0, 1)
        a, b = torch.tensor(top)[:, None, None], torch.tensor(low)[:, None, None]
        return a + (b - a) * k

    def below(level: torch.Tensor | float) -> torch.Tensor:
        return _cover(level - y, pixel)

    def disc(cx: float, cy: float, r: float) -> torch.Tensor:
        return _cover(torch.hypot(x - cx, y - cy) - r, pixel)

    def pine(cx: float, foot: float, height: float) -> torch.Tensor:
        return _cover(torch.maximum((x - cx).abs() * 2.2 + (foot - height - y), y - foot), pixel)

    meadow = sky((0.45, 0.72, 0.98), (0.80, 0.92, 1.0))
    meadow = _mix(meadow, (1.0, 0.95, 0.55), disc(0.68, -0.68, 0.18))
    meadow = _mix(meadow, (0.45, 0.72, 0.42), below(0.22 + 0.14 * torch.sin(2.2 * x + 0.6)))
    meadow = _mix(meadow, (0.42, 0.78, 0.28), below(0.45 + 0.04 * torch.sin(3 * x)))
    snow = sky((0.70, 0.76, 0.84), (0.86, 0.89, 0.93))
    for cx, height in ((-0.75, 0.85), (0.78, 0.7)):
        snow = _mix(snow, (0.16, 0.36, 0.30), pine(cx, 0.42, height))
    snow = _mix(snow, (0.97, 0.98, 1.0), below(0.42 + 0.05 * torch.sin(2 * x + 1)))
    beach = sky((0.35, 0.75, 0.95), (0.85, 0.95, 0.98))
    beach = _mix(beach, (0.05, 0.48, 0.66), below(-0.02))
    beach = _mix(beach, (0.95, 0.97, 0.95), below(0.36 + 0.04 * torch.sin(4 * x)))
    beach = _mix(beach, (0.93, 0.82, 0.56), below(0.42 + 0.04 * torch.sin(4 * x)))
    night = sky((0.03, 0.03, 0.14), (0.12, 0.12, 0.32))
    night = _mix(night, (0.95, 0.95, 0.85), disc(-0.6, -0.62, 0.2))
    for cx, cy in ((0.1, -0.8), (0.62, -0.55), (0.85, -0.15), (-0.1, -0.35), (-0.85, -0.1)):
        night = _mix(night, (0.9, 0.9, 1.0), disc(cx, cy, 0.045))
    night = _mix(night, (0.10, 0.16, 0.14), below(0.44 + 0.05 * torch.sin(2.6 * x)))
    room = sky((0.95, 0.84, 0.70), (0.90, 0.76, 0.60))
    window = _cover(torch.maximum((x - 0.5).abs() - 0.32, (y + 0.5).abs() - 0.3), pixel)
    room = _mix(room, (0.62, 0.86, 1.0), window)
    frame = torch.minimum((x - 0.5).abs(), (y + 0.5).abs()) - 0.03
    edge = (torch.maximum((x - 0.5).abs() - 0.32, (y + 0.5).abs() - 0.3)).abs() - 0.035
    room = _mix(room, (1.0, 1.0, 0.98), torch.maximum(window * _cover(frame, pixel), _cover(edge, pixel)))
    room = _mix(room, (0.55, 0.33, 0.18), below(0.43))
    return torch.stack([meadow, snow, beach, night, room]).clamp(0, 1)


def render(scenes: Scenes, frames: torch.Tensor, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Renders scenes at frame indices ``[frames]`` or ``[scenes, frames]``.

    Returns:
        The video ``[scenes, frames, 3, size, size]`` in [0, 1], and the share of each pixel that the subject covers,
        ``[scenes, frames, 1, size, size]``.
    """
    where = pose(scenes, frames)
    pixel = 2.0 / size
    line = (torch.arange(size) + 0.5) / size * 2 - 1
    radius = (scenes.size[:, None] * where.scale)[..., None, None]
    dx = line[None, None, None, :] - where.x[..., None, None]
    dy = line[None, None, :, None] - where.y[..., None, None]
    cos, sin = torch.cos(where.angle)[..., None, None], torch.sin(where.angle)[..., None, None]
    px, py = (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius
    distance = _shape_distance(scenes.shape[:, None, None, None], px, py) * radius
    cover = _cover(distance, pixel)
    rim = _cover(distance + 0.055, pixel)  # 1 inside the dark rim, 0 on it
    base = COLOR_RGB[scenes.color]
    # stripes of half a radius each, turning with the subject; the lighter tone is half way to white
    stripe = ((torch.sin(px * 2 * math.pi) > 0) & (scenes.pattern[:, None, None, None] == 1)).float()
    light = 1.0 - 0.22 * (dy / radius).clamp(-1, 1)
    colour = base[:, None, :, None, None] + (1 - base[:, None, :, None, None]) * 0.75 * stripe[:, :, None]
    colour = (colour * light[:, :, None]).clamp(0, 1)
    colour = colour * (0.35 + 0.65 * rim[:, :, None])
    ground = backgrounds(size)[scenes.place][:, None]
    video = ground + (colour - ground) * cover[:, :, None]
    return video, cover[:, :, None]
