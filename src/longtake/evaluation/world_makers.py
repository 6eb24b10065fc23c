"""What makes the frames of a task of the pocket world's memory benchmark: a model with a memory, or the renderer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from longtake.memory import parse_memory
from longtake.pocket.world import names
from longtake.pocket.world.renderer import as_size
from longtake.pocket.world.scenes import Scenes, sample_scenes
from longtake.pocket.world.tasks import CHUNK, FIRST, Task
from longtake.prompts import Script, Segment
from longtake.take import Take

if TYPE_CHECKING:
    from longtake.memory import MemoryPolicy
    from longtake.pipeline import LongTakePipeline

_HIDDEN = ("accessory", "accessory_color", "eyes", "angle", "landmark", "landmark_shift", "sun", "hills")
_UNTOLD = ("color", "pattern", "size", "radius")


class Rendered:
    """A perfect memory: what the world shows. Its scores are what the readers allow.

    Args:
        size: of pictures.

    Raises:
        ValueError: a size that the world does not have.
    """

    def __init__(self, size: int = names.SIZE) -> None:
        self.size = as_size(size)

    def __call__(self, task: Task) -> Iterator[Tensor]:
        return task.rendered(task.given, task.frames, self.size)


class Strangers(Rendered):
    """No memory at all: with every look, everything that no prompt tells is drawn anew. Its scores are chance."""

    def __call__(self, task: Task) -> Iterator[Tensor]:
        windows = sorted(window.start for window in task.windows.values() if window.start >= task.given)
        # one stranger for each of the looks, the last of which begins another time; a look at a time
        for number, start in enumerate(windows or [task.given]):
            begin = task.given if number == 0 else start
            end = windows[number + 1] if number + 1 < len(windows) else task.frames
            shots = tuple((first, _stranger(scene, task, number)) for first, scene in task.shots)
            yield from replace(task, shots=shots).rendered(begin, end, self.size)


def _stranger(scene: Scenes, task: Task, number: int) -> Scenes:
    other = sample_scenes(1, 700_000 + 1000 * task.number + number, task.level)
    stranger = scene.clone()
    # prompts of changes and motions tell all that can be told
    untold = () if task.kind in ("changes", "motion") else _UNTOLD
    for name in (*_HIDDEN, *untold):
        mine, theirs = getattr(stranger, name), getattr(other, name)
        if mine.dim() == 2 and mine.shape[1] == 2:
            mine[:, 0] = theirs[:, 0]
        else:
            mine.copy_(theirs)
    return stranger


class Takes:
    """A model with a memory: what is given is read in, and the take goes on from there.

    Args:
        pipe: a pipeline whose chunks are as long as the pocket world's, 12 frames, 16 a second.
        memory: a policy or its name.
        seed: of all noise.
        on_prompt_change: what a new prompt does to the past, see :class:`longtake.take.Take`.

    Raises:
        ValueError: a memory that cannot be; when called, a pipeline with other chunks.
    """

    def __init__(
        self,
        pipe: LongTakePipeline,
        memory: str | MemoryPolicy = "memrope",
        seed: int = 0,
        on_prompt_change: str = "keep",
    ) -> None:
        self.pipe, self.seed, self.on_prompt_change = pipe, seed, on_prompt_change
        self.policy = parse_memory(memory, pipe.config.chunk_frames) if isinstance(memory, str) else memory

    def __call__(self, task: Task) -> Iterator[np.ndarray]:
        pipe = self.pipe
        height, width = pipe.config.default_size
        take = _Told(pipe, _script(task, task.given), self.policy, self.seed, height, width, self.on_prompt_change)
        if task.given:
            first, more = take.decoder.frames_for(take.size), take.size * take.decoder.temporal
            if (first, more, pipe.config.fps) != (FIRST, CHUNK, names.FPS):
                raise ValueError(
                    f"The task {task.name} is for models whose chunks have {CHUNK} frames, {names.FPS} a second, not "
                    f"{more} and {pipe.config.fps}."
                )
            take.before, take.chunks_given = _script(task, 0), 1 + (task.given - FIRST) // CHUNK
            given = (_uint8(frame) for frame in task.rendered(0, task.given, (height, width)))
            take.begin_from_video(given, task.given)
        return take.frames(task.frames - task.given)


class _Told(Take):
    """A take that is told things while it is given a video, too."""

    before: Script | None = None
    chunks_given = 0

    def segment_at(self, chunk: int) -> Segment:
        if self.before is None or chunk >= self.chunks_given:
            return super().segment_at(chunk)
        frames = [self.decoder.frames_for(n * self.size) for n in (chunk, chunk + 1)]
        return self.before.at(sum(frames) / 2 / self.pipe.config.fps)


def _script(task: Task, start: int) -> Script:
    """What a task says from a frame on, in seconds from there."""
    said = [(max(0, first - start), prompt) for first, prompt in task.script]
    # of what was said before, the last counts
    said = said[max(i for i, (first, _) in enumerate(said) if first == 0) :]
    ends: list[Any] = [first / names.FPS for first, _ in said[1:]] + [None]
    return Script(
        tuple(Segment(prompt, first / names.FPS, end) for (first, prompt), end in zip(said, ends, strict=True))
    )


def _uint8(frame: Tensor) -> np.ndarray:
    return (frame.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
