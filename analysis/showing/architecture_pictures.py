"""Draws architectures over time: a run's blocks as bands, a comparison's rows side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.recording.record import Record, edits_of
from analysis.recording.timeline import Bands, bands
from analysis.showing.matplotlib_figures import axes_of, figure_of, own_settings, png_of, svg_of
from nets import Action, Architecture, Insert, cost
from nets.plan.actions import adds_capacity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Histories = Mapping[str, Sequence[Sequence[Record]]]
"""Every row's histories, one a seed."""
_BLOCKS = 30
"""So many blocks are named beside a picture: text takes most of the time to draw it."""
_STAGES = ("#1b6ca8", "#e0872e", "#3a9d5d", "#b8405e", "#7a5ea8", "#8a6d3b")


@own_settings()
def architecture_over_time(history: Sequence[Record]) -> bytes:
    """Draw every block as a band as thick as its inner width, stacked in forward order.

    Black is where a block was born, red what a block was widened by.
    """
    over = bands(history)
    axes = axes_of("architecture over time: the inner width of every block", left=0.08, right=0.86)
    stages = list(dict.fromkeys(name.partition(".")[0] for name in over.blocks))
    colours = [_band_colour(stages, name, row) for row, name in enumerate(over.blocks)]
    axes.stackplot(
        over.steps, over.widths, step="post", colors=colours, edgecolor="white", linewidth=0.4
    )
    tops = np.cumsum(over.widths, axis=0)
    _mark_changes(axes, over, tops)
    _name_bands(axes, over, tops[:, -1])
    for step, words in over.streams:
        axes.axvline(step, color="grey", linestyle=":", linewidth=1)
        axes.text(step, tops.max(), words, rotation=90, ha="right", va="top", fontsize=7)
    axes.set_xlim(0, max(1, over.steps[-1]))
    axes.set_ylim(0, tops.max() * 1.02)
    axes.set_xlabel("training step")
    axes.set_ylabel("channels, blocks stacked from the input up")
    return png_of(axes)


def _band_colour(stages: list[str], name: str, row: int) -> tuple[float, float, float]:
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["Set2"](stages.index(name.partition(".")[0]) % 8)
    shade = 1 if row % 2 else 0.88  # neighbours differ
    return red * shade, green * shade, blue * shade


def _mark_changes(axes: Axes, over: Bands, tops: np.ndarray) -> None:
    for kind, colour in {"born": "black", "widened": "red"}.items():
        marks = [
            (over.steps[k], tops[row, k] - after + before, tops[row, k])
            for k in range(1, len(over.steps) - 1)
            for row, (before, after) in enumerate(over.widths[:, k - 1 : k + 1])
            if after > before and (kind == "born") == (before == 0)
        ]
        if marks:
            steps, bottoms, ends = zip(*marks)
            axes.vlines(steps, bottoms, ends, color=colour, linewidth=2.5, label=kind)
            middles = [(bottom + end) / 2 for bottom, end in zip(bottoms, ends)]
            axes.plot(steps, middles, ".", color=colour, markersize=5)  # a small one is seen too
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize=8)


def _name_bands(axes: Axes, over: Bands, tops: np.ndarray) -> None:
    """Write the names at the right edge: of the blocks if they fit, else of the stages."""
    middles: dict[str, list[float]] = {}
    few = len(over.blocks) <= _BLOCKS
    for name, top, width in zip(over.blocks, tops, over.widths[:, -1]):
        if width:
            key = name if few else name.partition(".")[0]
            middles.setdefault(key, []).append(top - width / 2)
    for name, places in middles.items():
        place, of = (1.01, sum(places) / len(places)), ("axes fraction", "data")
        axes.annotate(name, place, xycoords=of, va="center", fontsize=7 if few else 9)


@own_settings()
def architectures_of_rows(histories: Histories) -> str:
    """Draw the inner widths of all blocks over the budget, first seed of each row that grew."""
    grew = {n: h[0] for n, h in histories.items() if any(r.applied for r in h[0])}
    columns = min(3, len(grew))
    figure, panels = figure_of(3.6 * columns, 2.7 * -(-len(grew) // columns), len(grew), columns)
    for axes, (row, history) in zip(panels, grew.items(), strict=False):
        spent = [0.0, *(record.spent for record in history)]
        floor = np.zeros(len(history) + 1)
        present = [record.architecture.blocks for record in history]
        for number, stage in enumerate(history[-1].architecture.stages):
            for place, block in enumerate(stage.blocks):
                name = block.name
                widths = [blocks[name].width if name in blocks else 0 for blocks in present]
                top = floor + np.array([widths[0], *widths])
                color = _STAGES[number % len(_STAGES)]
                paler = 1 - 0.65 * place / max(1, len(stage.blocks))
                axes.fill_between(spent, floor, top, color=color, alpha=paler, step="pre", lw=0)
                floor = top
        axes.set_title(row, fontsize=9)
        axes.set_xlim(0, 1)
    for axes in panels[::columns]:
        axes.set_ylabel("inner channels")
    for axes in panels[-columns:]:
        axes.set_xlabel("spent budget")
    _stage_legend(figure, histories)
    return svg_of(figure)


@own_settings()
def capacity(histories: Histories) -> str:
    """Draw where each row put its capacity: FLOPs added by stage and kind, means over seeds."""
    grew = {n: h for n, h in histories.items() if any(r.applied for one in h for r in one)}
    figure, (axes,) = figure_of(8.5, 0.9 + 0.42 * len(grew))
    for place, runs in enumerate(grew.values()):
        left = 0.0
        added = [_added(history) for history in runs]
        for key in sorted({key for one in added for key in one}):
            flops = float(np.mean([one.get(key, 0) for one in added]))
            stage, kind = key
            color, hatch = _STAGES[stage % len(_STAGES)], "////" if kind == "inserted" else None
            style = {"color": color, "hatch": hatch, "edgecolor": "white", "height": 0.7}
            axes.barh(place, flops, left=left, **style)
            left += flops
    axes.set_yticks(range(len(grew)), list(grew))
    axes.invert_yaxis()
    axes.set_xlabel("FLOPs an image added (hatched: by new blocks)")
    _stage_legend(figure, histories)
    return svg_of(figure)


def _stage_legend(figure: Figure, histories: Histories) -> None:
    from matplotlib.patches import Patch

    stages = next(iter(histories.values()))[0][-1].architecture.stages
    colors = (_STAGES[number % len(_STAGES)] for number in range(len(stages)))
    patches = [Patch(color=color, label=stage.name) for color, stage in zip(colors, stages)]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _added(history: Sequence[Record]) -> Mapping[tuple[int, str], int]:
    """Give the FLOPs that were added, by (number of the stage, widened or inserted)."""
    added: Counter[tuple[int, str]] = Counter()
    for _, action, before, after in edits_of(history):
        if adds_capacity(action):
            kind = "inserted" if isinstance(action, Insert) else "widened"
            added[_stage(before, action), kind] += cost(after).flops - cost(before).flops
    return added


def _stage(architecture: Architecture, action: Action) -> int:
    stage = getattr(action, "stage", None)
    block = getattr(action, "block", None) or getattr(action, "after", "")
    name = stage or architecture.stage_of(block).name
    return [stage.name for stage in architecture.stages].index(name)
