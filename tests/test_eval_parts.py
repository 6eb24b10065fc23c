"""The parts of an evaluation, each against a closed form, brute force or published numbers."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.evaluation import DIRECTIONS, METRICS, Boundaries, Settings
from longtake.evaluation.features import fixed_feature
from longtake.evaluation.flow import optical_flow
from longtake.evaluation.loops import count_returns, find_loop
from longtake.evaluation.meter import Meter
from longtake.evaluation.pictures import block_means, hellinger, lab, lab_histogram, looks, luma
from longtake.evaluation.settings import parse_boundaries
from longtake.evaluation.source import _Gaps
from longtake.evaluation.steps import Steps
from longtake.evaluation.streams import Correlogram, Trends, Windows
from tests.helpers_videos import texture

RNG = np.random.default_rng


def plain(colour: tuple[int, int, int], height: int = 32, width: int = 40) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


# --- pictures ----------------------------------------------------------------------------------------------------


def test_looks_of_waves() -> None:
    """A grey wave along x has every statistic in closed form."""
    x, size, cycles = np.arange(128), 50.0, 16
    wave = 120 + size * np.cos(2 * np.pi * cycles * x / 128)
    frame = np.repeat(np.repeat(wave[None, :, None], 64, 0), 3, 2)
    y = frame[..., 0].astype(np.float32)
    found = looks(frame.round().astype(np.uint8), y)
    angle = 2 * np.pi * cycles / 128
    assert found["brightness"] == pytest.approx(120 / 2.55, rel=1e-3)
    assert found["saturation"] == 0
    assert found["contrast"] == pytest.approx(size / math.sqrt(2) / 2.55, rel=1e-3)
    # a second difference multiplies a wave by 2 cos(angle) - 2, the binomial filter by cos(angle / 2) ** 4
    assert found["sharpness"] == pytest.approx((2 * math.cos(angle) - 2) ** 2 * size**2 / 2, rel=0.02)
    assert found["detail"] == pytest.approx(100 * (1 - math.cos(angle / 2) ** 4) ** 2, rel=0.02)
    assert found["noise"] == pytest.approx(0, abs=1e-3)
    assert np.isnan(looks(plain((9, 9, 9)), luma(plain((9, 9, 9))))["detail"])


@pytest.mark.parametrize("level", [0.5, 2.0, 9.0])
def test_noise_is_read_through_texture(level: float) -> None:
    y = 120 + 40 * texture(120, 160) + level * RNG(1).normal(size=(120, 160))
    frame = np.repeat(y[..., None], 3, 2).round().clip(0, 255).astype(np.uint8)
    assert looks(frame, y.astype(np.float32))["noise"] == pytest.approx(level, rel=0.12)


def test_chroma_of_colours() -> None:
    frame = np.concatenate([plain((255, 0, 0)), plain((100, 100, 100)), plain((0, 51, 204))])
    assert looks(frame, luma(frame))["saturation"] == pytest.approx((100 + 0 + 80) / 3)


def test_lab_of_known_colours() -> None:
    """Published values of sRGB under D65 (2 degrees)."""
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [119, 119, 119]], np.uint8)
    known = [(53.24, 80.09, 67.20), (87.73, -86.18, 83.18), (32.30, 79.19, -107.86), (100, 0, 0), (0, 0, 0)]
    assert lab(colours)[:5] == pytest.approx(np.array(known), abs=0.1)
    assert lab(colours)[5] == pytest.approx(np.array([50.03, 0, 0]), abs=0.1)


def test_histograms() -> None:
    red, blue = lab_histogram(plain((255, 0, 0))), lab_histogram(plain((0, 0, 255)))
    assert red.sum() == 32 * 40 and (red > 0).sum() == 1
    assert hellinger(red, red) == 0 and hellinger(red, blue) == 1
    # a quarter of one in the other: 1 - sqrt(1/4) of overlap is missing
    assert hellinger(red, red + 3 * blue) == pytest.approx(math.sqrt(1 - math.sqrt(0.25)))
    assert lab_histogram(np.zeros((1000, 1000, 3), np.uint8)).sum() <= 1 << 14


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 45), st.integers(1, 45))
def test_block_means(height: int, width: int) -> None:
    frame = RNG(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)
    found = block_means(frame, 4)
    rows, columns = min(4, height), min(4, width)
    assert found.shape == (rows, columns, 3)
    for r in range(rows):
        for c in range(columns):
            part = frame[
                r * height // rows : (r + 1) * height // rows, c * width // columns : (c + 1) * width // columns
            ]
            assert found[r, c] == pytest.approx(part.reshape(-1, 3).mean(0))


# --- flow --------------------------------------------------------------------------------------------------------


def waves(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A texture that is known between pixels, too."""
    total = np.zeros(np.broadcast(y, x).shape)
    rng = RNG(3)
    for _ in range(30):
        fy, fx = rng.normal(scale=0.25, size=2)
        total += np.cos(fy * y + fx * x + rng.uniform(0, 2 * np.pi))
    return 120 + 10 * total


