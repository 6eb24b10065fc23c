"""All results of a comparison together: means, paired differences, curves and cost of every memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtake.comparison.definition import Comparison, Job
from longtake.comparison.result import Result, read_result
from longtake.comparison.statistics import (
    LEAST,
    LEVEL,
    Estimate,
    Signs,
    bootstrap,
    holm,
    sign_test,
    student_quantile,
    unit_rows,
    units,
)
from longtake.evaluation.evaluate import Skipped
from longtake.evaluation.registry import METRICS, Metric
from longtake.memory import parse_memory
from longtake.plan import memory_layout

HEADLINE = (
    "histogram_distance",
    "contrast_change",
    "detail_change",
    "brightness_change",
    "consistency_end",
    "still_windows",
    "flicker",
    "seam_chunk",
    "jumps",
    "returns",
    "loop_strength",
    "motion_top",
)
"""Metrics of the first tables: what separated drifting from stable videos, and what else goes wrong."""

CURVES = (
    "histogram_distance",
    "contrast",
    "detail",
    "brightness",
    "sharpness",
    "consistency_start",
    "motion_top",
    "flicker",
)
"""Series that are drawn."""

SURE = 0.05
"""Corrected p-values up to this are marked."""


@dataclass(frozen=True)
class Paired:
    """A memory less the baseline, for the same prompts and noise.

    Attributes:
        difference: of the units.
        signs: of their differences; ``above`` are those where the memory has more.
        p: of the sign test, corrected for the number of memories; nan for a metric that does not judge.
        verdict: "better", "worse", or "" if that cannot be said.
    """

    difference: Estimate
    signs: Signs
    p: float
    verdict: str


@dataclass(frozen=True)
class Cost:
    """What a memory costs.

    Attributes:
        layout: what a full memory holds, in latent frames.
        attended: the fewest and the most of them that a chunk attended to, itself included; None if it never was full.
        memory_bytes: held by the memory, None if not known.
        chunk_ms: milliseconds per chunk, decoded and written: the median over videos of medians over chunks, and the
            least and largest of these; None if not known.
    """

    layout: str
    attended: tuple[int, int] | None
    memory_bytes: int | None
    chunk_ms: tuple[float, float, float] | None


class Summary:
    """Results that belong together, and what can be said of them.

    Attributes:
        comparison: what was asked.
        results: that are there, in the order of the jobs.
        skipped: what is left out, and why.
    """

    def __init__(self, comparison: Comparison, results: Sequence[Result], skipped: Sequence[Skipped]) -> None:
        self.comparison = comparison
        self.results = list(results)
        self.skipped = list(skipped)
        self._by_label: dict[str, list[Result]] = {label: [] for label in comparison.labels()}
        for result in self.results:
            self._by_label[result.job.label].append(result)
        self.labels = [label for label in comparison.labels() if self._by_label[label]]
        self._estimates: dict[tuple[str, float, str, bool], Estimate] = {}
        self._metrics = {name: r.describe(name) for r in self.results for m in r.metrics.values() for name in m}

    @classmethod
    def read(cls, comparison: Comparison, folder: Path) -> Summary:
        """What is there of the jobs of a comparison; what does not fit to the others is left out."""
        results, skipped = [], []
        for job in comparison.jobs():
            try:
                found = read_result(job, folder)
                if found is None:
                    raise ValueError("It has not been made yet.")
                if found.error is not None:
                    raise ValueError(found.error)
                _check_fits(found, comparison)
                results.append(found)
            except ValueError as error:
                skipped.append(Skipped(title_of(job), str(error)))
        return cls(comparison, results, skipped)

    # Numbers

    def metric(self, name: str) -> Metric:
        """What a metric is."""
        return self._metrics[name]

    def names(self, headline: bool = True) -> list[str]:
        """Of the metrics that any video has: those of the first tables (`HEADLINE` and those that `METRICS` does not
        know), or all."""
        wanted = [name for name in HEADLINE if name in self._metrics]
        wanted += [name for name in self._metrics if name not in METRICS]
        if not headline:
            wanted = list(self._metrics)
        return [name for name in wanted if any(not math.isnan(v) for v in self._all_values(name))]

    def _all_values(self, name: str) -> list[float]:
        return [m.get(name, math.nan) for r in self.results for m in r.metrics.values()]

    def values(self, label: str, seconds: float, name: str, signed: bool = False) -> dict[tuple[str, int], float]:
        """A metric of every video of a memory, by prompt and seed. Of metrics that are best at zero, without their
        sign unless asked for: opposite errors must not cancel."""
        bare = not signed and self.metric(name).direction == "zero"
        found = {r.job.pair: r.metrics.get(seconds, {}).get(name, math.nan) for r in self._by_label[label]}
        return {pair: abs(value) if bare else value for pair, value in found.items()}

    def estimate(self, label: str, seconds: float, name: str, signed: bool = False) -> Estimate:
        """Mean and interval of a metric over prompts and seeds, see :meth:`values`."""
        key = (label, seconds, name, signed)
        if key not in self._estimates:
            self._estimates[key] = bootstrap(units(self.values(*key))[0])
        return self._estimates[key]

    def unit(self) -> str:
        """What intervals are over: "prompts" or "videos", see :func:`longtake.comparison.statistics.units`."""
        return units({r.job.pair: 0.0 for r in self.results})[1]

    def paired(self, seconds: float, names: Sequence[str]) -> dict[str, dict[str, Paired]]:
        """Of every memory but the baseline, by label and metric. Pairs that lack one of the two videos do not count."""
        base = self.comparison.baseline
        if base not in self.labels:
            return {}
        made: dict[tuple[str, str], tuple[Estimate, Signs]] = {}
        for label in self.labels:
            for name in names if label != base else ():
                mine, theirs = (self.values(one, seconds, name) for one in (label, base))
                differences, _ = units({pair: mine[pair] - theirs[pair] for pair in mine if pair in theirs})
                made[label, name] = bootstrap(differences), sign_test(differences)
        corrected: dict[tuple[str, str], float] = {}
        for name in names:
            judged = [key for key in made if key[1] == name and self.metric(name).direction != "none"]
            corrected |= zip(judged, holm([made[key][1].p for key in judged]), strict=True)
        table: dict[str, dict[str, Paired]] = {}
        for (label, name), (difference, signs) in made.items():
            p = corrected.get((label, name), math.nan)
            verdict = self._verdict(name, difference, p)
            table.setdefault(label, {})[name] = Paired(difference, signs, p, verdict)
        return table

    def _verdict(self, name: str, difference: Estimate, p: float) -> str:
        # An interval says how large a difference is; a verdict asks more, as there are many of them.
        if not p <= SURE or not (difference.low > 0 or difference.high < 0):
            return ""
        more_is_better = self.metric(name).direction == "higher"
        return "better" if (difference.mean > 0) == more_is_better else "worse"

    # Curves and cost

    def curve(self, label: str, series: str) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """A series over the longest length: when windows begin, the mean over units, and the ends of its 95 % interval
        (mean +- t s / sqrt(n); nan with fewer than `LEAST` units), each ``[windows]``."""
        rows = {r.job.pair: np.asarray(r.windows[series], dtype=float) for r in self._by_label[label] if r.windows}
        begins = next((np.asarray(r.windows["seconds"]) for r in self._by_label[label] if r.windows), np.zeros(0))
        rows = {pair: row for pair, row in rows.items() if len(row) == len(begins)}
        if not rows:
            return begins, np.full(len(begins), np.nan), (np.full(len(begins), np.nan),) * 2
        table, _ = unit_rows(rows)
        count = len(table)
        mean = table.mean(0)
        half = np.full(len(mean), np.nan)
        if count >= LEAST:
            half = student_quantile((1 + LEVEL) / 2, count - 1) * table.std(0, ddof=1) / math.sqrt(count)
        return begins, mean, (mean - half, mean + half)

    def cost(self, label: str) -> Cost:
        """What a memory costs."""
        found = [r.cost for r in self._by_label[label]]
        policy = parse_memory(self._by_label[label][0].job.memory, self.comparison.chunk)
        held = [c["memory_bytes"] for c in found if c.get("memory_bytes")]
        times = sorted(c["chunk_ms"] for c in found if c.get("chunk_ms"))
        attended = [c["attended"] for c in found if c.get("attended")]
        return Cost(
            memory_layout(policy, self.comparison.chunk),
            (min(low for low, _ in attended), max(high for _, high in attended)) if attended else None,
            max(held) if held else None,
            (statistics.median(times), times[0], times[-1]) if times else None,
        )

    def made(self) -> list[dict[str, Any]]:
        """Machines, versions and dtypes that videos were made with, each once; more than one is worth a warning."""
        found = []
        for result in self.results:
            machine = {k: v for k, v in result.made.get("machine", {}).items() if k != "load"}
            about = {
                **machine,
                **result.made.get("versions", {}),
                "dtype": result.made.get("dtype"),
                "devices": ", ".join(result.made.get("devices", [])),
            }
            if about not in found:
                found.append(about)
        return found

    def to_dict(self) -> dict[str, Any]:
        """All tables, for JSON."""
        names = self.names(headline=False)
        return {
            "comparison": self.comparison.to_dict(),
            "unit": self.unit(),
            "videos": len(self.results),
            "skipped": [one.to_dict() for one in self.skipped],
            "metrics": {name: self.metric(name).to_dict() for name in names},
            **{
                key: {
                    f"{seconds:g}": {
                        label: {name: _clean(vars(self.estimate(label, seconds, name, signed))) for name in names}
                        for label in self.labels
                    }
                    for seconds in self.comparison.lengths
                }
                for key, signed in (("means", True), ("means_of_sizes", False))
            },
            "paired": {
                f"{seconds:g}": {
                    label: {name: _paired(one) for name, one in row.items()}
                    for label, row in self.paired(seconds, self.names()).items()
                }
                for seconds in self.comparison.lengths
            },
            "cost": {label: vars(self.cost(label)) for label in self.labels},
            "made": self.made(),
        }


def title_of(job: Job) -> str:
    """A job in a few words."""
    return f"{job.label}, seed {job.seed}, {job.script!r}"


def _check_fits(result: Result, comparison: Comparison) -> None:
    if result.settings and result.settings != comparison.settings.to_dict():
        raise ValueError("It was measured with other settings.")
    size = (result.video.get("width"), result.video.get("height"))
    if result.video and size != (comparison.width, comparison.height):
        raise ValueError(
            f"It is {size[0]}x{size[1]} and the others {comparison.width}x{comparison.height}: videos of different "
            "sizes do not compare."
        )
    missing = [seconds for seconds in comparison.lengths if seconds not in result.metrics]
    if missing:
        raise ValueError(f"It was not measured at {', '.join(f'{s:g} s' for s in missing)}.")


def _paired(paired: Paired) -> dict[str, Any]:
    return {
        **_clean(vars(paired.difference)),
        "above": paired.signs.above,
        "below": paired.signs.below,
        **_clean({"p": paired.signs.p, "p_corrected": paired.p}),
        "verdict": paired.verdict,
    }


def _clean(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else value for key, value in values.items()}
