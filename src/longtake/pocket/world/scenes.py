"""Scenes of the pocket world: what a picture holds, told or hidden, as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from longtake.pocket.world.names import (
    ACCESSORIES,
    COLORS,
    EYES,
    MOTIONS,
    PATTERNS,
    PLACES,
    SHAPES,
    SHORT,
    SIZES,
    SUITED,
)

LEVELS = ("calm", "plain", "moving", "full")
"""How much there is, see `sample_scenes`."""
RADII = (0.28, 0.38)  # by size, in units of half the picture's height
NEAR = 1.37  # so much larger subjects are at the level "calm"
SECOND = 0.20  # the radius of a second subject
JITTER = 0.05  # a radius is up to this share larger or smaller

# attributes that a prompt may name, in the order of `change`
TOLD = ("place", "light", "camera", "shape", "color", "pattern", "size", "motion", "second")
_DRAWS = 64  # random numbers of a scene


@dataclass
class Scenes:
    """A batch of scenes, one entry of every field per scene. Whole numbers index the tuples in `names`.

    Attributes:
        place, light, camera: ``[scenes]``.
        second: whether there is a second subject, bool ``[scenes]``.
        shape, color, pattern, size, motion: of the first and the second subject, ``[scenes, 2]``.
        radius: ``[scenes, 2]``, units of half the picture's height. From here on all is hidden: no caption tells it.
        accessory, accessory_color, eyes: ``[scenes, 2]``; a second subject wears nothing.
        angle: of stripes and checks and the place of spots, in quarter turns in [0, 1), ``[scenes, 2]``.
        phase: where in its period a motion starts, in [0, 1), ``[scenes, 2]``.
        way: -1 or 1, mirrors a motion, ``[scenes, 2]``.
        anchor: the x a motion is about, ``[scenes, 2]``.
        camera_way: -1 or 1, where a pan goes, ``[scenes]``.
        light_phase: of a turning day, in [0, 1), ``[scenes]``.
        landmark: what stands in each spot, 0 to 3, ``[scenes, 4]``, see `names.LANDMARKS`.
        landmark_shift: how far it stands from the middle of its spot, in [-1, 1], ``[scenes, 4]``.
        occluder: whether something stands in the foreground, bool ``[scenes]``.
        occluder_at: its x, ``[scenes]``.
        sun: x of sun and moon, ``[scenes]``.
        hills: the land's forms, in [0, 1), ``[scenes, 4]``.
    """

    place: torch.Tensor
    light: torch.Tensor
    camera: torch.Tensor
    second: torch.Tensor
    shape: torch.Tensor
    color: torch.Tensor
    pattern: torch.Tensor
    size: torch.Tensor
    motion: torch.Tensor
    radius: torch.Tensor
    accessory: torch.Tensor
    accessory_color: torch.Tensor
    eyes: torch.Tensor
    angle: torch.Tensor
    phase: torch.Tensor
    way: torch.Tensor
    anchor: torch.Tensor
    camera_way: torch.Tensor
    light_phase: torch.Tensor
    landmark: torch.Tensor
    landmark_shift: torch.Tensor
    occluder: torch.Tensor
    occluder_at: torch.Tensor
    sun: torch.Tensor
    hills: torch.Tensor

    def __len__(self) -> int:
        return len(self.place)

    def select(self, index: torch.Tensor | slice | list[int]) -> Scenes:
        """The scenes at ``index``: a tensor of positions or of bools, a slice, a list of positions."""
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Scenes:
        """The same scenes with their tensors on ``device``."""
        return Scenes(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def clone(self) -> Scenes:
        """A copy whose fields may be written to."""
        return Scenes(**{f.name: getattr(self, f.name).clone() for f in fields(self)})


def join(parts: list[Scenes]) -> Scenes:
    """Several batches as one."""
    return Scenes(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Scenes)})


def suited() -> torch.Tensor:
    """Whether the sampler usually gives a shape a motion, bool ``[shapes, motions]``."""
    return torch.tensor([[m in SUITED[s] for m in MOTIONS] for s in SHAPES])


class _Draws:
    """Hands out columns of one table of random numbers, a row per scene."""

    def __init__(self, count: int, seed: int) -> None:
        # row k of the table does not depend on how many rows follow: scene k depends on (seed, k) alone
        self.table = torch.rand(count, _DRAWS, generator=torch.Generator().manual_seed(seed))
        self.next = 0

    def uniform(self, low: float = 0.0, high: float = 1.0, columns: int = 0) -> torch.Tensor:
        part = self.table[:, self.next : self.next + max(1, columns)]
        self.next += max(1, columns)
        return low + (high - low) * (part if columns else part[:, 0])

    def pick(self, choices: int, columns: int = 0) -> torch.Tensor:
        return (self.uniform(columns=columns) * choices).long().clamp(max=choices - 1)

    def chance(self, share: float) -> torch.Tensor:
        return self.uniform() < share

    def weighted(self, weights: torch.Tensor) -> torch.Tensor:
        """One of the columns of ``weights`` (``[choices]`` or a row per scene), as often as its weight says."""
        edges = weights.double().cumsum(-1)
        edges = (edges / edges[..., -1:]).float().expand(len(self.table), -1)
        return (self.uniform()[:, None] >= edges[:, :-1]).sum(1)


def sample_scenes(count: int, seed: int, level: str = "full", device: torch.device | str = "cpu") -> Scenes:
    """Draws scenes, the same for the same seed on every device; scene ``k`` depends on ``seed`` and ``k`` only.

    Args:
        count: how many.
        seed: of the draw.
        level: "calm" (one subject that is near, of one colour, and wears nothing; short motions or leaving, still
            camera, light that stays, and a place always looks the same), "plain" (besides: subjects of all distances,
            patterns, what is worn, landmarks and land of a scene's own; nobody leaves), "moving" (besides: all long
            excursions, things to pass behind, a turning day) or "full" (besides: a second subject, a panning camera).
        device: where the tensors go; the draw itself is on the CPU.

    Raises:
        ValueError: an unknown level or a negative count.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level}.")
    if count < 0:
        raise ValueError(f"The number of scenes must not be negative, like {count}.")
    d = _Draws(count, seed)
    moving, full = level in ("moving", "full"), level == "full"
    shape, pattern = d.pick(len(SHAPES), 2), d.pick(len(PATTERNS), 2)
    color = d.pick(len(COLORS), 2)
    # a second subject has a colour of its own, so that the two can be told apart
    color[:, 1] = (color[:, 0] + 1 + d.pick(len(COLORS) - 1)) % len(COLORS)
    size = d.pick(len(SIZES), 2)
    size[:, 1] = 0
    grow = 1 + d.uniform(-JITTER, JITTER, 2)
    radius = torch.stack([torch.tensor(RADII)[size[:, 0]], torch.full((count,), SECOND)], 1) * grow

    fits = suited().float()
    fits[:, MOTIONS.index("orbits")] = 0
    anything = torch.ones_like(fits)
    anything[:, MOTIONS.index("orbits")] = 0
    short = torch.tensor([m in SHORT for m in MOTIONS])
    walks = torch.tensor([m == "walks" for m in MOTIONS])
    if not moving:
        possible = (short | walks).float()
        if level == "calm":
            possible[MOTIONS.index("leaves")] = 0.5
        fits, anything = fits * possible, anything * possible
    usual = d.chance(0.9)
    first = torch.where(usual, d.weighted(fits[shape[:, 0]]), d.weighted(anything[shape[:, 0]]))
    calm = (short | walks).float() * fits
    calm[:, MOTIONS.index("orbits")] = 1.0
    motion = torch.stack([first, d.weighted(calm[shape[:, 1]])], 1)

    second = d.chance(0.4) & full
    way = d.pick(2, 2) * 2.0 - 1.0
    anchor = d.uniform(-0.3, 0.3, 2)
    side = d.pick(2) * 2.0 - 1.0
    apart = torch.stack([-0.3 * side, 0.5 * side], 1) + 0.3 * anchor
    anchor = torch.where(second[:, None], apart, anchor)
    accessory = d.pick(len(ACCESSORIES), 2)
    accessory[:, 1] = 0
    accessory_color = torch.stack([color[:, 0], color[:, 1]], 1)
    accessory_color = (accessory_color + 1 + d.pick(len(COLORS) - 1, 2)) % len(COLORS)
    light = d.weighted(torch.tensor([0.4, 0.2, 0.25, 0.15 if moving else 0.0]))
    hides = motion[:, 0] == MOTIONS.index("hides")
    occluder = (d.chance(0.2) & moving) | hides
    # who does not pass behind it has it at a side, where it does not hide everything for good
    middle = d.uniform(-0.25, 0.25)
    occluder_at = torch.where(hides, middle, 0.62 * side + 0.4 * middle)
    scenes = Scenes(
        place=d.pick(len(PLACES)),
        light=light,
        camera=(d.chance(0.3) & full).long(),
        second=second,
        shape=shape,
        color=color,
        pattern=pattern,
        size=size,
        motion=motion,
        radius=radius,
        accessory=accessory,
        accessory_color=accessory_color,
        eyes=d.pick(len(EYES), 2),
        angle=d.uniform(columns=2),
        phase=d.uniform(columns=2),
        way=way,
        anchor=anchor,
        camera_way=d.pick(2) * 2.0 - 1.0,
        light_phase=d.uniform(0.0, 0.15),
        landmark=d.pick(4, 4),
        landmark_shift=d.uniform(-1, 1, 4),
        occluder=occluder,
        occluder_at=occluder_at,
        sun=d.uniform(-0.75, 0.75),
        hills=d.uniform(columns=4),
    )
    if level == "calm":
        _calm(scenes)
    return scenes.to(device)


