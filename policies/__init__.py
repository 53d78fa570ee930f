"""When and where to grow: policies, and the functions that a custom policy calls."""

from analysis.recording.probed import probed
from policies.base import (
    Policy,
    due,
    flat,
    growths,
    insert,
    largest_by,
    largest_width,
    levelled,
    room,
    series,
    sites,
    stalled,
    widen,
)
from policies.controls import Never, RandomSite, Yoked
from policies.gain import Gain
from policies.grow_and_prune import GrowAndPrune
from policies.layer_statistic import LayerStatistic
from policies.plateau import Plateau
from policies.scheduled import Periodic, WholeNet
from policies.stochastic_depth import StochasticDepth

__all__ = [
    "Gain",
    "GrowAndPrune",
    "LayerStatistic",
    "Never",
    "Periodic",
    "Plateau",
    "Policy",
    "RandomSite",
    "StochasticDepth",
    "WholeNet",
    "Yoked",
    "due",
    "flat",
    "growths",
    "insert",
    "largest_by",
    "largest_width",
    "levelled",
    "probed",
    "room",
    "series",
    "sites",
    "stalled",
    "widen",
]
