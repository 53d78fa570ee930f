"""Draws a history: heat maps of layers, the architecture over time, the response curve."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.recording.record import Record
from analysis.recording.timeline import (
    Bands,
    bands,
    layers_over_time,
    merged,
    response_curve,
    statistics_of,
)
from analysis.showing.drawing import own_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 720, 420
"""Pixels of every picture."""
_LABELS, _BLOCKS = 16, 30
"""So many layers or blocks are named beside a picture: text takes most of the time to draw it."""


def draw(history: Sequence[Record], reference: Sequence[Record] = ()) -> dict[str, bytes]:
    """Give every picture of a history as a PNG by name.

    Args:
        history: at least one record.
        reference: a history of another run, whose last record is a curve of its own.

    Returns:
        architecture, response_std_by_layer and heat_map_<statistic>; those whose numbers nobody
        read are left out.
    """
    pictures = {"architecture": architecture_over_time(history)}
    if response_curve(history[-1]):
        pictures["response_std_by_layer"] = response_std_by_layer(history, reference)
    for statistic in statistics_of(history):
        pictures[f"heat_map_{statistic}"] = heat_map(history, statistic)
    return pictures


@own_settings()
def heat_map(history: Sequence[Record], statistic: str) -> bytes:
    """Draw a statistic as layers x time; grey is where a layer was not there or not read.

    Colours end at the 1st and 99th percentile, and are logarithmic where all values are positive
    and these two lie more than a factor of 10 apart.
    """
    layers, roles, values = layers_over_time(history, statistic)
    axes = _axes(f"{statistic}, by layer and step", left=0.21, right=0.93)
    edges = [0, *(record.step for record in history)]
    colours = _colours(values)
    mesh = axes.pcolormesh(edges, range(len(layers) + 1), values, **colours)
    axes.set_facecolor("lightgrey")
    axes.invert_yaxis()  # the first layer on top, as the forward pass is read
    shown = range(0, len(layers), -(-len(layers) // _LABELS))
    axes.set_yticks([row + 0.5 for row in shown], [layers[row] for row in shown])
    for row in range(1, len(layers)):
        if roles[row] != roles[row - 1]:
            axes.axhline(row, color="white", linewidth=1.5)
    axes.set_xlabel("training step")
    space = np.geomspace if colours.get("norm") == "log" else np.linspace
    ticks = space(colours["vmin"], colours["vmax"], 5)
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.04, ticks=ticks, format="%.2g")
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=8)
    return _png(axes)


def _colours(values: np.ndarray) -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        finite = np.zeros(1)
    low, high = np.percentile(finite, (1, 99))
    if low < 0:
        bound = max(-low, high)
        return {"cmap": "coolwarm", "vmin": -bound, "vmax": bound}
    wide = high > 10 * low and finite.min() > 0
    return {"cmap": "viridis", "norm": "log" if wide else "linear", "vmin": low, "vmax": high}


@own_settings()
def architecture_over_time(history: Sequence[Record]) -> bytes:
    """Draw every block as a band as thick as its inner width, stacked in forward order.

    Black is where a block was born, red what a block was widened by.
    """
    over = bands(history)
    axes = _axes("architecture over time: the inner width of every block", left=0.08, right=0.86)
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
    return _png(axes)


def _band_colour(stages: list[str], name: str, row: int) -> tuple[float, float, float]:
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["Set2"](stages.index(name.partition(".")[0]) % 8)
    shade = 1 if row % 2 else 0.88  # neighbours differ
    return red * shade, green * shade, blue * shade


def _mark_changes(axes: Axes, over: Bands, tops: np.ndarray) -> None:
    kinds = {"born": "black", "widened": "red"}
    for kind, colour in kinds.items():
        marks = [
            (
                over.steps[k],
                tops[row, k] - after + (before if kind == "widened" else 0),
                tops[row, k],
            )
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
        axes.annotate(
            name,
            (1.01, sum(places) / len(places)),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7 if few else 9,
        )


@own_settings()
def response_std_by_layer(history: Sequence[Record], reference: Sequence[Record] = ()) -> bytes:
    """Draw the response std by layer of the first, the current and a reference net.

    He et al. 2015 (arXiv 1512.03385), figure 7. Stages are drawn equally wide, so that nets of
    unlike depth can be compared.
    """
    axes = _axes("response std by layer, before the non-linearity", left=0.08, right=0.97)
    records = {f"first, step {history[0].step}": history[0]}
    records[f"now, step {history[-1].step}"] = history[-1]
    if reference:
        records[f"reference, step {reference[-1].step}"] = reference[-1]
    curves = {label: response_curve(record) for label, record in records.items()}
    stages = merged(map(list, curves.values()))
    for (label, curve), style in zip(curves.items(), (".:", "o-", "x--")):
        places = [
            stages.index(stage) + (k + 0.5) / len(values)
            for stage, values in curve.items()
            for k in range(len(values))
        ]
        values = [value for values in curve.values() for value in values]
        axes.plot(places, values, style, markersize=4, linewidth=1.2, label=label)
    for edge in range(1, len(stages)):
        axes.axvline(edge, color="lightgrey", linewidth=1)
    axes.set_xticks([k + 0.5 for k in range(len(stages))], stages)
    axes.set_xlim(0, len(stages))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("response std")
    axes.legend(fontsize=8)
    return _png(axes)


def _axes(title: str, left: float, right: float) -> Axes:
    """Give the axes of a new figure; matplotlib is imported here, as only pictures need it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 80, HEIGHT / 80), dpi=80)
    axes = figure.add_axes((left, 0.1, right - left, 0.82))
    axes.set_title(title, fontsize=11)
    axes.tick_params(labelsize=8)
    return axes


def _png(axes: Axes) -> bytes:
    file = io.BytesIO()
    axes.figure.savefig(file, format="png")  # pyright: ignore[reportAttributeAccessIssue]
    return file.getvalue()
