"""Rules of thumb: what the statistics of a layer say of its training. Each states its rule.

None says where to grow: none of these statistics found a stage that was starved on purpose wherever
it was (docs/capacity.md). `missing_capacity` ranks the stages by one that did.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import median

from analysis.observing.reading import STATISTICS, LayerReading
from analysis.recording.record import Record

YOUNG = 2
"""A block edited within so many records is not judged: it shows what initialization did."""


def suggestions(history: Sequence[Record]) -> dict[str, list[str]]:
    """Give by layer of the last record what its statistics say; layers without are left out.

    The bounds are rules of thumb, not findings: look where they point.
    """
    record = history[-1]
    since = history[-1 - YOUNG].step if len(history) > YOUNG else 0
    found = {}
    for path, reading in record.layers.items():
        peers = [other for other in record.layers.values() if other.role == reading.role]
        if reading.edited is not None and reading.edited >= since:
            said = [f"edited within {YOUNG} records: too young to judge"]
        else:
            said = [*_absolute(reading), *_beside(reading, peers)]
        if said:
            found[path] = said
    return found


def _absolute(reading: LayerReading) -> list[str]:
    said = []
    for name in STATISTICS:
        value = reading.value(name)
        if value is not None and not isfinite(value):
            said.append(f"{name} is {value}: training has broken down here")
    dead, ratio = reading.dead_fraction, reading.residual_ratio
    if dead is not None and dead >= 0.5:
        said.append("dead_fraction >= 0.5: at least half of its channels do nothing")
    if ratio is not None and ratio < 0.1:
        said.append("residual_ratio < 0.1: the branch adds little to its stream")
    return said


def _beside(reading: LayerReading, peers: Sequence[LayerReading]) -> list[str]:
    """Compare with the layers of the same role, where there are at least three."""
    said = []
    for name, low, high in (
        ("gradient_norm", "little signal arrives", "its gradients stand out"),
        ("update_ratio", "it hardly moves", "its steps are large for its weights"),
    ):
        value = reading.value(name)
        others = [other.value(name) for other in peers]
        finite = [x for x in others if x is not None and isfinite(x)]
        if value is None or len(finite) < 3:
            continue
        middle = median(finite)
        if value < middle / 10:
            said.append(f"{name} < 1/10 of the median {reading.role} layer: {low}")
        if middle * 10 < value:
            said.append(f"{name} > 10 x the median {reading.role} layer: {high}")
    return said
