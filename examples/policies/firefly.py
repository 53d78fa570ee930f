"""Splits channels and adds new ones in the few blocks where the loss falls fastest.

Like Wu et al. 2020 (Firefly, arXiv 2102.08574), which trains many small candidates for a few steps
(splits of neurons, new neurons, new layers) and keeps those that lower the loss most to first
order. Deviations: no candidate is trained. A block's score is its gradient's energy a weight, the
first-order fall of the loss for a small step there; the best `count` blocks share the growth, half
as copies (net2net, the paper's splits), half as new channels in the steepest directions (gradmax).
Newborn layers are left out.
"""

from dataclasses import dataclass

from nets import Widen
from policies import Policy, due, sites, widen


@dataclass(frozen=True)
class Firefly(Policy):
    every: int = 2
    share: float = 0.2
    count: int = 2
    cooldown: int = 1

    def decide(self, history):
        if not due(history, self.every):
            return []
        energy = {}
        for layer in history[-1].layers.values():
            if layer.role == "inner" and layer.gradient_norm is not None:
                energy[layer.block] = energy.get(layer.block, 0) + layer.gradient_norm**2
        free = [block for block in sites(history, self.cooldown) if block in energy]
        actions = []
        for block in sorted(free, key=energy.get, reverse=True)[: self.count]:
            reason = f"gradient energy {energy[block]:.2g}"
            for whole in widen(history, block, self.share / self.count, reason):
                halves = {"net2net": whole.by // 2, "gradmax": whole.by - whole.by // 2}
                actions += [
                    Widen(block, by, initializer=how, reason=reason)
                    for how, by in halves.items()
                    if by
                ]
        return actions
