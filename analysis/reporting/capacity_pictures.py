"""Draws what a comparison's rows grew: architectures over the budget, capacity, statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.recording.record import Record, edits_of
from analysis.showing.colours import GREY, MARKERS, shade_of
from analysis.showing.matplotlib_figures import at_the_end, figure_of, own_settings
from nets import Action, Architecture, Insert, cost
from nets.plan.actions import adds_capacity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Histories = Mapping[str, Sequence[Sequence[Record]]]
"""Every row's histories, one a seed."""
SHOWN = ("residual_ratio", "response_std", "gradient_norm")
"""Layer statistics that the report puts side by side."""
_DEPTHS = 12


def that_grew(histories: Histories) -> Histories:
    """Give the rows in whose runs anything was applied."""
    return {n: h for n, h in histories.items() if any(r.applied for one in h for r in one)}


@own_settings()
def architectures(histories: Histories, rows: Sequence[str], columns: int = 1) -> Figure:
    """Draw the inner widths of all blocks over the budget, first seed of each row, equal axes."""
    down = -(-len(rows) // columns)
    figure, panels = figure_of(2.7 * columns, 1.9 * down + 0.2, len(rows), columns)
    tops = [
        sum(block.width for block in record.architecture.blocks.values())
        for runs in that_grew(histories).values()
        for record in runs[0]
    ]
    for axes, name in zip(panels, rows, strict=True):
        _bands(axes, histories[name][0])
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.05 * max(tops, default=1))
    for axes in panels[::columns]:
        axes.set_ylabel("inner channels", fontsize=8)
    for axes in panels[-columns:]:
        axes.set_xlabel("spent budget", fontsize=8)
    return figure


def _bands(axes: Axes, history: Sequence[Record]) -> None:
    spent = [0.0, *(record.spent for record in history)]
    floor = np.zeros(len(spent))
    present = [record.architecture.blocks for record in history]
    for number, stage in enumerate(history[-1].architecture.stages):
        bottom = floor[-1]
        for place, block in enumerate(stage.blocks):
            widths = [there[block.name].width if block.name in there else 0 for there in present]
            top = floor + np.array([widths[0], *widths])
            color = shade_of(number, place, len(stage.blocks))
            axes.fill_between(spent, floor, top, color=color, step="pre", lw=0)
            floor = top
        middle = float(bottom + floor[-1]) / 2
        at_the_end(axes, stage.name, (1.0, middle), middle, "black")


@own_settings()
def capacity(histories: Histories) -> Figure:
    """Draw where each row put its capacity: FLOPs added by stage and kind, means over seeds."""
    from matplotlib.patches import Patch

    grew = that_grew(histories)
    figure, (axes,) = figure_of(4.6, 1.1 + 0.26 * len(grew))
    for place, runs in enumerate(grew.values()):
        left = 0.0
        for (stage, kind), flops in sorted(mean_added(runs).items()):
            hatch = "////" if kind == "inserted" else None
            style = {"color": shade_of(stage), "hatch": hatch, "edgecolor": "white"}
            axes.barh(place, flops / 1e6, left=left, height=0.7, **style)
            left += flops / 1e6
    axes.set_yticks(range(len(grew)), list(grew))
    axes.invert_yaxis()
    axes.set_xlabel("MFLOP an image added (hatched: by new blocks)", fontsize=8)
    stages = next(iter(histories.values()))[0][-1].architecture.stages
    patches = [Patch(color=shade_of(k), label=stage.name) for k, stage in enumerate(stages)]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def mean_added(runs: Sequence[Sequence[Record]]) -> Mapping[tuple[int, str], float]:
    """Give the FLOPs an image added, by number of the stage and "widened" or "inserted"."""
    added = [_added(history) for history in runs]
    keys = {key for one in added for key in one}
    return {key: float(np.mean([one.get(key, 0) for one in added])) for key in keys}


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


@own_settings()
def layer_statistics(histories: Histories, name: str) -> Figure:
    """Draw statistics of one row's blocks at the last record, first seed, beside the other rows'.

    One point a block, by depth: values of two blocks are no line. Grey: from the least to the
    greatest of all rows about there. Pictures of one comparison have equal axes.
    """
    figure, panels = figure_of(4.8, 1.6, len(SHOWN), len(SHOWN))
    for axes, statistic in zip(panels, SHOWN, strict=True):
        _ranges(axes, [runs[0][-1] for runs in histories.values()], statistic)
        record = histories[name][0][-1]
        stages = [stage.name for stage in record.architecture.stages]
        for depth, block, value in _by_depth(record, statistic):
            number = stages.index(block.partition(".")[0])
            axes.plot(depth, value, MARKERS[number % 7], color=shade_of(number), markersize=5)
        axes.set_title(statistic, fontsize=8)
        axes.set_xlim(-0.08, 1.08)
        axes.set_xticks([0, 1], ["first block", "last"])
    panels[0].set_ylabel(name, fontsize=9)
    return figure


def _ranges(axes: Axes, records: Sequence[Record], statistic: str) -> None:
    found: dict[int, list[float]] = {}
    for record in records:
        for depth, _, value in _by_depth(record, statistic):
            found.setdefault(round(depth * _DEPTHS), []).append(value)
    depths = [depth / _DEPTHS for depth in found]
    lows, highs = [min(v) for v in found.values()], [max(v) for v in found.values()]
    axes.vlines(depths, lows, highs, color=GREY, linewidth=6, alpha=0.3)


def _by_depth(record: Record, statistic: str) -> list[tuple[float, str, float]]:
    """Give the depth in [0, 1], the name and the value of every block that has one."""
    values = _by_block(record, statistic)
    depths = [place / max(1, len(values) - 1) for place in range(len(values))]
    blocks = zip(depths, record.architecture.blocks, values, strict=True)
    return [(depth, block, value) for depth, block, value in blocks if value is not None]


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
