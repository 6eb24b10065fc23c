"""What stands in the spots of a place: 28 landmarks, four for each place. Which one stands where is never told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longtake.pocket.world.drawing import Number, box, capsule, cover, disc, ellipse, tint, triangle

Colour = Sequence[float]
_LAMP = ((0.99, 0.93, 0.76), (0.98, 0.88, 0.70))  # what shines at dusk and by night


class Spot:
    """Part of some pictures around a spot: ``rgb`` ``[items, 3 lights, 3, height, width]``, ``x`` from its middle."""

    def __init__(self, rgb: Tensor, x: Tensor, y: Tensor, pixel: float) -> None:
        self.rgb, self.x, self.y, self.pixel = rgb, x, y, pixel

    def paint(self, distance: Tensor, day: Colour, shines: bool = False) -> None:
        """Fills a form; what shines is bright at dusk and by night."""
        colour = tint(day)
        if shines:
            colour[1:] = torch.tensor(_LAMP)
        mask = cover(distance, self.pixel)[:, None, None]
        self.rgb = self.rgb + (colour.to(self.rgb.device)[None, :, :, None, None] - self.rgb) * mask

    def disc(self, cx: Number, cy: Number, r: Number, day: Colour, shines: bool = False) -> None:
        self.paint(disc(self.x, self.y, cx, cy, r), day, shines)

    def ellipse(self, cx: Number, cy: Number, a: Number, b: Number, day: Colour, shines: bool = False) -> None:
        self.paint(ellipse(self.x, self.y, cx, cy, a, b), day, shines)

    def box(self, cx: Number, cy: Number, a: Number, b: Number, day: Colour, shines: bool = False) -> None:
        self.paint(box(self.x, self.y, cx, cy, a, b), day, shines)

    def line(self, ax: Number, ay: Number, bx: Number, by: Number, r: Number, day: Colour) -> None:
        self.paint(capsule(self.x, self.y, ax, ay, bx, by, r), day)

    def gable(self, cx: Number, top: Number, foot: Number, half: Number, day: Colour) -> None:
        self.paint(triangle(self.x, self.y, cx, top, foot, half), day)


_WOOD, _CREAM, _SLATE = (0.55, 0.44, 0.37), (0.94, 0.90, 0.82), (0.50, 0.53, 0.60)
_WINDOW = (0.70, 0.82, 0.88)
_BRICK, _LEAF, _PINE = (0.76, 0.54, 0.48), (0.48, 0.64, 0.44), (0.40, 0.54, 0.50)


def _round_tree(s: Spot) -> None:
    s.box(0, 0.28, 0.06, 0.26, _WOOD)
    s.disc(0, -0.14, 0.34, _LEAF)
    s.disc(-0.10, -0.22, 0.17, (0.57, 0.72, 0.50))


def _barn(s: Spot) -> None:
    s.box(0, 0.26, 0.36, 0.26, _BRICK)
    s.gable(0, -0.30, 0.03, 0.46, (0.55, 0.42, 0.42))
    s.box(0, 0.34, 0.13, 0.18, _CREAM)
    s.disc(0, -0.09, 0.075, _WINDOW, True)


def _haystack(s: Spot) -> None:
    s.ellipse(0, 0.36, 0.44, 0.40, (0.88, 0.78, 0.54))
    for y in (0.12, 0.26):
        s.box(0, y, 0.36 if y > 0.2 else 0.28, 0.025, (0.76, 0.65, 0.43))


def _windmill(s: Spot) -> None:
    s.gable(0, -0.75, 0.56, 0.30, _CREAM)
    s.gable(0, -0.44, -0.16, 0.20, _SLATE)
    for dx, dy in ((0.34, 0.24), (-0.34, -0.24), (0.24, -0.34), (-0.24, 0.34)):
        s.line(0, -0.24, dx, -0.24 + dy, 0.055, (0.80, 0.74, 0.66))
    s.box(0, 0.16, 0.06, 0.08, _WINDOW, True)


def _tall_pine(s: Spot) -> None:
    s.box(0, 0.40, 0.05, 0.12, _WOOD)
    for top, foot, half in ((-0.12, 0.34, 0.40), (-0.46, 0.02, 0.31), (-0.78, -0.28, 0.22)):
        s.gable(0, top, foot, half, _PINE)
        s.gable(0, top, top + 0.17, half * 0.40, (0.95, 0.96, 0.98))


def _cabin(s: Spot) -> None:
    s.box(0, 0.28, 0.36, 0.22, (0.62, 0.50, 0.43))
    s.gable(0, -0.28, 0.10, 0.50, (0.93, 0.95, 0.98))
    s.box(0.16, 0.28, 0.09, 0.09, _WINDOW, True)
    s.box(-0.16, 0.34, 0.09, 0.16, (0.42, 0.34, 0.31))


def _snowman(s: Spot) -> None:
    for cy, r in ((0.24, 0.27), (-0.10, 0.20), (-0.38, 0.15)):
        s.disc(0, cy, r + 0.022, (0.56, 0.63, 0.72))
        s.disc(0, cy, r, (0.97, 0.97, 0.98))
    s.box(0, -0.54, 0.20, 0.03, (0.36, 0.36, 0.42))
    s.box(0, -0.64, 0.12, 0.10, (0.36, 0.36, 0.42))
    for cy in (-0.16, -0.04, 0.16):
        s.disc(0, cy, 0.035, (0.34, 0.34, 0.40))


def _boulder(s: Spot) -> None:
    s.ellipse(0.02, 0.38, 0.46, 0.36, (0.56, 0.57, 0.63))
    s.ellipse(-0.08, 0.22, 0.34, 0.22, (0.66, 0.67, 0.72))
    s.ellipse(-0.02, 0.09, 0.26, 0.09, (0.96, 0.97, 0.98))


def _palm(s: Spot) -> None:
    s.line(-0.10, 0.52, 0.04, -0.42, 0.055, (0.64, 0.53, 0.42))
    for dx, dy in ((-0.36, 0.04), (0.36, 0.04), (-0.26, -0.20), (0.28, -0.20), (-0.22, 0.26), (0.26, 0.26)):
        s.line(0.04, -0.46, 0.04 + dx, -0.46 + dy, 0.075, (0.46, 0.64, 0.50))


def _parasol(s: Spot) -> None:
    s.line(0, -0.3, 0, 0.54, 0.03, (0.80, 0.76, 0.70))
    dome = torch.maximum(disc(s.x, s.y, 0, 0.06, 0.46), s.y + 0.06)
    s.paint(dome, (0.95, 0.90, 0.84))
    s.paint(torch.maximum(dome, (s.x.abs() - 0.23).abs() - 0.09), (0.80, 0.57, 0.55))


def _sandcastle(s: Spot) -> None:
    s.box(0, 0.36, 0.42, 0.18, (0.83, 0.70, 0.50))
    for cx in (-0.34, 0.0, 0.34):
        s.box(cx, 0.22 if cx else 0.10, 0.11, 0.26 if cx else 0.34, (0.77, 0.64, 0.45))
        s.gable(cx, -0.24 if cx else -0.46, -0.02 if cx else -0.22, 0.14, (0.66, 0.50, 0.40))
    s.disc(0, 0.48, 0.10, (0.52, 0.42, 0.33))


def _sailing_boat(s: Spot) -> None:
    s.paint(torch.maximum(ellipse(s.x, s.y, 0, 0.02, 0.42, 0.24), 0.02 - s.y), (0.60, 0.50, 0.46))
    s.box(0, -0.32, 0.02, 0.34, _WOOD)
    s.paint(torch.maximum(triangle(s.x, s.y, 0.02, -0.66, -0.04, 0.36), 0.04 - s.x), (0.97, 0.96, 0.93))
    s.paint(torch.maximum(triangle(s.x, s.y, -0.02, -0.54, -0.04, 0.30), s.x + 0.04), (0.82, 0.72, 0.70))


def _cactus(s: Spot) -> None:
    green = (0.46, 0.62, 0.48)
    s.line(0, -0.5, 0, 0.55, 0.13, green)
    for side, low in ((-1, 0.10), (1, -0.06)):
        s.line(side * 0.32, low, 0, low, 0.08, green)
        s.line(side * 0.32, low - 0.28, side * 0.32, low, 0.08, green)
    s.box(-0.03, 0.0, 0.02, 0.46, (0.58, 0.72, 0.58))


def _pyramid(s: Spot) -> None:
    gable = triangle(s.x, s.y, 0, -0.46, 0.52, 0.56)
    s.paint(gable, (0.88, 0.76, 0.58))
    s.paint(torch.maximum(gable, 0.25 * (s.y + 0.46) - s.x + 0.0), (0.74, 0.60, 0.46))


def _mesa(s: Spot) -> None:
    width = 0.34 + 0.12 * (s.y + 0.3).clamp(min=0)
    rock = torch.maximum(s.x.abs() - width, -0.30 - s.y)
    s.paint(torch.maximum(rock, s.y - 0.56), (0.72, 0.52, 0.45))
    for y in (-0.16, 0.08):
        s.paint(torch.maximum(rock, (s.y - y).abs() - 0.045), (0.82, 0.64, 0.54))


def _tent(s: Spot) -> None:
    tent = triangle(s.x, s.y, 0, -0.24, 0.52, 0.48)
    s.paint(tent, (0.95, 0.91, 0.86))
    s.paint(torch.maximum(tent, (torch.remainder(s.x, 0.24) - 0.12).abs() - 0.055), (0.56, 0.56, 0.66))
    s.gable(0, 0.08, 0.52, 0.14, (0.40, 0.36, 0.40))


def _tower(s: Spot) -> None:
    s.box(0, -0.18, 0.26, 0.66, (0.62, 0.66, 0.74))
    for y in (-0.66, -0.38, -0.10, 0.18):
        for x in (-0.12, 0.12):
            s.box(x, y, 0.06, 0.08, (0.84, 0.90, 0.94), True)


def _shop(s: Spot) -> None:
    s.box(0, 0.10, 0.44, 0.36, (0.84, 0.74, 0.66))
    s.box(-0.14, 0.22, 0.20, 0.15, (0.84, 0.90, 0.92), True)
    s.box(0.26, 0.26, 0.10, 0.20, (0.48, 0.42, 0.42))
    awning = box(s.x, s.y, 0, -0.05, 0.48, 0.085)
    s.paint(awning, (0.96, 0.94, 0.90))
    s.paint(torch.maximum(awning, (torch.remainder(s.x, 0.22) - 0.11).abs() - 0.05), (0.72, 0.52, 0.52))


def _clock_tower(s: Spot) -> None:
    s.box(0, 0.02, 0.17, 0.46, _BRICK)
    s.gable(0, -0.90, -0.54, 0.24, _SLATE)
    s.box(0, -0.42, 0.21, 0.16, (0.84, 0.66, 0.58))
    s.disc(0, -0.40, 0.14, (0.97, 0.95, 0.90), True)
    s.line(0, -0.40, 0, -0.49, 0.018, (0.30, 0.28, 0.32))
    s.line(0, -0.40, 0.07, -0.40, 0.018, (0.30, 0.28, 0.32))


def _street_tree(s: Spot) -> None:
    s.box(0, 0.22, 0.05, 0.24, _WOOD)
    s.ellipse(0, -0.20, 0.24, 0.40, (0.50, 0.66, 0.50))
    s.box(0, 0.42, 0.14, 0.07, (0.62, 0.58, 0.56))


def _coral(s: Spot) -> None:
    pink = (0.88, 0.62, 0.60)
    s.line(0, 0.52, 0, -0.16, 0.085, pink)
    for dx, y, up in ((-0.34, 0.24, -0.24), (0.34, 0.14, -0.30), (-0.22, -0.04, -0.34)):
        s.line(0, y + 0.1, dx, y, 0.07, pink)
        s.line(dx, y, dx, y + up, 0.07, pink)


def _weed(s: Spot) -> None:
    for cx, top in ((-0.28, -0.10), (0.0, -0.52), (0.28, -0.24)):
        bend = cx + 0.07 * torch.sin(9 * s.y + 4 * cx)
        s.paint(torch.maximum((s.x - bend).abs() - 0.09, torch.maximum(top - s.y, s.y - 0.56)), (0.44, 0.62, 0.48))


def _arch(s: Spot) -> None:
    ring = torch.maximum(torch.hypot(s.x, s.y - 0.34) - 0.54, 0.30 - torch.hypot(s.x, s.y - 0.40))
    s.paint(torch.maximum(ring, s.y - 0.56), (0.46, 0.52, 0.58))
    s.paint(torch.maximum(ring, (torch.hypot(s.x, s.y - 0.34) - 0.48).abs() - 0.03), (0.58, 0.64, 0.68))


def _chest(s: Spot) -> None:
    s.box(0, 0.34, 0.38, 0.20, (0.60, 0.48, 0.38))
    s.paint(torch.maximum(ellipse(s.x, s.y, 0, 0.12, 0.38, 0.24), s.y - 0.12), (0.70, 0.57, 0.44))
    s.box(0, 0.13, 0.38, 0.03, (0.88, 0.78, 0.56))
    s.box(0, 0.20, 0.07, 0.09, (0.90, 0.80, 0.58))


def _window(s: Spot) -> None:
    s.box(0, -0.36, 0.36, 0.38, (0.98, 0.97, 0.94))
    pane = torch.maximum(box(s.x, s.y, 0, -0.36, 0.30, 0.32), 0.03 - torch.minimum(s.x.abs(), (s.y + 0.36).abs()))
    s.paint(pane, (0.72, 0.86, 0.94))


def _picture(s: Spot) -> None:
    s.box(0, -0.36, 0.40, 0.30, (0.60, 0.48, 0.42))
    s.box(0, -0.36, 0.33, 0.23, (0.90, 0.88, 0.82))
    s.paint(torch.maximum(triangle(s.x, s.y, -0.06, -0.48, -0.13, 0.24), s.y + 0.13), (0.56, 0.64, 0.62))
    s.disc(0.19, -0.46, 0.06, (0.90, 0.74, 0.58))


def _bookshelf(s: Spot) -> None:
    s.box(0, -0.12, 0.38, 0.54, (0.62, 0.49, 0.42))
    for y in (-0.44, -0.12, 0.20):
        s.box(0, y, 0.32, 0.12, (0.44, 0.36, 0.34))
        for book, colour in ((-0.22, (0.72, 0.52, 0.48)), (-0.10, (0.86, 0.80, 0.68)), (0.04, (0.54, 0.62, 0.68))):
            s.box(book + 0.1 * (y > 0), y + 0.02, 0.05, 0.10, colour)


def _floor_lamp(s: Spot) -> None:
    s.line(0, -0.30, 0, 0.40, 0.03, (0.50, 0.44, 0.42))
    shade = torch.maximum(s.x.abs() - 0.20 - 0.30 * (s.y + 0.52), (s.y + 0.46).abs() - 0.18)
    s.paint(shade, (0.96, 0.88, 0.70), True)


LANDMARK_DRAWINGS: dict[str, Callable[[Spot], None]] = {
    name[1:].replace("_", " "): draw
    for name, draw in list(globals().items())
    if name[0] == "_" and name[1].islower() and callable(draw)
}
