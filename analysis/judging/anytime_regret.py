"""Accuracy over the FLOPs spent: curves of runs, the static frontier, the distance to it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
POINTS = 200
"""Of a grid over the budget."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A run's score at its records. Score is validation accuracy, or minus a regression's loss."""

    flops: Numbers  # (records,)
    seconds: Numbers
    score: Numbers

    def at(self, flops: Numbers) -> Numbers:
        """Give the score at any FLOPs, linear between records."""
        return np.interp(flops, self.flops, self.score)


def read_curve(folder: Path) -> Curve:
    """Read a run's metrics.csv; averaged weights (EMA) are taken where the run has them.

    Raises:
        ValueError: the file is missing, empty or damaged.
    """
    path = folder / "metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        score = [_score(line) for line in lines]
        flops, seconds = ([float(x[key]) for x in lines] for key in ("train_flops", "seconds"))
    except (OSError, KeyError, TypeError, ValueError):
        lines, score, flops, seconds = [], [], [], []
    if not lines:
        raise ValueError(f"{path} cannot be read")
    return Curve(np.array(flops), np.array(seconds), np.array(score))


def _score(line: Mapping[str, str]) -> float:
    for name in ("ema_validation_accuracy", "validation_accuracy"):
        if line.get(name):
            return float(line[name])
    return -float(line["validation_loss"])


def grid_of(curves: Sequence[Curve]) -> Numbers:
    """Give equally spaced FLOPs over which all of the curves have values."""
    first, last = max(c.flops[0] for c in curves), min(c.flops[-1] for c in curves)
    return np.linspace(first, max(first, last), POINTS)


def frontier(static: Mapping[str, Sequence[Curve]], grid: Numbers) -> Numbers:
    """Give, at each point of the grid, the best mean over seeds of any static size: (points,)."""
    return np.max([np.mean([run.at(grid) for run in runs], 0) for runs in static.values()], 0)


def regret(curve: Curve, grid: Numbers, best: Numbers) -> float:
    """Give the mean distance of a run below the frontier over the grid; above it is negative."""
    return float(np.mean(best - curve.at(grid)))


def flops_to_reach(curve: Curve, score: float) -> float | None:
    """Give the FLOPs at which a run first has the score, linear between records; None if never."""
    reached = np.flatnonzero(curve.score >= score)
    if not len(reached):
        return None
    last = int(reached[0])
    if last == 0:
        return float(curve.flops[0])
    (x0, x1), (y0, y1) = curve.flops[last - 1 : last + 1], curve.score[last - 1 : last + 1]
    return float(x0 + (x1 - x0) * (score - y0) / (y1 - y0))
