"""Readers: what a video of the pocket world shows, from its pixels alone.

Nothing is known of the scene. Places are pale and subjects are strong in colour, so subjects are found by their
colour; the rest is analysis by synthesis: place and hour are those of the rendered place whose bands look most alike,
and a shape is that of the rendered subjects whose silhouettes look most alike. Rendered examples are made on first use
(some seconds on a CPU) and kept, one set per device. Everything is batched tensor code without a wait for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.pocket.world.drawing import SUBJECT_TINTS
from longtake.pocket.world.laws import daylight
from longtake.pocket.world.names import PLACES, SHAPES
from longtake.pocket.world.places import paint_places
from longtake.pocket.world.renderer import light_weights, render
from longtake.pocket.world.scenes import sample_scenes
from longtake.pocket.world.segment import CROP, HEIGHT, Found, crops, find, working_size

LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of daylight, at which places are compared
_BANDS = 24
_EXAMPLES = 1280  # rendered subjects to compare with
_NEIGHBOURS = 7
_BATCH = 128  # frames read at once


@dataclass
class Reading:
    """What was read, one entry per frame, all ``[frames]`` (or ``[videos, frames]``).

    Attributes:
        place: index into `names.PLACES`. daylight: 1 by day to 0 by night. light: 0 day, 1 dusk, 2 night.
        visible: whether a subject is seen at all; the following are only meant where one is.
        color, shape, pattern: indices into `names`, of the subject that takes up most of the picture.
        x, y: its middle, y in [-1, 1] over the picture, x in the same units.
        box: ``[..., 4]``, left, top, right, bottom.
        area: its share of the picture. edge: whether it touches the picture's edge.
        accessory: index into `names.ACCESSORIES`. accessory_color: index into `names.COLORS`, meant if there is one.
        visible2, color2, shape2, x2, y2: of a second subject of another colour.
    """

    place: Tensor
    daylight: Tensor
    light: Tensor
    visible: Tensor
    color: Tensor
    shape: Tensor
    pattern: Tensor
    x: Tensor
    y: Tensor
    box: Tensor
    area: Tensor
    edge: Tensor
    accessory: Tensor
    accessory_color: Tensor
    visible2: Tensor
    color2: Tensor
    shape2: Tensor
    x2: Tensor
    y2: Tensor


def read(video: Tensor) -> Reading:
    """Reads frames ``[frames, 3, height, width]`` or ``[videos, frames, 3, height, width]`` in [0, 1], at least 32
    pixels high, on any device.

    Raises:
        ValueError: another shape.
    """
    if video.dim() not in (4, 5) or video.shape[-3] != 3 or video.shape[-2] < 32:
        raise ValueError(
            "A video to read is [(videos,) frames, 3, height, width], at least 32 pixels high, "
            f"not of shape {tuple(video.shape)}."
        )
    frames = video.flatten(0, -4).float()
    parts = [_read(part) for part in frames.split(_BATCH)]
    whole = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Reading)}
    return Reading(**{name: v.unflatten(0, video.shape[:-3]) for name, v in whole.items()})


def _read(frames: Tensor) -> Reading:
    small = working_size(frames)
    small, place, level = place_and_daylight(small)
    first, second = find(small, subject_light(level))
    light = (level < 0.75).long() + (level < 0.25).long()
    shape, pattern = _alike(first)
    shape2, _ = _alike(second)
    return Reading(
        place=place,
        daylight=level,
        light=light,
        visible=first.visible,
        color=first.color,
        shape=shape,
        pattern=pattern,
        x=first.x,
        y=first.y,
        box=first.box,
        area=first.area,
        edge=first.edge,
        accessory=first.accessory,
        accessory_color=first.accessory_color,
        visible2=second.visible,
        color2=second.color,
        shape2=shape2,
        x2=second.x,
        y2=second.y,
    )


def subject_light(level: Tensor) -> Tensor:
    """The colour of the light on subjects, ``[..., 3]``, at a daylight level."""
    return light_weights(level) @ torch.tensor(SUBJECT_TINTS, device=level.device)


# Place and daylight


def bands(frames: Tensor) -> Tensor:
    """The middle colour of each of 24 bands of a picture, ``[frames, 24 x 3]``: subjects and landmarks cover less than
    half of most bands, and a median does not see them."""
    rows = frames.unflatten(2, (_BANDS, -1)).permute(0, 2, 1, 3, 4).flatten(3)  # [frames, bands, 3, pixels of a band]
    return rows.median(3).values.flatten(1)


@lru_cache(maxsize=4)
def _places(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Bands of rendered places, with their place and daylight."""
    scenes = sample_scenes(48 * len(PLACES), 77, "full")
    scenes.place = torch.arange(len(scenes)) % len(PLACES)
    rgb, _ = paint_places(scenes, (HEIGHT, HEIGHT), False, torch.device("cpu"))
    level = torch.tensor(LEVELS)
    mixed = (light_weights(level) @ rgb.flatten(2)).unflatten(2, rgb.shape[2:])  # [scenes, levels, 3, h, w]
    features = bands(mixed.flatten(0, 1))
    return (
        features.to(device),
        scenes.place[:, None].expand(-1, len(level)).flatten().to(device),
        level.expand(len(scenes), -1).flatten().to(device),
    )


