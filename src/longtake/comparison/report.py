"""What a comparison found, as ``report.html``, ``report.md`` and ``report.json`` in its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from longtake.comparison.document import Block, Cell, Chart, Code, Heading, Page, Picture, Table, Text
from longtake.comparison.statistics import LEAST, Estimate
from longtake.comparison.summary import CURVES, SURE, Paired, Summary
from longtake.evaluation.plots import chart
from longtake.evaluation.registry import DIRECTIONS, METRICS, Metric
from longtake.plan import count, format_bytes, format_seconds

SHEETS = 12
"""Pairs of prompt and seed whose pictures are in the report, by default."""

_BANDS = 4  # lines with a band behind them; more cover each other
_ARROWS = {"higher": " ↑", "lower": " ↓", "zero": " → 0", "none": ""}


def write_report(summary: Summary, folder: Path, commands: Sequence[str], sheets: int = SHEETS) -> list[Path]:
    """Writes the three files.

    Args:
        summary: of at least one result.
        folder: of the comparison.
        commands: what to type for the same.
        sheets: how many pairs of prompt and seed have their pictures in the report.

    Returns:
        The files.

    Raises:
        OSError: a file cannot be written.
    """
    page = Page(_title(summary), [*_blocks(summary, folder, commands, sheets)])
    page.write_html(folder / "report.html")
    page.write_markdown(folder / "report.md")
    data = {**summary.to_dict(), "commands": list(commands)}
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    return [folder / f"report.{kind}" for kind in ("html", "md", "json")]


def _title(summary: Summary) -> str:
    model = Path(summary.comparison.model).name
    return f"{memories(len(summary.labels))} compared, model {model}"


def memories(number: int) -> str:
    """``1 memory``, ``2 memories``."""
    return f"{number} memor{'y' if number == 1 else 'ies'}"


def _blocks(summary: Summary, folder: Path, commands: Sequence[str], sheets: int) -> Iterable[Block]:
    comparison = summary.comparison
    names = summary.names()
    lengths = " and ".join(format_seconds(seconds) for seconds in comparison.lengths)
    yield Heading(_title(summary), 1)
    yield Text(
        f"{count(len(comparison.scripts), 'prompt')} with {count(len(comparison.seeds), 'seed')} each, "
        f"{comparison.width}x{comparison.height} pixels, measured at {lengths}; "
        f"{count(len(summary.results), 'video')}. Differences are to `{comparison.baseline}`. "
        "The same prompt and seed have the same noise with every memory, and the first seconds of a longer video are "
        "the shorter one."
    )
    if summary.skipped:
        yield Text(f"Left out: {count(len(summary.skipped), 'video')}, so that some rows rest on fewer than others.")
        yield Table(
            ["left out", "why"],
            [[Cell(one.what), Cell(one.reason)] for one in summary.skipped],
            folded="What was left out" if len(summary.skipped) > 8 else "",
        )
    yield Table(
        ["memory", "is", "keeps", "attends to", "holds", "ms per chunk"],
        [[Cell(label), *_cost(summary, label)] for label in summary.labels],
    )
    yield Text(_of_cost(summary))
    yield Heading("Means")
    yield Text(_of_means(summary))
    for seconds in comparison.lengths:
        yield Heading(f"At {format_seconds(seconds)}", 3)
        yield _means(summary, seconds, names)
    yield Heading(f"Differences to {comparison.baseline}")
    yield Text(_of_differences(summary))
    for seconds in comparison.lengths:
        yield from _differences(summary, seconds, names)
    yield from _curves(summary)
    yield from _sheets(summary, folder, sheets)
    yield Heading("How it was made")
    yield from _made(summary, commands)
    yield Heading("What the names mean")
    yield Table(
        ["metric", "what", "unit", "best", "formula", "source"],
        [[*map(Cell, _described(summary.metric(name)))] for name in names],
        folded="Metrics of the tables",
    )
    yield Heading("All metrics")
    yield Text("Means, here with their signs.")
    rest = summary.names(headline=False)
    for seconds in comparison.lengths:
        folded = f"Means of all metrics at {format_seconds(seconds)}"
        rows = [
            [
                Cell(_shown_name(summary.metric(name))),
                *(_mean(summary.estimate(x, seconds, name)) for x in summary.labels),
            ]
            for name in rest
        ]
        yield Table(["metric", *summary.labels], rows, folded)


def _described(metric: Metric) -> list[str]:
    what = metric.title + (", here without its sign" if metric.direction == "zero" else "")
    return [f"`{metric.name}`", what, metric.unit, DIRECTIONS[metric.direction], metric.formula, metric.source]


# --- tables ------------------------------------------------------------------------------------------------------


def _cost(summary: Summary, label: str) -> list[Cell]:
    cost = summary.cost(label)
    memory = next(entry.memory for entry in summary.comparison.entries if entry.label == label)
    held = "–" if cost.memory_bytes is None else format_bytes(cost.memory_bytes)
    time = "–"
    if cost.chunk_ms is not None:
        middle, low, high = cost.chunk_ms
        time = figure(middle) + (f" ({figure(low)} to {figure(high)})" if low < high else "")
    attended = "–"
    if cost.attended is not None:
        low, high = cost.attended
        attended = count(high, "frame") if low == high else f"{low} to {high} frames"
    return [Cell(f"`{memory}`"), Cell(cost.layout), Cell(attended), Cell(held), Cell(time)]


def _of_cost(summary: Summary) -> str:
    at_once = {int(r.made.get("at_once", 1)) for r in summary.results}
    beside = "one video at a time" if at_once == {1} else f"up to {max(at_once)} videos at a time"
    beside = "other videos beside it" if 0 in at_once else beside
    return (
        "Frames are latent frames, the chunk itself included; frames and bytes were counted while videos were made. "
        "Time is that of a chunk once the memory is full, decoding and writing included: the median over videos (and "
        f"the range) of the medians over their chunks, with {beside} on a machine that may have had other things to do."
    )


def _of_means(summary: Summary) -> str:
    unit = summary.unit()
    text = "Mean over prompts and seeds, and in brackets its 95 % interval (bootstrap, expanded percentiles). "
    if unit == "prompts":
        text += "Videos of one prompt are averaged first: intervals are over prompts, and speak of prompts like these. "
    else:
        text += (
            f"With fewer than {LEAST} prompts, intervals are over videos: they speak of other seeds of these prompts, "
            f"not of other prompts. There is none for fewer than {LEAST} videos. "
        )
    return text + (
        "↑ more is better, ↓ less is better, → 0 nearest to zero is best (the table has the size without the sign, so "
        "that opposite errors do not cancel); unmarked metrics describe."
    )


def _shown_name(metric: Metric, size: bool = True) -> str:
    """With unit and direction; between bars where the table has the size without the sign."""
    name = f"|`{metric.name}`|" if size and metric.direction == "zero" else f"`{metric.name}`"
    return f"{name}{f' [{metric.unit}]' if metric.unit else ''}{_ARROWS[metric.direction]}"


def _means(summary: Summary, seconds: float, names: Sequence[str]) -> Table:
    rows = [[Cell(label), *(_mean(summary.estimate(label, seconds, n)) for n in names)] for label in summary.labels]
    return Table(["memory", *(_shown_name(summary.metric(name)) for name in names)], rows)


def _mean(estimate: Estimate) -> Cell:
    return Cell(figure(estimate.mean) + _interval(estimate))


def _interval(estimate: Estimate) -> str:
    return "" if math.isnan(estimate.low) else f" [{figure(estimate.low)}, {figure(estimate.high)}]"


def _of_differences(summary: Summary) -> str:
    unit = summary.unit()
    most = len({r.job.pair[0] for r in summary.results} if unit == "prompts" else {r.job.pair for r in summary.results})
    tests = max(1, len(summary.labels) - 1)
    least = min(1.0, tests * 2 / 2**most)
    text = (
        "The memory less the baseline, for the same prompt and noise: the mean, its 95 % interval, how often there is "
        "more : less of it, and p of a sign test, corrected for the number of memories (Holm). ▲ better and ▼ worse "
        f"mark a corrected p of at most {SURE:g} where the interval leaves zero out, too; any other difference may be "
        f"chance. With {count(most, unit[:-1])}, the smallest p that the largest difference could have is {least:.2g}"
    )
    return text + (": too few to mark anything." if least > SURE else ".")


def _differences(summary: Summary, seconds: float, names: Sequence[str]) -> Iterable[Block]:
    table = summary.paired(seconds, names)
    if table:
        rows = [[Cell(label), *(_difference(row[name]) for name in names)] for label, row in table.items()]
        yield Heading(f"At {format_seconds(seconds)}", 3)
        yield Table(["memory", *(_shown_name(summary.metric(name)) for name in names)], rows)


def _difference(paired: Paired) -> Cell:
    estimate = paired.difference
    if not estimate.count:
        return Cell("–")
    text = figure(estimate.mean, sign=True) + _interval(estimate) + f", {paired.signs.above}:{paired.signs.below}"
    if not math.isnan(paired.p):
        text += f", p {paired.p:.2g}"
    return Cell(text, paired.verdict)


def figure(value: float, sign: bool = False) -> str:
    """A number with three digits that matter, or all before the point."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value:{'+' if sign else ''}.{digits}f}"
    if not any(digit in text for digit in "123456789"):
        return "0" if size < 1e-12 else f"{value:{'+' if sign else ''}.1g}".replace("-", "−")
    return text.replace("-", "−")


