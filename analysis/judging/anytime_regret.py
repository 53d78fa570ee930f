"""Accuracy over FLOPs or seconds: curves of runs, the static frontier, the distance to it."""

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
    """A run at its records that have a score; there may be none.

    Args:
        flops, seconds: spent by then, (records,).
        score: validation accuracy, or minus a regression's loss, of the averaged weights (EMA)
            where the run has them, else of the weights themselves. It can be read at any moment,
            under a constant learning rate too: anytime regret is of it.
        weights: the same of the weights themselves, by which the end of the run is judged.
    """

    flops: Numbers
    seconds: Numbers
    score: Numbers
    weights: Numbers

    @property
    def any(self) -> bool:
        """Whether there is a record with a score."""
        return len(self.score) > 0

    def places(self, axis: str) -> Numbers:
        """Give what was spent at the records, by an axis: flops or seconds."""
        return self.seconds if axis == "seconds" else self.flops

    def at(self, places: Numbers, axis: str = "flops") -> Numbers:
        """Give the score where so much was spent, linear between records."""
        return np.interp(places, self.places(axis), self.score)


def read_curve(folder: Path) -> Curve:
    """Read a run's metrics.csv; records without a score, where a loss was infinite, are left out.

    Raises:
        ValueError: the file is missing, empty or damaged.
    """
    path = folder / "metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        rows = [
            [float(line["train_flops"]), float(line["seconds"]), *_scores(line)] for line in lines
        ]
    except (OSError, KeyError, TypeError, ValueError):
        lines, rows = [], []
    if not lines:
        raise ValueError(f"{path} cannot be read")
    table = np.array(rows)
    return Curve(*table[np.isfinite(table).all(1)].T)


def _scores(line: Mapping[str, str]) -> tuple[float, float]:
    """Give the score of the averaged weights, or else the weights', and that of the weights."""
    accuracy, loss = line.get("validation_accuracy"), line.get("validation_loss")
    kind, sign = ("accuracy", 1) if accuracy or loss is None else ("loss", -1)
    weights = line[f"validation_{kind}"] or "nan"
    return sign * float(line.get(f"ema_validation_{kind}") or weights), sign * float(weights)


def grid_of(curves: Sequence[Curve], axis: str = "flops") -> Numbers:
    """Give equally spaced places on an axis, over which all curves with records have values."""
    spent = [curve.places(axis) for curve in curves if curve.any]
    if not spent:
        return np.empty(0)
    first, last = max(x[0] for x in spent), min(x[-1] for x in spent)
    return np.linspace(first, max(first, last), POINTS)


def frontier(static: Mapping[str, Sequence[Curve]], grid: Numbers, axis: str = "flops") -> Numbers:
    """Give, at each place of the grid, the best mean over seeds of any static size: (places,)."""
    means = [np.mean([run.at(grid, axis) for run in runs], 0) for runs in static.values()]
    return np.max(means, 0)


def regret(curve: Curve, grid: Numbers, best: Numbers, axis: str = "flops") -> float:
    """Give the mean distance of a run below the frontier over the grid; above it is negative."""
    return float(np.mean(best - curve.at(grid, axis)))


def spent_to_reach(curve: Curve, score: float, axis: str = "flops") -> float | None:
    """Give what was spent when a run's weights first had the score, linear between records.

    None if they never had it.
    """
    reached = np.flatnonzero(curve.weights >= score)
    if not len(reached):
        return None
    last, places = int(reached[0]), curve.places(axis)
    if last == 0:
        return float(places[0])
    (x0, x1), (y0, y1) = places[last - 1 : last + 1], curve.weights[last - 1 : last + 1]
    return float(x0 + (x1 - x0) * (score - y0) / (y1 - y0))
