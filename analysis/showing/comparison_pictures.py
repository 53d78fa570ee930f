"""Draws a comparison as SVG: scores over FLOPs and time, layer statistics side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np

from analysis.judging.anytime_regret import POINTS
from analysis.judging.comparison_claims import Judgement
from analysis.recording.record import Record
from analysis.showing.architecture_pictures import Histories
from analysis.showing.matplotlib_figures import figure_of, own_settings, svg_of

SHOWN = ("residual_ratio", "response_std", "gradient_norm")
"""Layer statistics that the report puts side by side."""


@own_settings()
def score_over(judgement: Judgement, axis: str) -> str:
    """Draw each row's score over `axis`, "flops" or "seconds": mean and sample std over seeds."""
    figure, (axes,) = figure_of(8.5, 4.6)
    for color, (name, runs) in zip(colors_of(judgement), judgement.curves.items(), strict=True):
        curves = [curve for curve in runs.values() if curve.any]
        if not curves:
            continue
        places = [curve.places(axis) for curve in curves]
        first, last = max(x[0] for x in places), min(x[-1] for x in places)
        grid = np.linspace(first, max(first, last), POINTS)
        lines = [curve.at(grid, axis) for curve in curves]
        middle = _percent(judgement, np.mean(lines, 0))
        style = "--" if name in judgement.static else "-"
        axes.plot(grid, middle, color=color, label=_label(name), linestyle=style, linewidth=1.6)
        if len(lines) > 1:
            spread = _percent(judgement, np.std(lines, 0, ddof=1))
            axes.fill_between(grid, middle - spread, middle + spread, color=color, alpha=0.12)
    if axis == judgement.axis and judgement.best is not None:
        best = _percent(judgement, judgement.best)
        axes.plot(judgement.grid, best, color="black", linewidth=2.6, alpha=0.45, label="frontier")
    scores = np.concatenate([c.score for runs in judgement.curves.values() for c in runs.values()])
    low, high = _percent(judgement, np.quantile(scores, [0.25, 1.0]))  # not the first steps' rise
    least = _percent(judgement, scores.min())
    axes.set_ylim(max(least, low - 0.6 * (high - low)), high + 0.1 * (high - low) + 1e-9)
    axes.set_xlabel({"flops": "training FLOPs", "seconds": "seconds"}[axis])
    loss = judgement.measure == "validation_loss"
    axes.set_ylabel("minus validation loss" if loss else "validation accuracy %")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    return svg_of(figure)


@own_settings()
def layer_statistics(histories: Histories, colors: Sequence[str]) -> str:
    """Draw statistics of the blocks over depth at the last record, first seed of each row."""
    figure, panels = figure_of(11, 3.4, len(SHOWN), len(SHOWN))
    for axes, statistic in zip(panels, SHOWN, strict=True):
        for color, (name, runs) in zip(colors, histories.items(), strict=True):
            record = runs[0][-1]
            values = _by_block(record, statistic)
            depth = [place / max(1, len(values) - 1) for place in range(len(values))]
            points = [(x, y) for x, y in zip(depth, values, strict=True) if y is not None]
            if points:
                axes.plot(*zip(*points), color=color, marker="o", markersize=3, label=_label(name))
        axes.set_title(statistic, fontsize=9)
        axes.set_xlabel("depth: first block to last")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    return svg_of(figure)


@own_settings()
def colors_of(judgement: Judgement) -> list[str]:
    """Give each row its color; those of the static frontier are shades of grey."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    greys = cycle(("#555555", "#888888", "#aaaaaa", "#333333"))
    wheel = cycle(to_hex(colormaps["tab10"](place)) for place in range(10))
    return [next(greys if name in judgement.static else wheel) for name in judgement.rows]


def _label(name: str) -> str:
    """Give a row's name for a legend, which leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _by_block(record: Record, statistic: str) -> list[float | None]:
    """Give each block's value: its own, or the mean of those of the layers inside it."""
    found: list[float | None] = []
    for block in record.architecture.blocks:
        own = record.layers.get(block)
        inner = [r.value(statistic) for r in record.layers.values() if r.block == block]
        values = [value for value in inner if value is not None]
        mean = float(np.mean(values)) if values else None
        found.append(own.value(statistic) if own and own.value(statistic) is not None else mean)
    return found


def _percent(judgement: Judgement, score: Any) -> Any:
    return score if judgement.measure == "validation_loss" else 100 * score
