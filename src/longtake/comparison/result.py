"""What was found of one job, in a file of its own. A result needs numbers by length, and nothing else.

A benchmark whose numbers do not come from watching a video writes such files, too: its names stand in ``described``
if `longtake.evaluation.METRICS` does not know them, and the report has columns for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtake.comparison.definition import Comparison, Job
from longtake.comparison.files import read_json_file, write_json_file
from longtake.evaluation.registry import METRICS, Metric

FORMAT = 1


@dataclass(frozen=True)
class Result:
    """One job and what was found.

    Attributes:
        job: what was made.
        metrics: by length in seconds and name; nan for what cannot be told.
        settings: how it was measured, as `longtake.evaluation.Settings.to_dict` has it.
        video: of the file: frames, size, sha256, and its bytes.
        windows: series over the longest length, by name; ``seconds`` has when each window begins.
        pictures: of which seconds the strip has pictures.
        cost: what it took, see ``docs/compare.md``.
        made: command, versions, machine.
        described: metrics that `METRICS` does not have.
        error: why there is nothing, in one sentence.
    """

    job: Job
    metrics: Mapping[float, Mapping[str, float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    windows: Mapping[str, Sequence[float]] = field(default_factory=dict)
    pictures: Sequence[float] = ()
    cost: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, Metric] = field(default_factory=dict)
    error: str | None = None

    def describe(self, name: str) -> Metric:
        """What a metric is."""
        return METRICS.get(name) or self.described[name]

    def write(self, folder: Path) -> None:
        """Into the folder of the comparison.

        Raises:
            OSError: the disk does not take it.
        """
        job = self.job
        data = {
            "format": FORMAT,
            "label": job.label,
            "memory": job.memory,
            "weights": job.weights,
            "script": job.script,
            "seed": job.seed,
            "error": self.error,
            "metrics": {f"{seconds:g}": _numbers(metrics) for seconds, metrics in self.metrics.items()},
            "cost": dict(self.cost),
            "video": dict(self.video),
            "pictures": list(self.pictures),
            "made": dict(self.made),
            "settings": dict(self.settings),
            "described": {name: metric.to_dict() for name, metric in self.described.items()},
            "windows": {name: [_number(v) for v in values] for name, values in self.windows.items()},
        }
        write_json_file(job.result(folder), data)


def read_result(job: Job, folder: Path) -> Result | None:
    """What is there of a job; None if nothing is.

    Raises:
        ValueError: in one sentence, if the file is damaged or of something else.
    """
    path = job.result(folder)
    if not path.exists():
        return None
    data = read_json_file(path)
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"{path} was written by another version of Longtake.")
        if (data["memory"], data["script"], data["seed"]) != (job.memory, job.script, job.seed):
            raise ValueError(f"{path} is of another memory, prompt or seed than its name says.")
        return Result(
            job,
            {float(seconds): _read(metrics) for seconds, metrics in data["metrics"].items()},
            data["settings"],
            data["video"],
            {name: [math.nan if v is None else float(v) for v in values] for name, values in data["windows"].items()},
            [float(time) for time in data["pictures"]],
            data["cost"],
            data["made"],
            {name: Metric(**metric) for name, metric in data["described"].items()},
            data["error"],
        )
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged: it is not what was once written.") from None


def is_complete(job: Job, comparison: Comparison, folder: Path) -> bool:
    """Whether a job needs nothing more: its result is there, of all lengths, measured as asked, of the video that is
    there (which may have been removed since)."""
    try:
        found = read_result(job, folder)
    except ValueError:
        return False
    if found is None or found.error is not None or not set(comparison.lengths) <= set(found.metrics):
        return False
    if found.settings != comparison.settings.to_dict():
        return False
    video = job.video(folder)
    return not video.exists() or video.stat().st_size == found.video.get("bytes")


def _numbers(metrics: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in metrics.items()}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _read(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in metrics.items()}
