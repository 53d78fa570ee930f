"""A comparison's pictures as SVG text for a report. matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.judging.claims import Judgement
from analysis.judging.frontier import POINTS
from analysis.recording.record import Record
from analysis.showing.drawing import own_settings
from nets import Action, Architecture, Insert, cost
from nets.plan.actions import adds_capacity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Histories = Mapping[str, Sequence[Sequence[Record]]]
"""Every row's histories, one a seed."""
SHOWN = ("residual_ratio", "response_std", "gradient_norm")
"""Layer statistics that the report puts side by side."""
_STAGES = ("#1b6ca8", "#e0872e", "#3a9d5d", "#b8405e", "#7a5ea8", "#8a6d3b")


@own_settings()
def score_over(judgement: Judgement, axis: str) -> str:
    """Draw each row's score over `axis`, "flops" or "seconds": mean and sample std over seeds."""
    figure, (axes,) = _figure(8.5, 4.6)
    for color, (name, runs) in zip(colors_of(judgement), judgement.curves.items(), strict=True):
        places = [getattr(curve, axis) for curve in runs.values()]
        first, last = max(x[0] for x in places), min(x[-1] for x in places)
        grid = np.linspace(first, max(first, last), POINTS)
        lines = [np.interp(grid, x, c.score) for x, c in zip(places, runs.values(), strict=True)]
        middle = _percent(judgement, np.mean(lines, 0))
        style = "--" if name in judgement.static else "-"
        axes.plot(grid, middle, color=color, label=_label(name), linestyle=style, linewidth=1.6)
        if len(lines) > 1:
            spread = _percent(judgement, np.std(lines, 0, ddof=1))
            axes.fill_between(grid, middle - spread, middle + spread, color=color, alpha=0.12)
    if axis == "flops" and judgement.best is not None:
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
    return _svg(figure)


@own_settings()
def architectures(histories: Histories) -> str:
    """Draw the inner widths of all blocks over the budget, first seed of each row that grew."""
    grew = {n: h[0] for n, h in histories.items() if any(r.applied for r in h[0])}
    columns = min(3, len(grew))
    figure, panels = _figure(3.6 * columns, 2.7 * -(-len(grew) // columns), len(grew), columns)
    for axes, (name, history) in zip(panels, grew.items(), strict=False):
        spent = [0.0, *(record.spent for record in history)]
        floor = np.zeros(len(history) + 1)
        stages = history[-1].architecture.stages
        for number, stage in enumerate(stages):
            for place, block in enumerate(stage.blocks):
                widths = [_width(record.architecture, block.name) for record in history]
                top = floor + np.array([widths[0], *widths])
                axes.fill_between(
                    spent,
                    floor,
                    top,
                    step="pre",
                    color=_STAGES[number % len(_STAGES)],
                    alpha=1 - 0.65 * place / max(1, len(stage.blocks)),
                    linewidth=0,
                )
                floor = top
        axes.set_title(name, fontsize=9)
        axes.set_xlim(0, 1)
    for axes in panels[::columns]:
        axes.set_ylabel("inner channels")
    for axes in panels[-columns:]:
        axes.set_xlabel("spent budget")
    _stage_legend(figure, histories)
    return _svg(figure)


@own_settings()
def capacity(histories: Histories) -> str:
    """Draw where each row put its capacity: FLOPs added by stage and kind, means over seeds."""
    grew = {n: h for n, h in histories.items() if any(r.applied for one in h for r in one)}
    figure, (axes,) = _figure(8.5, 0.9 + 0.42 * len(grew))
    for place, runs in enumerate(grew.values()):
        left = 0.0
        added = [_added(history) for history in runs]
        for key in sorted({key for one in added for key in one}):
            flops = float(np.mean([one.get(key, 0) for one in added]))
            stage, kind = key
            color = _STAGES[stage % len(_STAGES)]
            hatch = "////" if kind == "inserted" else None
            axes.barh(
                place, flops, left=left, color=color, hatch=hatch, edgecolor="white", height=0.7
            )
            left += flops
    axes.set_yticks(range(len(grew)), list(grew))
    axes.invert_yaxis()
    axes.set_xlabel("FLOPs an image added (hatched: by new blocks)")
    _stage_legend(figure, histories)
    return _svg(figure)


@own_settings()
def layer_statistics(histories: Histories, colors: Sequence[str]) -> str:
    """Draw statistics of the blocks over depth at the last record, first seed of each row."""
    figure, panels = _figure(11, 3.4, len(SHOWN), len(SHOWN))
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
    return _svg(figure)


@own_settings()
def colors_of(judgement: Judgement) -> list[str]:
    """Give each row its color; those of the static frontier are shades of grey."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    wheel, greys = iter(range(10**6)), iter(range(10**6))
    shades = ("#555555", "#888888", "#aaaaaa", "#333333")
    return [
        shades[next(greys) % len(shades)]
        if name in judgement.static
        else to_hex(colormaps["tab10"](next(wheel) % 10))
        for name in judgement.rows
    ]


def _label(name: str) -> str:
    """Give a row's name for a legend, which leaves out what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _width(architecture: Architecture, block: str) -> int:
    found = architecture.blocks.get(block)
    return 0 if found is None else found.width


def _added(history: Sequence[Record]) -> dict[tuple[int, str], int]:
    """Give the FLOPs that were added, by (number of the stage, widened or inserted)."""
    added: dict[tuple[int, str], int] = {}
    for record in history:
        architecture = record.architecture
        for action in record.applied:
            after = architecture.apply(action)
            if adds_capacity(action):
                key = _stage(architecture, action), _kind(action)
                more = cost(after).flops - cost(architecture).flops
                added[key] = added.get(key, 0) + more
            architecture = after
    return added


def _stage(architecture: Architecture, action: Action) -> int:
    stage = getattr(action, "stage", None)
    block = getattr(action, "block", None) or getattr(action, "after", "")
    name = stage or architecture.stage_of(block).name
    return [stage.name for stage in architecture.stages].index(name)


def _kind(action: Action) -> str:
    return "inserted" if isinstance(action, Insert) else "widened"


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


def _figure(
    width: float, height: float, panels: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """Give a figure without pyplot, which would keep it for ever."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    rows = -(-panels // columns)
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(panels)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
    return figure, axes


def _stage_legend(figure: Figure, histories: Histories) -> None:
    from matplotlib.patches import Patch

    record = next(iter(histories.values()))[0][-1]
    names = [stage.name for stage in record.architecture.stages]
    patches = [
        Patch(color=_STAGES[place % len(_STAGES)], label=name) for place, name in enumerate(names)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _svg(figure: Figure) -> str:
    """Give an <svg> element that names no address and is the same for the same picture."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "growthrings", "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text)  # inline in HTML they are implied
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r' (?:width|height)="[^"]*pt"', "", text, count=2)  # as wide as its place