# --- curves and pictures -----------------------------------------------------------------------------------------


def _curves(summary: Summary) -> Iterable[Block]:
    labels = summary.labels
    charts = []
    for series in CURVES:
        if not any(series in r.windows for r in summary.results):
            continue
        metric = METRICS[series]
        curves = [summary.curve(label, series) for label in labels]
        title = f"{series}{f' [{metric.unit}]' if metric.unit else ''}: {metric.title}"
        bands = [band for _, _, band in curves] if len(labels) <= _BANDS else []
        drawing = chart([(x, y) for x, y, _ in curves], labels, title, "seconds", bands)
        if drawing is not None:
            charts.append(Chart(drawing, f"curves/{series}.svg", title))
    if charts:
        yield Heading("Over time")
        shaded = f", with 95 % intervals from {LEAST} {summary.unit()} on" if len(labels) <= _BANDS else ""
        yield Text(f"Means over prompts and seeds of windows of {summary.comparison.settings.window:g} s{shaded}.")
        yield from charts


def _sheets(summary: Summary, folder: Path, most: int) -> Iterable[Block]:
    pairs = list(dict.fromkeys(r.job.pair for r in summary.results if r.pictures))
    if not pairs or not most:
        return
    yield Heading("Side by side")
    more = f" The first {most} of {len(pairs)} pairs; all strips lie in `results`." if len(pairs) > most else ""
    yield Text(f"The same prompt and noise in every row.{more}")
    for script, seed in pairs[:most]:
        found = [r for r in summary.results if r.job.pair == (script, seed) and r.pictures]
        rows: list[list[Cell | Picture]] = []
        for label in summary.labels:
            for result in (r for r in found if r.job.label == label):
                path = result.job.strip(folder)
                if path.is_file():
                    alt = f"{label}: {script}"
                    rows.append([Cell(label), Picture(path.relative_to(folder).as_posix(), alt)])
        times = ", ".join(format_seconds(time) if time else "0 s" for time in found[0].pictures)
        yield Heading(f"{script} (seed {seed})", 3)
        yield Table(["memory", f"at {times}"], rows)


