"""Measures of long videos: drift, motion, flicker, seams, loops, identity. See ``docs/eval.md``.

    from longtake.evaluation import Settings, evaluate
    result = evaluate("take.mp4", Settings(window=2.0))
    result.metrics["contrast_drift"]  # per cent of the opening, per minute

:mod:`registry` says what every number is; nothing here loads torch unless learned features are asked for.
"""

from __future__ import annotations

from longtake.evaluation.registry import DIRECTIONS, METRICS, Metric
from longtake.evaluation.settings import Boundaries, Settings

__all__ = ["DIRECTIONS", "METRICS", "Boundaries", "Metric", "Settings"]
