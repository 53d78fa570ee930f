"""A history as the arrays that its pictures show: layers over time, blocks over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan

import numpy as np

from analysis.observing.reading import ROLES, STATISTICS
from analysis.recording.record import Record
from nets import Architecture


def merged(sequences: Iterable[Sequence[str]]) -> list[str]:
    """Give every name once, each behind the one that it first followed.

    So that a newborn stands between its neighbours, and what was removed keeps its place.
    """
    names: list[str] = []
    for sequence in dict.fromkeys(map(tuple, sequences)):
        place = 0
        for name in sequence:
            if name not in names:
                names.insert(place, name)
            place = names.index(name) + 1
    return names


def statistics_of(history: Sequence[Record]) -> list[str]:
    """Give the statistics that some layer has, a user's own last."""
    readings = [reading for record in history for reading in record.layers.values()]
    names = (*STATISTICS, *sorted({name for reading in readings for name in reading.extra}))
    return [name for name in names if any(reading.value(name) is not None for reading in readings)]


def layers_over_time(
    history: Sequence[Record], statistic: str
) -> tuple[list[str], list[str], np.ndarray]:
    """Give the layers that have a statistic, their roles, and its values (layers, records).

    Layers of one role stand together, in the order of the forward pass: they can be compared.
    NaN stands where a layer was not there or not read.
    """
    roles = {path: reading.role for record in history for path, reading in record.layers.items()}
    order = merged(list(record.layers) for record in history)
    order.sort(key=lambda path: ROLES.index(roles[path]))
    values = np.full((len(order), len(history)), nan)
    rows = {path: row for row, path in enumerate(order)}
    for column, record in enumerate(history):
        for path, reading in record.layers.items():
            value = reading.value(statistic)
            values[rows[path], column] = nan if value is None else value
    there = np.flatnonzero(~np.isnan(values).all(axis=1))
    kept = [order[row] for row in there]
    return kept, [roles[path] for path in kept], values[there]


def layer_values(history: Sequence[Record]) -> Iterator[tuple[int, str, str, float]]:
    """Give one tidy row per number: step, layer, statistic, value; what is None is left out."""
    for record in history:
        for path, reading in record.layers.items():
            for name in (*STATISTICS, *reading.extra):
                value = reading.value(name)
                if value is not None:
                    yield record.step, path, name, value
        of_blocks = {"importance": record.importance, "sensitivity": record.sensitivity}
        for name, found in (of_blocks | dict(record.probes)).items():
            for block, value in found.items():
                yield record.step, block, name, value


def architectures(history: Sequence[Record]) -> list[tuple[int, Architecture]]:
    """Give the first architecture at step 0, and each later one at the step where it came."""
    states = [(0, history[0].architecture)]
    for record in history:
        grown = record.architecture
        for action in record.applied:
            grown = grown.apply(action)
        for architecture in (record.architecture, grown):
            if architecture != states[-1][1]:
                states.append((record.step, architecture))
    return states


@dataclass(frozen=True)
class Bands:
    """The blocks over time: `widths[block, k]` channels from `steps[k]` on, 0 while not there."""

    steps: list[int]
    blocks: list[str]
    widths: np.ndarray
    streams: list[tuple[int, str]]  # step and words of every change of a residual stream


def bands(history: Sequence[Record]) -> Bands:
    """Give the inner width of every block over time, from step 0 to the last record."""
    states = architectures(history)
    blocks = merged(list(architecture.blocks) for _, architecture in states)
    widths = np.zeros((len(blocks), len(states) + 1))
    for column, (_, architecture) in enumerate(states):
        present = architecture.blocks
        widths[:, column] = [present[name].width if name in present else 0 for name in blocks]
    widths[:, -1] = widths[:, -2]
    streams = [
        (step, f"{old.name}: stream {old.width} to {new.width}")
        for (_, before), (step, after) in pairwise(states)
        for old, new in zip(before.stages, after.stages)
        if old.width != new.width
    ]
    return Bands([*(step for step, _ in states), history[-1].step], blocks, widths, streams)


def response_curve(record: Record) -> dict[str, list[float]]:
    """Give the response std of the weighted layers in forward order, by stage.

    He et al. 2015 (arXiv 1512.03385), figure 7: after BatchNorm, before the non-linearity. A stage
    is the first part of a layer's path.
    """
    curve: dict[str, list[float]] = {}
    for path, reading in record.layers.items():
        if reading.role in ("stem", "inner", "branch") and reading.response_std is not None:
            curve.setdefault(path.partition(".")[0], []).append(reading.response_std)
    return curve