GRID = np.mgrid[:72, :96].astype(float)


@pytest.mark.parametrize("move", [(0.0, 0.0), (0.3, 0.0), (-1.0, 0.6), (3.7, 2.2), (0.0, -8.0), (9.0, 4.0)])
def test_flow_of_translations(move: tuple[float, float]) -> None:
    y, x = GRID
    flow = optical_flow(waves(y, x), waves(y - move[1], x - move[0]))
    off = np.hypot(flow[0] - move[0], flow[1] - move[1])
    assert flow.shape == (2, 72, 96)
    assert np.median(off) < 0.06  # pixels
    assert off[16:-16, 16:-16].mean() < 0.15


def test_flow_of_a_turn() -> None:
    y, x = GRID
    angle, cy, cx = math.radians(4), 35.5, 47.5
    cos, sin = math.cos(angle), math.sin(angle)
    # what was at p is at R (p - c) + c
    true_x = cos * (x - cx) - sin * (y - cy) + cx - x
    true_y = sin * (x - cx) + cos * (y - cy) + cy - y
    back_x, back_y = cos * (x - cx) + sin * (y - cy) + cx, -sin * (x - cx) + cos * (y - cy) + cy
    flow = optical_flow(waves(y, x), waves(back_y, back_x))
    off = np.hypot(flow[0] - true_x, flow[1] - true_y)
    assert np.hypot(true_x, true_y).max() > 3 and np.median(off) < 0.1


def test_flow_where_nothing_is_to_be_seen() -> None:
    flat, noise = np.full((40, 60), 100.0), RNG(0).normal(size=(2, 40, 60))
    assert not optical_flow(flat, flat).any()
    assert np.hypot(*optical_flow(flat, flat + 20)).max() < 0.01
    assert np.hypot(*optical_flow(flat + noise[0], flat + noise[1])).mean() < 0.05
    assert optical_flow(flat[:17, :16], flat[:17, :16]).shape == (2, 17, 16)


# --- features ----------------------------------------------------------------------------------------------------


def test_features_of_plain_colours() -> None:
    """Black and white share all but luma, one histogram of four."""
    black, white = fixed_feature(plain((0, 0, 0))), fixed_feature(plain((255, 255, 255)))
    assert black.shape == (693,) and float(black @ black) == pytest.approx(1)
    assert float(black @ white) == pytest.approx(0.75, abs=1e-5)


def test_features_tell_places_apart_and_forgive_size() -> None:
    def picture(seed: int, height: int = 96) -> np.ndarray:
        rows = 120 + 40 * np.stack([texture(96, 128, seed + c, 5) for c in range(3)], -1)
        step = 96 // height
        return rows[::step, ::step].clip(0, 255).astype(np.uint8)

    a, b, small = (fixed_feature(p) for p in (picture(0), picture(10), picture(0, 48)))
    noisy = fixed_feature((picture(0) + RNG(0).normal(scale=3, size=(96, 128, 3))).clip(0, 255).astype(np.uint8))
    assert float(a @ small) > 0.98 and float(a @ noisy) > 0.98
    assert float(a @ b) < 0.97  # the same kind of texture in the same colours


# --- what is kept ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.floats(-5, 5), st.just(math.nan)), min_size=1, max_size=70))
def test_windows_are_put_together(values: list[float]) -> None:
    kept = Windows(("a",), 8)
    for value in values:
        kept.add({"a": value})
    table = kept.table()["a"]
    assert len(table) <= 8 and kept.per_row in (1, 2, 4, 8, 16)
    assert len(table) > 4 or kept.per_row == 1
    for row, found in enumerate(table):
        part = np.array(values[row * kept.per_row : (row + 1) * kept.per_row])
        there = part[~np.isnan(part)]
        assert np.isnan(found) if not len(there) else found == pytest.approx(there.mean(), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=50), st.floats(0, 1e4))