def _calm(scenes: Scenes) -> None:
    """Takes away what differs from scene to scene although no prompt could tell it, and what is small."""
    scenes.accessory[:], scenes.eyes[:], scenes.angle[:] = 0, 0, 0.0
    scenes.pattern[:] = PATTERNS.index("plain")
    near = torch.tensor(RADII)[scenes.size[:, 0]] * NEAR
    scenes.radius[:] = torch.stack([near, torch.full((len(scenes),), SECOND)], 1)
    scenes.landmark[:], scenes.landmark_shift[:] = torch.arange(4), 0.0
    scenes.sun[:], scenes.hills[:] = 0.4, 0.5


def _free(color: torch.Tensor, taken: list[torch.Tensor]) -> torch.Tensor:
    """The colour, or where it is taken the next that is not."""
    for _ in taken:
        bad = torch.stack([color == other for other in taken]).any(0)
        color = torch.where(bad, (color + 1) % len(COLORS), color)
    return color


def change(scenes: Scenes, seed: int, only: str | None = None, chance: float = 0.4, level: str = "full") -> Scenes:
    """What a new prompt may ask for: told attributes changed, hidden ones kept.

    Args:
        scenes: what is there now.
        seed: of the change.
        only: change this one of `TOLD`, in every scene and to another value; without it each told attribute changes
            with probability ``chance``, possibly to the value it has.
        chance: see ``only``.
        level: of the new values, see `sample_scenes`; with ``only``, any value may come.

    Raises:
        ValueError: ``only`` names no told attribute, or an unknown level.
    """
    if only is not None and only not in TOLD:
        raise ValueError(f"only must be one of {', '.join(TOLD)}, not {only}.")
    count, device = len(scenes), scenes.place.device
    other = sample_scenes(count, seed, level)
    d = _Draws(count, seed + 1)
    old, new = scenes.to("cpu"), scenes.to("cpu").clone()
    choices = {"place": len(PLACES), "light": 4, "camera": 2, "shape": len(SHAPES), "color": len(COLORS)}
    choices |= {"pattern": len(PATTERNS), "size": len(SIZES), "motion": len(MOTIONS) - 1, "second": 2}
    for name in TOLD:
        drawn, flip, step = getattr(other, name), d.chance(chance), d.pick(choices[name] - 1)
        was = getattr(old, name)
        first = was if was.dim() == 1 else was[:, 0]
        if only is None:
            value = torch.where(flip, drawn if drawn.dim() == 1 else drawn[:, 0], first)
        elif name == only:
            value = (first.long() + 1 + step).remainder(choices[name]).to(first.dtype)
        else:
            continue
        if was.dim() == 1:
            setattr(new, name, value)
        else:
            getattr(new, name)[:, 0] = value
    # sizes are told, the few per cent around them are hidden; the subject keeps its own
    scale = torch.tensor(RADII)[new.size[:, 0]] / torch.tensor(RADII)[old.size[:, 0]]
    new.radius[:, 0] = torch.where(new.size[:, 0] == old.size[:, 0], old.radius[:, 0], old.radius[:, 0] * scale)
    # no coat has the colour of its hat, and no two subjects the same
    taken = [old.accessory_color[:, 0]] + ([old.color[:, 0]] if only == "color" else [])
    new.color[:, 0] = _free(new.color[:, 0], taken)
    new.color[:, 1] = _free(new.color[:, 1], [new.color[:, 0]])
    # who now hides needs something to hide behind; what nobody has seen yet may stand in the middle
    hides = new.motion[:, 0] == MOTIONS.index("hides")
    new.occluder_at = torch.where(hides & ~old.occluder, 0.25 * old.occluder_at, old.occluder_at)
    new.occluder = old.occluder | hides
    return new.to(device)
