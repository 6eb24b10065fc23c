"""Results as JSON that can be reproduced, and as tables for people."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from longtake import __version__
from longtake.evaluation.evaluate import Result, Skipped
from longtake.evaluation.features import LEARNED
from longtake.evaluation.registry import DIRECTIONS, METRICS, Metric
from longtake.evaluation.settings import Settings
from longtake.plan import format_seconds

FORMAT = 1
"""Of the JSON; grows when names or meanings change."""

_LIBRARIES = ("numpy", "pillow", "av")
_SIGNS = {"higher": "+", "lower": "-", "zero": "0", "none": ""}


@dataclass(frozen=True)
class Report:
    """Everything that one evaluation found.

    Attributes:
        results: a video each.
        skipped: what was left out.
        settings: how it was measured.
        command: what was typed.
        vbench: version and settings of VBench, if it was asked.
    """

    results: Sequence[Result]
    skipped: Sequence[Skipped]
    settings: Settings
    command: str = ""
    vbench: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: numbers that are not there are null. The same videos and versions give the same text."""
        learned = LEARNED.get(self.settings.features)
        used = list(dict.fromkeys(name for result in self.results for name in result.metrics))
        return {
            "format": FORMAT,
            "command": self.command,
            "versions": versions(self.settings),
            "settings": {**self.settings.to_dict(), "features_from": learned.repository if learned else None},
            "vbench": self.vbench or None,
            "metrics": {name: METRICS[name].to_dict() for name in used},
            "videos": [_video(result) for result in self.results],
            "skipped": [one.to_dict() for one in self.skipped],
        }

    def lines(self) -> list[str]:
        """A table per video."""
        lines: list[str] = []
        for result in self.results:
            source = result.source
            lines += [
                f"{source.path}: {format_seconds(source.seconds)}, {source.width}x{source.height}, "
                f"{source.frames} frames at {source.fps:.5g} a second",
                *_table(result.metrics),
                "",
            ]
        return [*lines, *_KEY] if self.results else []


_KEY = (
    "+ higher is better, - lower is better, 0 nearest to zero is best, unmarked: describes. "
    "longtake eval --list says what each is.",
)


def versions(settings: Settings) -> dict[str, str]:
    """What the numbers depend on."""
    import av

    names = (*_LIBRARIES, *(("torch", "transformers") if settings.features != "fixed" else ()))
    libraries = {f"lib{n.removeprefix('lib')}": ".".join(map(str, v)) for n, v in av.library_versions.items()}
    return {
        "longtake": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
        **{name: libraries[name] for name in ("libavcodec", "libswscale") if name in libraries},
    }


def _video(result: Result) -> dict[str, Any]:
    measured = result.measured
    return {
        **result.source.to_dict(),
        "metrics": {name: _number(value) for name, value in result.metrics.items()},
        "windows": {
            "seconds": [round(float(s), 6) for s in measured.seconds],
            **{name: [_number(v) for v in values] for name, values in measured.windows.items()},
        },
    }


def _number(value: float) -> float | None:
    """Rounded to 7 digits, beyond which machines differ; None for what is no number."""
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _table(metrics: dict[str, float]) -> list[str]:
    """Levels with their change and drift beside them; the others one by one."""
    lines = [f"  {'':22}{'mean':>10}  {'':16}{'end - opening':>16}{'drift':>22}"]
    for name, value in metrics.items():
        if name.endswith(("_change", "_drift")):
            continue
        metric = METRICS[name]
        row = f"  {name:22}{_shown(value):>10}  {metric.unit:16}"
        if f"{name}_drift" in metrics:
            change, drift = METRICS[f"{name}_change"], METRICS[f"{name}_drift"]
            row += f"{_shown(metrics[change.name], True) + ' ' + change.unit:>16}"
            row += f"{_shown(metrics[drift.name], True) + ' ' + drift.unit:>22} 0"
        else:
            row = (
                f"{row.rstrip()} {_SIGNS[metric.direction]}" if not metric.unit else f"{row}{_SIGNS[metric.direction]}"
            )
        lines.append(row.rstrip())
    return lines


def _shown(value: float, signed: bool = False) -> str:
    if not math.isfinite(value):
        return "n/a"
    digits = 4 if abs(value) < 1 else 2 if abs(value) < 100 else 1
    return f"{value:{'+' if signed else ''}.{digits}f}"


def listing() -> list[str]:
    """All metrics, for people."""
    lines: list[str] = []
    for metric in METRICS.values():
        lines += _described(metric)
    return lines


def _described(metric: Metric) -> list[str]:
    unit = f" [{metric.unit}]" if metric.unit else ""
    return [
        f"{metric.name}{unit}: {metric.title}; {DIRECTIONS[metric.direction]}",
        f"    {metric.formula}",
        f"    source: {metric.source}",
    ]
