"""A probe has a name, and a record holds under it what was measured: by block or by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from analysis.recording.record import Record

Probe = str | Callable[..., Mapping[str, float]]
"""One of those in the box by its name, or a function of (network, probe batch, loss)."""


def probe_name(probe: Probe) -> Any:
    """Give the name under which records hold a probe: an object's `name`, a function's own."""
    if isinstance(probe, str):
        return probe
    return getattr(probe, "name", getattr(probe, "__name__", type(probe).__name__))


def probed(record: Record, probe: Probe) -> Mapping[str, float]:
    """Give what a probe has measured, by block or by layer's path.

    Args:
        record: the present one, say, of a policy that names the probe in `needs`.
        probe: what stands there, or its name.

    Raises:
        ValueError: the record is without it.
    """
    name = probe_name(probe)
    found = _numbers(record, name)
    if found is None:
        raise ValueError(
            f"record must hold the probe {name!r}, which a policy names in `needs`, got one of "
            f"step {record.step} without it"
        )
    return found


def holds(record: Record, probe: Probe) -> bool:
    """Say whether a record has what a probe measures."""
    return _numbers(record, probe_name(probe)) is not None


def _numbers(record: Record, name: str) -> Mapping[str, float] | None:
    if name in record.probes:
        return record.probes[name]
    if name == "importance":  # blocks of plain nets have none
        plain = record.architecture.block == "plain"
        return record.importance if record.importance or plain else None
    layers = {
        p: reading.extra[name] for p, reading in record.layers.items() if name in reading.extra
    }
    return layers or None


def with_probes(record: Record, measured: Mapping[str, Mapping[str, float]]) -> Record:
    """Give the record with what was measured, by the probes' names.

    What is by block goes into `probes` ("importance" into a field of its own), what is by layer
    into the readings' `extra`.
    """
    by_block = {name: found for name, found in measured.items() if _is_by_block(record, found)}
    by_layer = {name: found for name, found in measured.items() if name not in by_block}
    layers = {}
    for path, reading in record.layers.items():
        own = {name: found[path] for name, found in by_layer.items() if path in found}
        layers[path] = replace(reading, extra={**reading.extra, **own})
    importance = by_block.pop("importance", record.importance)
    probes = {**record.probes, **by_block}
    return replace(record, layers=layers, importance=importance, probes=probes)


def _is_by_block(record: Record, found: Mapping[str, float]) -> bool:
    """Say whether all that has a number is a block; its output, as a layer, has the same path."""
    return found.keys() <= record.architecture.blocks.keys()
