"""Tests of difference against scipy and against hand computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from analysis.judging.significance import against, each_against, holm, paired

# Student 1908, "The probable error of a mean": hours of sleep gained under two drugs.
FIRST = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SECOND = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_students_own_example():
    found = paired(SECOND, FIRST)
    assert found.mean == pytest.approx(1.58)
    assert found.p == pytest.approx(0.002833, abs=1e-6)  # as textbooks and R's sleep data give it
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert found.seeds == 10
    test = stats.ttest_rel(SECOND, FIRST)
    interval = test.confidence_interval(0.95)
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    turned = paired(FIRST, SECOND)
    assert (turned.mean, turned.low, turned.high) == (-found.mean, -found.high, -found.low)
    assert turned.p == found.p


@pytest.mark.parametrize("scores", [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_pairs_are_needed(scores):
    with pytest.raises(ValueError, match=r"paired scores must be 2 or more each, got [12], 1"):
        paired(*scores)


IMAGES = np.array([136, 137, 139, 138, 140])


@pytest.mark.parametrize(
    ("first", "second", "resolution"),
    [
        ([0.5, 0.625, 0.75], [0.25, 0.375, 0.5], 0),
        ([0.82, 0.84, 0.83, 0.81, 0.85], [0.81, 0.83, 0.82, 0.80, 0.84], 0),  # rounded otherwise
        ((IMAGES + 1) / 143, IMAGES / 143, 0),
        ((IMAGES + np.array([1, 1, 1, 2, 1])) / 143, IMAGES / 143, 1 / 143),
        ([-1e-4, -2e-4, -3e-4], [-1.1e-4, -2.1e-4, -3.1e-4], 0),  # losses may be small
        ([0.8, 0.9], [0.8, 0.9], 0),
    ],
)
def test_differences_that_are_all_the_same_prove_nothing(first, second, resolution):
    both = against({"a": list(second), "b": list(first)}, "a", resolution)["b"]
    for found in (paired(list(first), list(second), resolution), both):
        assert (found.p, found.low, found.high) == (1.0, -math.inf, math.inf)
        assert found.mean == pytest.approx(np.mean(np.subtract(first, second)))
        assert not found.has_spread


def test_two_steps_of_the_score_are_a_spread():
    found = paired(list((IMAGES + np.array([1, 1, 1, 3, 1])) / 143), list(IMAGES / 143), 1 / 143)
    assert found.has_spread
    assert found.p == pytest.approx(stats.ttest_1samp([1, 1, 1, 3, 1], 0).pvalue)


def test_the_block_model_by_hand():
    scores = {"a": [10.0, 12.0, 14.0], "b": [13.0, 14.0, 18.0], "c": [10.0, 16.0, 13.0]}
    # Means of rows 12, 15, 13; of seeds 11, 14, 15; of all 40/3. The residuals' squares sum to 14.
    # Error variance 14 / 4 = 3.5, standard error of a difference sqrt(2 * 3.5 / 3) = 1.5275.
    found = against(scores, "a")
    assert list(found) == ["b", "c"]
    error = math.sqrt(7 / 3)
    # b - a is 3, 2, 4 in turn: the paired test's error 1 / sqrt(3) is smaller, but it has 2 degrees
    # of freedom; c - a is 0, 4, -1.
    for name, differences in (("b", [3, 2, 4]), ("c", [0, 4, -1])):
        mean = sum(differences) / 3
        pooled = stats.t.sf(mean / error, 4)
        alone = stats.ttest_1samp(differences, 0, alternative="greater").pvalue
        assert found[name].mean == pytest.approx(mean)
        assert found[name].p == pytest.approx(max(pooled, alone))
        half = max(
            stats.t.ppf(0.95, 4) * error,
            stats.t.ppf(0.95, 2) * float(np.std(differences, ddof=1)) / math.sqrt(3),
        )
        assert (found[name].low, found[name].high) == (pytest.approx(mean - half), math.inf)
    assert found["b"].p == pytest.approx(stats.t.sf(3 / error, 4))
    assert found["c"].p == pytest.approx(stats.t.sf(1 / error, 4), rel=0.2)


def test_of_two_rows_the_block_model_is_the_paired_test():
    found = against({"reference": FIRST, "better": SECOND}, "reference")["better"]
    assert found.p == pytest.approx(paired(SECOND, FIRST).p / 2)
    test = stats.ttest_rel(SECOND, FIRST, alternative="greater")
    assert found.low == pytest.approx(test.confidence_interval(0.95).low)
    assert (found.high, found.sides) == (math.inf, 1)


def test_a_small_p_and_the_interval_beside_it_say_the_same():
    draws = np.random.default_rng(0)
    for _ in range(300):
        x = draws.normal(0, 1, 5)
        y = list(x + draws.normal(0.7, 0.7, 5))
        one, both = against({"x": list(x), "y": y}, "x")["y"], paired(y, list(x))
        assert (one.p < 0.05) is (one.low > 0)
        assert (both.p < 0.05) is not (both.low <= 0 <= both.high)


def test_a_row_takes_nothing_from_another_by_the_seeds_it_lacks():
    draws = np.random.default_rng(0)
    table = {name: dict(enumerate(draws.normal(0, 1, 10))) for name in "abc"}
    without = each_against(table, "a", ["b", "c"])
    few = {seed: 9.0 + seed % 2 for seed in range(4)}
    found = each_against({**table, "few": few, "one": {3: 1.0}}, "a", ["b", "c", "few", "one"])
    assert {name: found[name] for name in "bc"} == without
    assert (found["few"].seeds, "one" in found) == (4, False)
    whole = {name: [of[seed] for seed in range(4)] for name, of in {**table, "few": few}.items()}
    assert found["few"] == against(whole, "a")["few"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005},
            {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02},
        ),
        ({"a": 0.02}, {"a": 0.02}),
        ({"a": 0.6, "b": 0.9}, {"a": 1.0, "b": 1.0}),
        ({"a": 0.01, "b": 0.012, "c": 0.02}, {"a": 0.03, "b": 0.03, "c": 0.03}),
        ({}, {}),
        ({"a": 0.01, "b": math.nan, "c": 0.001}, {"a": 0.01, "b": 1.0, "c": 0.002}),
    ],
)
def test_holm_by_hand(values, expected):
    assert holm(values) == pytest.approx(expected)
    assert list(holm(values)) == list(values)
