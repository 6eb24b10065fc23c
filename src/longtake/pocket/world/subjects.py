"""The subjects of the pocket world, drawn from distances in a small window around each.

Local coordinates: the unit is the subject's radius, x points to where it looks, y downwards, the centre is the origin
and feet are at y = 1. Nothing but hats and tails reaches further than `REACH`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.pocket.world.drawing import Sketch, box, capsule, cover, disc, ellipse, star, triangle, union
from longtake.pocket.world.laws import WHEEL
from longtake.pocket.world.names import ACCESSORIES, PATTERNS, SHAPES

REACH = 1.6  # radii from the centre to the furthest point of any subject
RIM = 0.085  # width of the dark rim, in radii

# sRGB, in the order of `names.COLORS`: strong, where places are pale, so that any subject stands out anywhere
COLOR_RGB = (
    (0.90, 0.13, 0.12),  # red
    (1.00, 0.52, 0.04),  # orange
    (1.00, 0.87, 0.10),  # yellow
    (0.10, 0.66, 0.20),  # green
    (0.12, 0.36, 0.96),  # blue
    (0.56, 0.22, 0.90),  # purple
    (1.00, 0.32, 0.66),  # pink
)
_DARK, _WHITE = (0.13, 0.11, 0.17), (1.0, 0.99, 0.96)
_GREY, _GLASS = (0.60, 0.61, 0.66), (0.80, 0.90, 0.95)
_STRIPE = 0.46  # how dark the second tone of a pattern is


@dataclass
class Look:
    """What subjects look like at given moments, one entry per item, and the points of their windows.

    ``x, y`` are local coordinates ``[items, height, width]``, ``pixel`` a pixel's width in radii ``[items, 1, 1]``;
    ``gait`` in radians and ``angle`` (of the pattern, in [0, 1)) are ``[items, 1, 1]``; the others ``[items]``.
    """

    x: Tensor
    y: Tensor
    pixel: Tensor
    gait: Tensor
    angle: Tensor
    color: Tensor
    pattern: Tensor
    accessory: Tensor
    accessory_color: Tensor
    eyes: Tensor
    sun: Tensor


@dataclass(frozen=True)
class _Head:
    """Where a shape wears things: the hat's brim (x, y, half width), the scarf (x, y, half width), the eyes
    (x of the middle, y, half the gap between two, radius; a gap of 0 is one eye, seen from the side)."""

    hat: tuple[float, float, float]
    scarf: tuple[float, float, float]
    eyes: tuple[float, float, float, float]


_HEADS = {
    "ball": _Head((0, -0.82, 0.46), (0, 0.52, 0.80), (0, -0.16, 0.32, 0.19)),
    "box": _Head((0, -0.66, 0.48), (0, 0.52, 0.80), (0, -0.06, 0.32, 0.19)),
    "star": _Head((0, -0.74, 0.34), (0, 0.40, 0.55), (0, -0.12, 0.24, 0.16)),
    "fish": _Head((0.42, -0.50, 0.34), (0.12, 0.0, 0.0), (0.58, -0.12, 0, 0.17)),
    "bird": _Head((0.48, -0.74, 0.30), (0.30, -0.02, 0.36), (0.58, -0.42, 0, 0.14)),
    "cat": _Head((0.66, -0.74, 0.30), (0.52, 0.10, 0.36), (0.70, -0.34, 0.17, 0.12)),
    "robot": _Head((0, -0.86, 0.44), (0, 0.02, 0.52), (0, -0.46, 0.24, 0.13)),
    "balloon": _Head((0, -1.12, 0.36), (0, 0.42, 0.42), (0, -0.40, 0.26, 0.16)),
    "car": _Head((-0.10, -0.56, 0.40), (0.25, 0.10, 0.34), (0.88, 0.20, 0, 0.13)),
    "butterfly": _Head((0, -0.62, 0.30), (0, -0.12, 0.20), (0, -0.46, 0.11, 0.09)),
}


def _tone(look: Look, pixel: Tensor) -> Tensor:
    """The pattern of the body: 1, or darker, in every point."""
    turn = look.angle * (math.pi / 2)
    cos, sin = torch.cos(turn), torch.sin(turn)
    u, v = look.x * cos + look.y * sin, look.y * cos - look.x * sin
    wave, other = torch.sin(2 * math.pi * u / 0.76), torch.sin(2 * math.pi * v / 0.76)
    edge = 0.12 / pixel  # about one pixel from light to dark
    stripe = (wave * edge).clamp(-0.5, 0.5) + 0.5
    check = (wave * edge).clamp(-0.5, 0.5) * (other * edge).clamp(-0.5, 0.5) * 2 + 0.5
    # rows of dots, every second row shifted by half a step
    step = 0.70
    row = torch.floor(v / step)
    du = torch.remainder(u / step + 0.5 * torch.remainder(row, 2.0), 1.0) - 0.5
    dv = v / step - row - 0.5
    spot = cover((torch.hypot(du, dv) - 0.32) * step, pixel)
    pattern = look.pattern[:, None, None]
    dark = torch.where(pattern == PATTERNS.index("striped"), stripe, check)
    dark = torch.where(pattern == PATTERNS.index("spotted"), spot, dark)
    dark = torch.where(pattern == PATTERNS.index("plain"), torch.zeros_like(dark), dark)
    # a soft light from the side of the sun and above
    shade = 1.0 + 0.10 * (look.sun[:, None, None] * look.x - look.y).clamp(-1, 1)
    return shade * (1 - (1 - _STRIPE) * dark)


class _Painter:
    """Colours and brushes for one group of subjects of one shape."""

    def __init__(self, look: Look) -> None:
        self.look, self.x, self.y, self.gait = look, look.x, look.y, look.gait
        self.sketch = Sketch(look.x, look.pixel, RIM)
        palette = look.x.new_tensor(COLOR_RGB)
        self.body_rgb, self.accent_rgb = palette[look.color], palette[look.accessory_color]
        self.tone = _tone(look, look.pixel)
        self.dark, self.white = look.x.new_tensor(_DARK), look.x.new_tensor(_WHITE)
        self.grey, self.glass = look.x.new_tensor(_GREY), look.x.new_tensor(_GLASS)

    def body(self, distance: Tensor) -> None:
        self.sketch.fill(distance, self.body_rgb, tone=self.tone)

    def limb(self, distance: Tensor) -> None:
        """Body colour a little darker, without the pattern."""
        self.sketch.fill(distance, 0.8 * self.body_rgb)

    def flat(self, distance: Tensor, colour: Tensor) -> None:
        self.sketch.fill(distance, colour, rim=False)


def _ball(p: _Painter) -> None:
    p.body(disc(p.x, p.y, 0, 0, 1.0))


def _box(p: _Painter) -> None:
    p.body(box(p.x, p.y, 0, 0.13, 0.87, 0.87, 0.14))


def _star(p: _Painter) -> None:
    p.body(star(p.x, p.y, 1.18, 0.62) - 0.06)


def _fish(p: _Painter) -> None:
    swing = 0.26 * torch.sin(p.gait)
    bent = p.y - swing * (-p.x - 0.4).clamp(min=0)
    p.limb(triangle(bent, -p.x, 0, 0.45, 1.2, 0.58))
    p.limb(capsule(p.x, p.y, -0.25, -0.5, 0.2, -0.62, 0.16))
    p.body(ellipse(p.x, p.y, 0.14, 0, 0.92, 0.62))
    p.limb(ellipse(p.x, p.y, 0.0, 0.24, 0.26, 0.13))


def _bird(p: _Painter) -> None:
    lift = torch.sin(p.gait)
    for side in (-0.12, 0.14):
        p.flat(capsule(p.x, p.y, side, 0.5, side + 0.05 * lift, 0.96, 0.05), p.dark)
    p.limb(capsule(p.x, p.y, -0.5, 0.06, -1.12, -0.10, 0.14))
    p.flat(triangle(p.y, -p.x, -0.36, -1.22, -0.72, 0.16), 0.55 * p.white)
    p.body(union(ellipse(p.x, p.y, -0.06, 0.14, 0.74, 0.52), disc(p.x, p.y, 0.48, -0.36, 0.40)))
    p.limb(capsule(p.x, p.y, -0.12, 0.05, -0.48, 0.05 - 0.85 * lift, 0.2))


def _cat(p: _Painter) -> None:
    swing = 0.22 * torch.sin(p.gait)
    for foot, step in ((-0.62, swing), (-0.36, -swing), (0.24, swing), (0.48, -swing)):
        p.limb(capsule(p.x, p.y, foot, 0.4, foot + step, 0.88, 0.12))
    tail = 0.12 * torch.sin(p.gait)
    p.limb(
        union(capsule(p.x, p.y, -0.7, 0.2, -1.08, -0.2, 0.1), capsule(p.x, p.y, -1.08, -0.2, -1.0 + tail, -0.66, 0.1))
    )
    ears = union(triangle(p.x, p.y, 0.40, -0.96, -0.36, 0.18), triangle(p.x, p.y, 0.96, -0.96, -0.36, 0.18))
    p.limb(ears)
    p.body(union(box(p.x, p.y, -0.12, 0.24, 0.76, 0.36, 0.3), disc(p.x, p.y, 0.68, -0.28, 0.44)))
    p.flat(disc(p.x, p.y, 0.82, -0.14, 0.06), p.dark)


def _robot(p: _Painter) -> None:
    swing = 0.16 * torch.sin(p.gait)
    for side, step in ((-0.26, swing), (0.26, -swing)):
        p.limb(box(p.x, p.y, side, 0.80 - 0.5 * step.clamp(min=0), 0.15, 0.20, 0.05))
    for side, step in ((-0.72, -swing), (0.72, swing)):
        p.limb(capsule(p.x, p.y, side * 0.8, 0.14, side + step, 0.50, 0.12))
    p.flat(capsule(p.x, p.y, 0, -0.8, 0, -1.14, 0.05), p.grey)
    p.flat(disc(p.x, p.y, 0, -1.18, 0.11), p.grey)
    p.body(box(p.x, p.y, 0, 0.36, 0.56, 0.36, 0.08))
    p.limb(box(p.x, p.y, 0, -0.42, 0.62, 0.42, 0.12))
    p.flat(box(p.x, p.y, 0, -0.42, 0.46, 0.26, 0.1), p.dark)


def _balloon(p: _Painter) -> None:
    for side in (-1, 1):
        p.flat(capsule(p.x, p.y, side * 0.42, 0.3, side * 0.2, 0.74, 0.05), 0.8 * p.body_rgb)
    p.limb(box(p.x, p.y, 0, 0.80, 0.30, 0.20, 0.05))
    p.body(union(disc(p.x, p.y, 0, -0.36, 0.84), triangle(p.x, -p.y, 0, -0.66, -0.02, 0.62).maximum(p.y - 0.52)))


def _car(p: _Painter) -> None:
    p.limb(box(p.x, p.y, -0.12, -0.22, 0.66, 0.42, 0.2))
    p.flat(union(box(p.x, p.y, -0.42, -0.22, 0.22, 0.2, 0.06), box(p.x, p.y, 0.14, -0.22, 0.24, 0.2, 0.06)), p.glass)
    p.body(box(p.x, p.y, 0, 0.34, 1.16, 0.36, 0.2))
    cos, sin = torch.cos(p.gait), torch.sin(p.gait)
    for wheel in (-0.62, 0.62):
        dx, dy = p.x - wheel, p.y - (1 - WHEEL)
        p.flat(torch.hypot(dx, dy) - WHEEL, p.dark)
        u, v = dx * cos + dy * sin, dy * cos - dx * sin
        spokes = torch.maximum(torch.minimum(u.abs(), v.abs()) - 0.05, torch.hypot(dx, dy) - 0.2)
        p.flat(spokes, p.white)


def _butterfly(p: _Painter) -> None:
    # both pairs of wings fold and open together: a fold is a squeeze towards the body
    open_ = 0.72 + 0.28 * torch.sin(p.gait)
    x = p.x.abs() / open_
    upper = ellipse(x * 0.8 - p.y * 0.6, x * 0.6 + p.y * 0.8, 0.78, 0.0, 0.56, 0.42)
    lower = ellipse(x, p.y, 0.48, 0.50, 0.42, 0.42)
    p.body(union(upper, lower) * open_)
    for side in (-1, 1):
        p.flat(capsule(p.x, p.y, side * 0.05, -0.6, side * 0.26, -0.96, 0.045), p.dark)
    p.flat(capsule(p.x, p.y, 0, -0.42, 0, 0.62, 0.15), 0.35 * p.white)
    p.flat(disc(p.x, p.y, 0, -0.48, 0.24), 0.35 * p.white)


_DRAW: dict[str, Callable[[_Painter], None]] = {
    "ball": _ball,
    "box": _box,
    "star": _star,
    "fish": _fish,
    "bird": _bird,
    "cat": _cat,
    "robot": _robot,
    "balloon": _balloon,
    "car": _car,
    "butterfly": _butterfly,
}


def _eyes(p: _Painter, head: _Head) -> None:
    cx, cy, gap, r = head.eyes
    sleepy = (p.look.eyes == 1)[:, None, None]
    for side in (-1, 1) if gap else (0,):
        x, y = p.x - cx - side * gap, p.y - cy
        white = torch.hypot(x, y) - r
        # a sleepy eye shows its lower half only
        white = torch.where(sleepy, torch.maximum(white, -y), white)
        p.flat(white, p.white)
        pupil = torch.hypot(x - 0.25 * r, y - 0.2 * r) - 0.58 * r
        p.flat(torch.where(sleepy, torch.maximum(pupil, -y), pupil), p.dark)


def _hat(p: _Painter, head: _Head) -> None:
    cx, cy, w = head.hat
    worn = (p.look.accessory == ACCESSORIES.index("hat"))[:, None, None]
    crown = union(box(p.x, p.y, cx, cy - 0.28, 0.68 * w + 0.02, 0.26, 0.04), box(p.x, p.y, cx, cy, 1.2 * w, 0.10, 0.06))
    p.sketch.fill(torch.where(worn, crown, torch.full_like(crown, 9.0)), p.accent_rgb)


def _scarf(p: _Painter, head: _Head) -> None:
    cx, cy, w = head.scarf
    worn = (p.look.accessory == ACCESSORIES.index("scarf"))[:, None, None]
    if w == 0:  # a fish has no neck: a band round its body
        scarf = torch.maximum(box(p.x, p.y, cx, cy, 0.15, 0.62), ellipse(p.x, p.y, 0.14, 0, 0.94, 0.64))
    else:
        band = capsule(p.x, p.y, cx - w, cy, cx + w, cy, 0.15)
        scarf = union(band, box(p.x, p.y, cx - 0.5 * w, cy + 0.26, 0.14, 0.26, 0.04))
    p.sketch.fill(torch.where(worn, scarf, torch.full_like(scarf, 9.0)), p.accent_rgb)


def draw(shape: int, look: Look) -> tuple[Tensor, Tensor]:
    """Draws subjects of one shape.

    Returns:
        Colours ``[items, 3, height, width]`` by day and opacity ``[items, height, width]``; colours are of the subject
        alone, to be mixed with what is behind by the opacity.
    """
    painter = _Painter(look)
    name = SHAPES[shape]
    _DRAW[name](painter)
    _eyes(painter, _HEADS[name])
    _scarf(painter, _HEADS[name])
    _hat(painter, _HEADS[name])
    sketch = painter.sketch
    return (sketch.rgb / sketch.alpha.clamp(min=1e-4)[:, None]).clamp(0, 1), sketch.alpha