# --- how -----------------------------------------------------------------------------------------------------------


def _made(summary: Summary, commands: Sequence[str]) -> Iterable[Block]:
    yield Text("All of it:")
    yield Code("\n".join(commands))
    single = next((r.made["command"] for r in summary.results if r.made.get("command")), None)
    if single is not None:
        yield Text("One of the videos by itself (every result in `results` has its own command):")
        yield Code(single)
    made = summary.made()
    if len(made) > 1:
        yield Text(
            f"Not all videos were made alike: there are {len(made)} combinations of machine, versions and dtype. Pairs "
            "whose two videos differ in these are not of the same noise to the last bit."
        )
    keys = list(dict.fromkeys(key for about in made for key in about))
    rows = [
        [Cell(key), *(Cell(str(about.get(key)) if about.get(key) not in (None, "") else "–") for about in made)]
        for key in keys
    ]
    yield Table(["", *(f"machine {i}" if len(made) > 1 else "" for i in range(1, len(made) + 1))], rows)
    settings = summary.comparison.settings
    yield Text(
        f"Measured by `longtake eval` with windows of {settings.window:g} s and features `{settings.features}`. The "
        "numbers of every video, its hash and its command are in `results`, one file each; all tables are in "
        "`report.json`."
    )
    yield Table(
        ["prompt", "is"],
        [[Cell(str(i)), Cell(script)] for i, script in enumerate(summary.comparison.scripts, 1)],
        folded=f"The {count(len(summary.comparison.scripts), 'prompt')}",
    )