def test_trends_are_least_squares(values: list[float], start: float) -> None:
    kept = Trends(2)
    times = start + np.arange(len(values)) / 30
    for time, value in zip(times, values, strict=True):
        kept.add(time, np.array([value, math.nan]))
    first, none = kept.slopes()
    assert first == pytest.approx(np.polyfit(times - start, values, 1)[0], abs=1e-4)
    assert np.isnan(none)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 400), st.integers(0, 10**6))
def test_gaps_of_times_that_come_nearly_in_order(count: int, seed: int) -> None:
    """As B-frames do; never more than a few are waiting."""
    rng = RNG(seed)
    times = np.cumsum(rng.integers(0, 50, count))
    gaps = _Gaps()
    for index in np.argsort(np.arange(count) + rng.uniform(0, 16, count)):
        gaps.add(int(times[index]))
        assert len(gaps._waiting) <= 32
    gaps.end()
    assert (gaps.count, gaps.span) == (count, times[-1] - times[0])
    assert (gaps.least, gaps.most) == (np.diff(times).min(), np.diff(times).max())


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.normal(size=(count, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute(vectors: np.ndarray, lag: int) -> float:
    """Autocorrelation by all pairs."""
    variance = np.square(vectors - vectors.mean(0)).sum(1).mean()
    gap = np.square(vectors[lag:] - vectors[: len(vectors) - lag]).sum(1).mean()
    return float(1 - gap / (2 * variance))


def test_correlogram_by_all_pairs() -> None:
    vectors = unit(RNG(0), 60)
    kept = Correlogram(64, 1000)
    for vector in vectors:
        kept.add(vector)
    found = kept.correlation()
    assert len(found) == 60 and found[0] == 1
    assert found[1:] == pytest.approx([brute(vectors, lag) for lag in range(1, 60)], abs=1e-5)
    assert kept.alike(3) == pytest.approx(float((vectors[3:] * vectors[:-3]).sum(1).mean()), abs=1e-6)


def test_correlogram_with_few_references() -> None:
    """Fewer pairs, the same curve; every lag is seen, and never more references than there is room for."""
    cycle = unit(RNG(1), 25)
    kept, every = Correlogram(16, 300), []
    for index in range(800):
        every.append(cycle[index % 25])
        kept.add(every[-1])
    found = kept.correlation()
    assert len(found) == 300 and not np.isnan(found).any()
    expected = np.array([brute(np.array(every), lag) for lag in range(1, 300)])
    assert np.abs(found[1:] - expected).max() < 0.35 and np.abs(found[1:] - expected).mean() < 0.1
    assert found[25::25] == pytest.approx(1, abs=1e-4)


def test_loops_in_known_curves() -> None:
    lag, step = np.arange(241), 0.25
    strength, period = find_loop(np.cos(2 * np.pi * lag * step / 12), step)
    assert strength == pytest.approx(1, abs=0.01) and period == 12
    # motion that repeats every 1.5 seconds is no loop, whatever its multiples
    assert find_loop(np.cos(2 * np.pi * lag * step / 1.5), step)[0] == pytest.approx(0, abs=0.01)
    # drift, and a rise that has no end yet
    assert find_loop(1 - lag / 100, step)[0] == 0
    assert find_loop(np.abs(1 - lag / 130), step)[0] == 0
    # too short, or nothing changes
    assert all(np.isnan(find_loop(curve, step)[0]) for curve in (np.ones(20), np.full(241, np.nan)))


def test_returns_in_known_curves() -> None:
    away = np.array([0.1, 0.5, 0.9])
    distance = np.concatenate([[0.0], away, [0.01], away, [0.05], away])
    assert count_returns(1 - distance, 0.999) == 2
    assert count_returns(1 - distance, 0.6) == 0  # a second changes as much
    assert count_returns(1 - np.linspace(0, 1, 30), 0.99) == 0
    assert count_returns(np.full(5, np.nan), 0.9) == 0


def test_steps_by_hand() -> None:
    frames = RNG(5).integers(0, 256, (5, 20, 30, 3), np.uint8)
    steps = Steps(None, None)
    for frame in frames:
        steps.add(frame)
    found = steps.metrics(16)
    wide = frames.astype(float)
    assert found["frame_difference"] == pytest.approx(np.abs(np.diff(wide, axis=0)).mean() / 2.55)
    means = np.stack([block_means(frame) for frame in frames]) @ [0.2126, 0.7152, 0.0722]
    bends = np.abs(means[:-2] - 2 * means[1:-1] + means[2:]) / 4
    assert found["flicker"] == pytest.approx(np.median(bends.reshape(3, -1), 1).mean() / 2.55, rel=1e-5)
    assert np.isnan(found["seam_chunk"]) and np.isnan(found["seam_decoder_ratio"])


@pytest.mark.parametrize("at", [1, 2, 5, 30, 36, 37])
def test_a_cut_is_seen_wherever_it_is(at: int) -> None:
    """The first and last frames have fewer neighbours."""
    steps = Steps(None, None)
    for index in range(38):
        steps.add(plain((100, 100, 100) if index < at else (140, 90, 60)))
    assert steps.metrics(16)["jumps"] == pytest.approx(60 * 16 / 38)


def test_pictures_that_are_held_are_no_jumps() -> None:
    """Eight pictures a second at 24 frames a second; at the end there is one jump."""
    steps = Steps(None, None)
    for index in range(90):
        steps.add(plain((index // 3 * 5 % 250, 90, 90)) if index < 88 else plain((240, 90, 90)))
    assert steps.metrics(24)["jumps"] == 60 / (90 / 24)


# --- the whole ---------------------------------------------------------------------------------------------------


def test_memory_does_not_grow() -> None:
    """All that is held after a minute of frames is held after an hour: arrays are made once, queues are full."""
    small = Settings(window=0.25, windows=8, references=8, lags=64)
    meter, sizes = Meter(16, small), []
    pictures = RNG(0).integers(0, 256, (7, 16, 16, 3), np.uint8)
    for index in range(1000):
        meter.add(pictures[index % 7])
        if index in (100, 449, 999):
            sizes.append(len(pickle.dumps(meter)))
    # numbers that count may need another byte or two
    assert max(sizes) - min(sizes) < 200 and meter.frames == 1000
    rows = meter.result().windows["brightness"]
    assert 4 < len(rows) <= 8 and meter.result().metrics["brightness"] == pytest.approx(rows.mean(), rel=0.01)


def test_short_videos() -> None:
    """What cannot be told is not told."""
    meter = Meter(16)
    with pytest.raises(ValueError, match="no frames"):
        meter.result()
    for frame in RNG(0).integers(0, 256, (4, 20, 24, 3), np.uint8):
        meter.add(frame)
    found = meter.result().metrics
    assert found["motion"] > 0 and found["flicker"] > 0
    for name in (
        "brightness_drift",
        "contrast_change",
        "consistency_end",
        "consistency_start",
        "returns",
        "loop_strength",
    ):
        assert np.isnan(found[name]), name


def test_the_registry_says_what_everything_is() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name and metric.direction in DIRECTIONS
        assert metric.title and metric.formula and metric.source and metric.group


def test_boundaries() -> None:
    chunk = Boundaries(9, 12)
    assert [f for f in range(40) if chunk.at(f)] == [9, 21, 33]
    assert [f for f in range(24) if chunk.near(f)] == [8, 9, 10, 20, 21, 22]
    assert [f for f in range(14) if Boundaries(1, 4).at(f)] == [1, 5, 9, 13]
    assert parse_boundaries("9,12", "--chunk") == chunk and parse_boundaries("none", "--chunk") is None
    assert parse_boundaries("12", "--chunk") == Boundaries(12, 12)
    for text in ("", "0,12", "a", "1,2,3", "9,-1", "9,12.5"):
        with pytest.raises(ValueError, match="--chunk takes"):
            parse_boundaries(text, "--chunk")


@pytest.mark.parametrize("change", [{"window": 0.1}, {"samples": 0}, {"windows": 5}, {"references": 3}, {"lags": 1}])
def test_settings_that_cannot_be(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r" not | least "):
        Settings(**change)  # type: ignore[arg-type]


def test_the_page_says_what_the_code_says() -> None:
    """docs/eval.md has a row for every metric, with its formula, unit and source."""
    page = (Path(__file__).parent.parent / "docs" / "eval.md").read_text(encoding="utf-8").replace("\\", "")
    for name, metric in METRICS.items():
        if name.endswith(("_change", "_drift")):
            assert name.rsplit("_", 1)[0] in METRICS
            continue
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}` |") and metric.formula in line)
        assert metric.source in row and f"| {metric.unit} |" in row
