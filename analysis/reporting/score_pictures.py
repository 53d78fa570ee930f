"""Draws the scores of a comparison's rows: all at once, each alone, and where they ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.judging.comparable_runs import scores_of
from analysis.judging.comparison_claims import Judgement
from analysis.reporting.row_curves import (
    bands_of,
    lines_of,
    name_of_score,
    shown,
    unit_of,
    window_of,
)
from analysis.showing.colours import apart, styles_of
from analysis.showing.matplotlib_figures import at_the_end, figure_of, own_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = 24
"""So many rows are named at the ends of their lines in a picture of usual height."""
_EVERY = 50
"""Points of a line from one marker to the next."""


@own_settings()
def score_over(judgement: Judgement, axis: str) -> Figure:
    """Draw the mean over seeds of every row's score over `axis`, "flops" or "seconds".

    Lines have their names at their ends; spreads are in `rows_beside_frontier`.
    """
    rows = len(judgement.rows)
    figure, (axes,) = figure_of(4.6, max(3.2, 3.2 * rows / _LABELS))
    low, high = window_of(judgement)
    bands = bands_of(judgement, axis)
    last = max((band.places[-1] for band in bands.values()), default=1.0)
    divisor, unit = unit_of(axis, last)
    styles = styles_of(judgement.rows, judgement.static)
    if axis == judgement.axis:
        _frontier(axes, judgement, divisor)
    for number, (name, band) in enumerate(bands.items()):
        style, points = styles[name], band.places / divisor
        often = (7 * number % _EVERY, _EVERY)
        look = {"color": style.color, "marker": style.marker, "markersize": 4, "linewidth": 1.5}
        axes.plot(points, band.middle, style.line, markevery=often, **look)
        if low <= band.middle[-1] <= high:
            axes.plot(points[-1], band.middle[-1], clip_on=False, **look)
    ends = [float(np.clip(band.middle[-1], low, high)) for band in bands.values()]
    heights = apart(ends, (high - low) * 0.04 * _LABELS / max(_LABELS, rows))
    for (name, band), end, height in zip(bands.items(), ends, heights, strict=True):
        place = float(band.places[-1] / divisor)
        at_the_end(axes, name, (place, end), height, styles[name].color)
    axes.set_ylim(min([low, *heights]), max([high, *heights]))
    axes.set_xlim(0, last / divisor)
    axes.set_xlabel(unit, fontsize=8)
    axes.set_ylabel(name_of_score(judgement), fontsize=8)
    return figure


@own_settings()
def rows_beside_frontier(judgement: Judgement, rows: list[str], columns: int = 1) -> Figure:
    """Draw rows over what the budget counts, a panel each on equal axes: mean, spread, every seed.

    The thick line is the static frontier, or where there is none nothing.
    """
    down = -(-len(rows) // columns)
    figure, panels = figure_of(2.7 * columns, 1.9 * down + 0.2, len(rows), columns)
    styles = styles_of(judgement.rows, judgement.static)
    bands = bands_of(judgement, judgement.axis)
    last = max((band.places[-1] for band in bands.values()), default=1.0)
    divisor, unit = unit_of(judgement.axis, last)
    for axes, name in zip(panels, rows, strict=True):
        band, color = bands.get(name), styles[name].color
        _frontier(axes, judgement, divisor)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlim(0, 1.02 * last / divisor)
        axes.set_ylim(*window_of(judgement))
        if band is None:
            continue
        for places, score in lines_of(judgement, name, judgement.axis):
            axes.plot(places / divisor, score, color=color, linewidth=0.6, alpha=0.8)
        points = band.places / divisor
        axes.fill_between(points, band.low, band.high, color=color, alpha=0.2, linewidth=0)
        axes.plot(points, band.middle, color=color, linewidth=1.8)
        axes.plot(points[-1], band.middle[-1], styles[name].marker, color=color, markersize=4)
    for axes in panels[-columns:]:
        axes.set_xlabel(unit, fontsize=8)
    for axes in panels[::columns]:
        axes.set_ylabel(name_of_score(judgement), fontsize=8)
    return figure


@own_settings()
def final_scores(judgement: Judgement) -> Figure:
    """Draw every run's final score as a point, and each row's mean as a bar across them.

    The dotted line is the mean of the reference, the best static size on validation.
    """
    scores = scores_of(judgement.rows, judgement.measure)
    figure, (axes,) = figure_of(4.6, 0.7 + 0.22 * len(scores))
    styles = styles_of(scores, judgement.static)
    for place, (name, runs) in enumerate(scores.items()):
        points = np.array([shown(judgement, score) for score in runs.values()])
        points = points[np.isfinite(points)]
        style = styles[name]
        axes.plot(points, [place] * len(points), style.marker, color=style.color, alpha=0.75, ms=5)
        if len(points):
            axes.plot([points.mean()] * 2, [place - 0.32, place + 0.32], color="black", lw=1.6)
        if name == judgement.reference and len(points):
            axes.axvline(points.mean(), color="black", linestyle=":", linewidth=1)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.4)
    axes.set_xlabel(_measured(judgement), fontsize=8)
    return figure


def _measured(judgement: Judgement) -> str:
    if judgement.measure == "validation_loss":
        return "minus validation loss, at the end"
    return f"{judgement.measure.replace('_', ' ')} %, at the end"


def _frontier(axes: Axes, judgement: Judgement, divisor: float) -> None:
    if judgement.best is not None:
        best = shown(judgement, judgement.best)
        axes.plot(judgement.grid / divisor, best, color="black", linewidth=3, alpha=0.3)
