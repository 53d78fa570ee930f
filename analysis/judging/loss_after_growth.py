"""What growth did to the training loss in the steps after it: the transient above the trend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.judging.anytime_regret import Numbers


def read_losses(folder: Path) -> Numbers:
    """Read losses.csv, the training loss of every step: (steps,), empty if there is none.

    A step that was skipped gets a value between its neighbours'.
    """
    path = folder / "losses.csv"
    if not path.is_file():
        return np.empty(0)
    losses = np.loadtxt(path, delimiter=",", skiprows=1, usecols=1, ndmin=1)
    there, lacking = np.flatnonzero(~np.isnan(losses)), np.flatnonzero(np.isnan(losses))
    if len(there):
        losses[lacking] = np.interp(lacking, there, losses[there])
    return losses


def transients(losses: Numbers, growths: Sequence[int], window: int = 100) -> list[float]:
    """Give, for each step at which a run grew, how far the loss then lay above its trend.

    The trend is a straight line through the `window` steps before; it is drawn on over as many
    steps after. Both are shorter at the ends of the run and where another growth comes in between;
    growths with fewer than 10 steps on a side are left out.
    """
    steps = sorted(set(growths))
    bounds = [0, *steps, len(losses)]
    found = []
    for before, step, after in zip(bounds, bounds[1:], bounds[2:]):
        first, last = max(before, step - window), min(after, step + window)
        if step - first < 10 or last - step < 10:
            continue
        slope, level = np.polyfit(np.arange(first, step), losses[first:step], 1)
        trend = level + slope * np.arange(step, last)
        found.append(float(np.mean(losses[step:last] - trend)))
    return found