def place_and_daylight(frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures of the working size with their contrast put right, their place and their daylight, both ``[frames]``."""
    examples, place, level = _places(frames.device)
    own = bands(frames)
    # the contrast is measured against what looks most alike, by the spread of all bands together; it is put right only
    # where it is clearly too low, as places of one kind differ a little too
    alike = examples[torch.cdist(own, examples, p=1).topk(8, largest=False).indices]
    gain = (own.std(1) / alike.std(2).mean(1).clamp(min=1e-3)).clamp(0.75, 1.0)
    low = gain < 0.93
    gain = torch.where(low, gain, torch.ones_like(gain))
    middle = own.mean(1)
    usual = torch.where(low, alike.mean((1, 2)), middle)
    frames = ((frames - middle[:, None, None, None]) / gain[:, None, None, None] + usual[:, None, None, None]).clamp(
        0, 1
    )
    far = torch.cdist((own - middle[:, None]) / gain[:, None] + usual[:, None], examples, p=1)
    near = far.topk(4, largest=False)
    weight = 1 / (near.values + 0.2).square()
    votes = weight.new_zeros(len(frames), len(PLACES)).scatter_add(1, place[near.indices], weight)
    best = votes.argmax(1)
    # daylight from the two levels of that place that fit best
    mine = torch.where(place[None] == best[:, None], far, torch.full_like(far, 1e9))
    of_level = torch.stack([mine[:, level == value].amin(1) for value in LEVELS], 1)
    two = of_level.topk(2, largest=False)
    share = two.values[:, 1] / two.values.sum(1).clamp(min=1e-6)
    # a clear winner takes it all: still light is by far the more common
    share = ((share - 0.5) / 0.3).clamp(0, 1) * 0.5 + 0.5
    values = torch.tensor(LEVELS, device=frames.device)[two.indices]
    return frames, best, values[:, 0] * share + values[:, 1] * (1 - share)


# Shapes and patterns


@dataclass(frozen=True)
class _Examples:
    silhouettes: Tensor
    shape: Tensor
    textures: Tensor
    pattern: Tensor


def degrade(video: Tensor, blur: float, noise: float, contrast: float, seed: int) -> Tensor:
    """A worse picture: Gaussian blur (sigma in pixels), contrast about mid-grey, and noise drawn from a seed."""
    flat = video.flatten(0, -4)
    if blur > 0:
        reach = max(1, int(3 * blur))
        line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=video.device) / blur).square())
        line = (line / line.sum()).expand(3, 1, 1, -1)
        flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), "replicate"), line, groups=3)
        flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), "replicate"), line.transpose(2, 3), groups=3)
    drawn = torch.randn(flat.shape, generator=torch.Generator().manual_seed(seed)).to(flat)
    return ((flat - 0.5) * contrast + 0.5 + noise * drawn).clamp(0, 1).view_as(video)


@lru_cache(maxsize=4)
def _examples(device: torch.device) -> _Examples:
    """Rendered subjects as the reader sees them: half of them clean, half blurred."""
    scenes = sample_scenes(_EXAMPLES, 78, "full")
    scenes.camera.zero_()
    scenes.shape[:, 0] = torch.arange(_EXAMPLES) % len(SHAPES)
    frames = torch.randint(0, 192, (_EXAMPLES, 1), generator=torch.Generator().manual_seed(79))
    silhouettes, textures, shapes, patterns = [], [], [], []
    for start in range(0, _EXAMPLES, 160):
        some = scenes.select(slice(start, start + 160))
        drawn = render(some, frames[start : start + 160], HEIGHT)
        picture = drawn.video[:, 0]
        if start % 320:
            picture = degrade(picture, 1.0, 0.025, 1.0, start)
        found, _ = find(picture, subject_light(daylight(some, frames[start : start + 160])[:, 0]))
        seen = drawn.masks[:, 0, 0].sum((-1, -2)) / drawn.whole[:, 0, 0].sum((-1, -2)).clamp(min=1)
        good = found.visible & (found.color == some.color[:, 0]) & (seen > 0.6)
        silhouette, texture = crops(found)
        silhouettes.append(silhouette[good])
        textures.append(texture[good])
        shapes.append(some.shape[good, 0])
        patterns.append(some.pattern[good, 0])
    tables = (torch.cat(t).to(device) for t in (silhouettes, shapes, textures, patterns))
    return _Examples(*tables)


def _alike(found: Found) -> tuple[Tensor, Tensor]:
    """Shape and pattern by the vote of the examples that look most alike."""
    examples = _examples(found.x.device)
    silhouette, texture = crops(found)
    near = torch.cdist(silhouette, examples.silhouettes).topk(_NEIGHBOURS, largest=False)
    weight = 1 / (near.values + 0.05 * CROP).square()
    shape = weight.new_zeros(len(weight), 16).scatter_add(1, examples.shape[near.indices], weight).argmax(1)
    near = torch.cdist(texture, examples.textures).topk(_NEIGHBOURS, largest=False)
    weight = 1 / (near.values + 0.1).square()
    pattern = weight.new_zeros(len(weight), 8).scatter_add(1, examples.pattern[near.indices], weight).argmax(1)
    return shape, pattern
