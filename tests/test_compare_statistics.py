"""Intervals, sign tests and corrections, against tables, enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from longtake.comparison.statistics import LEAST, bootstrap, holm, sign_test, student_quantile, units


@pytest.mark.parametrize(
    ("p", "freedom", "table"),
    # Fisher and Yates, Statistical tables
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 4, 2.7764),
        (0.975, 9, 2.2622),
        (0.975, 30, 2.0423),
        (0.95, 5, 2.0150),
        (0.995, 7, 3.4995),
        (0.75, 1, 1.0),
        (0.975, 1000, 1.9623),
        (0.5, 6, 0.0),
    ],
)
def test_students_quantiles(p: float, freedom: int, table: float) -> None:
    assert student_quantile(p, freedom) == pytest.approx(table, abs=6e-5)


def test_students_quantile_refuses() -> None:
    for p, freedom in ((0.4, 3), (1.0, 3), (0.9, 0)):
        with pytest.raises(ValueError, match="degree of freedom"):
            student_quantile(p, freedom)


def test_bootstrap_is_the_enumeration() -> None:
    """All 3125 resamples of five values: percentiles where a sixth of them lie apart by less than the tolerance."""
    values = np.array([1.0, 2.0, 4.0, 7.0, 11.0])
    means = np.sort([np.mean(chosen) for chosen in itertools.product(values, repeat=5)])
    # of five values, 95 % asks for Phi(-sqrt(5/4) 2.7764) = 0.00095, 50 % for Phi(-sqrt(5/4) 0.7407) = 0.20378
    for level, tail, tolerance in ((0.5, 0.20378, 0.15), (0.95, 0.00095, 0.5)):
        found = bootstrap(values, level)
        assert found.mean == pytest.approx(5.0) and found.count == 5
        assert found.low == pytest.approx(np.quantile(means, tail), abs=tolerance)
        assert found.high == pytest.approx(np.quantile(means, 1 - tail), abs=tolerance)


def test_bootstrap_of_many_values_is_the_normal_interval() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=400)
    found = bootstrap(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.12 * half)
    assert found == bootstrap(values), "the same values have the same interval"


@pytest.mark.parametrize(("count", "least", "most"), [(6, 0.92, 0.985), (12, 0.925, 0.975), (40, 0.93, 0.97)])
def test_coverage(count: int, least: float, most: float) -> None:
    """Of 1500 samples of normal values, the intervals that cover the mean; plain percentiles of 6 would be 0.87."""
    rng = np.random.default_rng(count)
    covered = 0
    for _ in range(1500):
        found = bootstrap(rng.normal(3.0, 2.0, count), resamples=2000)
        covered += found.low <= 3.0 <= found.high
    assert least <= covered / 1500 <= most


def test_bootstrap_of_little() -> None:
    assert math.isnan(bootstrap(np.array([])).mean)
    few = bootstrap(np.arange(LEAST - 1.0))
    assert few.mean == 1.5 and math.isnan(few.low) and math.isnan(few.high)
    same = bootstrap(np.full(7, 0.1))
    assert (same.mean, same.low, same.high) == (0.1, 0.1, 0.1)
    gaps = bootstrap(np.array([1, 2, np.nan, 3, 4, 5.0]))
    assert gaps == bootstrap(np.arange(1, 6.0)) and gaps.count == 5
    shifted = bootstrap(np.arange(1, 6.0) + 1e9)
    assert shifted.high - shifted.low == pytest.approx(gaps.high - gaps.low, abs=1e-5)


@pytest.mark.parametrize("count", [1, 2, 5, 9, 12])
def test_sign_test_is_the_enumeration(count: int) -> None:
    """Of all 2^n ways to give signs, the share at least as one-sided as this one."""
    ways = [sum(signs) for signs in itertools.product((0, 1), repeat=count)]
    for above in range(count + 1):
        found = sign_test(np.array([1.0] * above + [-2.0] * (count - above)))
        as_far = np.mean([abs(way - count / 2) >= abs(above - count / 2) for way in ways])
        assert found.p == pytest.approx(as_far) and (found.above, found.below) == (above, count - above)


def test_sign_test_without_signs() -> None:
    ties = sign_test(np.array([0.0, 0.0, 1.0, np.nan]))
    assert (ties.above, ties.below, ties.p) == (1, 0, 1.0)
    assert sign_test(np.zeros(8)).p == 1 and math.isnan(sign_test(np.array([np.nan])).p)


def test_holm() -> None:
    # four tests at 0.05, of which the step-down procedure rejects the two smallest
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    corrected = holm([0.01, math.nan, 0.02])
    assert corrected[0] == 0.02 and math.isnan(corrected[1]) and corrected[2] == 0.02
    assert holm([]) == []


def test_holm_keeps_false_alarms_down() -> None:
    """20 tests without an effect: any false one in at most 5 % of 2000 studies, where uncorrected it is 64 %."""
    rng = np.random.default_rng(3)
    p = rng.random((2000, 20))
    alarms = np.mean([min(holm(list(row))) <= 0.05 for row in p])
    assert 0.03 <= alarms <= 0.065 and np.mean(p.min(1) <= 0.05) > 0.6


def test_units() -> None:
    """Seeds of a prompt are no independent prompts; with few prompts, videos are all there is."""
    values = {(prompt, seed): float(10 * prompt + seed) for prompt in range(6) for seed in range(3)}
    found, kind = units(values)
    assert kind == "prompts" and found.tolist() == [10 * prompt + 1.0 for prompt in range(6)]
    values[2, 1] = math.nan
    assert units(values)[0][2] == 21.0, "the mean of what is known"
    few, kind = units({key: value for key, value in values.items() if key[0] < 3})
    assert kind == "videos" and len(few) == 8
    assert len(units({})[0]) == 0


def test_interval_over_prompts_is_as_wide_as_prompts_differ() -> None:
    """Many seeds of few prompts know no more of other prompts than one seed does."""
    rng = np.random.default_rng(5)
    effects = rng.normal(0, 1, 8)
    wide = {(p, s): effects[p] + rng.normal(0, 0.05) for p in range(8) for s in range(50)}
    found = bootstrap(units(wide)[0])
    alone = bootstrap(effects)
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.1)
    pooled = bootstrap(np.array(list(wide.values())))
    assert pooled.high - pooled.low < 0.3 * (found.high - found.low)
