"""Subjects found in pictures by their strong colours. The lower half of :mod:`reader`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.pocket.world.names import ACCESSORIES, COLORS
from longtake.pocket.world.subjects import COLOR_RGB

HEIGHT = 96  # pixels at which pictures are read, whatever their size
CROP = 20  # side of the normalised pictures of a subject

_VIVID, _BRIGHT = 0.58, 0.20  # saturation and brightness of a subject's pixel, in white light
_SMALLEST = 0.005  # share of the picture below which nothing is called a subject


@dataclass
class Found:
    """One subject per picture, as far as there is one: ``mask`` ``[frames, h, w]`` in {0, 1}, ``picture`` the working
    picture in white light, the others ``[frames]``, units as in `reader.Reading`."""

    mask: Tensor
    picture: Tensor
    visible: Tensor
    color: Tensor
    x: Tensor
    y: Tensor
    box: Tensor
    area: Tensor
    edge: Tensor
    accessory: Tensor
    accessory_color: Tensor


def working_size(frames: Tensor) -> Tensor:
    """Pictures ``[frames, 3, height, width]`` at the height of 96 pixels, as many wide as keep their form."""
    height, width = frames.shape[-2:]
    size = (HEIGHT, round(width * HEIGHT / height))
    if size == (height, width):
        return frames
    if height >= HEIGHT:
        return F.interpolate(frames, size, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(frames, size, mode="bilinear", align_corners=False)


def _grow(mask: Tensor, reach: int) -> Tensor:
    # rows, then columns: far fewer comparisons than a square
    side = 2 * reach + 1
    return F.max_pool2d(F.max_pool2d(mask, (1, side), 1, (0, reach)), (side, 1), 1, (reach, 0))


def _close(mask: Tensor, reach: int) -> Tensor:
    """Fills gaps: grows and shrinks again. The outside counts as empty when growing, as full when shrinking."""
    return -_grow(-_grow(mask, reach), reach)


def _connected(mask: Tensor, seed: Tensor) -> Tensor:
    """The part of each mask ``[frames, 1, h, w]`` that hangs together with the pixel ``seed`` ``[frames]`` (flat)."""
    grown = torch.zeros_like(mask).flatten(1).scatter(1, seed[:, None], 1.0).view_as(mask)
    # at half the size: what hangs together there is not further apart than two pixels
    coarse, spread = F.max_pool2d(mask, 2), F.max_pool2d(grown, 2)
    spread = _grow(spread, 2) * coarse
    for _ in range(14):
        spread = F.max_pool2d(spread, 5, 1, 2) * coarse
    return F.interpolate(spread, mask.shape[-2:]) * mask


def colours(white: Tensor) -> tuple[Tensor, Tensor]:
    """Which pixels are strong in colour, in {0, 1}, and which colour is nearest, both ``[frames, h, w]``."""
    top, low = white.amax(1), white.amin(1)
    vivid = ((top - low > _VIVID * top) & (top > _BRIGHT)).float()
    palette = white.new_tensor(COLOR_RGB)
    palette = F.normalize(palette - palette.mean(1, keepdim=True), dim=1)
    chroma = white - white.mean(1, keepdim=True)
    return vivid, torch.einsum("nchw,kc->nkhw", chroma, palette).argmax(1)


def find(frames: Tensor, light: Tensor) -> tuple[Found, Found]:
    """The subject that takes up most of each picture, and the largest of another colour.

    Args:
        frames: ``[frames, 3, 96, width]``.
        light: the colour of the light, ``[frames, 3]``.
    """
    smooth = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), "replicate"), 3, 1)
    white = 0.5 * (smooth + frames) / light[:, :, None, None]
    vivid, nearest = colours(white)
    kinds = torch.arange(len(COLORS), device=frames.device)
    each = (nearest[:, None] == kinds[:, None, None]).float() * vivid[:, None]
    # pixels in company only, at half the size: single ones are noise
    half = F.avg_pool2d(each, 2)
    dense = F.avg_pool2d(half, 5, 1, 2, count_include_pad=False)
    amount = (half * (dense > 0.25)).sum((2, 3))
    color = amount.argmax(1)
    first = _one(white, each, dense, color)
    rest = amount.scatter(1, color[:, None], 0.0)
    # the hat is part of the subject that wears it
    worn = _accessory(first, each)
    first.accessory, first.accessory_color = worn[0], worn[1]
    scarf = each[torch.arange(len(each), device=each.device), worn[1]] * _close(first.mask[:, None], 5)[:, 0]
    first.mask = torch.where(
        (worn[0] == ACCESSORIES.index("scarf"))[:, None, None], first.mask.maximum(scarf), first.mask
    )
    rest = torch.where((worn[0] > 0)[:, None] & (kinds == worn[1][:, None]), torch.zeros_like(rest), rest)
    second = _one(white, each, dense, rest.argmax(1))
    second.visible &= (rest.amax(1) > 0) & (second.area > 0.18 * first.area)
    return first, second


def _one(white: Tensor, each: Tensor, dense: Tensor, color: Tensor) -> Found:
    index = torch.arange(len(white), device=white.device)
    own = each[index, color][:, None]
    company = F.interpolate(dense[index, color][:, None], own.shape[-2:])
    seed = (company * (0.5 + own)).flatten(1).argmax(1)
    mask = _connected(_close(own, 2), seed)[:, 0]
    height, width = mask.shape[1:]
    x = ((torch.arange(width, device=white.device) + 0.5) * 2 - width) / height
    y = ((torch.arange(height, device=white.device) + 0.5) * 2 - height) / height
    columns, rows = mask.amax(1) > 0, mask.amax(2) > 0
    big = x.new_tensor(9.0)
    box = torch.stack(
        [
            torch.where(columns, x, big).amin(1),
            torch.where(rows, y, big).amin(1),
            torch.where(columns, x, -big).amax(1),
            torch.where(rows, y, -big).amax(1),
        ],
        1,
    )
    area = mask.mean((1, 2))
    aspect, step = width / height, 2.5 / height
    edge = (box[:, 0] < step - aspect) | (box[:, 2] > aspect - step) | (box[:, 1] < step - 1) | (box[:, 3] > 1 - step)
    nothing = torch.zeros_like(color)
    return Found(
        mask=mask,
        picture=white,
        visible=area > _SMALLEST,
        color=color,
        x=(box[:, 0] + box[:, 2]) / 2,
        y=(box[:, 1] + box[:, 3]) / 2,
        box=box,
        area=area,
        edge=edge,
        accessory=nothing,
        accessory_color=nothing,
    )


def _accessory(found: Found, each: Tensor) -> tuple[Tensor, Tensor]:
    """What a subject wears and in which colour: pixels of another strong colour that touch it."""
    near = _grow(found.mask[:, None], 3)[:, 0]
    inside = _close(found.mask[:, None], 5)[:, 0]
    others = each.scatter(1, found.color[:, None, None, None].expand(-1, 1, *each.shape[2:]), 0.0)
    touching = (others * near[:, None]).sum((2, 3))
    color = touching.argmax(1)
    own = found.mask.sum((1, 2)).clamp(min=1)
    worn = others[torch.arange(len(own), device=own.device), color]
    near_amount, amount = touching.amax(1), (worn * _grow(near[:, None], 5)[:, 0]).sum((1, 2))
    is_worn = (near_amount > 0.035 * own) & (amount < 0.34 * own) & (amount < 4.0 * near_amount)
    # a scarf lies on the subject, a hat stands out of it
    on_it = (worn * inside).sum((1, 2)) / amount.clamp(min=1)
    kind = torch.where(on_it > 0.62, ACCESSORIES.index("scarf"), ACCESSORIES.index("hat"))
    return torch.where(is_worn, kind, torch.zeros_like(kind)), color


def crops(found: Found) -> tuple[Tensor, Tensor]:
    """What shape and pattern are told by, for each picture: its silhouette and the darkness in it as a picture of 20 x
    20 pixels, and a few numbers about the texture."""
    left, top, right, foot = found.box.clamp(-2, 2).unbind(1)
    half = (torch.maximum(right - left, foot - top) / 2).clamp(min=0.05) * 1.1
    line = (torch.arange(CROP, device=left.device) + 0.5) / CROP * 2 - 1
    height, width = found.mask.shape[1:]
    gx = (found.x[:, None, None] + half[:, None, None] * line[None, None, :]).expand(-1, CROP, -1) * height / width
    gy = (found.y[:, None, None] + half[:, None, None] * line[None, :, None]).expand(-1, -1, CROP)
    value = found.picture.amax(1)
    # eyes and windows are holes in the strong colour: grey and white inside
    pale = 1 - (found.picture.amax(1) - found.picture.amin(1)) / value.clamp(min=0.05)
    palette = value.new_tensor(COLOR_RGB)[found.color].amax(1)[:, None, None]
    layers = torch.stack([found.mask, (value / palette).clamp(0, 1.2), pale * (value > 0.5)], 1)
    layers = F.avg_pool2d(F.pad(layers, (1, 1, 1, 1), "replicate"), 3, 1)
    taken = F.grid_sample(layers, torch.stack([gx, gy], -1), align_corners=False)
    mask = taken[:, 0]
    silhouette = torch.cat([mask.flatten(1), 0.5 * (taken[:, 2] * mask).flatten(1)], 1)
    return silhouette, _texture(found, value / palette)


def _texture(found: Found, value: Tensor) -> Tensor:
    """Numbers that tell patterns apart whatever their angle, of the body's inside: how much is dark, how strong the
    change from pixel to pixel is, and how much of it has one direction."""
    inside = -_grow(-found.mask[:, None], 2)[:, 0]
    amount = inside.sum((1, 2)).clamp(min=1)
    dark = ((value < 0.68) * inside).sum((1, 2)) / amount
    dx, dy = torch.zeros_like(value), torch.zeros_like(value)
    dx[..., :, 1:-1] = (value[..., :, 2:] - value[..., :, :-2]) / 2
    dy[..., 1:-1, :] = (value[..., 2:, :] - value[..., :-2, :]) / 2
    xx, yy, xy = ((a * b * inside).sum((1, 2)) / amount for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    energy = xx + yy
    one_way = torch.sqrt((xx - yy).square() + 4 * xy.square()) / energy.clamp(min=1e-5)
    mean = (value * inside).sum((1, 2)) / amount
    spread = (((value - mean[:, None, None]) * inside).square().sum((1, 2)) / amount).sqrt()
    # of the dark parts, how many are thick: stripes and checks rather than spots
    thick = -_grow(-((value < 0.68).float() * found.mask)[:, None], 1)[:, 0]
    thick = (thick * inside).sum((1, 2)) / amount
    return torch.stack([2 * dark, 8 * energy.sqrt(), 1.5 * one_way, 5 * spread, 2 * thick], 1)
