"""Widens the block whose weights have the largest gradients on the probe batch."""

from dataclasses import dataclass

import torch

from policies import Policy, due, probed, sites, widen


def gradient_energy(network, batch, loss):
    """By block: the mean square of its weights' gradients."""
    inputs, targets = batch
    loss(network(inputs), targets).backward()
    found = {}
    for name in network.architecture.blocks:
        weights = network.get_submodule(name).parameters()
        found[name] = torch.cat([weight.grad.flatten() for weight in weights]).square().mean()
    return found


@dataclass(frozen=True)
class Steepest(Policy):
    every: int = 2
    needs = (gradient_energy,)

    def decide(self, history):
        if not due(history, self.every):
            return []
        energy = probed(history[-1], gradient_energy)
        block = max(sites(history), key=energy.get, default=None)
        reason = f"gradient energy {energy[block]:.2g}" if block else ""
        return widen(history, block, 0.1, reason) if block else []
