"""The scores of rows over FLOPs or time: means over seeds, and their spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.judging.anytime_regret import POINTS, Numbers
from analysis.judging.comparison_claims import Judgement


@dataclass(frozen=True, eq=False)
class Band:
    """A row's score: `middle` (points,) over `places`, `spread` its sample std, None for one seed.

    `places` are those that all of the row's seeds have; accuracies are in %.
    """

    places: Numbers
    middle: Numbers
    spread: Numbers | None

    @property
    def low(self) -> Numbers:
        """The band's lower edge."""
        return self.middle if self.spread is None else self.middle - self.spread

    @property
    def high(self) -> Numbers:
        """The band's upper edge."""
        return self.middle if self.spread is None else self.middle + self.spread


def lines_of(judgement: Judgement, row: str, axis: str) -> list[tuple[Numbers, Numbers]]:
    """Give every seed's score over `axis`, "flops" or "seconds", at its records if it has any."""
    runs = [curve for curve in judgement.curves[row].values() if curve.any]
    return [(curve.places(axis), shown(judgement, curve.score)) for curve in runs]


def bands_of(judgement: Judgement, axis: str) -> dict[str, Band]:
    """Give the bands of all rows that have a score at some record."""
    return {n: band_of(judgement, n, axis) for n in judgement.rows if lines_of(judgement, n, axis)}


def band_of(judgement: Judgement, row: str, axis: str) -> Band:
    """Give the mean and spread of a row's seeds over `axis`, linear between records."""
    lines = lines_of(judgement, row, axis)
    first, last = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    grid = np.linspace(first, max(first, last), POINTS)
    scores = [np.interp(grid, places, score) for places, score in lines]
    spread = np.std(scores, 0, ddof=1) if len(scores) > 1 else None
    return Band(grid, np.mean(scores, 0), spread)


def window_of(judgement: Judgement) -> tuple[float, float]:
    """Give the scores that all pictures show: without the steep rise of the first steps."""
    curves = [curve.score for runs in judgement.curves.values() for curve in runs.values()]
    scores = shown(judgement, np.concatenate([np.empty(0), *curves]))
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return 0.0, 1.0
    low, high = np.quantile(scores, [0.25, 1.0])
    least = max(scores.min(), low - 0.6 * (high - low))
    room = 0.08 * (high - least) + 1e-9
    return float(least), float(high + room)


def shown(judgement: Judgement, score: Any) -> Any:
    """Give a score as people read it: accuracies in %."""
    return score if judgement.measure == "validation_loss" else 100 * score


def name_of_score(judgement: Judgement) -> str:
    """Name the score of the curves with its unit: it is that of validation."""
    loss = judgement.measure == "validation_loss"
    return "minus validation loss" if loss else "validation accuracy %"


def unit_of(axis: str, largest: float) -> tuple[float, str]:
    """Give a divisor and the name of an axis: FLOPs in a unit that has few digits.

    Args:
        axis: "flops" or "seconds".
        largest: its end.
    """
    if axis == "seconds":
        return (3600.0, "hours") if largest > 7200 else (1.0, "seconds")
    for divisor, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if largest >= divisor:
            return divisor, f"training FLOPs ({letter}FLOP)"
    return 1e6, "training FLOPs (MFLOP)"
