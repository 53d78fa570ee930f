"""Draws a run's history: heat maps of layer statistics, the response std by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.capacity.missing_capacity import rank
from analysis.recording.record import Record
from analysis.recording.timeline import layers_over_time, merged, response_curve, statistics_of
from analysis.showing.architecture_pictures import architecture_over_time
from analysis.showing.capacity_page import capacity_picture
from analysis.showing.matplotlib_figures import axes_of, own_settings, png_of

_LABELS = 16
"""So many layers are named beside a picture: text takes most of the time to draw it."""


def draw(history: Sequence[Record], reference: Sequence[Record] = ()) -> dict[str, bytes]:
    """Give every picture of a history as a PNG by name.

    Args:
        history: at least one record.
        reference: a history of another run, whose last record is a curve of its own.

    Returns:
        architecture, capacity, response_std_by_layer and heat_map_<statistic>; those whose numbers
        nobody read are left out.
    """
    pictures = {"architecture": architecture_over_time(history)}
    if (ranking := rank(history)).places:
        pictures["capacity"] = capacity_picture(ranking)
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
    return png_of(axes)
