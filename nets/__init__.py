"""What a network is, and how it changes: architectures as data, and exact growth.

Everything that needs torch is imported on first use, so that descriptions, costs and policies load
in milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nets.action_dicts import action_from_dict, action_to_dict
from nets.actions import Action, Insert, Widen, WidenStage
from nets.architecture import Architecture
from nets.blocks import Block, Stage
from nets.cost import Cost, cost, train_flops
from nets.presets import preset, preset_names, seed_of
from nets.reductions import Freeze, Narrow, Remove, SetSurvival, Unfreeze

if TYPE_CHECKING:
    from nets.growth import Grown, grow
    from nets.imported import from_torchvision
    from nets.modules import Network, build
    from nets.schedulers import follow

_LAZY = {"build": "modules", "Network": "modules", "grow": "growth", "Grown": "growth"}
_LAZY |= {"from_torchvision": "imported", "follow": "schedulers"}

__all__ = [
    "Action",
    "Architecture",
    "Block",
    "Cost",
    "Freeze",
    "Grown",
    "Insert",
    "Narrow",
    "Network",
    "Remove",
    "SetSurvival",
    "Stage",
    "Unfreeze",
    "Widen",
    "WidenStage",
    "action_from_dict",
    "action_to_dict",
    "build",
    "cost",
    "follow",
    "from_torchvision",
    "grow",
    "preset",
    "preset_names",
    "seed_of",
    "train_flops",
]


def __getattr__(name: str):
    if name in _LAZY:
        value = getattr(import_module(f"nets.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'nets' has no attribute {name!r}")
