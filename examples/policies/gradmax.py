"""Widens where the gradient is largest, with new channels in its steepest directions.

After Evci et al. 2022 (GradMax, arXiv 2201.05125). Deviations: the paper grows layers in turn, at
fixed times, and picks *how*; here the block is the one whose weights have the largest gradient,
rms, a stand-in for the singular values that the paper maximises. Under BatchNorm the incoming rows
are chosen and the outgoing ones are 0 (nets/initializing/gradmax.py says why), on 32 images a
growth.
"""

from dataclasses import dataclass, replace

from policies import Policy, due, sites, widen


@dataclass(frozen=True)
class GradMax(Policy):
    every: int = 1
    share: float = 0.1
    cooldown: int = 1

    def decide(self, history):
        if not due(history, self.every):
            return []
        gradients = {}
        for layer in history[-1].layers.values():
            if layer.role == "inner" and layer.gradient_norm is not None:
                gradients[layer.block] = max(layer.gradient_norm, gradients.get(layer.block, 0))
        free = [block for block in sites(history, self.cooldown) if block in gradients]
        for block in sorted(free, key=gradients.get, reverse=True):
            reason = f"largest gradient, rms {gradients[block]:.2g}"
            actions = widen(history, block, self.share, reason)
            if actions:
                return [replace(action, initializer="gradmax") for action in actions]
        return []
