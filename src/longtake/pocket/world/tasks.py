"""A memory benchmark with ground truth: takes in which something is lost from sight for a known time, and what must be
there again.

A task is a video to be made: what is said when, and what a perfect memory would show, frame by frame. In most tasks the
beginning is given, rendered, until the moment when what was lost should come back; so it is known exactly what there is
to remember and for how long it was out of sight, whatever a model would have done in between. The world's laws are
periodic, and nobody leaves for a minute by law: time stands still, or runs in whole periods, while nothing of what is
lost can be seen (`Task.clock`). Other tasks begin from the prompt alone. :mod:`longtake.evaluation.world` scores them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from longtake.pocket.world import names
from longtake.pocket.world.captions import facts, hidden_facts, truth
from longtake.pocket.world.renderer import render
from longtake.pocket.world.scenes import RADII, Scenes, change, sample_scenes
from longtake.pocket.world.words import compose

CHUNK, FIRST = 12, 9
"""Frames of a chunk, and of a take's first: what is given is of whole chunks."""
HIDDEN = ("color", "pattern", "size", "accessory", "accessory_color")
"""What prompts of memory tasks do not tell of a subject: only history can know it."""
LEVELS = ("plain", "calm")
"""Of the scenes of tasks, see `sample_scenes`: calm for models that were trained on calm ones, plain for all others."""
# Not asked of calm scenes: nobody wears anything, all are of one colour, and how large they are depends on the level.
_NOT_CALM = ("accessory", "accessory_color", "pattern", "size")


@dataclass(frozen=True)
class Window:
    """Frames ``start`` to ``stop``, every ``step``-th, that are looked at together; ``shot`` is their number in the
    script, from 0."""

    start: int
    stop: int
    step: int = 4
    shot: int = 0


@dataclass(frozen=True)
class Task:
    """One take to make and to judge.

    Attributes:
        name: of `TASKS`. number: which of those of its name.
        kind: how it is scored: recall, place, identity, changes or motion.
        shots: from which frame on it is which scene, one scene each, the first from 0.
        clock: the world's frame that each of the video's shows, ``[frames]``.
        script: what is said from which frame on, the first from 0.
        given: how many frames, rendered, are there from the beginning; 0 if there is nothing but the prompt.
        windows: frames to look at, by name.
        asked: what must be remembered: attributes of the subject, or landmarks.
        truth: what is so, by attribute, as far as it does not change: what is asked, and what prompts tell.
        away: seconds for which what is asked cannot be seen before it should be there again; 0 if it always can.
        level: of `LEVELS`.
    """

    name: str
    number: int
    kind: str
    shots: tuple[tuple[int, Scenes], ...]
    clock: Tensor
    script: tuple[tuple[int, str], ...]
    given: int = 0
    windows: Mapping[str, Window] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    truth: Mapping[str, str] = field(default_factory=dict)
    away: float = 0.0
    level: str = "plain"

    @property
    def frames(self) -> int:
        """How long the video is."""
        return len(self.clock)

    def scene(self, shot: int = 0) -> Scenes:
        """The scene of a shot."""
        return self.shots[shot][1]

    def render(self, start: int, stop: int, size: int | tuple[int, int] = names.SIZE) -> Tensor:
        """What a perfect memory would show, ``[frames, 3, height, width]`` in [0, 1]."""
        parts = []
        ends = [begin for begin, _ in self.shots[1:]] + [self.frames]
        for (begin, scene), end in zip(self.shots, ends, strict=True):
            clock = self.clock[max(start, begin) : min(stop, end)]
            if len(clock):
                parts.append(render(scene, clock, size).video[0])
        return torch.cat(parts)

    def rendered(self, start: int, stop: int, size: int | tuple[int, int] = names.SIZE) -> Iterator[Tensor]:
        """The same frame by frame, ``[3, height, width]``, in constant memory."""
        for first in range(start, stop, 48):
            yield from self.render(first, min(stop, first + 48), size)


@dataclass(frozen=True)
class TaskInfo:
    """What a task asks, in a line, what makes number ``n`` of it from a scene, and what from a calm one: nothing where
    it takes more than there is in calm scenes."""

    question: str
    make: Callable[[str, int, Scenes], Task]
    calm: Callable[[str, int, Scenes], Task] | None = None


