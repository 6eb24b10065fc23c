"""Scores of the pocket world's memory benchmark: does what comes back look as it did?

    from longtake.evaluation.world import make_tasks, run_task
    from longtake.evaluation.world_makers import Takes
    for task in make_tasks(4, seed=0, only=["away-15"]):
        print(run_task(task, Takes(pipe, "memrope")))

A task (:mod:`longtake.pocket.world.tasks`) is run on anything that makes frames: ``generate(task)`` gives those that
follow the given ones, one by one, and no more than a window of them is held. `SCORES` says what the numbers are.
``python -m longtake.evaluation.world_run`` runs many tasks and writes JSON.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from longtake.evaluation.world_scores import SCORES
from longtake.pocket.world import names
from longtake.pocket.world.captions import facts
from longtake.pocket.world.clips import LEAST, Clip, Looks, look_at, vote
from longtake.pocket.world.follow import fit_laws, saturation, sharpness, usual
from longtake.pocket.world.laws import daylight
from longtake.pocket.world.networks import OF_SUBJECT
from longtake.pocket.world.renderer import render
from longtake.pocket.world.scenes import sample_scenes
from longtake.pocket.world.tasks import TASKS, Task, make_tasks

__all__ = ["SCORES", "TASKS", "Frame", "Generate", "Task", "make_tasks", "run_task"]

Frame = np.ndarray | Tensor
Generate = Callable[[Task], Iterable[Frame]]
"""Makes the frames of a task that come after the given ones: uint8 arrays ``[height, width, 3]`` or tensors ``[3,
height, width]`` in [0, 1], at least ``task.frames - task.given``; more are not asked for."""

_GONE = 0.25  # share of frames with a subject below which it is out of sight
_HORIZONS = (60, 600, 3600)


@dataclass
class _Seen:
    """What a window showed: what the networks say, what frames are like; of places the middle picture."""

    looks: Looks
    size: tuple[int, int]
    still: Tensor | None  # [3, height, width]; an hour of them would be 140 MB
    shade: Tensor | None  # mean colour of the subject's body, [3]
    sharpness: float
    saturation: float

    @property
    def clip(self) -> Clip:
        return vote(self.looks)


def run_task(task: Task, generate: Generate) -> dict[str, float]:
    """Runs one task and gives its scores, by the names of `SCORES`; nan for what cannot be told.

    Args:
        task: of `make_tasks`.
        generate: see `Generate`; its frames may have any size that the readers take.

    Raises:
        ValueError: too few frames, or something that is none; in one sentence.
    """
    seen = _watch(task, generate(task))
    return _SCORERS[task.kind](task, seen)


def _watch(task: Task, frames: Iterable[Frame]) -> dict[str, _Seen]:
    """Looks at a video's windows, frame by frame; those of the given part are rendered."""
    still = task.kind == "place"
    waiting = sorted(task.windows, key=lambda name: task.windows[name].start, reverse=True)  # the next one last
    held: dict[str, list[Tensor]] = {}
    seen: dict[str, _Seen] = {}
    index = task.given
    size: tuple[int, int] | None = None
    for frame in frames:
        if index >= task.frames:
            break
        while waiting and task.windows[waiting[-1]].start <= index:
            name = waiting.pop()
            if index < task.windows[name].stop:
                held[name] = []
        for name in list(held):
            window = task.windows[name]
            if (index - window.start) % window.step == 0:
                held[name].append(_as_picture(frame))
                size = (held[name][-1].shape[1], held[name][-1].shape[2])
            if index == window.stop - 1 and (shown := held.pop(name)):
                seen[name] = _see(torch.stack(shown), still)
        index += 1
    if index < task.frames:
        raise ValueError(
            f"The task {task.name} wants {task.frames - task.given} frames, and there were {index - task.given}."
        )
    assert size is not None
    for name, window in task.windows.items():
        if name not in seen:
            seen[name] = _see(task.render(window.start, window.stop, size)[:: window.step], still)
    return seen


def _as_picture(frame: Frame) -> Tensor:
    """A frame as a tensor ``[3, height, width]`` in [0, 1]."""
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255
    if isinstance(frame, Tensor) and frame.dim() == 3 and frame.shape[0] == 3 and frame.is_floating_point():
        return frame.detach().float().cpu()
    raise ValueError("A frame is a uint8 array [height, width, 3] or a tensor [3, height, width] in [0, 1].")


def _see(frames: Tensor, still: bool) -> _Seen:
    looks = look_at(frames)
    return _Seen(
        looks,
        (frames.shape[-2], frames.shape[-1]),
        frames.median(0).values if still else None,
        _shade(frames, looks),
        float(sharpness(frames).mean()),
        float(saturation(frames).mean()),
    )


