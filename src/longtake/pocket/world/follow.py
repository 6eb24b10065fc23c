"""What takes time to see: which law a subject moves by, and how sharp and colourful a video is for what it shows."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from longtake.pocket.world.laws import pose
from longtake.pocket.world.names import LIGHTS, MOTIONS, PERIODS
from longtake.pocket.world.reader import Reading
from longtake.pocket.world.renderer import render
from longtake.pocket.world.scenes import sample_scenes

_UNSEEN = 0.02  # cost of a frame in which a law and a reading disagree on whether the subject is in the picture
_FAR = 0.10  # a frame whose place is off by more than the root of this costs no more


def track(reading: Reading) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The subject of each video: colour ``[videos]``, and x, y and whether it is there, ``[videos, frames]``.

    The subject is that of the colour which is read in most frames, be it first or second by size at times.
    """
    kinds = torch.arange(16, device=reading.x.device)
    votes = ((reading.color[..., None] == kinds) & reading.visible[..., None]).float() * reading.area[..., None].sqrt()
    color = votes.sum(1).argmax(1)
    first = reading.visible & (reading.color == color[:, None])
    second = reading.visible2 & (reading.color2 == color[:, None]) & ~first
    x, y = torch.where(second, reading.x2, reading.x), torch.where(second, reading.y2, reading.y)
    return color, x, y, first | second


@lru_cache(maxsize=8)
def _laws(frames: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tracks of every motion from every frame of its period, both ways, on the ground and above it.

    Returns:
        Motion ``[tracks]``, positions ``[tracks, frames, 2]``, and whether seen: 1 seen, 0 out of sight, 0.5 perhaps
        hidden, ``[tracks, frames]``.
    """
    motions, places, seen = [], [], []
    for motion, name in enumerate(MOTIONS):
        if name == "orbits":
            continue
        for shape in (0, 2):  # a ball stands, a star hovers
            scenes = sample_scenes(2, 0).clone()
            scenes.motion[:, 0], scenes.shape[:, 0] = motion, shape
            scenes.phase.zero_(), scenes.anchor.zero_(), scenes.occluder_at.zero_()
            scenes.radius.fill_(0.33)
            scenes.way[:, 0] = torch.tensor([-1.0, 1.0])
            starts = torch.arange(0, PERIODS[motion], 1 if PERIODS[motion] < 90 else 2)
            times = (starts[:, None] + torch.arange(frames)).flatten().expand(2, -1)
            where = pose(scenes, times)
            xy = torch.stack([where.x[..., 0], where.y[..., 0]], -1).reshape(-1, frames, 2)
            there = (xy[..., 0].abs() < 1.3).float()
            if name == "hides":
                there = torch.where(xy[..., 0].abs() < 0.45, 0.5, there)
            motions.append(torch.full((len(xy),), motion))
            places.append(xy)
            seen.append(there)
            if name not in ("leaves", "hides"):
                break
    return torch.cat(motions).to(device), torch.cat(places).to(device), torch.cat(seen).to(device)


def fit_laws(x: Tensor, y: Tensor, there: Tensor, certain: Tensor) -> tuple[Tensor, Tensor]:
    """How far tracks are from the law of each motion.

    Every law is run from every moment of its period and moved sideways to where it fits best.

    Args:
        x, y: of the subject, ``[videos, frames]``. there: whether it is seen at all, certain: and where, for sure.

    Returns:
        The cost of each motion but "orbits", by which laws are told apart, and the root of the mean squared distance to
        the law in units of half the picture's height, both ``[videos, motions]``.
    """
    motions, laws, expected = _laws(x.shape[1], x.device)
    there, certain = there.float(), certain.float()
    # where something may stand before it, the place that is seen counts for less
    both = certain[:, None] * torch.where(expected == 0.5, 0.4, expected)[None]
    amount = both.sum(2).clamp(min=1.0)
    dx, dy = x[:, None] - laws[None, ..., 0], y[:, None] - laws[None, ..., 1]
    # an anchor moves most laws sideways, a radius all up and down; the two are bounded
    shift_x = ((dx * both).sum(2) / amount).clamp(-0.5, 0.5)
    shift_x = torch.where(motions == MOTIONS.index("leaves"), shift_x.clamp(-0.1, 0.1), shift_x)
    shift_x = torch.where(motions == MOTIONS.index("hides"), shift_x.clamp(-0.3, 0.3), shift_x)
    shift_y = ((dy * both).sum(2) / amount).clamp(-0.16, 0.16)
    off = (dx - shift_x[..., None]).square() + (dy - shift_y[..., None]).square()
    cost = (off.clamp(max=_FAR) * both).sum(2) / amount
    unlike = (there[:, None] - expected[None]).abs() * (expected != 0.5)[None]
    cost = cost + _UNSEEN * 2 * unlike.mean(2) + 0.02 / amount
    distance = ((off * both).sum(2) / amount).sqrt()
    best = [(motions == m).nonzero()[:, 0] for m in range(len(MOTIONS) - 1)]
    each = [cost[:, of].min(1) for of in best]
    far = [distance[:, of].gather(1, e.indices[:, None])[:, 0] for of, e in zip(best, each, strict=True)]
    return torch.stack([e.values for e in each], 1), torch.stack(far, 1)


def read_motion(reading: Reading) -> Tensor:
    """The motion of each video's subject, indices into `names.MOTIONS`, ``[videos]``.

    By synthesis, see `fit_laws`: the law that fits best is taken. It wants a still camera and about four seconds. It
    never answers "orbits".

    Args:
        reading: of videos, fields ``[videos, frames]``.
    """
    _, x, y, there = track(reading)
    return fit_laws(x, y, there, there & ~reading.edge)[0].argmin(1)


def sharpness(video: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, per frame: ``[...]`` of ``[..., 3, height, width]``."""
    across = (video[..., 1:] - video[..., :-1]).abs().mean((-1, -2, -3))
    return across + (video[..., 1:, :] - video[..., :-1, :]).abs().mean((-1, -2, -3))


def saturation(video: Tensor) -> Tensor:
    """Mean difference of the strongest and the weakest of the three colours, per frame."""
    return (video.amax(-3) - video.amin(-3)).mean((-1, -2))


@lru_cache(maxsize=64)
def usual(place: int, light: int, size: tuple[int, int]) -> tuple[float, float]:
    """Mean sharpness and saturation of rendered scenes of a place and a light that stays, as pictures of a size."""
    scenes = sample_scenes(24, 81, "plain")
    scenes.place.fill_(place)
    scenes.light.fill_(light)
    video = render(scenes, torch.tensor([0, 30, 60]), size).video
    return float(sharpness(video).mean()), float(saturation(video).mean())


def relative(video: Tensor, place: int, light: int) -> dict[str, Tensor]:
    """Sharpness and saturation of each frame, as multiples of what rendered scenes of that place and light have.

    Args:
        video: ``[..., 3, height, width]``. place, light: indices into `names.PLACES` and `names.LIGHTS`.

    Raises:
        ValueError: a light that turns, which has no usual look.
    """
    if LIGHTS[light] == "turning":
        raise ValueError("A turning day has no usual look: give the light of the moment, day, dusk or night.")
    sharp, strong = usual(place, light, (video.shape[-2], video.shape[-1]))
    return {"sharpness": sharpness(video) / sharp, "saturation": saturation(video) / strong}
