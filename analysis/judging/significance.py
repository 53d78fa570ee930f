"""Tests of difference between rows of runs that share their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np


@dataclass(frozen=True)
class Difference:
    """A mean difference over `seeds` pairs, its 95 % interval, and its p-value."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Give first - second with the paired t interval and two-sided p.

    Exact for normal differences, whatever the two spreads are (Student 1908).

    Raises:
        ValueError: the two are not equally long, or shorter than 2.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"paired scores must be 2 or more each, got {len(first)}, {len(second)}")
    differences = np.subtract(first, second)
    error = float(differences.std(ddof=1)) / sqrt(len(first))
    return _difference(float(differences.mean()), error, len(first) - 1, len(first), sides=2)


def against(scores: Mapping[str, Sequence[float]], reference: str) -> dict[str, Difference]:
    """Compare each row with the reference row in a row + seed block model; p is one-sided: better.

    The model's error is pooled over all rows, (rows - 1) * (seeds - 1) degrees of freedom (Fisher
    1935, randomised blocks). It assumes equal spreads; where they differ, a row with a large one
    would pass too often (9 % instead of 5 % in a simulation with spreads of 0.3 to 3). So the
    paired test, which assumes nothing of the kind, must agree: p is the larger of the two, and the
    interval the wider. One-sided, because the reference was chosen as the best: being worse than
    it is no finding, and being better is the harder for the choice.

    Args:
        scores: each row's scores, in the same order of seeds; higher is better.
        reference: the row to compare with.
    """
    table = np.array(list(scores.values()), dtype=float)  # (rows, seeds)
    rows, seeds = table.shape
    residuals = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    freedom = (rows - 1) * (seeds - 1)
    error = sqrt(2 * float((residuals**2).sum()) / freedom / seeds)
    found = {}
    for name, row in scores.items():
        if name == reference:
            continue
        differences = np.subtract(row, scores[reference])
        mean = float(differences.mean())
        own = float(differences.std(ddof=1)) / sqrt(seeds)
        both = (
            _difference(mean, error, freedom, seeds, sides=1),
            _difference(mean, own, seeds - 1, seeds, sides=1),
        )
        found[name] = Difference(
            mean,
            min(each.low for each in both),
            max(each.high for each in both),
            max(each.p for each in both),
            seeds,
        )
    return found


def _difference(mean: float, error: float, freedom: int, seeds: int, sides: int) -> Difference:
    from scipy.stats import t  # imported late: it takes most of a second

    if error == 0:  # scores that count few images may all differ alike: no error can be estimated
        return Difference(mean, -inf, inf, 1.0, seeds)
    half = float(t.ppf(0.975, freedom)) * error
    tail = float(t.sf(abs(mean / error) if sides == 2 else mean / error, freedom))
    return Difference(mean, mean - half, mean + half, sides * tail, seeds)


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Give p-values adjusted for their number (Holm 1979); one below 0.05 is significant."""
    adjusted, least = {}, 0.0
    for place, name in enumerate(sorted(values, key=lambda name: values[name])):
        least = max(least, min(1.0, (len(values) - place) * values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in values}
