"""Trains the networks that read pictures of the pocket world, on pictures rendered for it.

    python -m longtake.training.world_readers --out readers.safetensors

Everything follows from ``--seed``: the same command gives the same networks on the same machine. A training that was
stopped goes on when the command is given again. Every picture is rendered once and used four times on average, each
time made worse in another way: blurred, noisy, paler, off in colour, as those of a model are. The last networks are the
running average of all.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from longtake.pocket.world import names
from longtake.pocket.world.laws import camera_x, daylight, pose
from longtake.pocket.world.networks import (
    CELL,
    HEIGHT,
    MIDDLE_RADIUS,
    OF_PLACE,
    OF_SUBJECT,
    WINDOW,
    Readers,
    save_readers,
)
from longtake.pocket.world.renderer import render
from longtake.pocket.world.scenes import JITTER, LEVELS, RADII, Scenes, join, sample_scenes
from longtake.pocket.world.segment import working_size
from longtake.training.muon import Muon

SEED = 20  # of the shipped weights
_STEPS = 3600
_BATCH, _FRAMES, _USES = 48, 4, 4  # pictures of a step, of a scene, and how often each is used on average
_FRESH = _BATCH // _USES  # pictures that come new with a step
_POOL = 1536  # pictures from which batches are drawn
_RATE, _ADAM_RATE, _AVERAGE = 2e-2, 2e-3, 0.995
_SIZES = (64, 96, 96, 128)  # at which pictures are rendered, in turn
_SHOWN = 0.4  # share of a subject in sight from which it must be read
_FOUND = 0.25  # ... and from which it must be found


@dataclass
class Examples:
    """Rendered pictures and what is true of them, everything ``[pictures, ...]``.

    Attributes:
        pictures: ``[n, 3, 96, 96]``.
        x, y: middles of two subjects, in pixels, ``[n, 2]``. shown: how much of each is in sight, 0 if there is none.
        radius: ``[n, 2]``.
        subject: labels in the order of `networks.OF_SUBJECT`, ``[n, 2, labels]``.
        place: labels in the order of `networks.OF_PLACE`, ``[n, labels]``, -1 where nothing is asked.
    """

    pictures: Tensor
    x: Tensor
    y: Tensor
    shown: Tensor
    radius: Tensor
    subject: Tensor
    place: Tensor

    def select(self, index: Tensor) -> Examples:
        """Some of them."""
        return Examples(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def replace(self, index: Tensor, others: Examples) -> None:
        """Puts others in place of some of them."""
        for f in fields(self):
            getattr(self, f.name)[index] = getattr(others, f.name)


def draw_examples(count: int, seed: int, size: int) -> Examples:
    """Renders pictures of scenes of `LEVELS`, `_FRAMES` of each, at a size."""
    scenes = _scenes(-(-count // _FRAMES), seed)
    frames = torch.randint(0, 5000, (len(scenes), _FRAMES), generator=torch.Generator().manual_seed(seed))
    drawn = render(scenes, frames, size)

    def flat(x: Tensor) -> Tensor:
        return x[:, None].expand(-1, _FRAMES, *x.shape[1:]).flatten(0, 1)

    where, camera = pose(scenes, frames), camera_x(scenes, frames)
    there = torch.stack([torch.ones_like(scenes.second), scenes.second], 1)
    area = _areas()[scenes.shape, scenes.accessory] * scenes.radius.square()
    seen = drawn.masks.sum((-1, -2)) * (2 / size) ** 2 / area[:, None]
    level = daylight(scenes, frames).flatten()
    unclear = torch.minimum((level - 0.75).abs(), (level - 0.25).abs()) < 0.08
    light = torch.where(unclear, -1, (level < 0.75).long() + (level < 0.25).long())
    still = camera.flatten().abs() < 0.05
    spots = [torch.where(still, flat(scenes.landmark[:, spot]), -1) for spot in (1, 2)]
    return Examples(
        pictures=working_size(drawn.video.flatten(0, 1)),
        x=((where.x - camera[..., None] + 1) * HEIGHT / 2).flatten(0, 1),
        y=((where.y + 1) * HEIGHT / 2).flatten(0, 1),
        shown=(seen.clamp(max=1) * there[:, None]).flatten(0, 1),
        radius=flat(scenes.radius),
        subject=flat(torch.stack([_label(scenes, name) for name in OF_SUBJECT], 2)),
        place=torch.stack([flat(scenes.place), light, *spots], 1),
    )


def _label(scenes: Scenes, name: str) -> Tensor:
    """A subject's attribute; -1 for the size of what is near, where small is as large as big is elsewhere."""
    label: Tensor = getattr(scenes, name)
    if name != "size":
        return label
    near = scenes.radius > torch.tensor(RADII)[scenes.size] * (1 + JITTER)
    near[:, 1] = False
    return torch.where(near, -1, label)


