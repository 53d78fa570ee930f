"""Draws a run's architecture over time: its blocks as bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.recording.record import Record
from analysis.recording.timeline import Bands, bands
from analysis.showing.colours import MARK, apart, shade_of
from analysis.showing.matplotlib_figures import axes_of, own_settings, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLOCKS = 12
"""So many blocks are named beside a picture, else the stages are: the rest would be too small."""
_SIZE = 15
"""Points of the labels: TensorBoard's first page shows pictures at half their size."""


@own_settings()
def architecture_over_time(history: Sequence[Record]) -> bytes:
    """Draw every block as a band as thick as its inner width, stacked in forward order.

    The blocks of a stage share a hue, later ones are paler. Black, with a triangle, is where a
    block was born; vermilion, with a disc, what a block was widened by.
    """
    over = bands(history)
    title = "what grew: channels of every block over time"
    axes = axes_of(title, left=0.1, right=0.76, size=_SIZE)
    stages = list(dict.fromkeys(name.partition(".")[0] for name in over.blocks))
    members = {stage: [n for n in over.blocks if n.partition(".")[0] == stage] for stage in stages}
    colours = [
        shade_of(number, place, len(members[stage]))
        for number, stage in enumerate(stages)
        for place in range(len(members[stage]))
    ]
    names = [name for stage in stages for name in members[stage]]
    assert names == over.blocks  # blocks of a stage stand together
    edge = 0.4 if len(names) <= 3 * _BLOCKS else 0  # else there were little but edges
    style = {"edgecolor": "white", "linewidth": edge}
    axes.stackplot(over.steps, over.widths, step="post", colors=colours, **style)
    tops = np.cumsum(over.widths, axis=0)
    _mark_changes(axes, over, tops)
    _name_bands(axes, over, tops[:, -1])
    for step, words in over.streams:
        axes.axvline(step, color="grey", linestyle=":", linewidth=1)
        axes.text(step, tops.max(), words, rotation=90, ha="right", va="top", fontsize=9)
    axes.set_xlim(0, max(1, over.steps[-1]))
    axes.set_ylim(0, tops.max() * 1.02)
    axes.set_xlabel("training step", fontsize=_SIZE)
    return png_of(axes)


def _mark_changes(axes: Axes, over: Bands, tops: np.ndarray) -> None:
    for kind, (colour, marker) in {"born": ("black", "^"), "widened": (MARK, "o")}.items():
        marks = [
            (over.steps[k], tops[row, k] - after + before, tops[row, k])
            for k in range(1, len(over.steps) - 1)
            for row, (before, after) in enumerate(over.widths[:, k - 1 : k + 1])
            if after > before and (kind == "born") == (before == 0)
        ]
        if marks:
            steps, bottoms, ends = zip(*marks)
            axes.vlines(steps, bottoms, ends, color=colour, linewidth=3)
            middles = [(bottom + end) / 2 for bottom, end in zip(bottoms, ends)]
            style = {"markersize": 8, "markeredgecolor": "white", "linestyle": "none"}
            axes.plot(steps, middles, marker, color=colour, label=kind, **style)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize=_SIZE - 1)


def _name_bands(axes: Axes, over: Bands, tops: np.ndarray) -> None:
    """Write the names at the right edge: of the blocks if they fit, else of the stages."""
    middles: dict[str, list[float]] = {}
    few = len(over.blocks) <= _BLOCKS
    for name, top, width in zip(over.blocks, tops, over.widths[:, -1]):
        if width:
            key = name if few else name.partition(".")[0]
            middles.setdefault(key, []).append(top - width / 2)
    heights = [sum(places) / len(places) for places in middles.values()]
    for name, height in zip(middles, apart(heights, tops.max() * 0.055)):
        place, of = (1.01, height), ("axes fraction", "data")
        axes.annotate(name, place, xycoords=of, va="center", fontsize=_SIZE - 1)
