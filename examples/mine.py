from dataclasses import dataclass

from policies import Policy, due, sites, widen


@dataclass(frozen=True)
class Mine(Policy):
    """Widens the block with the smallest gradients, every few records."""

    every: int = 2

    def decide(self, history):
        if not due(history, self.every):
            return []
        layers = [layer for layer in history[-1].layers.values() if layer.role == "inner"]
        free = [layer for layer in layers if layer.block in sites(history, cooldown=2)]
        quiet = min(free, key=lambda layer: layer.gradient_norm, default=None)
        return widen(history, quiet.block, share=0.1, reason="smallest gradients") if quiet else []
