"""A memory benchmark with ground truth: takes in which something is lost from sight, and what must come back.

Each task is a scene of the world, the prompts that ask for it (without what only a memory can know: colours, what is
worn, what stands where), the frames to look at before the loss and after it, and what is true. A score compares a
video's own before and after, so it is as fair to a model that begins from the prompt as to one that is given the
scene's first frames; for the latter the truth is there as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.pocket.world import names
from longtake.pocket.world.captions import facts, hidden_facts
from longtake.pocket.world.reader import Reading, read
from longtake.pocket.world.renderer import render
from longtake.pocket.world.scenes import RADII, Scenes, sample_scenes
from longtake.pocket.world.words import compose

TASKS = {
    "return": "a subject leaves the picture for four seconds and more, and comes back: is it the same?",
    "occlusion": "a subject passes behind a tree or a pillar: is it the same on the other side?",
    "pan": "the camera looks aside for ten seconds and comes back: is the place the same?",
    "night": "a night passes: has the subject the colours of the day before?",
}
_ATTRIBUTES = ("color", "shape", "accessory", "accessory_color")


@dataclass(frozen=True)
class Task:
    """One take to make and to judge.

    Attributes:
        name: of `TASKS`.
        scene: one scene.
        script: what is asked for from which frame on, the first from 0.
        frames: how long the take must be.
        before, after: frames to look at, ``[n]``.
        truth: what a model that was given the scene would have to show.
    """

    name: str
    scene: Scenes
    script: tuple[tuple[int, str], ...]
    frames: int
    before: Tensor
    after: Tensor
    truth: dict[str, str]


def make_tasks(count: int, seed: int, only: tuple[str, ...] = tuple(TASKS)) -> list[Task]:
    """``count`` tasks of each kind, the same for the same seed.

    Raises:
        ValueError: a name that is not in `TASKS`.
    """
    for name in only:
        if name not in TASKS:
            raise ValueError(f"A task is one of {', '.join(TASKS)}, not {name}.")
    return [
        _make(name, sample_scenes(count, seed * 7 + list(TASKS).index(name), "plain"), i)
        for name in only
        for i in range(count)
    ]


def _make(name: str, scenes: Scenes, index: int) -> Task:
    scene = scenes.select([index]).clone()
    for phase in (scene.phase, scene.light_phase):
        phase.zero_()
    if name in ("return", "occlusion"):
        # a subject with something on
        scene.accessory[:, 0] = 1 + index % 2
        scene.motion[:, 0] = names.MOTIONS.index("leaves" if name == "return" else "hides")
        scene.occluder[:] = name == "occlusion"
        if name == "occlusion":  # in the middle, and the subject small: it is seen nearly whole on both sides
            scene.occluder_at.zero_()
            scene.size[:, 0], scene.radius[:, 0] = 0, RADII[0]
        before, after, frames = ((0, 20), (186, 210), 216) if name == "return" else ((0, 12), (38, 58), 60)
    elif name == "pan":
        scene.camera[:] = names.CAMERAS.index("pan")
        before, after, frames = (0, 48), (280, 328), 336
    else:
        scene.light[:] = names.LIGHTS.index("turning")
        before, after, frames = (0, 48), (600, 648), 648
    told = facts(scene, 0)
    for secret in ("color", "pattern", "size"):
        told.pop(secret)
    return Task(
        name=name,
        scene=scene,
        script=((0, compose(told)[0]),),
        frames=frames,
        before=torch.arange(*before),
        after=torch.arange(*after),
        truth=facts(scene, 0) | hidden_facts(scene, 0),
    )


def _majority(reading: Reading, name: str) -> str | None:
    """What is read most often in frames in which the subject is whole, or nearly."""
    good = reading.visible & (reading.area > 0.6 * reading.area.amax())
    values = getattr(reading, name)[good]
    if not len(values):
        return None
    tuples = {"color": names.COLORS, "shape": names.SHAPES, "accessory": names.ACCESSORIES}
    return tuples.get(name, names.COLORS)[int(values.mode().values)]


def seen(frames: Tensor) -> dict[str, str]:
    """What a few frames ``[frames, 3, height, width]`` of one subject show, by name; nothing if none is there."""
    reading = read(frames)
    found = {name: value for name in _ATTRIBUTES if (value := _majority(reading, name)) is not None}
    if found.get("accessory", "none") == "none":
        found["accessory_color"] = "none"
    return found


def score(task: Task, video: Tensor) -> dict[str, float]:
    """How much of what was there is there again, each from 0 to 1.

    Of a subject: for each attribute whether it is read the same before and after (0 if it is gone), and ``true_...``
    whether it is read after as the scene has it. Of a place (the task "pan"): ``place``, 1 where the picture is as it
    was, 0 where it differs as much as the same kind of place with everything hidden arranged anew.

    Args:
        task: what was asked for.
        video: ``[frames, 3, height, width]`` in [0, 1], at least ``task.frames`` long.

    Raises:
        ValueError: a video that is too short.
    """
    if len(video) < task.frames:
        raise ValueError(f"The task {task.name} wants {task.frames} frames, not {len(video)}.")
    before, after = video[task.before.to(video.device)], video[task.after.to(video.device)]
    if task.name == "pan":
        # the median over time leaves out what moves
        off = (before.median(0).values - after.median(0).values).abs().mean()
        return {"place": float((1 - off / _rearranged(task, video)).clamp(0, 1))}
    was, now = seen(before), seen(after)
    asked = ("color",) if task.name == "night" else _ATTRIBUTES
    result = {name: float(name in was and was[name] == now.get(name)) for name in asked}
    return result | {f"true_{name}": float(task.truth[name] == now.get(name)) for name in asked}


def _rearranged(task: Task, video: Tensor) -> Tensor:
    """How much a picture differs when the same kind of place is arranged anew: the mean of eight."""
    size = (video.shape[-2], video.shape[-1])
    others = task.scene.select([0] * 8).clone()
    drawn = sample_scenes(8, 83, "plain")
    for name in ("landmark", "landmark_shift", "sun", "hills"):
        setattr(others, name, getattr(drawn, name))
    both = [render(s, task.before[::8], size).video.median(1).values for s in (task.scene, others)]
    return (both[0] - both[1]).abs().mean().to(video.device)
