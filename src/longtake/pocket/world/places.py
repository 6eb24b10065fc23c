"""The places of the pocket world: wide pictures of land, landmarks and what stands in the foreground.

Places are pale and subjects are strong in colour: so anybody, and `read`, can tell the one from the other at any hour.
A place is painted once per scene, by day, at dusk and by night; `render` mixes these and cuts the camera's part out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longtake.pocket.world.drawing import Number, cover, disc, tint
from longtake.pocket.world.landmarks import LANDMARK_DRAWINGS, Spot
from longtake.pocket.world.names import LANDMARKS, PLACES, TRAVEL
from longtake.pocket.world.scenes import Scenes

SPOTS = (-1.65, -0.55, 0.55, 1.65)  # x of the four spots where landmarks stand
SHIFT = 0.16  # how far a landmark may stand from the middle of its spot
_REACH = 0.56  # nothing of a landmark is further than this from its spot
OCCLUDER = 0.30  # half the width of what stands in the foreground

Colour = Sequence[float]


class Canvas:
    """Wide pictures of several scenes of one place: ``rgb`` is ``[items, 3 lights, 3, height, width]``."""

    def __init__(self, scenes: Scenes, x: Tensor, y: Tensor, pixel: float) -> None:
        self.scenes, self.pixel = scenes, pixel
        self.x, self.y = x[None, None, :], y[None, :, None]
        self.rgb = torch.zeros(len(scenes), 3, 3, len(y), len(x), device=x.device)
        self.mask = torch.zeros(len(scenes), len(y), len(x), device=x.device)

    def lights(self, day: Colour, dusk: Colour | None = None, night: Colour | None = None) -> Tensor:
        """A colour by day, at dusk and by night; where not given, what the light makes of it."""
        colour = tint(day)
        if dusk is not None:
            colour[1] = torch.tensor(dusk)
        if night is not None:
            colour[2] = torch.tensor(night)
        return colour.to(self.rgb.device)

    def paint(self, distance: Tensor, day: Colour, dusk: Colour | None = None, night: Colour | None = None) -> None:
        """Fills a form, given by its signed distance ``[items or 1, height, width]``."""
        mask = cover(distance, self.pixel)[:, None, None]
        self.rgb += (self.lights(day, dusk, night)[None, :, :, None, None] - self.rgb) * mask

    def sky(self, top: Sequence[Colour], low: Sequence[Colour], reach: float = 1.5) -> None:
        """Fades from one colour at the top to another ``reach`` below it, each given by day, at dusk and by night."""
        k = ((self.y + 1) / reach).clamp(0, 1)[:, None, None]
        a, b = (torch.tensor(c, device=self.rgb.device)[None, :, :, None, None] for c in (top, low))
        self.rgb[:] = a + (b - a) * k

    def hill(self, number: int) -> Tensor:
        """A hidden number of each scene in [0, 1), ``[items, 1, 1]``."""
        return self.scenes.hills[:, number, None, None]

    def below(self, level: Tensor | float) -> Tensor:
        """The distance to everything below a line."""
        return (level - self.y).expand(len(self.scenes), self.y.shape[1], self.x.shape[2])

    def sun(self, y: Number = -0.62, r: float = 0.17) -> None:
        """Sun by day, low and large at dusk, moon by night."""
        x = self.scenes.sun[:, None, None]
        self.paint(disc(self.x, self.y, x, y, r), (1.0, 0.97, 0.80), (1.0, 0.84, 0.70), (0.93, 0.93, 0.86))

    def stars(self) -> None:
        """Stars, by night only."""
        cell = 0.34
        row, column = torch.floor(self.y / cell), torch.floor(self.x / cell)
        seed = self.hill(3) * 7 + 1
        a = torch.remainder(torch.sin(row * 12.99 + column * 78.23 + seed) * 43.76, 1.0)
        b = torch.remainder(torch.sin(row * 39.35 + column * 11.14 + seed) * 23.42, 1.0)
        star = torch.hypot(self.x - (column + 0.2 + 0.6 * a) * cell, self.y - (row + 0.2 + 0.6 * b) * cell)
        mask = cover(star - 0.022, self.pixel) * (self.y < 0.1)
        white = torch.tensor((0.88, 0.90, 0.95), device=self.rgb.device)[:, None, None]
        self.rgb[:, 2] += (white - self.rgb[:, 2]) * mask[:, None]

    def landmarks(self, place: int) -> None:
        """What stands in the four spots."""
        name = PLACES[place]
        for spot, middle in enumerate(SPOTS):
            # everything of this spot is inside a strip of columns that is the same for all scenes
            near = ((self.x[0, 0] - middle).abs() < _REACH + SHIFT).cpu().nonzero()[:, 0].tolist()
            if not near:
                continue
            strip = slice(near[0], near[-1] + 1)
            for kind, landmark in enumerate(LANDMARKS[name]):
                items = (self.scenes.landmark[:, spot].cpu() == kind).nonzero()[:, 0].to(self.rgb.device)
                if not len(items):
                    continue
                at = middle + SHIFT * self.scenes.landmark_shift[items, spot][:, None, None]
                view = Spot(self.rgb[items, ..., strip], self.x[..., strip] - at, self.y, self.pixel)
                LANDMARK_DRAWINGS[landmark](view)
                self.rgb[items, ..., strip] = view.rgb

    def foreground(self, day: Colour, width: Tensor, foot: float = 0.86) -> None:
        """What subjects pass behind: a column from the top of the picture, darker on one side."""
        x = self.x - self.scenes.occluder_at[:, None, None]
        column = torch.maximum(x.abs() - width, self.y - foot)
        column = torch.where(self.scenes.occluder[:, None, None], column, torch.full_like(column, 9.0))
        self.mask = cover(column, self.pixel)
        self.paint(column, day)
        self.paint(torch.maximum(column, 0.45 * width - x), [0.8 * c for c in day])
        self.paint(torch.maximum(column, x + 0.78 * width), [min(1.0, 1.12 * c) for c in day])


_BLUE = ((0.62, 0.80, 0.94), (0.62, 0.55, 0.68), (0.12, 0.13, 0.22))
_PALE = ((0.90, 0.95, 0.97), (0.98, 0.80, 0.70), (0.25, 0.27, 0.38))


def _meadow(c: Canvas) -> None:
    c.sky(_BLUE, _PALE)
    c.stars()
    c.sun()
    wave = torch.sin(1.9 * c.x + 6.3 * c.hill(0))
    c.paint(c.below(0.06 + 0.13 * wave), (0.66, 0.79, 0.74))
    c.paint(c.below(0.22 + 0.10 * torch.sin(1.4 * c.x + 6.3 * c.hill(1))), (0.63, 0.77, 0.58))
    c.landmarks(0)
    c.paint(c.below(0.40 + 0.03 * torch.sin(2.3 * c.x + 6.3 * c.hill(2))), (0.60, 0.75, 0.46))
    fence = torch.minimum((c.y - 0.41).abs() - 0.02, (c.y - 0.50).abs() - 0.02) + 0 * c.x
    posts = torch.maximum((torch.remainder(c.x + c.hill(3), 0.44) - 0.22).abs() - 0.03, (c.y - 0.46).abs() - 0.12)
    c.paint(torch.minimum(fence, posts), (0.93, 0.90, 0.84))
    c.paint(c.below(0.80 + 0.03 * torch.sin(3.1 * c.x + 6.3 * c.hill(1))), (0.54, 0.69, 0.42))
    c.foreground((0.52, 0.42, 0.36), 0.30 + 0.06 * (c.y - 0.2).clamp(min=0) ** 2)


def _forest(c: Canvas) -> None:
    c.sky(
        ((0.74, 0.80, 0.87), (0.66, 0.57, 0.66), (0.10, 0.13, 0.22)), ((0.92, 0.93, 0.95), (0.93, 0.78, 0.74), _PALE[2])
    )
    c.stars()
    c.sun(-0.66, 0.14)
    for row, (height, step, colour) in enumerate(((0.75, 0.34, (0.74, 0.81, 0.83)), (0.6, 0.46, (0.60, 0.71, 0.72)))):
        cell = torch.remainder(c.x + step * c.hill(row), step) - step / 2
        wobble = 0.12 * torch.sin(torch.floor((c.x + step * c.hill(row)) / step) * 2.4 + 9 * c.hill(2))
        top = 0.38 - height + wobble
        c.paint(torch.maximum(cell.abs() - (c.y - top) * 0.24, c.y - 0.45), colour)
    c.paint(c.below(0.30 + 0.06 * torch.sin(1.6 * c.x + 6.3 * c.hill(3))), (0.88, 0.91, 0.95))
    c.landmarks(1)
    c.paint(c.below(0.42 + 0.03 * torch.sin(2.1 * c.x + 6.3 * c.hill(0))), (0.95, 0.96, 0.98))
    c.paint(c.below(0.82 + 0.04 * torch.sin(2.7 * c.x + 6.3 * c.hill(1))), (0.86, 0.90, 0.95))
    c.foreground((0.46, 0.42, 0.42), 0.30 + 0.06 * (c.y - 0.2).clamp(min=0) ** 2)


def _beach(c: Canvas) -> None:
    c.sky(((0.66, 0.86, 0.94), _BLUE[1], _BLUE[2]), ((0.95, 0.97, 0.95), (1.0, 0.82, 0.70), _PALE[2]), 1.2)
    c.stars()
    c.sun(-0.55, 0.19)
    c.paint(c.below(torch.full_like(c.x, 0.0)), (0.52, 0.76, 0.80))
    ripple = (torch.remainder(c.y / 0.11, 1.0) - 0.5).abs() * 0.11 - 0.012
    dashes = torch.sin(5 * c.x + 6.3 * c.hill(0) + 9 * torch.floor(c.y / 0.11)) * 0.2
    c.paint(torch.maximum(torch.maximum(ripple, dashes), torch.maximum(0.05 - c.y, c.y - 0.3)), (0.70, 0.86, 0.88))
    shore = 0.30 + 0.04 * torch.sin(2.2 * c.x + 6.3 * c.hill(1))
    c.paint(c.below(shore), (0.95, 0.97, 0.96))
    c.paint(c.below(shore + 0.05), (0.93, 0.86, 0.72))
    c.landmarks(2)
    c.paint(c.below(0.80 + 0.04 * torch.sin(2.6 * c.x + 6.3 * c.hill(2))), (0.88, 0.80, 0.65))
    c.foreground((0.66, 0.56, 0.46), 0.30 + 0.02 * torch.sin(18 * c.y))


def _desert(c: Canvas) -> None:
    c.sky(((0.80, 0.87, 0.90), (0.68, 0.54, 0.62), _BLUE[2]), ((0.98, 0.92, 0.82), (1.0, 0.78, 0.62), _PALE[2]))
    c.stars()
    c.sun(-0.5, 0.21)
    c.paint(c.below(0.10 + 0.16 * torch.sin(1.3 * c.x + 6.3 * c.hill(0)).abs()), (0.90, 0.76, 0.64))
    c.paint(c.below(0.26 + 0.10 * torch.sin(1.7 * c.x + 6.3 * c.hill(1))), (0.93, 0.81, 0.65))
    c.landmarks(3)
    c.paint(c.below(0.44 + 0.05 * torch.sin(1.5 * c.x + 6.3 * c.hill(2))), (0.91, 0.77, 0.58))
    c.paint(c.below(0.80 + 0.05 * torch.sin(1.9 * c.x + 6.3 * c.hill(3))), (0.85, 0.70, 0.52))
    c.foreground((0.70, 0.54, 0.46), 0.26 + 0.04 * torch.sin(5 * c.y + 1) + 0.1 * (c.y - 0.2).clamp(min=0) ** 2)


def _city(c: Canvas) -> None:
    c.sky(
        ((0.72, 0.80, 0.88), (0.60, 0.52, 0.66), (0.11, 0.12, 0.22)),
        ((0.93, 0.91, 0.89), (0.98, 0.78, 0.68), (0.28, 0.27, 0.38)),
    )
    c.stars()
    c.sun(-0.68, 0.14)
    for row, (step, low, colour) in enumerate(((0.5, -0.10, (0.74, 0.77, 0.82)), (0.38, 0.12, (0.65, 0.68, 0.75)))):
        number = torch.floor((c.x + step * c.hill(row)) / step)
        top = low + 0.24 * torch.sin(number * 2.3 + 20 * c.hill(2 + row))
        c.paint(
            torch.maximum(top - c.y, (torch.remainder(c.x + step * c.hill(row), step) - step / 2).abs() - 0.46 * step),
            colour,
        )
    c.landmarks(4)
    c.paint(c.below(torch.full_like(c.x, 0.42)), (0.80, 0.79, 0.78))
    c.paint(c.below(torch.full_like(c.x, 0.52)), (0.58, 0.59, 0.63))
    dashes = torch.maximum((torch.remainder(c.x + c.hill(0), 0.5) - 0.25).abs() - 0.14, (c.y - 0.74).abs() - 0.022)
    c.paint(dashes, (0.90, 0.89, 0.84))
    c.paint(c.below(torch.full_like(c.x, 0.92)), (0.72, 0.71, 0.71))
    c.foreground((0.50, 0.52, 0.56), 0.28 + 0.05 * (c.y > 0.70))


def _sea(c: Canvas) -> None:
    c.sky(
        ((0.64, 0.86, 0.86), (0.66, 0.62, 0.70), (0.16, 0.22, 0.29)),
        ((0.42, 0.66, 0.72), (0.42, 0.42, 0.54), (0.10, 0.14, 0.20)),
    )
    for ray in range(3):
        x0 = 2.2 * c.hill(ray) - 1.2 + 0.9 * (ray - 1)
        c.paint(
            (c.x - x0 - 0.35 * c.y).abs() - 0.10 - 0.03 * c.y,
            (0.66, 0.84, 0.84),
            (0.64, 0.60, 0.68),
            (0.17, 0.23, 0.30),
        )
    c.paint(c.below(0.14 + 0.14 * torch.sin(2.0 * c.x + 6.3 * c.hill(0))), (0.46, 0.66, 0.70))
    c.paint(c.below(0.34 + 0.08 * torch.sin(2.4 * c.x + 6.3 * c.hill(1))), (0.52, 0.66, 0.66))
    c.landmarks(5)
    c.paint(c.below(0.46 + 0.03 * torch.sin(2.4 * c.x + 6.3 * c.hill(2))), (0.79, 0.80, 0.70))
    c.paint(c.below(0.80 + 0.05 * torch.sin(3.0 * c.x + 6.3 * c.hill(3))), (0.70, 0.72, 0.64))
    c.foreground((0.42, 0.52, 0.50), 0.28 + 0.04 * torch.sin(7 * c.y + 6.3 * c.hill(3)))


def _room(c: Canvas) -> None:
    wall = (0.93, 0.87, 0.79)
    c.sky((wall, (0.88, 0.74, 0.66), (0.34, 0.33, 0.42)), ((0.90, 0.82, 0.74), (0.84, 0.68, 0.61), (0.42, 0.38, 0.42)))
    stripe = (torch.remainder(c.x + c.hill(0), 0.36) - 0.18).abs() - 0.045 - 0.05 * c.hill(1)
    c.paint(torch.maximum(stripe, c.y - 0.40), (0.89, 0.82, 0.75))
    c.landmarks(6)
    c.paint(c.below(torch.full_like(c.x, 0.38)), (0.97, 0.95, 0.91))
    c.paint(c.below(torch.full_like(c.x, 0.46)), (0.74, 0.60, 0.50))
    for board in (0.60, 0.80):
        c.paint((c.y - board).abs() - 0.012 + 0 * c.x, (0.66, 0.52, 0.44))
    rug = torch.hypot((c.x - 1.6 * c.hill(2) + 0.8) / 3.2, c.y - 0.70) - 0.2
    c.paint(rug, (0.82, 0.74, 0.72))
    c.paint(rug.abs() - 0.02, (0.90, 0.85, 0.80))
    c.foreground((0.78, 0.72, 0.70), 0.28 + 0.02 * torch.sin(16 * c.x) + 0 * c.y, 0.92)


_DRAW: tuple[Callable[[Canvas], None], ...] = (_meadow, _forest, _beach, _desert, _city, _sea, _room)


def grid(size: tuple[int, int], wide: bool, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Coordinates of a picture's columns and rows, and by how many columns a wide one is longer on each side.

    Columns of the picture have the same coordinates in the wide one.
    """
    height, width = size
    extra = math.ceil(TRAVEL * height / 2) + 1
    column = torch.arange(-extra if wide else 0, width + (extra if wide else 0), device=device)
    x = ((column + 0.5) * 2 - width) / height
    y = ((torch.arange(height, device=device) + 0.5) * 2 - height) / height
    return x, y, extra if wide else 0


def paint_places(scenes: Scenes, size: tuple[int, int], wide: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """The places of scenes, without subjects.

    Args:
        scenes: on the CPU.
        size: height and width of the picture in pixels.
        wide: whether the picture reaches as far as the camera may go.
        device: where to paint.

    Returns:
        Pictures ``[scenes, 3 lights, 3, height, width]``, and how much of each pixel stands in the foreground,
        ``[scenes, height, width]``.
    """
    x, y, _ = grid(size, wide, device)
    rgb = torch.empty(len(scenes), 3, 3, len(y), len(x), device=device)
    mask = torch.empty(len(scenes), len(y), len(x), device=device)
    for place, draw in enumerate(_DRAW):
        items = (scenes.place == place).nonzero()[:, 0]
        if len(items):
            canvas = Canvas(scenes.select(items).to(device), x, y, 2 / size[0])
            draw(canvas)
            items = items.to(device)
            rgb[items], mask[items] = canvas.rgb.clamp(0, 1), canvas.mask
    return rgb, mask
