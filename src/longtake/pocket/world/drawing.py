"""Distances to simple forms and the paint that fills them: what subjects and places are drawn with.

All distances are signed (negative inside) and broadcast; every form is smooth enough for one pixel of anti-aliasing.
The formulas are the common ones for two-dimensional distance fields.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Number = Tensor | float


def cover(distance: Tensor, pixel: Number) -> Tensor:
    """Share of a pixel of width ``pixel`` inside a form, from its signed distance."""
    return (0.5 - distance / pixel).clamp(0, 1)


def disc(x: Tensor, y: Tensor, cx: Number, cy: Number, r: Number) -> Tensor:
    """Circle."""
    return torch.hypot(x - cx, y - cy) - r


def ellipse(x: Tensor, y: Tensor, cx: Number, cy: Number, a: Number, b: Number) -> Tensor:
    """Ellipse with half axes a and b; the distance is the usual first-order approximation."""
    u, v = (x - cx) / a, (y - cy) / b
    k = torch.hypot(u, v)
    return k * (k - 1) / torch.hypot(u / a, v / b).clamp(min=1e-6)


def box(x: Tensor, y: Tensor, cx: Number, cy: Number, a: Number, b: Number, r: float = 0.0) -> Tensor:
    """Rectangle with half sides a and b and corners rounded by r (a box in the maximum norm where r is 0)."""
    dx, dy = (x - cx).abs() - (a - r), (y - cy).abs() - (b - r)
    if r == 0:
        return torch.maximum(dx, dy)
    return torch.hypot(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0) - r


def capsule(x: Tensor, y: Tensor, ax: Number, ay: Number, bx: Number, by: Number, r: Number) -> Tensor:
    """A thick line from a to b."""
    ux, uy = bx - ax, by - ay
    t = (((x - ax) * ux + (y - ay) * uy) / (ux * ux + uy * uy)).clamp(0, 1)
    return torch.hypot(x - ax - t * ux, y - ay - t * uy) - r


def triangle(x: Tensor, y: Tensor, cx: Number, top: Number, foot: Number, half: Number) -> Tensor:
    """A gable: tip at (cx, top), a level base at foot, half as wide as said to either side."""
    rise = foot - top
    length = (rise * rise + half * half) ** 0.5
    side = ((x - cx).abs() * rise - (y - top) * half) / length
    return torch.maximum(side, y - foot)


def star(x: Tensor, y: Tensor, tip: float, notch: float) -> Tensor:
    """A five-pointed star about the origin with one tip up."""
    sector = math.pi / 5
    angle = torch.atan2(x, -y)
    folded = torch.remainder(angle + sector, 2 * sector) - sector
    radius = torch.hypot(x, y)
    sx, sy = radius * torch.sin(folded).abs(), radius * torch.cos(folded)
    nx, ny = notch * math.sin(sector), notch * math.cos(sector)
    ex, ey = nx, ny - tip
    return (sx * -ey + (sy - tip) * ex) / math.hypot(ex, ey)


def union(*distances: Tensor) -> Tensor:
    """Everything that is inside one of them."""
    result = distances[0]
    for other in distances[1:]:
        result = torch.minimum(result, other)
    return result


class Sketch:
    """Colour and opacity that forms are painted onto, one after the other.

    Args:
        shape: of a mask, ``[items, height, width]``.
        pixel: width of a pixel in the units of the distances, a number or ``[items, 1, 1]``.
        rim: how far the darker rim of a form reaches inwards.
    """

    def __init__(self, like: Tensor, pixel: Number, rim: float) -> None:
        self.rgb = like.new_zeros(len(like), 3, *like.shape[1:])
        self.alpha = torch.zeros_like(like)
        self.pixel, self.rim = pixel, rim

    def fill(self, distance: Tensor, colour: Tensor, rim: bool = True, tone: Tensor | None = None) -> None:
        """Paints a form.

        Args:
            distance: signed, ``[items, height, width]``.
            colour: ``[3]`` or ``[items, 3]``.
            rim: whether its edge is darker.
            tone: multiplies the colour, ``[items, height, width]``.
        """
        mask = cover(distance, self.pixel)
        paint = colour[..., None, None]
        if rim:
            inside = 0.35 + 0.65 * cover(distance + self.rim, self.pixel)
            paint = paint * (inside if tone is None else inside * tone)[:, None]
        elif tone is not None:
            paint = paint * tone[:, None]
        self.rgb += (paint - self.rgb) * mask[:, None]
        self.alpha += (1 - self.alpha) * mask


def tint(rgb: Sequence[float] | Tensor) -> Tensor:
    """A colour by day, at dusk and by night, ``[3 lights, 3]``, from its colour by day."""
    return torch.as_tensor(rgb, dtype=torch.float32) * torch.tensor(LIGHT_TINTS)


# what daylight, dusk and night do to a colour; subjects are lit a little better so that they can be told by night
LIGHT_TINTS = ((1.0, 1.0, 1.0), (0.96, 0.76, 0.70), (0.44, 0.48, 0.62))
SUBJECT_TINTS = ((1.0, 1.0, 1.0), (1.0, 0.84, 0.80), (0.82, 0.84, 0.95))
