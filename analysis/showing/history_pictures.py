"""Draws a run's history: how well it does, statistics of its layers, the response std by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.capacity.missing_capacity import rank
from analysis.recording.record import Record
from analysis.recording.timeline import layers_over_time, merged, response_curve, statistics_of
from analysis.showing.architecture_pictures import architecture_over_time
from analysis.showing.capacity_page import capacity_picture
from analysis.showing.colours import GREY, HUES, shade_of
from analysis.showing.matplotlib_figures import HEIGHT, WIDTH, axes_of, own_settings, png_of
from nets.plan.actions import adds_capacity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = 16
"""So many layers are named beside a picture: text takes most of the time to draw it."""


def draw(
    history: Sequence[Record], reference: Sequence[Record] = (), seconds: Sequence[float] = ()
) -> dict[str, bytes]:
    """Give every picture of a history as a PNG by name.

    Args:
        history: at least one record.
        reference: a history of another run, which is drawn beside it.
        seconds: of training, at each record; without them nothing is drawn over time.

    Returns:
        how_well, architecture, capacity, statistics_over_time, response_std_by_layer and
        heat_map_<statistic>; those whose numbers nobody read are left out.
    """
    pictures = {"architecture": architecture_over_time(history)}
    if any(_score(record) is not None for record in history):
        pictures = {"how_well": how_well(history, reference, seconds), **pictures}
    if (ranking := rank(history)).places:
        pictures["capacity"] = capacity_picture(ranking)
    if any(statistic in statistics_of(history) for statistic in _OVER_TIME):
        pictures["statistics_over_time"] = statistics_over_time(history)
    if response_curve(history[-1]):
        pictures["response_std_by_layer"] = response_std_by_layer(history, reference)
    for statistic in statistics_of(history):
        pictures[f"heat_map_{statistic}"] = heat_map(history, statistic)
    return pictures


def _score(record: Record) -> float | None:
    """Give the validation accuracy in %, or what a regression has: its validation loss."""
    accuracy = record.validation_accuracy
    return record.validation_loss if accuracy is None else 100 * accuracy


@own_settings()
def how_well(
    history: Sequence[Record], reference: Sequence[Record] = (), seconds: Sequence[float] = ()
) -> bytes:
    """Draw the validation accuracy (or loss) over the FLOPs spent and over the seconds of training.

    Triangles stand where something grew; the dashed line is the reference.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 80, HEIGHT / 80), dpi=80, layout="constrained")
    timed = len(seconds) == len(history)
    panels = figure.subplots(1, 1 + timed, sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, ("flops", "seconds")):
        if kind == "flops":
            places = [record.train_flops / 1e9 for record in history]
            beside = [(r.train_flops / 1e9, s) for r in reference if (s := _score(r)) is not None]
            if beside:
                axes.plot(*zip(*beside), "--", color=GREY, linewidth=1.5, label="static reference")
        else:
            places = list(seconds)
        _draw_score(axes, history, places)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right", fontsize=14, frameon=False)
        words = {"flops": "training GFLOP", "seconds": "seconds of training"}
        axes.set_xlabel(words[kind], fontsize=16)
        axes.tick_params(labelsize=14)
        axes.grid(linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    loss = history[-1].validation_accuracy is None
    panels[0].set_ylabel("validation loss" if loss else "validation accuracy %", fontsize=16)
    figure.suptitle("how well: over FLOPs" + (" and over time" if timed else ""), fontsize=18)
    return png_of(figure)


def _draw_score(axes: Axes, history: Sequence[Record], places: Sequence[float]) -> None:
    points = [
        (x, score, any(map(adds_capacity, record.applied)))
        for x, record in zip(places, history)
        if (score := _score(record)) is not None
    ]
    xs, scores, _ = zip(*points)
    axes.plot(xs, scores, "-", color=HUES[0], linewidth=2.5)
    grown = [(x, score) for x, score, grew in points if grew]
    if grown:
        axes.plot(*zip(*grown), "^", color="black", markersize=7, label="grew")
    axes.plot(xs[-1], scores[-1], "o", color=HUES[0], markersize=7)
    words, place = f"{scores[-1]:.4g}", {"xytext": (0, 8), "textcoords": "offset points"}
    axes.annotate(words, (xs[-1], scores[-1]), ha="right", fontsize=17, color=HUES[0], **place)


_OVER_TIME = ("residual_ratio", "response_std", "gradient_norm", "update_ratio")


@own_settings()
def statistics_over_time(history: Sequence[Record]) -> bytes:
    """Draw four statistics over the steps, a line a layer; layers of one stage share a hue.

    A line begins where its layer was born. Names of stages stand at the right.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(WIDTH / 80, HEIGHT / 80), dpi=80, layout="constrained")
    there = [name for name in _OVER_TIME if name in statistics_of(history)]
    steps = [record.step for record in history]
    stages = merged([s.name for s in record.architecture.stages] for record in history)
    for axes, statistic in zip(figure.subplots(2, 2).flat, there):
        layers, _, values = layers_over_time(history, statistic)
        for number, stage in enumerate(stages):
            rows = [row for row, name in enumerate(layers) if name.partition(".")[0] == stage]
            for place, row in enumerate(rows):
                color = shade_of(number, place, len(rows))
                axes.plot(steps, values[row], color=color, linewidth=1.3)
                axes.plot(steps[-1], values[row, -1], ".", color=color, markersize=5)
        if np.nanmin(values) > 0 and np.nanmax(values) > 30 * np.nanmedian(values):
            axes.set_yscale("log")
        axes.set_title(statistic, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in figure.axes[len(there) :]:
        axes.set_axis_off()
    lines = [Line2D([], [], color=shade_of(k), linewidth=3, label=s) for k, s in enumerate(stages)]
    figure.legend(handles=lines, loc="outside lower center", ncols=6, fontsize=10, frameon=False)
    return png_of(figure)


@own_settings()
def heat_map(history: Sequence[Record], statistic: str) -> bytes:
    """Draw a statistic as layers x time; grey is where a layer was not there or not read.

    Colours end at the 1st and 99th percentile, and are logarithmic where all values are positive
    and these two lie more than a factor of 10 apart.
    """
    layers, roles, values = layers_over_time(history, statistic)
    axes = axes_of(f"{statistic}, by layer and step", left=0.21, right=0.93)
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
    return png_of(axes)


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
def response_std_by_layer(history: Sequence[Record], reference: Sequence[Record] = ()) -> bytes:
    """Draw the response std by layer of the first, the current and a reference net.

    He et al. 2015 (arXiv 1512.03385), figure 7. Stages are drawn equally wide, so that nets of
    unlike depth can be compared.
    """
    axes = axes_of("response std by layer, before the non-linearity", left=0.08, right=0.97)
    records = {f"first, step {history[0].step}": history[0]}
    records[f"now, step {history[-1].step}"] = history[-1]
    if reference:
        records[f"reference, step {reference[-1].step}"] = reference[-1]
    curves = {label: response_curve(record) for label, record in records.items()}
    stages = merged(map(list, curves.values()))
    for (label, curve), style, colour in zip(curves.items(), (".:", "o-", "x--"), HUES):
        places = [
            stages.index(stage) + (k + 0.5) / len(values)
            for stage, values in curve.items()
            for k in range(len(values))
        ]
        values = [value for values in curve.values() for value in values]
        axes.plot(places, values, style, color=colour, markersize=4, linewidth=1.2, label=label)
    for edge in range(1, len(stages)):
        axes.axvline(edge, color="lightgrey", linewidth=1)
    axes.set_xticks([k + 0.5 for k in range(len(stages))], stages)
    axes.set_xlim(0, len(stages))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("response std")
    axes.legend(fontsize=8)
    return png_of(axes)
