"""Captions of scenes, and exact facts about every frame."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from longtake.pocket.world import names
from longtake.pocket.world.laws import as_frames, camera_x, daylight, pose, turns
from longtake.pocket.world.renderer import as_size, render
from longtake.pocket.world.scenes import Scenes
from longtake.pocket.world.words import compose


def facts(scenes: Scenes, index: int) -> dict[str, str]:
    """Everything that a caption could tell of a scene: keys and values as in `words.understand`."""
    found = {
        "place": names.PLACES[int(scenes.place[index])],
        "light": names.LIGHTS[int(scenes.light[index])],
        "camera": names.CAMERAS[int(scenes.camera[index])],
    }
    for subject in range(1 + int(scenes.second[index])):
        ending = "2" if subject else ""
        found |= {
            "shape" + ending: names.SHAPES[int(scenes.shape[index, subject])],
            "color" + ending: names.COLORS[int(scenes.color[index, subject])],
            "pattern" + ending: names.PATTERNS[int(scenes.pattern[index, subject])],
            "size" + ending: names.SIZES[int(scenes.size[index, subject])],
            "motion" + ending: names.MOTIONS[int(scenes.motion[index, subject])],
        }
    return found


def hidden_facts(scenes: Scenes, index: int) -> dict[str, str]:
    """What no caption tells: what the first subject wears, its eyes, and what stands in the four spots."""
    wears = names.ACCESSORIES[int(scenes.accessory[index, 0])]
    place = names.PLACES[int(scenes.place[index])]
    return {
        "accessory": wears,
        "accessory_color": "none" if wears == "none" else names.COLORS[int(scenes.accessory_color[index, 0])],
        "eyes": names.EYES[int(scenes.eyes[index, 0])],
        **{f"landmark{i + 1}": names.LANDMARKS[place][int(kind)] for i, kind in enumerate(scenes.landmark[index])},
    }


def caption(scenes: Scenes, index: int, rng: random.Random | None = None) -> str:
    """A caption of scene ``index``; without ``rng`` the plainest. At most `words.MAX_WORDS` words."""
    return compose(facts(scenes, index), rng)[0]


def caption_and_told(scenes: Scenes, index: int, rng: random.Random | None = None) -> tuple[str, dict[str, str]]:
    """The same caption, and the attributes that it names with their values (keys as in `words.understand`)."""
    return compose(facts(scenes, index), rng)


@dataclass
class Truth:
    """What is true of every frame.

    Attributes:
        x, y: centres of the subjects as seen, ``[scenes, frames, 2]``: y in [-1, 1] over the picture, x in the same
            units from its middle. Of a second subject that is not there, all is 0.
        angle: radians, clockwise. radius: half the subject's size, the same units.
        in_picture: whether any part of a subject would be in the picture if nothing stood before it, bool.
        visible: whether at least a tenth of its part in the picture can be seen, bool.
        occluded: the share of its part in the picture that is behind something, 0 where it is out of the picture.
        shown: the share of the whole subject that can be seen (its size when nothing hides it is the measure).
        box: left, top, right and bottom of what can be seen, ``[scenes, frames, 2, 4]``, zeros where nothing is.
        camera: x of the camera, ``[scenes, frames]``. daylight: 1 by day to 0 by night, ``[scenes, frames]``.
        phase: the part of their period the motions are at, in [0, 1), ``[scenes, frames, 2]``.
    """

    x: torch.Tensor
    y: torch.Tensor
    angle: torch.Tensor
    radius: torch.Tensor
    in_picture: torch.Tensor
    visible: torch.Tensor
    occluded: torch.Tensor
    shown: torch.Tensor
    box: torch.Tensor
    camera: torch.Tensor
    daylight: torch.Tensor
    phase: torch.Tensor


def truth(scenes: Scenes, frames: torch.Tensor, size: int | tuple[int, int] = 64) -> Truth:
    """Exact facts about ``frames`` ``[frames]`` or ``[scenes, frames]`` of scenes. What depends on pixels (shares and
    boxes) is measured on masks of ``size``, the rest is computed from the laws."""
    scenes = scenes.to("cpu")
    at = as_frames(scenes, frames.cpu())
    height, width = as_size(size)
    picture = render(scenes, at, (height, width))
    where, camera = pose(scenes, at), camera_x(scenes, at)
    there = torch.stack([torch.ones_like(scenes.second), scenes.second], 1)[:, None].expand_as(where.x)
    whole, seen = picture.whole.sum((-1, -2)), picture.masks.sum((-1, -2))
    # the subject's whole area in pixels, which the picture's edge may cut: from a frame in which it is whole
    alone = scenes.clone()
    alone.camera.zero_()
    alone.anchor.zero_()
    alone.motion.fill_(names.MOTIONS.index("circles"))
    full = torch.stack([_area(alone, subject, (height, width)) for subject in (0, 1)], 1)[:, None]
    x = ((torch.arange(width) + 0.5) * 2 - width) / height
    y = ((torch.arange(height) + 0.5) * 2 - height) / height
    columns, rows = (picture.masks > 0.5).any(-2), (picture.masks > 0.5).any(-1)
    none = ~columns.any(-1)
    big = torch.tensor(9.0)
    box = torch.stack(
        [
            torch.where(columns, x, big).amin(-1),
            torch.where(rows, y, big).amin(-1),
            torch.where(columns, x, -big).amax(-1),
            torch.where(rows, y, -big).amax(-1),
        ],
        -1,
    )
    period = torch.tensor(names.PERIODS)[scenes.motion][:, None]
    return Truth(
        x=(where.x - camera[..., None]) * there,
        y=where.y * there,
        angle=where.angle * there,
        radius=scenes.radius[:, None] * there,
        in_picture=whole > 1,
        visible=(seen >= 0.1 * whole) & (seen > 1),
        occluded=torch.where(whole > 1, 1 - seen / whole.clamp(min=1e-6), torch.zeros_like(seen)),
        shown=(seen / full.clamp(min=1e-6)).clamp(max=1.0) * there,
        box=torch.where(none[..., None], torch.zeros(()), box),
        camera=camera,
        daylight=daylight(scenes, at),
        phase=turns(at[..., None], period, scenes.phase[:, None]) * there,
    )


def _area(scenes: Scenes, subject: int, size: tuple[int, int]) -> torch.Tensor:
    """Pixels that a subject covers when it is whole, ``[scenes]``."""
    scenes = scenes.clone()
    if subject:
        scenes.second.fill_(True)
    return render(scenes, torch.zeros(len(scenes), 1, dtype=torch.long), size).whole[:, 0, subject].sum((-1, -2))
