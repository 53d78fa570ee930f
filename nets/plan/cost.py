"""What an architecture costs: parameters, and floating-point operations as integers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from nets.plan.architecture import Architecture
from nets.plan.layers import layer_specs


@dataclass(frozen=True)
class Cost:
    """Parameters (BatchNorm's too) and FLOPs of one image's forward pass, 2 per multiply-add."""

    parameters: int
    flops: int


@lru_cache(maxsize=4096)
def cost(architecture: Architecture) -> Cost:
    """Count parameters, frozen ones too, and forward FLOPs, as torch's FlopCounterMode does."""
    specs = layer_specs(architecture)
    return Cost(sum(spec.parameters for spec in specs), sum(spec.flops for spec in specs))


@lru_cache(maxsize=4096)
def train_flops(architecture: Architecture) -> int:
    """Count one image's training FLOPs: forward, and the gradients that are really computed.

    A layer has a weight gradient unless all of it is frozen, and an input gradient if anything
    before it trains. The images themselves get none.
    """
    total = 0
    behind = entry = False  # whether something trains before this layer, before this branch
    for spec in layer_specs(architecture):
        before = entry if spec.leaf.startswith("shortcut.") else behind
        if spec.leaf in ("conv1", "linear1"):
            entry = behind
        total += spec.flops * (1 + spec.weight_trains + before)
        behind |= spec.trains
    return total
