"""The stages of a chunk, timed one by one."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

STAGES = ("memory", "denoise", "commit", "decode", "transfer", "write")
PROMPT = "a red ball rolls over a meadow"


def clock(device: Any, own: bool = False) -> Callable[[], float]:
    """Seconds, read when all GPUs have done what they were given, if the take is on one.

    Args:
        device: where the take is.
        own: count what this process has computed, on all threads, so that other work on the machine matters less.
    """
    import torch

    if own:
        return time.process_time
    cuda = torch.device(device).type == "cuda"

    def now() -> float:
        for index in range(torch.cuda.device_count() if cuda else 0):
            torch.cuda.synchronize(index)
        return time.perf_counter()

    return now


def timed_chunk(take: Any, writer: Any, now: Callable[[], float]) -> dict[str, float]:
    """Makes the next chunk of a take and writes it; milliseconds by stage.

    ``memory`` is to evict, fold and rotate, ``denoise`` all denoising steps, ``commit`` the clean forward that is
    remembered, ``transfer`` the way of the pictures to the host as whole numbers, ``write`` into the file.
    """
    marks = [now()]
    text = take.begin()
    marks.append(now())
    latents = take.denoise(text)
    marks.append(now())
    take.commit(latents, text)
    marks.append(now())
    video = take.decoder.decode(latents)
    marks.append(now())
    frames = to_host(video)
    marks.append(now())
    writer.write(frames)
    marks.append(now())
    take.index += 1
    return {name: 1000 * (b - a) for name, (a, b) in zip(STAGES, itertools.pairwise(marks), strict=True)}


def to_host(video: Any) -> Any:
    """Pictures as a file wants them, as ``Chunk.to_uint8`` gives them."""
    from longtake.take import Chunk

    return Chunk(0, 0, "", video, video).to_uint8()


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The median, and half the range of the middle half."""
    if len(values) < 2:
        return round(values[0], 2), 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return round(statistics.median(values), 2), round((high - low) / 2, 2)
