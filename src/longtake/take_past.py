"""A video that a take goes on from, read into its memory and its decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from longtake.encode import StreamingEncoder
from longtake.pictures import portions

if TYPE_CHECKING:
    from longtake.take import Take


def read_video(
    take: Take, frames: Iterable[np.ndarray], count: int | None, on_chunk: Callable[[int, int], None] | None
) -> None:
    """See :meth:`longtake.take.Take.begin_from_video`."""
    take._require_new()
    if count is None:
        frames = frames if isinstance(frames, Sequence) or hasattr(frames, "__len__") else list(frames)
        count = len(frames)  # type: ignore[arg-type]
    if count < 1:
        raise ValueError("A video to continue needs at least one frame.")
    first, more = take.decoder.frames_for(take.size), take.size * take.decoder.temporal
    chunks = 1 + max(0, count - first) // more
    sizes = [first] + [more] * (chunks - 1)
    take.skip = sum(sizes)
    take._broken = True
    encoder = StreamingEncoder(take.pipe.vae)
    for part in portions(frames, sizes, take.height, take.width, drop=count - take.skip):
        text, latents = take.begin(), encoder.encode(part).to(take.memory.device)
        take.commit(latents, text)
        take._finish(latents)
        if on_chunk is not None:
            on_chunk(take.index, chunks)
    take._broken = False