def _shade(frames: Tensor, looks: Looks) -> Tensor | None:
    """The mean colour ``[3]`` of the more colourful half of a disc on the subject, over the frames that show it
    clearly."""
    clear = looks.clear.nonzero()[:, 0]
    if len(clear) < LEAST:
        return None
    height, width = frames.shape[-2:]
    y = ((torch.arange(height) + 0.5) * 2 - height) / height
    x = ((torch.arange(width) + 0.5) * 2 - width) / height
    colours = []
    for i in clear.tolist():
        near = torch.hypot(x[None] - looks.x[i], y[:, None] - looks.y[i]) < 0.7 * looks.radius[i]
        body = frames[i][:, near]
        if body.shape[1]:
            chroma = body.amax(0) - body.amin(0)
            colours.append(body[:, chroma >= chroma.median()].mean(1))
    return torch.stack(colours).mean(0) if colours else None


# Scores


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _same(before: Mapping[str, str | None], after: Mapping[str, str | None], name: str) -> float:
    """1 or 0; nan if it was not known before."""
    wanted = before.get(name)
    if wanted is None or (name == "accessory_color" and wanted == "none"):
        return math.nan
    return float(after.get(name) == wanted)


def _recalled(task: Task, before: _Seen, after: _Seen) -> dict[str, float]:
    clip, known = after.clip, dict(task.truth) if task.given else dict(before.clip.values)
    scores = {"returned": float(clip.clear >= LEAST)}
    each = {name: _same(known, clip.values, name) for name in task.asked}
    scores |= {f"recall_{name}": value for name, value in each.items()}
    scores["recall"] = _mean([*each.values()])
    was = before.clip.radius
    both = was is not None and clip.radius is not None
    scores["radius_error"] = abs(math.log(clip.radius / was)) if both else math.nan  # type: ignore[operator]
    shades = before.shade is not None and after.shade is not None
    scores["shade_error"] = float((after.shade - before.shade).abs().mean()) if shades else math.nan  # type: ignore[operator]
    return scores | {"told": _told(task, clip, -1)}


def _recall(task: Task, seen: dict[str, _Seen]) -> dict[str, float]:
    return _recalled(task, seen["before"], seen["after"])


def _returns(task: Task, seen: dict[str, _Seen]) -> dict[str, float]:
    """Whenever it leaves and returns: seconds in sight, then out of sight, then in sight."""
    clips = [s.clip for s in seen.values()]
    there = [c.clear >= LEAST for c in clips]
    gone = [c.seen < _GONE for c in clips]
    parts = [*seen.values()]
    # the first absence of at least two seconds that follows a sight
    for second in range(1, len(clips) - 1):
        if gone[second] and gone[second + 1] and any(there[:second]):
            until = next((i for i in range(second, len(clips)) if there[i]), len(clips))
            before = [p for p, t in zip(parts[:second], there[:second], strict=True) if t]
            after = [p for p, t in zip(parts[until : until + 3], there[until : until + 3], strict=True) if t]
            both = _together(before), _together(after or parts[-1:])
            return {"left": 1.0, **_recalled(task, *both)}
    return {"left": 0.0, "returned": math.nan, "recall": math.nan, "told": _told(task, clips[0], 0)}


def _together(parts: Sequence[_Seen]) -> _Seen:
    """Several windows as one; of what frames are like, the first's."""
    joined = {
        f.name: torch.cat([getattr(p.looks, f.name) for p in parts]) for f in fields(Looks) if f.name != "subject"
    }
    subject = {name: torch.cat([p.looks.subject[name] for p in parts]) for name in OF_SUBJECT}
    shades = [p.shade for p in parts if p.shade is not None]
    shade = torch.stack(shades).mean(0) if shades else None
    return replace(parts[0], looks=Looks(subject=subject, **joined), shade=shade)


def _told(task: Task, clip: Clip, shot: int) -> float:
    """The share of what the prompt names of shape, place and light that is read."""
    wanted = facts(task.scene(shot), 0)
    told = [name for name in ("shape", "place", "light") if wanted[name] != "turning"]
    return _mean([float(clip.values[name] == wanted[name]) for name in told])


