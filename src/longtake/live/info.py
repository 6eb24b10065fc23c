"""What a server says of itself, and how a take can be made again without it."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

from longtake import __version__
from longtake.live.engine import READY
from longtake.live.remembered import describe_memories
from longtake.live.schemas import MAX_SEED
from longtake.live.settings import PROTOCOL
from longtake.live.trouble import Trouble

if TYPE_CHECKING:
    from longtake.live.livetake import LiveTake
    from longtake.live.studio import Studio

CHANGES = {
    "keep": "the past stays as it is",
    "recache": "the last frames are read again under the new prompt",
    "flush": "all is forgotten but the beginning and the last two frames",
    "cut": "as flush, and what comes stands far away in time: a new scene",
}


def describe(studio: Studio) -> dict[str, Any]:
    """The body of ``/api/info``."""
    settings, served, limits = studio.settings, studio.served, studio.settings.limits
    facts = served.facts
    with studio.changed:
        devices = [
            {
                "name": engine.device,
                "ready": engine.state == READY,
                "running": None if engine.current is None else engine.current.id,
                "queued": len(engine.queue),
            }
            for engine in studio.engines
        ]
    return {
        "version": __version__,
        "protocol": PROTOCOL,
        "models": [served.describe()],
        "memories": describe_memories(facts.chunk, facts.may_have_memory),
        "changes": [{"name": name, "description": text} for name, text in CHANGES.items()],
        "defaults": {
            "model": facts.name,
            "memory": facts.memory,
            "seed": None,
            "on_change": "keep",
            "width": facts.size[1],
            "height": facts.size[0],
        },
        "limits": {
            "prompt_characters": limits.prompt_characters,
            "prompt_changes": limits.prompt_changes,
            "credit": limits.credit,
            "viewers_per_take": limits.viewers_per_take,
            "takes": settings.takes,
            "queue": settings.queue,
            "max_seconds": settings.max_seconds,
            "seed": MAX_SEED,
        },
        "devices": devices,
        "thumbnail_every": settings.thumbnail_every,
        "idle_pause": settings.idle_pause if math.isfinite(settings.idle_pause) else None,
        "ahead": settings.ahead,
    }


def repeat(studio: Studio, take: LiveTake, until: int | None) -> dict[str, Any]:
    """The command that makes a take again, or its beginning.

    Args:
        studio: whose take it is.
        take: with at least one chunk.
        until: the last frame that must be made; None for all that there are.

    Raises:
        Trouble: if there is nothing to repeat yet.
    """
    asked = take.asked
    with studio.changed:
        frames = take.frames
        if until is not None and until < frames:
            chunk = take.chunk_of(until)
            frames = min(frames, asked.first_chunk_frames + chunk * asked.chunk_frames)
        if not frames:
            raise Trouble("conflict", "The take has no frames yet: there is nothing to repeat.")
        script = take.timeline.script(frames).format()
        devices = [*take.devices]
    seconds = round(frames / asked.fps, 3)
    options = ["--seconds", f"{seconds:.3f}".rstrip("0").rstrip("."), "--seed", str(asked.seed)]
    options += ["--memory", asked.memory, "--on-change", asked.on_change]
    options += ["--height", str(asked.height), "--width", str(asked.width)]
    options += ["--model", asked.model, "--dtype", asked.dtype, "--device", devices[-1] if devices else "auto"]
    same = asked.signature == studio.served.facts.signature()
    options += studio.served.options if same else []
    note = None
    if len(devices) > 1:
        note = f"The take was made on {' and '.join(devices)} in turn, which round differently."
    elif not same:
        note = "The take was made with other weights than the server has now."
    return {
        "command": shlex.join(["longtake", "generate", script, *options, "--out", f"{take.id}.mp4"]),
        "script": script,
        "frames": frames,
        "seconds": seconds,
        "exact": note is None,
        "note": note,
    }
