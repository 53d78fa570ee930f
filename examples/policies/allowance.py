"""Widens and inserts in turn within an allowance of FLOPs: `--policy allowance.Allowance`."""

from dataclasses import dataclass

from nets import Insert, Widen
from policies import Policy, growths, largest_by, largest_width, room, sites


@dataclass(frozen=True)
class Allowance(Policy):
    flops: int = 1_000_000  # what a growth may add to one image's forward pass

    def decide(self, history):
        left, parameters = room(history[-1])
        turn = len(growths(history)) % 2
        kind, largest = (Insert, largest_width) if turn else (Widen, largest_by)
        net, allowed = history[-1].architecture, (min(self.flops, left), parameters)
        amounts = {block: largest(net, block, *allowed) for block in sites(history)}
        block = max(amounts, key=amounts.get, default=None)
        if not block or not amounts[block]:
            return []
        return [kind(block, amounts[block], reason=f"most channels for {self.flops:,} FLOPs")]
