"""Video files measured one after the other; what cannot be measured is left out and named."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtake.evaluation.features import Extract, fixed_feature
from longtake.evaluation.meter import Measured, Meter
from longtake.evaluation.settings import Settings
from longtake.evaluation.source import Source, look

Progress = Callable[[Source, int], None]
"""Called with the video and how many of its frames were measured."""


@dataclass(frozen=True)
class Result:
    """One video: what it is, and what was measured. ``vbench`` has what VBench says of it, if it was asked."""

    source: Source
    measured: Measured
    vbench: dict[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers, by the names of `registry.METRICS`; nan for what cannot be told of this video."""
        return {**self.measured.metrics, **self.vbench}


@dataclass(frozen=True)
class Skipped:
    """Something that was left out, a video or a dimension of VBench, and why, in one sentence."""

    what: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"what": self.what, "reason": self.reason}


def evaluate(
    video: str | os.PathLike[str] | Source,
    settings: Settings | None = None,
    extract: Extract = fixed_feature,
    progress: Progress | None = None,
) -> Result:
    """Measures a video file, one frame in memory at a time.

    Args:
        video: the file.
        settings: what to measure; the defaults are for videos that Longtake made.
        extract: features of a picture, see :func:`longtake.evaluation.features.load_features`.
        progress: called after every frame.

    Raises:
        ValueError: in one sentence, if it cannot be measured (see :func:`longtake.evaluation.source.look`), or turns
            out to be damaged when it is read.
    """
    source = video if isinstance(video, Source) else look(video)
    meter = Meter(source.fps, settings, extract)
    for frame in source:
        meter.add(frame)
        if progress is not None:
            progress(source, meter.frames)
    return Result(source, meter.result())


def sources(paths: Iterable[Path]) -> tuple[list[Source], list[Skipped]]:
    """The videos that can be measured together, and those that cannot: the size is that of the first good one."""
    good: list[Source] = []
    left: list[Skipped] = []
    for path in paths:
        try:
            source = look(path)
            if good and (source.width, source.height) != (good[0].width, good[0].height):
                raise ValueError(
                    f"{path} is {source.width}x{source.height} and {good[0].path} {good[0].width}x{good[0].height}: "
                    "videos of different sizes do not compare; evaluate it by itself."
                )
            good.append(source)
        except ValueError as error:
            left.append(Skipped(str(path), str(error)))
    return good, left
