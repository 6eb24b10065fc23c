"""What is measured: every metric with its formula, source, unit and direction. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

DIRECTIONS = {
    "higher": "higher is better",
    "lower": "lower is better",
    "zero": "nearest to zero is best",
    "none": "describes, does not judge",
}
VBENCH = "vbench_"
"""How the names of VBench's dimensions begin in reports."""


@dataclass(frozen=True)
class Metric:
    """One number about a video.

    Attributes:
        name: as in reports.
        title: in a few words.
        formula: how it is computed, in words and symbols.
        unit: of the number, "" if it has none.
        direction: a key of `DIRECTIONS`.
        source: where it comes from.
        group: what it is about.
    """

    name: str
    title: str
    formula: str
    unit: str
    direction: str
    source: str
    group: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Look:
    """A statistic of single pictures, from which a level, a change and a drift are made."""

    name: str
    title: str
    formula: str
    unit: str
    relative: bool
    source: str


LOOKS = (
    _Look(
        "brightness",
        "mean luma",
        "mean of Y = 0.2126 R + 0.7152 G + 0.0722 B",
        "%",
        False,
        "ITU-R BT.709, on the coded values",
    ),
    _Look(
        "saturation",
        "mean chroma",
        "mean of max(R, G, B) - min(R, G, B)",
        "%",
        True,
        "Hanbury, Constructing cylindrical coordinate colour spaces, 2008 (chroma)",
    ),
    _Look("contrast", "RMS contrast", "standard deviation of Y", "%", True, "Peli, Contrast in complex images, 1990"),
    _Look(
        "sharpness",
        "variance of the Laplacian",
        "variance of Y * [0 1 0; 1 -4 1; 0 1 0], Y from 0 to 255",
        "levels^2",
        True,
        "Pech-Pacheco et al., Diatom autofocusing, 2000",
    ),
    _Look(
        "detail",
        "share of high frequencies",
        "mean of (Y - B * Y)^2 / variance of Y, B binomial 5x5",
        "%",
        True,
        "the finest level of Burt and Adelson's Laplacian pyramid, 1983",
    ),
    _Look(
        "noise",
        "noise",
        "median of |Y * N| / (6 x 0.6745), N = [1 -2 1; -2 4 -2; 1 -2 1]",
        "levels",
        False,
        "Immerkaer, Fast noise variance estimation, 1996; median as in Donoho and Johnstone, 1994",
    ),
)
RELATIVE = {look.name: look.relative for look in LOOKS}
"""Whether changes are in per cent of the opening (True) or in the statistic's own unit."""


def _of_look(look: _Look) -> list[Metric]:
    unit = "%" if look.relative else {"%": "points"}.get(look.unit, look.unit)
    share = f" / {look.name} of the opening" if look.relative else ""
    return [
        Metric(look.name, look.title, look.formula, look.unit, "none", look.source, "look"),
        Metric(
            f"{look.name}_change",
            f"{look.title}, end against opening",
            f"(mean of the last window - mean of the first){share}",
            unit,
            "zero",
            look.source,
            "look",
        ),
        Metric(
            f"{look.name}_drift",
            f"{look.title}, trend",
            f"least-squares slope over windows{share}",
            f"{unit}/min",
            "zero",
            look.source,
            "look",
        ),
    ]


_FEATURES = "cosine of features, see --features; as the subject consistency of VBench, Huang et al., arXiv 2311.17982"
_LOOPS = "autocorrelation from the variogram, Matheron 1963; Box and Jenkins 1970 for the longest lag"
_SEAM = (
    "mean at {0} boundaries of s minus mean elsewhere; s = mean over a grid of 16x16 blocks and colours of |d(t) - "
    "(d(t-1) + d(t+1)) / 2|, d(t) the step of the block means from frame t-1 to t"
)

