"""What the layers of a network do while it trains: readings, records, probes, TensorBoard.

Everything that needs torch is imported on first use, so that policies load in milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from analysis.record import LayerReading, Record, read_history

if TYPE_CHECKING:
    from analysis.observer import Observer
    from analysis.probes import block_importance

_LAZY = {"Observer": "observer", "block_importance": "probes"}

__all__ = ["LayerReading", "Observer", "Record", "block_importance", "read_history"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"analysis.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
