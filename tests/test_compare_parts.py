"""What is typed, what is kept of it, and what is made of results whose truth is known."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtake.comparison.definition import Comparison, Job, read_definition
from longtake.comparison.document import Cell, Code, Heading, Page, Table, Text
from longtake.comparison.files import write_json_file
from longtake.comparison.grammar import parse_lengths, parse_memories, parse_seeds
from longtake.comparison.report import figure, write_report
from longtake.comparison.result import Result, is_complete, read_result
from longtake.comparison.summary import Summary
from longtake.evaluation.registry import Metric

SCRIPTS = tuple(f"prompt {chr(97 + i)}" for i in range(8))


# --- what is typed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "entries"),
    [
        (["memrope,longlive,echo"], [("memrope", "memrope"), ("longlive", "longlive"), ("echo", "echo")]),
        (
            ["memrope,sliding:window=12,sink=3,longlive"],
            [
                ("memrope", "memrope"),
                ("sliding:window=12,sink=3", "sliding:window=12,sink=3"),
                ("longlive", "longlive"),
            ],
        ),
        (["memrope ; sliding:window=12, sink=3;"], [("memrope", "memrope"), ("sliding:window=12,sink=3",) * 2]),
        (["a=memrope,b=memrope"], [("a", "memrope"), ("b", "memrope")]),
        (
            ["slow one=memrope:short=0.01,recent=4,fast=memrope:long=0.1", "longlive"],
            [("slow one", "memrope:short=0.01,recent=4"), ("fast", "memrope:long=0.1"), ("longlive", "longlive")],
        ),
        (["x=elephant;y=elephant:legs=4"], [("x", "elephant"), ("y", "elephant:legs=4")]),
        (["memrope:ids=absolute,elephant:legs=4"], [("memrope:ids=absolute",) * 2, ("elephant:legs=4",) * 2]),
    ],
)
def test_memories(texts: list[str], entries: list[tuple[str, str]]) -> None:
    assert [(entry.label, entry.memory) for entry in parse_memories(texts)] == entries


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "Which memories?"),
        ([";,"], "Which memories?"),
        (["memrope,longlive,memrope"], "has 'memrope' twice"),
        (["A=memrope;a=longlive"], "has 'a' twice"),
        (["memrope,recent=3"], "no setting of it, which would be written memrope:recent=3, and no other memory"),
        (["a/b=memrope"], "can be called by up to 40 letters"),
        (["=memrope"], "can be called by"),
    ],
)
def test_memories_refused(texts: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        parse_memories(texts)


def test_lengths_and_seeds() -> None:
    assert parse_lengths("60,240") == [60, 240] and parse_lengths("4m, 30s,30") == [30, 240]
    assert parse_seeds("3") == [0, 1, 2] and parse_seeds("0,7,9") == [0, 7, 9] and parse_seeds("7,") == [7]
    for text in ("", "x", "0", "-1", "1,1", "-1,2", "1.5", ","):
        with pytest.raises(ValueError, match="--seeds takes"):
            parse_seeds(text)
    for text in ("", "x", "60;240", "0"):
        with pytest.raises(ValueError):
            parse_lengths(text)


# --- what is kept ------------------------------------------------------------------------------------------------


def comparison_of(
    memories: str = "memrope,longlive", scripts: tuple[str, ...] = SCRIPTS, seeds: int = 2, **settings: object
) -> Comparison:
    entries = tuple(parse_memories([memories]))
    values: dict[str, object] = {
        "model": "pocket",
        "signature": "0",
        "entries": entries,
        "baseline": entries[0].label,
        "scripts": scripts,
        "seeds": tuple(range(seeds)),
        "lengths": (2.0, 4.0),
        "height": 64,
        "width": 64,
        "fps": 16,
        "chunk": 3,
    }
    return Comparison(**{**values, **settings})  # type: ignore[arg-type]


def test_definition_is_read_back(tmp_path: Path) -> None:
    comparison = comparison_of(options={"dtype": "float32", "loras": ["/a:0.5"]}, weights={"longlive": "/w"})
    assert read_definition(tmp_path) is None
    write_json_file(tmp_path / "comparison.json", comparison.to_dict())
    again = read_definition(tmp_path)
    assert again == comparison and again is not None and again.jobs() == comparison.jobs()
    for text in ("{", "[]", '{"format": 1}', '{"format": 9}', json.dumps({**comparison.to_dict(), "baseline": "x"})):
        (tmp_path / "comparison.json").write_text(text)
        with pytest.raises(ValueError, match=r"comparison\.json cannot be read"):
            read_definition(tmp_path)


def test_jobs_are_pairs() -> None:
    """Every memory with every prompt and seed, memories innermost, and no two with one name."""
    jobs = comparison_of("a=memrope,b=memrope,longlive", scripts=("x", "y")).jobs()
    assert len(jobs) == len({job.name for job in jobs}) == 12
    assert [job.label for job in jobs[:3]] == ["a", "b", "longlive"] and len({job.pair for job in jobs[:3]}) == 1
    alike = comparison_of(scripts=("a red ball rolls " * 9 + "x", "a red ball rolls " * 9 + "y", "日本", "?!")).jobs()
    assert len({job.name.lower() for job in alike}) == 16
    assert all(len(job.name.encode()) < 200 and re.fullmatch(r"[\w/-]+", job.name) for job in alike)


def test_names_know_weights() -> None:
    """Videos of older memory weights are not taken for those of newer ones."""
    old, new = (comparison_of(weights_sha256={"memrope": sha}) for sha in ("1", "2"))
    assert [a.name == b.name for a, b in zip(old.jobs(), new.jobs(), strict=True)] == [False, True] * 16


def test_what_continues() -> None:
    begun = comparison_of(options={"dtype": "float32", "threads": 1})
    more = comparison_of("memrope,longlive,echo", seeds=5, lengths=(9.0,), options={"dtype": "float32", "every": "5"})
    more.check_continues(begun, Path("c"))
    begun.check_continues(more, Path("c"))
    for other, says in (
        (dataclasses.replace(begun, model="longlive"), "begun with pocket, not with longlive"),
        (dataclasses.replace(begun, width=128), "begun with another --width (with 64), not with 128"),
        (dataclasses.replace(begun, options={}), "begun with another --dtype (with float32), not without it"),
        (dataclasses.replace(begun, signature="1"), "begun with another pocket than there is now"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            other.check_continues(begun, Path("c"))


# --- what is made of results -------------------------------------------------------------------------------------

Values = Callable[[Job, float], dict[str, float]]


def fill(folder: Path, comparison: Comparison, values: Values, **more: object) -> None:
    """Results of all jobs, by the numbers that a function gives for a job and length."""
    for job in comparison.jobs():
        metrics = {seconds: values(job, seconds) for seconds in comparison.lengths}
        video = {"width": 64, "height": 64, "bytes": 5}
        windows = {"seconds": [0.0, 2.0], "contrast": [20.0, 20.0 - job.seed]}
        kept: dict[str, object] = {"settings": comparison.settings.to_dict(), "video": video, "windows": windows}
        Result(job, metrics, **{**kept, **more}).write(folder)  # type: ignore[arg-type]


def noise(job: Job) -> float:
    """The same for all memories."""
    return np.random.default_rng(SCRIPTS.index(job.script) * 100 + job.seed).normal()


def planted(job: Job, seconds: float) -> dict[str, float]:
    """By its label a memory is better or worse than "none", or only differs by chance, on top of large noise."""
    gain = {"good": -1.0, "bad": 1.0}.get(job.label, 0.0)
    if job.label == "chance":
        gain = (-1.0) ** SCRIPTS.index(job.script)
    return {
        "histogram_distance": 50 + 9 * noise(job) + gain,
        "consistency_end": 0.5 - gain / 10 + noise(job) / 9,
        "contrast_change": (10 + gain) * (-1) ** job.seed,
        "motion_top": 5 + gain,
        "loop_period": math.nan,
        "flicker": math.nan if job.label == "bad" and job.script == SCRIPTS[0] else 1.0,
    }


def test_planted_differences_are_found(tmp_path: Path) -> None:
    comparison = comparison_of("none=longlive,good=memrope,bad=memrope,chance=memrope,same=longlive")
    fill(tmp_path, comparison, planted)
    summary = Summary.read(comparison, tmp_path)
    assert not summary.skipped and summary.unit() == "prompts"
    assert summary.names() == ["histogram_distance", "contrast_change", "consistency_end", "flicker", "motion_top"]
    paired = summary.paired(4.0, summary.names())
    for name, more_is_better in (("histogram_distance", False), ("consistency_end", True), ("contrast_change", False)):
        size = 0.1 if more_is_better else 1.0
        for label, gain in (("good", -1.0), ("bad", 1.0)):
            found = paired[label][name]
            truth = (-gain if more_is_better else gain) * size
            assert found.difference.mean == pytest.approx(truth) and found.difference.count == 8
            assert found.difference.low == pytest.approx(truth) == pytest.approx(found.difference.high)
            assert found.verdict == {"good": "better", "bad": "worse"}[label]
            assert {found.signs.above, found.signs.below} == {0, 8}
            # 2 / 2^8, of four tests the smallest two: Holm multiplies by four, and keeps that for the second
            assert found.p == pytest.approx(4 * 2 / 256)
        assert paired["chance"][name].verdict == "" == paired["same"][name].verdict
        assert paired["same"][name].difference.mean == 0 == paired["same"][name].difference.high
        # the noise, which pairs share, hides all of it from a look at the means
        low, high = (summary.estimate(x, 4.0, "histogram_distance") for x in ("good", "none"))
        assert low.high > high.low
    assert paired["good"]["motion_top"].verdict == "" and math.isnan(paired["good"]["motion_top"].p)
    assert paired["bad"]["flicker"].difference.count == 7, "pairs need both videos"


def test_means_are_of_what_stands_in_the_files(tmp_path: Path) -> None:
    comparison = comparison_of("none=longlive,good=memrope")
    fill(tmp_path, comparison, planted)
    files = [json.loads(path.read_text()) for path in (tmp_path / "results").rglob("*.json")]
    write_report(Summary.read(comparison, tmp_path), tmp_path, ["longtake compare"])
    report = json.loads((tmp_path / "report.json").read_text())
    for label in ("none", "good"):
        mine = [f["metrics"]["4"] for f in files if f["label"] == label]
        for name in ("histogram_distance", "contrast_change", "motion_top"):
            mean = statistics.fmean(m[name] for m in mine)
            assert report["means"]["4"][label][name]["mean"] == pytest.approx(mean, abs=1e-9)
        size = statistics.fmean(abs(m["contrast_change"]) for m in mine)
        assert report["means_of_sizes"]["4"][label]["contrast_change"]["mean"] == pytest.approx(size)
    assert report["means"]["4"]["none"]["contrast_change"]["mean"] == pytest.approx(0), "signs cancel"


def test_curves_are_means_over_prompts(tmp_path: Path) -> None:
    comparison = comparison_of(seeds=3)
    fill(tmp_path, comparison, planted)
    begins, mean, (low, high) = Summary.read(comparison, tmp_path).curve("memrope", "contrast")
    assert begins.tolist() == [0, 2] and mean.tolist() == [20, 19]
    assert low.tolist() == [20, 19] == high.tolist(), "prompts do not differ; seeds do, and are averaged first"


def test_what_does_not_fit_is_left_out(tmp_path: Path) -> None:
    comparison = comparison_of(scripts=SCRIPTS[:2], seeds=1)
    fill(tmp_path, comparison, planted)
    jobs = comparison.jobs()
    large = dataclasses.replace(read_result(jobs[0], tmp_path), video={"width": 96, "height": 64})  # type: ignore[type-var]
    large.write(tmp_path)  # type: ignore[attr-defined]
    jobs[1].result(tmp_path).write_text("{")
    Result(jobs[2], error="It could not be made.").write(tmp_path)
    summary = Summary.read(comparison, tmp_path)
    assert [r.job for r in summary.results] == jobs[3:]
    for one, says in zip(
        summary.skipped, ("is 96x64 and the others 64x64", "cannot be read", "could not be"), strict=True
    ):
        assert says in one.reason and one.reason.endswith(".")
    assert summary.labels == ["longlive"] and summary.paired(4.0, summary.names()) == {}
    files = write_report(summary, tmp_path, ["longtake compare"])
    assert all("96x64" in path.read_text() for path in files)
    jobs[3].result(tmp_path).unlink()
    assert Summary.read(comparison, tmp_path).skipped[-1].reason == "It has not been made yet."


def test_numbers_of_other_benchmarks(tmp_path: Path) -> None:
    """A result needs no video, and may bring metrics of its own, which are tabled and tested as the others are."""
    comparison = comparison_of("longlive,memrope")
    recall = Metric("recall_60s", "hidden attributes recalled", "share", "", "higher", "Longtake", "memory")
    fill(
        tmp_path,
        comparison,
        lambda job, seconds: {"recall_60s": 0.25 + 0.5 * (job.label == "memrope")},
        described={"recall_60s": recall},
        video={},
        windows={},
    )
    summary = Summary.read(comparison, tmp_path)
    assert summary.names() == ["recall_60s"] and summary.paired(2.0, ["recall_60s"])["memrope"]["recall_60s"].verdict
    write_report(summary, tmp_path, ["x"])
    assert "hidden attributes recalled" in (tmp_path / "report.md").read_text()


def test_what_is_complete(tmp_path: Path) -> None:
    comparison = comparison_of(seeds=1)
    job = comparison.jobs()[0]
    assert not is_complete(job, comparison, tmp_path)
    fill(tmp_path, comparison, planted)
    assert is_complete(job, comparison, tmp_path), "also without its video"
    assert is_complete(job, dataclasses.replace(comparison, lengths=(2.0,)), tmp_path)
    assert not is_complete(job, dataclasses.replace(comparison, lengths=(2.0, 9.0)), tmp_path)
    other = dataclasses.replace(comparison.settings, window=1.0)
    assert not is_complete(job, dataclasses.replace(comparison, settings=other), tmp_path)
    job.video(tmp_path).parent.mkdir(parents=True)
    job.video(tmp_path).write_bytes(b"12345")
    assert is_complete(job, comparison, tmp_path)
    job.video(tmp_path).write_bytes(b"1234")
    assert not is_complete(job, comparison, tmp_path)
    Result(job, error="No.").write(tmp_path)
    assert not is_complete(job, comparison, tmp_path)


# --- what is written ---------------------------------------------------------------------------------------------


def test_report_needs_nothing_else(tmp_path: Path) -> None:
    """One file, without an address in it, and what prompts say stays text."""
    evil = '<script>alert("x")</script> | `a` http://example.org'
    comparison = comparison_of("<b>=longlive".replace("<b>", "b"), scripts=(*SCRIPTS[:-1], evil), seeds=1)
    for job in comparison.jobs():
        job.strip(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (200, 0, 0)).save(job.strip(tmp_path))
    fill(tmp_path, comparison, lambda job, seconds: {"contrast_change": 1.0}, pictures=[0.0, 2.0])
    write_report(Summary.read(comparison, tmp_path), tmp_path, ["longtake compare --out 'a b'"])
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and page.count("data:image/jpeg;base64,") == 8
    visible = re.sub(r">[^<]*<", "><", page)  # tags alone
    assert not re.search(
        r"https?:|//|@import|url\(", re.sub(r"data:image/jpeg;base64,[\w+/=]+|alt=\"[^\"]*\"", "", visible)
    )
    assert "prefers-color-scheme: dark" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    text = (tmp_path / "report.md").read_text()
    assert "longtake compare --out 'a b'" in text and "\\<script\\>" in text
    for linked in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / linked.replace("%20", " ")).is_file()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for line, after in itertools.pairwise(rows):
        if set(after) <= set("|- "):
            assert line.replace("\\|", "").count("|") == after.count("|")


def test_page_in_both_forms(tmp_path: Path) -> None:
    page = Page("<t>", [Heading("H_1", 1), Text("a `b|c` *d*"), Code("x < y"), Table(["m|n"], [[Cell("1", "better")]])])
    page.write_html(tmp_path / "a.html")
    page.write_markdown(tmp_path / "a.md")
    html, text = (tmp_path / "a.html").read_text(), (tmp_path / "a.md").read_text()
    assert "<title>&lt;t&gt;</title>" in html and "<code>b|c</code> *d*" in html and "<pre>x &lt; y</pre>" in html
    assert text == "# H\\_1\n\na `b\\|c` \\*d\\*\n\n```\nx < y\n```\n\n| m\\|n |\n| --- |\n| ▲ **1** |\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.5, "1234"),
        (99.96, "100.0"),
        (12.34, "12.3"),
        (-1.234, "−1.23"),
        (0.01234, "0.012"),
        (4e-5, "4e−05"),
    ],
)
def test_figures(value: float, text: str) -> None:
    assert figure(value) == text
    assert figure(math.nan) == "–" and figure(2, sign=True) == "+2.00" and figure(3e-18, sign=True) == "0"