_REST = (
    Metric(
        "histogram_distance",
        "colours, end against opening",
        "sqrt(1 - sum sqrt(p q)) of CIELAB histograms, 8x8x8 bins, first and last window",
        "",
        "lower",
        "Hellinger distance; colour histograms: Swain and Ballard, Color indexing, 1991",
        "look",
    ),
    Metric(
        "motion",
        "optical flow",
        "mean |flow| between neighbouring frames, 4 pairs a second",
        "% of height/s",
        "none",
        "pyramidal Lucas-Kanade: Lucas and Kanade 1981, Bouguet 2001",
        "motion",
    ),
    Metric(
        "motion_top",
        "optical flow of what moves most",
        "mean of the largest 5 % of |flow|",
        "% of height/s",
        "none",
        "as the dynamic degree of VBench, Huang et al., arXiv 2311.17982, which uses RAFT",
        "motion",
    ),
    Metric(
        "still_windows",
        "windows in which nothing moves",
        "share of windows with motion_top below 2 % of the height per second",
        "%",
        "lower",
        "Longtake",
        "motion",
    ),
    Metric(
        "frame_difference",
        "difference of neighbours",
        "mean |RGB(t) - RGB(t-1)|; VBench's temporal flickering is 1 minus this",
        "%",
        "none",
        "Huang et al., VBench, arXiv 2311.17982",
        "flicker",
    ),
    Metric(
        "flicker",
        "flicker",
        "mean over frames of the median over a grid of 16x16 blocks of |Y(t-1) - 2 Y(t) + Y(t+1)| / 4",
        "%",
        "lower",
        "Longtake: the amplitude of a light that alternates from frame to frame",
        "flicker",
    ),
    *(
        metric
        for name, where in (("chunk", "chunk"), ("decoder", "decoder (but not chunk)"))
        for metric in (
            Metric(
                f"seam_{name}",
                f"seams at {name} boundaries",
                _SEAM.format(where),
                "%",
                "zero",
                "Longtake",
                "seams",
            ),
            Metric(
                f"seam_{name}_ratio",
                f"seams at {name} boundaries, ratio",
                f"mean of s at {where} boundaries / mean elsewhere (at least 0.05 %)",
                "",
                "none",
                "Longtake",
                "seams",
            ),
        )
    ),
    Metric(
        "jumps",
        "jumps and cuts",
        "frames where the mean |step| of the means of a grid of 16x16 blocks is above 0.5 % and over 4 times that of "
        "any of the 4 frames before and after",
        "1/min",
        "lower",
        "pair-wise comparison: Zhang, Kankanhalli and Smoliar, 1993",
        "flicker",
    ),
    Metric(
        "consistency_start",
        "likeness to the first second",
        "mean over samples after the first second of cos(f(t), mean f of the first second)",
        "",
        "higher",
        _FEATURES,
        "identity",
    ),
    Metric(
        "consistency_end",
        "likeness of the last window to the first second",
        "the same over the last window",
        "",
        "higher",
        _FEATURES,
        "identity",
    ),
    Metric(
        "consistency_neighbour",
        "likeness of neighbours",
        "mean of cos(f(t), f of the sample before), 4 samples a second",
        "",
        "higher",
        _FEATURES,
        "identity",
    ),
    Metric(
        "returns",
        "returns to the start",
        "times that the distance 1 - cos of windows to the first second rises above half its 90th percentile and falls "
        "below a quarter; none if that percentile is under 3 times the mean distance of pictures a second apart",
        "1/min",
        "lower",
        "Longtake",
        "identity",
    ),
    Metric(
        "loop_strength",
        "loops",
        "highest peak of c(lag) from 4 s to half the length, minus the highest at shorter lags; c = min(r, r - min of "
        "r at shorter lags), r(lag) = 1 - mean |f(t) - f(t - lag)|^2 / (2 variance)",
        "",
        "lower",
        _LOOPS,
        "identity",
    ),
    Metric(
        "loop_period",
        "period of the loop",
        "lag of the first peak of c, from 4 s on, that has 0.9 of the highest; only if loop_strength is 0.3 or more",
        "s",
        "none",
        _LOOPS,
        "identity",
    ),
)

_DIMENSIONS = {
    "subject_consistency": ("likeness of the subject", "DINO ViT-B/16", "higher"),
    "background_consistency": ("likeness of the background", "CLIP ViT-B/32", "higher"),
    "temporal_flickering": ("stillness of neighbouring frames", "no weights", "higher"),
    "motion_smoothness": ("smoothness of motion", "AMT-S", "higher"),
    "dynamic_degree": ("share of clips that move", "RAFT", "none"),
    "aesthetic_quality": ("aesthetics", "CLIP ViT-L/14 and LAION's head", "higher"),
    "imaging_quality": ("technical quality", "MUSIQ on SPAQ", "higher"),
}
DIMENSIONS = tuple(_DIMENSIONS)
"""VBench's dimensions that papers on long video report."""

_VBENCH = tuple(
    Metric(
        VBENCH + name,
        title,
        f"mean over the clips of what the package vbench computes ({network})",
        "",
        direction,
        "Huang et al., VBench, arXiv 2311.17982; clips as in VBench-Long, arXiv 2411.13503",
        "vbench",
    )
    for name, (title, network, direction) in _DIMENSIONS.items()
)

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (*(m for look in LOOKS for m in _of_look(look)), *_REST, *_VBENCH)
}
"""All metrics by name."""