def _told(scene: Scenes, secrets: Sequence[str] = ("color", "pattern", "size")) -> str:
    told = facts(scene, 0)
    for secret in secrets:
        told.pop(secret, None)
    return compose(told)[0]


def _known(scene: Scenes) -> dict[str, str]:
    return facts(scene, 0) | hidden_facts(scene, 0)


def _asked(scene: Scenes) -> tuple[str, ...]:
    """What is asked of a subject: no colour of what it does not wear."""
    return HIDDEN if int(scene.accessory[0, 0]) else HIDDEN[:-1]


def _aligned(frames: int) -> int:
    """At least as many frames, of whole chunks."""
    return FIRST + -(-max(0, frames - FIRST) // CHUNK) * CHUNK


def _settled(scene: Scenes, number: int) -> Scenes:
    """The subject with a motion that suits it and keeps it in sight."""
    settled = scene.clone()
    shape = names.SHAPES[int(scene.shape[0, 0])]
    suited = [m for m in names.SUITED[shape] if m in names.SHORT or m == "walks"]
    settled.motion[:, 0] = names.MOTIONS.index(suited[number % len(suited)])
    return settled


# Of a subject


def _away(seconds: float) -> Callable[[str, int, Scenes], Task]:
    def make(name: str, number: int, scene: Scenes) -> Task:
        scene.phase.zero_()
        scene.motion[:, 0] = names.MOTIONS.index("leaves")
        gone = int((~truth(scene, torch.arange(96), 64).in_picture[0, :, 0]).nonzero()[0])
        hold = round(seconds * names.FPS)
        given = _aligned(36 + gone + hold)
        home = given - gone - hold
        # at home a wing beat lasts 12 frames; away, all frames are the same
        clock = torch.cat([(torch.arange(home) - home) % 12, torch.arange(gone), torch.full((hold,), 96)])
        back = _settled(scene, number)
        after = 72
        return Task(
            name,
            number,
            "recall",
            ((0, scene), (given, back)),
            torch.cat([clock, torch.arange(after)]),
            ((0, _told(scene)), (given, _told(back))),
            given,
            {"before": Window(0, home, 3), "after": Window(given + CHUNK, given + after, 4, 1)},
            _asked(scene),
            _known(back),
            hold / names.FPS,
        )

    return make


def _occlusion(name: str, number: int, scene: Scenes) -> Task:
    scene.motion[:, 0] = names.MOTIONS.index("hides")
    scene.phase.zero_()
    # in the middle, and the subject small: it is seen nearly whole on both sides
    scene.occluder[:] = True
    scene.occluder_at.zero_()
    scene.size[:, 0], scene.radius[:, 0] = 0, RADII[0]
    given = FIRST + 2 * CHUNK
    clock = torch.arange(87, 87 + given + 48)  # behind it at 120
    windows = {"before": Window(0, 20, 2), "after": Window(given + 12, given + 40, 2)}
    known, asked = _known(scene), _asked(scene)
    return Task(
        name, number, "recall", ((0, scene),), clock, ((0, _told(scene)),), given, windows, asked, known, 12 / names.FPS
    )


def _return(name: str, number: int, scene: Scenes) -> Task:
    scene.motion[:, 0] = names.MOTIONS.index("leaves")
    period = names.PERIODS[names.MOTIONS.index("leaves")]
    # whatever part of the period a model begins with, the subject is there, leaves, and comes back
    frames = 2 * period + 48
    windows = {f"second{i}": Window(16 * i, 16 * i + 16, 2) for i in range(frames // 16)}
    known, asked = _known(scene), _asked(scene)
    clock, script = torch.arange(frames), ((0, _told(scene)),)
    return Task(name, number, "return", ((0, scene),), clock, script, 0, windows, asked, known, 4.4)


def _night(name: str, number: int, scene: Scenes) -> Task:
    scene.light[:] = names.LIGHTS.index("turning")
    scene.light_phase.zero_()
    windows = {"before": Window(16, 64), "after": Window(600, 648)}
    known, asked = _known(scene), _asked(scene)
    clock, script = torch.arange(648), ((0, _told(scene)),)
    return Task(name, number, "recall", ((0, scene),), clock, script, 0, windows, asked, known)


# Of a place


def _aside(seconds: float) -> Callable[[str, int, Scenes], Task]:
    def make(name: str, number: int, scene: Scenes) -> Task:
        scene.camera[:] = names.CAMERAS.index("pan")
        # whole periods of what the subject does, so that it goes on as it would
        if names.PERIODS[int(scene.motion[0, 0])] > 48:
            scene.motion[:, 0] = names.MOTIONS.index("bounces")
        rest = 72  # frames that the camera rests aside by law
        more = max(0, round((seconds * names.FPS - rest) / 48))
        loops = torch.arange(130, 178).repeat(more)
        clock = torch.cat([torch.arange(1, 130), loops, torch.arange(130, 202 + 132)])
        given = 201 + 48 * more
        assert given == _aligned(given)
        # what stands on the other side cannot be seen from there
        lost = "landmark2" if float(scene.camera_way[0]) > 0 else "landmark3"
        windows = {"before": Window(0, 48), "after": Window(given + 76, given + 132)}
        away = (rest + 48 * more) / names.FPS
        script = ((0, _told(scene)),)
        return Task(name, number, "place", ((0, scene),), clock, script, given, windows, (lost,), _known(scene), away)

    return make


def _elsewhere(seconds: float) -> Callable[[str, int, Scenes], Task]:
    def make(name: str, number: int, scene: Scenes) -> Task:
        other = change(scene, number, "place")
        before, between = FIRST + 3 * CHUNK, max(1, round(seconds * names.FPS / CHUNK)) * CHUNK
        given = before + between
        shots = ((0, scene), (before, other), (given, scene))
        script = tuple((begin, _told(s)) for begin, s in shots)
        windows = {"before": Window(0, before), "after": Window(given + CHUNK, given + 60, 4, 2)}
        asked, clock = ("landmark2", "landmark3"), torch.arange(given + 60)
        return Task(
            name, number, "place", shots, clock, script, given, windows, asked, _known(scene), between / names.FPS
        )

    return make


def _pan(name: str, number: int, scene: Scenes) -> Task:
    scene.camera[:] = names.CAMERAS.index("pan")
    windows = {"before": Window(0, 48), "after": Window(284, 332)}
    lost = "landmark2" if float(scene.camera_way[0]) > 0 else "landmark3"
    clock, script = torch.arange(336), ((0, _told(scene)),)
    return Task(name, number, "place", ((0, scene),), clock, script, 0, windows, (lost,), _known(scene), 4.5)


# Over time


def _identity(seconds: int) -> Callable[[str, int, Scenes], Task]:
    def make(name: str, number: int, scene: Scenes) -> Task:
        scene = _settled(scene, number)
        frames = seconds * names.FPS
        # 30 looks, or one every five seconds
        every = max(5, seconds // 30)
        starts = [2, *range(every, seconds - 2, every)]
        windows = {str(second): Window(second * names.FPS, second * names.FPS + 36, 3) for second in starts}
        clock, script = torch.arange(frames), ((0, _told(scene)),)
        return Task(name, number, "identity", ((0, scene),), clock, script, 0, windows, _asked(scene), _known(scene))

    return make


_CHANGES = ("color", "motion", "place", "pattern", "light", "shape")


def _changes(name: str, number: int, scene: Scenes, told: tuple[str, ...] = _CHANGES) -> Task:
    scenes, last = [_settled(scene, number)], 6 * names.FPS
    for step in range(4):
        only = told[(number + step) % len(told)]
        new = scenes[-1]
        for attempt in range(20):  # what keeps the subject in sight, and a light that stays
            new = change(scenes[-1], 1000 * number + 10 * step + attempt, only)
            calm = names.MOTIONS[int(new.motion[0, 0])] in (*names.SHORT, "walks")
            if calm and names.MOTIONS[int(new.motion[0, 0])] != "orbits" and int(new.light[0]) < 3:
                break
        scenes.append(new)
    begins = [last * i for i in range(len(scenes))]
    # each look takes 64 frames, for the motion; attributes are read in its second half
    windows = {f"look{i}": Window(begin + last - 64, begin + last, 1, i) for i, begin in enumerate(begins)}
    script = tuple((begin, _told(s, ())) for begin, s in zip(begins, scenes, strict=True))
    shots = tuple(zip(begins, scenes, strict=True))
    clock = torch.arange(last * len(scenes))
    return Task(name, number, "changes", shots, clock, script, 0, windows, ("accessory",), hidden_facts(scene, 0))


def _motion(name: str, number: int, scene: Scenes, without: tuple[str, ...] = ("orbits",)) -> Task:
    motions = [m for m in names.MOTIONS if m not in without]
    motion = motions[number % len(motions)]
    scene.motion[:, 0] = names.MOTIONS.index(motion)
    scene.shape[:, 0] = next(i for i, s in enumerate(names.SHAPES) if motion in names.SUITED[s])
    scene.occluder[:] = motion == "hides"
    scene.occluder_at.zero_()
    windows = {f"look{i}": Window(32 + 64 * i, 96 + 64 * i, 1) for i in range(4)}
    clock, script = torch.arange(288), ((0, _told(scene, ())),)
    return Task(name, number, "motion", ((0, scene),), clock, script, 0, windows, ("motion",), _known(scene))


AWAY = (2, 5, 15, 60, 240)
"""Seconds that a subject is out of sight, or a place."""
ASIDE = (5, 15, 60)
TASKS: dict[str, TaskInfo] = {
    **{
        f"away-{n}": TaskInfo(
            f"a subject leaves the picture and comes back after {n} seconds: is it the same?", _away(n), _away(n)
        )
        for n in AWAY
    },
    "occlusion": TaskInfo("a subject passes behind a tree or a pillar: is it the same on the other side?", _occlusion),
    "return": TaskInfo("from the prompt alone, a subject leaves and returns by law: is it the same?", _return, _return),
    "night": TaskInfo("from the prompt alone, a night passes: is the subject what it was the day before?", _night),
    **{
        f"aside-{n}": TaskInfo(f"the camera looks aside for {n} seconds: what stood on the other side?", _aside(n))
        for n in ASIDE
    },
    **{
        f"elsewhere-{n}": TaskInfo(f"somewhere else for {n} seconds: is the place arranged as it was?", _elsewhere(n))
        for n in AWAY
    },
    "pan": TaskInfo("from the prompt alone, the camera looks aside and back: is the place the same?", _pan),
    **{
        f"identity-{n}": TaskInfo(
            f"from the prompt alone, {n} seconds: is the subject the same all the time?", _identity(n), _identity(n)
        )
        for n in (60, 600, 3600)
    },
    "changes": TaskInfo(
        "four new prompts: is what they say done, and everything else left alone?",
        _changes,
        partial(_changes, told=tuple(name for name in _CHANGES if name != "pattern")),
    ),
    "motion": TaskInfo(
        "does the subject move by the law that the prompt names?",
        _motion,
        partial(_motion, without=("orbits", "hides")),
    ),
}
"""By name."""


def tasks_of(level: str) -> tuple[str, ...]:
    """The names of the tasks that there are of a level.

    Raises:
        ValueError: a level that is not in `LEVELS`.
    """
    if level not in LEVELS:
        raise ValueError(f"The level of tasks is one of {', '.join(LEVELS)}, not {level}.")
    return tuple(name for name, info in TASKS.items() if level == "plain" or info.calm is not None)


def make_tasks(count: int, seed: int, only: Sequence[str] | None = None, level: str = "plain") -> list[Task]:
    """``count`` tasks of each name, the same for the same seed.

    Args:
        count: of each name; ``seed``: of the scenes.
        only: names of `tasks_of` the level; all of them without.
        level: of `LEVELS`.

    Raises:
        ValueError: an unknown level, or a name that there is not of it.
    """
    there = tasks_of(level)
    only = there if only is None else only
    for name in only:
        if name not in there:
            raise ValueError(f"A task of level {level} is one of {', '.join(there)}, not {name}.")
    made = []
    for name in only:
        # tasks that differ in the time away only have the same scenes
        kind = list(dict.fromkeys(n.split("-")[0] for n in TASKS)).index(name.split("-")[0])
        scenes = sample_scenes(count, seed * 16 + kind, level)
        made += [_make(name, i, scenes.select([i]).clone(), level) for i in range(count)]
    return made


def _make(name: str, number: int, scene: Scenes, level: str) -> Task:
    info = TASKS[name]
    if level == "plain" or info.calm is None:
        return info.make(name, number, scene)
    task = info.calm(name, number, scene)
    return replace(task, level=level, asked=tuple(asked for asked in task.asked if asked not in _NOT_CALM))
