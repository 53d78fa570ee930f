"""Widens the block whose inner responses spread the most."""

from dataclasses import dataclass

from policies import Policy, due, sites, widen


@dataclass(frozen=True)
class Spread(Policy):
    every: int = 3
    share: float = 0.1

    def decide(self, history):
        if not due(history, self.every):
            return []
        layers = [layer for layer in history[-1].layers.values() if layer.role == "inner"]
        free = [layer for layer in layers if layer.block in sites(history)]
        for layer in sorted(free, key=lambda layer: layer.response_std, reverse=True):
            reason = f"response std {layer.response_std:.3g}"
            if actions := widen(history, layer.block, self.share, reason):
                return actions
        return []
