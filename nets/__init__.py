"""What a network is, and how it changes: architectures as data, and exact growth.

Everything that needs torch is imported on first use, so that descriptions, costs and policies load
in milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nets.initializing.initializer import Initializer
from nets.plan.action_dicts import action_from_dict, action_to_dict
from nets.plan.actions import Action, Insert, SetSurvival, Widen, WidenStage
from nets.plan.architecture import Architecture
from nets.plan.blocks import Block, Stage
from nets.plan.cost import Cost, cost, train_flops
from nets.plan.freezing import Freeze, Unfreeze
from nets.plan.layers import LayerSpec, layer_specs
from nets.plan.presets import preset, preset_names, seed_of
from nets.plan.removal import Narrow, Remove

if TYPE_CHECKING:
    from nets.growing.cohort_rates import CohortRates
    from nets.growing.grow import Grown, build, grow
    from nets.growing.schedulers import follow
    from nets.initializing.edit import Edit, GrownAxis
    from nets.initializing.variance_transfer import VarianceTransfer
    from nets.modules.from_torchvision import from_torchvision
    from nets.modules.network import Network

_LAZY = {
    "CohortRates": "growing.cohort_rates",
    "Edit": "initializing.edit",
    "Grown": "growing.grow",
    "GrownAxis": "initializing.edit",
    "Network": "modules.network",
    "VarianceTransfer": "initializing.variance_transfer",
    "build": "growing.grow",
    "follow": "growing.schedulers",
    "from_torchvision": "modules.from_torchvision",
    "grow": "growing.grow",
}

__all__ = [
    "Action",
    "Architecture",
    "Block",
    "CohortRates",
    "Cost",
    "Edit",
    "Freeze",
    "Grown",
    "GrownAxis",
    "Initializer",
    "Insert",
    "LayerSpec",
    "Narrow",
    "Network",
    "Remove",
    "SetSurvival",
    "Stage",
    "Unfreeze",
    "VarianceTransfer",
    "Widen",
    "WidenStage",
    "action_from_dict",
    "action_to_dict",
    "build",
    "cost",
    "follow",
    "from_torchvision",
    "grow",
    "layer_specs",
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
