"""What a record must be: numbers where it is counted with, each in its range."""

from __future__ import annotations

from functools import reduce
from math import inf
from typing import TYPE_CHECKING

from nets import Architecture
from nets.checks import check_count

if TYPE_CHECKING:
    from analysis.observing.reading import LayerReading
    from analysis.recording.record import Record

_MEASURED = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_MEASURED += ("learning_rate",)
_NO_STATISTICS = ("block", "role", "edited", "extra")


def check_record(record: Record) -> None:
    """Raise a ValueError unless all that is counted with is of its kind, and in its range."""
    for name in ("step", "train_flops"):
        check_count(name, getattr(record, name), least=0)
    check_count("seed", record.seed, least=-(2**63))
    for name in ("parameters", "flops"):
        check_count(f"{name} of limit", getattr(record.limit, name))
    for name in ("epoch", "spent"):
        _check_number(name, getattr(record, name))
    if not 0 <= record.spent < inf:  # in a loop of one's own it may be more than the budget
        raise ValueError(f"spent must be at least 0 and finite, got {record.spent!r}")
    for name in _MEASURED:
        _check_number(name, getattr(record, name), optional=True)
    for block, value in record.importance.items():
        _check_number(f"importance of {block!r}", value)
    for path, reading in record.layers.items():
        _check_reading(path, reading)
    for _, why in record.refused:
        if not isinstance(why, str):
            raise ValueError(f"refused must say why as text, got {why!r}")
    reduce(Architecture.apply, record.applied, record.architecture)


def _check_reading(path: str, reading: LayerReading) -> None:
    if not isinstance(reading.role, str) or not isinstance(reading.block, str | None):
        got = (reading.block, reading.role)
        raise ValueError(f"block and role of {path!r} must be text, got {got}")
    if reading.edited is not None:
        check_count(f"edited of {path!r}", reading.edited, least=0)
    for name, value in vars(reading).items():
        if name not in _NO_STATISTICS:
            _check_number(f"{name} of {path!r}", value, optional=True)
    for name, value in reading.extra.items():
        _check_number(f"{name!r} of {path!r}", value)


def _check_number(name: str, value: object, optional: bool = False) -> None:
    if optional and value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1000
    if not whole and not isinstance(value, float):  # a larger integer cannot become one
        raise ValueError(f"{name} must be a number, got {value!r}")
