"""The pocket world, second edition: endless captioned scenes with exact ground truth, and what reads them.

    from longtake.pocket.world import caption, read, render, sample_scenes, truth
    scenes = sample_scenes(8, seed=0)
    video = render(scenes, torch.arange(48), size=128).video      # [8, 48, 3, 128, 128] in [0, 1]

:mod:`names` and :mod:`words` import nothing heavy; the rest is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longtake.pocket.world.captions import Truth, caption, caption_and_told, facts, hidden_facts, truth
    from longtake.pocket.world.clips import Clip, Looks, look_at, read_clip, vote
    from longtake.pocket.world.follow import read_motion, relative, saturation, sharpness
    from longtake.pocket.world.laws import Pose, camera_x, daylight, pose, repeats_after
    from longtake.pocket.world.reader import Reading, read
    from longtake.pocket.world.renderer import Rendered, backgrounds, render
    from longtake.pocket.world.scenes import Scenes, change, join, sample_scenes
    from longtake.pocket.world.tasks import TASKS, Task, make_tasks

_WHERE = {
    "captions": ("Truth", "caption", "caption_and_told", "facts", "hidden_facts", "truth"),
    "clips": ("Clip", "Looks", "look_at", "read_clip", "vote"),
    "follow": ("read_motion", "relative", "saturation", "sharpness"),
    "laws": ("Pose", "camera_x", "daylight", "pose", "repeats_after"),
    "reader": ("Reading", "read"),
    "renderer": ("Rendered", "backgrounds", "render"),
    "scenes": ("Scenes", "change", "join", "sample_scenes"),
    "tasks": ("TASKS", "Task", "make_tasks"),
}
__all__ = [
    "TASKS",
    "Clip",
    "Looks",
    "Pose",
    "Reading",
    "Rendered",
    "Scenes",
    "Task",
    "Truth",
    "backgrounds",
    "camera_x",
    "caption",
    "caption_and_told",
    "change",
    "daylight",
    "facts",
    "hidden_facts",
    "join",
    "look_at",
    "make_tasks",
    "pose",
    "read",
    "read_clip",
    "read_motion",
    "relative",
    "render",
    "repeats_after",
    "sample_scenes",
    "saturation",
    "sharpness",
    "truth",
    "vote",
]


def __getattr__(name: str) -> object:
    for module, members in _WHERE.items():
        if name in members:
            import importlib

            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
