"""Curves over time as SVG pictures, one per series, with a line per video. No plotting library needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from longtake.evaluation.evaluate import Result
from longtake.evaluation.meter import SERIES
from longtake.evaluation.registry import METRICS

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 34, 44
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito 2008
_DASHES = ("", ' stroke-dasharray="7 4"', ' stroke-dasharray="2 4"')
_MOST = 2000  # points of a line


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Writes ``SERIES.svg`` for every series of windows, and ``autocorrelation.svg``, into a folder that is made.

    Returns:
        The files, without those of series that no video has.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    names = [str(result.source.path) for result in results]
    for series in SERIES:
        unit = METRICS[series].unit
        lines = [(r.measured.seconds, r.measured.windows[series]) for r in results]
        picture = chart(lines, names, f"{series}{f' [{unit}]' if unit else ''}: {METRICS[series].title}", "seconds")
        if picture is not None:
            files.append(folder / f"{series}.svg")
            files[-1].write_text(picture, encoding="utf-8")
    lines = []
    for result in results:
        correlation = result.measured.correlation
        shown = correlation[: len(correlation) // 2 + 1]
        step = -(-len(shown) // _MOST)
        lines.append((np.arange(len(shown))[::step] * result.measured.lag, shown[::step]))
    picture = chart(lines, names, "autocorrelation of features", "lag in seconds")
    if picture is not None:
        files.append(folder / "autocorrelation.svg")
        files[-1].write_text(picture, encoding="utf-8")
    return files


def chart(
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
    names: Sequence[str],
    title: str,
    below: str,
    bands: Sequence[tuple[np.ndarray, np.ndarray]] = (),
) -> str | None:
    """A line chart as SVG text; None if there is no number in it.

    Args:
        lines: x and y of each line, ``[n]`` each; nan leaves a gap.
        names: of the lines.
        title, below: what stands above, and below the horizontal axis.
        bands: low and high end of what is shaded behind each line, ``[n]`` each; for all lines, or none.
    """
    known = [(x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in lines]
    known += [(x[~np.isnan(y)], y[~np.isnan(y)]) for (x, _), band in zip(lines, bands, strict=False) for y in band]
    xs, ys = (np.concatenate([line[i] for line in known]) if known else np.zeros(0) for i in (0, 1))
    if not len(ys):
        return None
    ticks_x = _ticks(min(0.0, float(xs.min())), float(xs.max()))
    ticks_y = _ticks(float(ys.min()), float(ys.max()))
    legend = 16 * len(names) if len(names) > 1 else 0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + width * (x - ticks_x[0]) / (ticks_x[-1] - ticks_x[0]),
            _TOP + height * (1 - (y - ticks_y[0]) / (ticks_y[-1] - ticks_y[0])),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT + legend}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT + legend}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(below)}</text>',
    ]
    for y in ticks_y:
        _, at = place(ticks_x[0], y)
        parts.append(f'<path d="M{_LEFT} {at:.1f}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.6g}</text>')
    for x in ticks_x:
        at, _ = place(x, ticks_y[0])
        parts.append(f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{x:.6g}</text>')
    for index, ((x_of, _), (low, high)) in enumerate(zip(lines, bands, strict=False)):
        there = ~np.isnan(low + high)
        edge = [*zip(x_of[there], low[there], strict=True), *zip(x_of[there][::-1], high[there][::-1], strict=True)]
        path = [f"{across:.1f} {down:.1f}" for across, down in (place(float(x), float(y)) for x, y in edge)]
        if path:
            colour = _COLOURS[index % len(_COLOURS)]
            parts.append(f'<path d="M{"L".join(path)}Z" fill="{colour}" fill-opacity="0.15"/>')
    for index, (line, name) in enumerate(zip(lines, names, strict=True)):
        colour = _COLOURS[index % len(_COLOURS)]
        dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        path, pen = [], "M"
        for x, y in zip(*line, strict=True):
            if math.isnan(y):
                pen = "M"
                continue
            across, down = place(float(x), float(y))
            path.append(f"{pen}{across:.1f} {down:.1f}{'h0' if pen == 'M' else ''}")
            pen = "L"
        # with h0 and a round cap, a line of one point is seen, too
        parts.append(
            f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="2" stroke-linecap="round"{dashes}/>'
        )
        if legend:
            at_y = _HEIGHT + 16 * index
            ends = f'x1="{_LEFT}" x2="{_LEFT + 24}" y1="{at_y + 5}" y2="{at_y + 5}"'
            parts.append(f'<line {ends} stroke="{colour}" stroke-width="4"{dashes}/>')
            parts.append(f'<text x="{_LEFT + 30}" y="{at_y + 10}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _ticks(low: float, high: float) -> list[float]:
    """Five to ten round numbers that enclose two others."""
    span = max(high - low, 1e-6, abs(high) * 1e-3)
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if span / (power * m) <= 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, max(last, first + 1) + 1)]