def join_examples(parts: list[Examples]) -> Examples:
    """Several as one."""
    return Examples(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Examples)})


def _scenes(count: int, seed: int) -> Scenes:
    """Scenes of `LEVELS` in equal parts."""
    parts = [sample_scenes(-(-count // len(LEVELS)), seed * len(LEVELS) + i, at) for i, at in enumerate(LEVELS)]
    return join(parts).select(slice(0, count))


@lru_cache(maxsize=1)
def _areas() -> Tensor:
    """How much of a picture a subject of radius 1 covers, in square units, ``[shapes, accessories]``."""
    kinds = [(s, a) for s in range(len(names.SHAPES)) for a in range(len(names.ACCESSORIES))]
    scenes = sample_scenes(len(kinds), 1, "plain")
    scenes.shape[:, 0], scenes.accessory[:, 0] = torch.tensor(kinds).unbind(1)
    scenes.motion[:, 0], scenes.size[:, 0], scenes.radius[:, 0] = names.MOTIONS.index("circles"), 0, 0.28
    scenes.anchor.zero_()
    covered = render(scenes, torch.arange(0, 12, 3), 96).whole[:, :, 0].sum((-1, -2)).mean(1)
    return (covered * (2 / 96) ** 2 / 0.28**2).view(len(names.SHAPES), len(names.ACCESSORIES))


def worsen(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures that are each worse in ways of their own: blur, noise, contrast, brightness, saturation, a tint."""
    n = len(pictures)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    blur = draw(-1.0, 1.2).clamp(min=0.05)
    line = torch.exp(-0.5 * (torch.arange(-3, 4) / blur[:, None]).square())
    line = (line / line.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None, None]
    flat = pictures.flatten(0, 1)[None]
    flat = F.conv2d(F.pad(flat, (3, 3, 0, 0), "replicate"), line, groups=3 * n)
    flat = F.conv2d(F.pad(flat, (0, 0, 3, 3), "replicate"), line.transpose(2, 3), groups=3 * n)
    worse = flat[0].view_as(pictures)
    grey = worse.mean(1, keepdim=True)
    worse = grey + (worse - grey) * draw(0.75, 1.1, 1, 1, 1) * draw(0.96, 1.04, 3, 1, 1)
    worse = (worse - 0.5) * draw(0.8, 1.08, 1, 1, 1) + 0.5 + draw(-0.05, 0.05, 1, 1, 1)
    noise = torch.randn(pictures.shape, generator=generator) * draw(-0.03, 0.04, 1, 1, 1).clamp(min=0)
    return (worse + noise).clamp(0, 1)


def loss(
    networks: Readers, examples: Examples, pictures: Tensor, generator: torch.Generator, finds: bool = True
) -> Tensor:
    """What is wrong with what the networks say of some pictures, as one number: of what a subject is like, and of where
    it is (``finds``) or of the place. The latter two are learned soon, so they take turns."""
    other = _finding if finds else _surveying
    return _looking(networks, examples, pictures, generator) + other(networks, examples, pictures)


def _finding(networks: Readers, examples: Examples, pictures: Tensor) -> Tensor:
    maps = networks.finder(F.avg_pool2d(pictures, 2) * 2 - 1)
    height, width = maps.shape[-2:]
    wanted, ignored = torch.zeros_like(maps[:, 0]), torch.zeros_like(maps[:, 0], dtype=torch.bool)
    off = torch.zeros_like(maps[:, 1:])
    index = torch.arange(len(pictures))
    for subject in (0, 1):
        column, row = examples.x[:, subject] / CELL, examples.y[:, subject] / CELL
        near = torch.hypot(torch.arange(width) + 0.5 - column[:, None, None],
                           torch.arange(height)[:, None] + 0.5 - row[:, None, None])  # fmt: skip
        shown = examples.shown[:, subject]
        # around the middle nothing is asked, nor of what is hardly there
        ignored |= (near < 1.6) & (shown > 0.03)[:, None, None]
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (shown > _FOUND)
        i, c, r = index[inside], column[inside].long(), row[inside].long()
        wanted[i, r, c] = 1.0
        off[i, 0, r, c], off[i, 1, r, c] = column[inside] - c - 0.5, row[inside] - r - 0.5
    sure = wanted > 0
    each = F.binary_cross_entropy_with_logits(maps[:, 0], wanted, reduction="none")
    each = each * torch.where(sure, 4.0, torch.where(ignored, 0.0, 1.0))
    where = F.smooth_l1_loss(maps[:, 1:], off, reduction="none").sum(1)[sure]
    return 20 * each.mean() + where.mean()


def _looking(networks: Readers, examples: Examples, pictures: Tensor, generator: torch.Generator) -> Tensor:
    n = len(pictures)
    # the first subject everywhere, the second where there is one, and somewhere without either
    who = torch.cat([torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.long)])
    index = torch.arange(n).repeat(2)
    good = (who == 0) | (examples.shown[index, who] > 0.1)
    index, who = index[good], who[good]
    jitter = torch.randn(2, len(index), generator=generator) * 2.5
    x, y = examples.x[index, who] + jitter[0], examples.y[index, who] + jitter[1]
    inside = (x > -8) & (x < HEIGHT + 8) & (y > -8) & (y < HEIGHT + 8)
    elsewhere = torch.rand(2, len(index), generator=generator) * HEIGHT
    apart = torch.hypot(
        elsewhere[0][:, None] - examples.x[index], elsewhere[1][:, None] - examples.y[index]
    ).masked_fill(examples.shown[index] < 0.03, 1e3)
    absent = (torch.rand(len(index), generator=generator) < 0.12) & (apart.amin(1) > WINDOW / 2)
    x, y = torch.where(absent, elsewhere[0], x), torch.where(absent, elsewhere[1], y)
    keep = inside | absent
    index, who, x, y, absent = index[keep], who[keep], x[keep], y[keep], absent[keep]
    found = networks.look(pictures[index], x, y)
    shown = torch.where(absent, 0.0, examples.shown[index, who])
    total = F.binary_cross_entropy_with_logits(found["shown"][:, 0], shown)
    clear = shown > _SHOWN
    weight = shown[clear] / shown[clear].sum().clamp(min=1)
    kinds = dict(zip(OF_SUBJECT, examples.subject[index, who].unbind(1), strict=True))
    for name in OF_SUBJECT:
        label = kinds[name][clear]
        each = F.cross_entropy(found[name][clear], label, reduction="none", ignore_index=-1)
        if name == "accessory_color":
            each = each * (kinds["accessory"][clear] > 0)
        total = total + (each * weight).sum()
    radius = (examples.radius[index, who][clear] / MIDDLE_RADIUS).log()
    return total + 2 * (F.smooth_l1_loss(found["radius"][clear, 0], radius, reduction="none", beta=0.05) * weight).sum()


def _surveying(networks: Readers, examples: Examples, pictures: Tensor) -> Tensor:
    found = networks.survey(pictures)
    total = pictures.new_zeros(())
    for name, label in zip(OF_PLACE, examples.place.unbind(1), strict=True):
        if name.startswith("landmark"):
            # the kind among those of the place that it is
            logits = found[name].unflatten(1, (len(names.PLACES), -1))
            logits = logits[torch.arange(len(pictures)), examples.place[:, 0]]
        else:
            logits = found[name]
        total = total + F.cross_entropy(logits, label, ignore_index=-1, reduction="sum") / (label >= 0).sum().clamp(1)
    return total


def train(steps: int, seed: int, out: Path, pool: int = _POOL, save_every: int = 100) -> Readers:
    """Trains networks for a number of steps, writes their running average to ``out`` and gives it; tells how it goes.

    Every ``save_every`` steps all that it takes to go on is written beside ``out``, as ``.state``; a call with the same
    arguments goes on from there, exactly as if nothing had stopped it, and the last step removes it.

    Args:
        steps: of `_BATCH` pictures; ``seed``: of everything.
        pool: pictures from which batches are drawn, a multiple of those of `draw_batch`: of many scenes, as a batch of
            a few scenes says little.

    Raises:
        ValueError: the state there is of another training.
    """
    torch.manual_seed(seed)
    networks = Readers().train()
    networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(networks).eval().requires_grad_(False)
    optimizer = Muon(networks.parameters(), lr=_RATE, adam_lr=_ADAM_RATE)
    rates = [group["lr"] for group in optimizer.param_groups]
    state, settings = state_path(out), {"steps": steps, "seed": seed, "pool": pool}
    start, told, spent = 0, 0.0, 0.0
    if state.exists():
        kept = torch.load(state, weights_only=True)
        if kept["settings"] != settings:
            raise ValueError(f"{state} is of another training, {kept['settings']}, not {settings}.")
        networks.load_state_dict(kept["networks"])
        average.load_state_dict(kept["average"])
        optimizer.load_state_dict(kept["optimizer"])
        start, told, spent = kept["step"], kept["told"], kept["spent"]
    since = time.process_time() - spent
    # batches come and go in turn: before step k the pool holds those from k on, batch b in slot b % slots
    slots = pool // _FRESH
    held = join_examples([draw_batch(seed, b) for b in sorted(range(start, start + slots), key=lambda b: b % slots)])
    for step in range(start, steps):
        held.replace(torch.arange(_FRESH) + step % slots * _FRESH, draw_batch(seed, step + slots))
        generator = torch.Generator().manual_seed(seed * 1_000_000 + step)
        examples = held.select(torch.randint(0, pool, (_BATCH,), generator=generator))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 20, 1.25 * (1 - step / steps))
        value = loss(networks, examples, worsen(examples.pictures, generator), generator, step % 2 == 0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        keep = min(_AVERAGE, (1 + step) / (10 + step))
        with torch.no_grad():
            for mine, theirs in zip(average.state_dict().values(), networks.state_dict().values(), strict=True):
                if mine.dtype.is_floating_point:
                    mine.lerp_(theirs, 1 - keep)
        told = float(value.detach()) if step == 0 else 0.98 * told + 0.02 * float(value.detach())
        if (step + 1) % save_every == 0 or step + 1 == steps:
            spent = time.process_time() - since
            save_readers(average, out)
            kept = {"networks": networks.state_dict(), "average": average.state_dict()}
            kept |= {"optimizer": optimizer.state_dict(), "settings": settings}
            part = state.with_name(state.name + ".part")
            torch.save(kept | {"step": step + 1, "told": told, "spent": spent}, part)
            part.replace(state)
            print(
                f"step {step + 1} of {steps}, loss {told:.3f}, {spent / 60:.1f} minutes of processor time", flush=True
            )
    state.unlink()
    return average


def draw_batch(seed: int, batch: int) -> Examples:
    """The pictures that come new with a step, those of a batch of a seed."""
    return draw_examples(_FRESH, seed * 1_000_000 + batch, _SIZES[batch % len(_SIZES)])


def state_path(out: Path) -> Path:
    """Where a training keeps what it takes to go on."""
    return out.with_name(out.name + ".state")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m longtake.training.world_readers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="the file of weights, .safetensors")
    parser.add_argument("--steps", type=int, default=_STEPS, help="1 to 1000000")
    parser.add_argument("--seed", type=int, default=SEED, help="of everything")
    parser.add_argument("--overwrite", action="store_true", help="begin anew, and replace a file that is there")
    args = parser.parse_args()
    if not 1 <= args.steps <= 1_000_000:
        parser.error(f"--steps must be from 1 to 1000000, not {args.steps}.")
    if args.out.suffix != ".safetensors":
        parser.error(f"--out must be a .safetensors file, not {args.out}.")
    state = state_path(args.out)
    if args.out.exists() and not state.exists() and not args.overwrite:
        parser.error(f"{args.out} is there already; give --overwrite to replace it.")
    if not args.out.parent.is_dir():
        parser.error(f"There is no folder {args.out.parent}.")
    if args.overwrite:
        state.unlink(missing_ok=True)
    try:
        train(args.steps, args.seed, args.out)
    except ValueError as error:
        parser.error(f"{error} Give --overwrite to begin anew.")


if __name__ == "__main__":
    main()
