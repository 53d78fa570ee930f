"""Widens every block whose responses fill more directions than when it was young.

After Maile et al. 2022 (NORTH*, "When, where, and how to add new neurons to ANNs", arXiv
2202.08539, NORTH-Select): a layer of M channels gets as many new ones as its effective rank exceeds
`threshold` times M times the share of M that it filled at first. Deviations: the rank is the
entropic one of the probe "effective_rank" (the paper counts singular values above a bound), before
the relu; it is looked at with every record, not every step; new rows are drawn by He et al., not
made orthogonal to what is there; a widening adds at most `share` of the limit.
"""

from dataclasses import dataclass, replace

from nets import Widen
from policies import Policy, largest_by, room, sites


@dataclass(frozen=True)
class North(Policy):
    threshold: float = 0.97
    share: float = 0.1
    cooldown: int = 1
    needs = ("effective_rank",)

    def decide(self, history):
        actions, grown = [], history[-1].architecture
        for block in sites(history, self.cooldown):
            first = next(r for r in history if filled(r, block) is not None)
            width = grown.blocks[block].width
            excess = filled(history[-1], block) - self.threshold * filled(first, block)
            surplus = int(width * excess)
            left = room(replace(history[-1], architecture=grown), self.share)
            by = min(surplus, largest_by(grown, block, *left))
            if by > 0:
                actions.append(Widen(block, by, reason=f"{surplus} more directions than at first"))
                grown = grown.apply(actions[-1])
        return actions


def filled(record, block):
    layers = [r for r in record.layers.values() if r.block == block and r.role == "inner"]
    ranks = [layer.value("effective_rank") for layer in layers]
    if None in ranks:
        raise ValueError("North needs the probe 'effective_rank', got a record without it")
    return max(ranks) / record.architecture.blocks[block].width if ranks else None
