"""Tests of difference between rows of runs that share their seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt

import numpy as np

from analysis.judging.anytime_regret import Numbers

Scores = Mapping[str, Mapping[int, float]]
"""Finite scores by row and seed, higher is better; a row may lack seeds."""
_ROUNDING = 1e-9
"""Of the largest score: differences that differ by less are the same number."""


@dataclass(frozen=True)
class Difference:
    """A mean difference over `seeds` pairs, with an interval and a p-value of one kind.

    Args:
        low, high: of the 95 % interval. Two-sided it has both ends. One-sided, `low` is what the
            true difference exceeds with 95 % confidence, and `high` is infinite. It leaves 0 out
            exactly when p is below 0.05 (and the mean, one-sided, is above 0).
        p: 1 where the differences have no spread to judge by; both ends are infinite then.
        seeds: the number of pairs.
        sides: 1 or 2, of p and of the interval.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    sides: int

    @property
    def has_spread(self) -> bool:
        """Whether the differences vary, so that there is an interval and a p-value."""
        return isfinite(self.low)


def paired(first: Sequence[float], second: Sequence[float], resolution: float = 0.0) -> Difference:
    """Give first - second with the paired t interval and two-sided p.

    Exact for normal differences, whatever the two spreads are (Student 1908). An accuracy counts
    images, though. Differences that are all alike to within one image show no spread but that of
    the counting, and t would be without bounds: one image more in every seed gave p = 6e-58. They
    get no p.

    Args:
        first: scores, higher is better.
        second: scores in the same order of seeds.
        resolution: the least step of a score: of an accuracy, 1 / images.

    Raises:
        ValueError: the two are not equally long, or shorter than 2.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"paired scores must be 2 or more each, got {len(first)}, {len(second)}")
    differences = np.subtract(first, second)
    if _alike(differences, [first, second], resolution):
        return _no_spread(differences, sides=2)
    error = float(differences.std(ddof=1)) / sqrt(len(first))
    return _difference(float(differences.mean()), error, len(first) - 1, len(first), sides=2)


def each_against(
    scores: Scores, reference: str, names: Collection[str], resolution: float = 0.0
) -> dict[str, Difference]:
    """Compare rows with the reference row as `against` does, each over the seeds that both have.

    The error is pooled over the rows that have all of these seeds: what a row lacks takes nothing
    from another. Rows that share fewer than two seeds with the reference are left out.
    """
    found = {}
    for name in names:
        seeds = shared_seeds(scores, (name, reference))
        if len(seeds) > 1:
            whole = {row: of for row, of in scores.items() if of.keys() >= set(seeds)}
            table = {row: [of[seed] for seed in seeds] for row, of in whole.items()}
            found[name] = against(table, reference, resolution)[name]
    return found


def each_paired(
    scores: Scores, reference: str, names: Collection[str], resolution: float = 0.0
) -> dict[str, Difference]:
    """Compare rows with the reference row as `paired` does, each over the seeds that both have.

    Rows that share fewer than two seeds with the reference are left out.
    """
    found = {}
    for name in names:
        seeds = shared_seeds(scores, (name, reference))
        if len(seeds) > 1:
            first, second = ([scores[row][seed] for seed in seeds] for row in (name, reference))
            found[name] = paired(first, second, resolution)
    return found


def shared_seeds(scores: Scores, names: Collection[str]) -> list[int]:
    """Give in order the seeds at which all of the rows have scores."""
    return sorted(set.intersection(*(set(scores.get(name, ())) for name in names)))


def against(
    scores: Mapping[str, Sequence[float]], reference: str, resolution: float = 0.0
) -> dict[str, Difference]:
    """Compare each row with the reference row in a row + seed block model, one-sided: is it better?

    The model's error is pooled over all rows, (rows - 1) * (seeds - 1) degrees of freedom (Fisher
    1935, randomised blocks). It assumes equal spreads; where they differ, a row with a large one
    would pass too often (9 % instead of 5 % in a simulation with spreads of 0.3 to 3). So the
    paired test, which assumes nothing of the kind, must agree: p is the larger of the two, and the
    lower bound the lower. One-sided, because the reference was chosen as the best: being worse than
    it is no finding, and being better is the harder for the choice.

    Args:
        scores: each row's scores, in the same order of seeds; higher is better.
        reference: the row to compare with.
        resolution: the least step of a score, as `paired` has it.
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
        if _alike(differences, [row, scores[reference]], resolution):
            found[name] = _no_spread(differences, sides=1)
            continue
        mean = float(differences.mean())
        own = float(differences.std(ddof=1)) / sqrt(seeds)
        pooled = _difference(mean, error, freedom, seeds, sides=1)
        alone = _difference(mean, own, seeds - 1, seeds, sides=1)
        low, p = min(pooled.low, alone.low), max(pooled.p, alone.p)
        found[name] = Difference(mean, low, inf, p, seeds, sides=1)
    return found


def _alike(differences: Numbers, scores: Sequence[Sequence[float]], resolution: float) -> bool:
    """Say whether differences are the same but for rounding and one step of the score."""
    rounding = _ROUNDING * float(np.abs(scores).max())
    return float(np.ptp(differences)) <= resolution * (1 + _ROUNDING) + rounding


def _no_spread(differences: Numbers, sides: int) -> Difference:
    return Difference(float(differences.mean()), -inf, inf, 1.0, len(differences), sides)


def _difference(mean: float, error: float, freedom: int, seeds: int, sides: int) -> Difference:
    from scipy.special import stdtr, stdtrit  # imported late: Student's t, without scipy.stats

    half = float(stdtrit(freedom, 1 - 0.05 / sides)) * error
    tail = float(stdtr(freedom, -abs(mean / error) if sides == 2 else -mean / error))
    high = mean + half if sides == 2 else inf
    return Difference(mean, mean - half, high, sides * tail, seeds, sides)


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Give p-values adjusted for their number (Holm 1979); one below 0.05 is significant.

    NaN, a test that could not be made, counts as none and is given as 1.
    """
    made = {name: p for name, p in values.items() if p == p}
    adjusted, least = {}, 0.0
    for place, name in enumerate(sorted(made, key=lambda name: made[name])):
        least = max(least, min(1.0, (len(made) - place) * made[name]))
        adjusted[name] = least
    return {name: adjusted.get(name, 1.0) for name in values}