def _place(task: Task, seen: dict[str, _Seen]) -> dict[str, float]:
    before, after = seen["before"], seen["after"]
    known = dict(task.truth) if task.given else dict(before.clip.values)
    values = after.clip.values
    there = float(values["place"] == task.truth["place"])
    each = [_same(known, values, name) if there else 0.0 for name in task.asked]
    # what could be seen all the time is left out
    assert before.still is not None and after.still is not None
    width = before.size[1]
    half = {"landmark2": slice(0, width // 2), "landmark3": slice(width - width // 2, width)}
    part = half[task.asked[0]] if len(task.asked) == 1 else slice(0, width)
    off = (after.still - before.still)[..., part].abs().mean()
    return {
        "recall_landmark": _mean(each),
        "recall_place": float((1 - off / _rearranged(task, before.size, part)).clamp(0, 1)),
        "told": _told(task, after.clip, -1),
    }


def _rearranged(task: Task, size: tuple[int, int], part: slice) -> Tensor:
    """How much a picture differs when the same kind of place is arranged anew: the mean of eight."""
    window = task.windows["before"]
    scene, moments = task.scene(0), task.clock[window.start : window.stop : 8]
    others = scene.select([0] * 8).clone()
    drawn = sample_scenes(8, 83, "plain")
    for name in ("landmark", "landmark_shift", "sun", "hills"):
        setattr(others, name, getattr(drawn, name))
    pair = [render(s, moments, size).video[..., part].median(1).values for s in (scene, others)]
    return (pair[0] - pair[1]).abs().mean()


def _identity(task: Task, seen: dict[str, _Seen]) -> dict[str, float]:
    clips = {float(name): s.clip for name, s in seen.items()}
    first = next((second for second, c in clips.items() if c.clear >= LEAST), None)
    scores = {"in_sight": _mean([float(c.clear >= LEAST) for c in clips.values()])}
    scores["told"] = _mean([_told(task, c, 0) for c in clips.values()])
    scene = task.scene(0)
    light = float(daylight(scene, torch.zeros(1))[0, 0])
    last = [*seen.values()][-max(1, len(seen) // 5) :]
    sharp, strong = usual(int(scene.place[0]), int(light < 0.75) + int(light < 0.25), last[0].size)
    scores["world_sharpness"] = _mean([s.sharpness for s in last]) / sharp
    scores["world_saturation"] = _mean([s.saturation for s in last]) / strong
    if first is None:
        return scores | {"identity": math.nan, "identity_seconds": math.nan}
    known = clips[first].values
    same = {
        second: _mean([_same(known, c.values, name) for name in task.asked])
        for second, c in clips.items()
        if second > first
    }
    scores["identity"] = _mean([*same.values()])
    ends = task.frames / names.FPS
    for horizon in _HORIZONS:
        if horizon <= ends:
            scores[f"identity_{horizon}s"] = _mean([v for s, v in same.items() if 0.8 * horizon < s <= horizon])
    scores["identity_seconds"] = next((s for s, v in same.items() if v < 1), ends)
    return scores


def _law(looks: Looks) -> tuple[int, Tensor]:
    """Which motion a track has, and how far it is from each law."""
    there = looks.found > 0.5
    certain = there & (looks.shown > 0.85)
    cost, far = fit_laws(looks.x[None], looks.y[None], there[None], certain[None])
    return int(cost[0].argmin()), far[0]


def _changes(task: Task, seen: dict[str, _Seen]) -> dict[str, float]:
    obeyed: list[float] = []
    alone: list[float] = []
    hidden: list[float] = []
    worn: str | None = None
    for index, (_, s) in enumerate(seen.items()):
        looks = s.looks
        late = Looks(
            subject={name: p[32::4] for name, p in looks.subject.items()},
            **{f.name: getattr(looks, f.name)[32::4] for f in fields(Looks) if f.name != "subject"},
        )
        values = vote(late).values | {"motion": names.MOTIONS[_law(looks)[0]]}
        wanted = facts(task.scene(index), 0)
        right = {
            name: float(values[name] == wanted[name])
            for name in ("place", "light", "shape", "color", "pattern", "motion")
        }
        if index == 0:
            worn = values["accessory"]
            continue
        was = facts(task.scene(index - 1), 0)
        for name, value in right.items():
            (obeyed if wanted[name] != was[name] else alone).append(value)
        if "accessory" in task.asked:
            hidden.append(_same({"accessory": worn}, values, "accessory"))
    return {"obeyed": _mean(obeyed), "left_alone": _mean(alone), "hidden_kept": _mean(hidden)}


def _motion(task: Task, seen: dict[str, _Seen]) -> dict[str, float]:
    wanted = int(task.scene(0).motion[0, 0])
    found = [_law(s.looks) for s in seen.values()]
    return {
        "law": _mean([float(motion == wanted) for motion, _ in found]),
        "law_error": _mean([float(far[wanted]) for _, far in found]),
    }


_SCORERS: dict[str, Callable[[Task, dict[str, _Seen]], dict[str, float]]] = {
    "recall": _recall,
    "return": _returns,
    "place": _place,
    "identity": _identity,
    "changes": _changes,
    "motion": _motion,
}
