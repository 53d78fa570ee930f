"""What the layers of a network do while it trains: readings, records, probes, TensorBoard.

Everything that needs torch is imported on first use, so that policies load in milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from analysis.observing.reading import LayerReading
from analysis.recording.record import Record, read_history

if TYPE_CHECKING:
    from analysis.capacity.sensitivity import block_sensitivity
    from analysis.observing.observer import Observer
    from analysis.recording.comparison_folder import ComparedRun, Comparison, read_comparison
    from analysis.recording.probes import (
        block_importance,
        effective_rank,
        gradient_signal_to_noise,
        response_histograms,
    )
    from analysis.scaling.coordinate_check import CoordinateCheck, coordinate_check
    from analysis.showing.tensorboard_writer import log_record

_LAZY = {
    "ComparedRun": "recording.comparison_folder",
    "Comparison": "recording.comparison_folder",
    "Observer": "observing.observer",
    "block_importance": "recording.probes",
    "block_sensitivity": "capacity.sensitivity",
    "effective_rank": "recording.probes",
    "gradient_signal_to_noise": "recording.probes",
    "read_comparison": "recording.comparison_folder",
    "response_histograms": "recording.probes",
    "CoordinateCheck": "scaling.coordinate_check",
    "coordinate_check": "scaling.coordinate_check",
    "log_record": "showing.tensorboard_writer",
}

__all__ = [
    "ComparedRun",
    "Comparison",
    "CoordinateCheck",
    "LayerReading",
    "Observer",
    "Record",
    "block_importance",
    "block_sensitivity",
    "coordinate_check",
    "effective_rank",
    "gradient_signal_to_noise",
    "log_record",
    "read_comparison",
    "read_history",
    "response_histograms",
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"analysis.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")
