"""Growth in depth, with blocks that live by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nets import Action, SetSurvival
from nets.checks import check_count, check_fraction
from policies.base import History, Policy, due, insert, sites
from policies.scheduled import check_schedule


@dataclass(frozen=True)
class StochasticDepth(Policy):
    """Keeps blocks with linearly decaying probability and inserts next to the most important one.

    Survival falls from 1 at the stem to `final` at the last block (Huang et al. 2016, arXiv
    1603.09382, equation 4). A newborn starts at `newborn` and rises to its place over `ramp`
    records. Importance is the loss without a block's branch minus the loss with it. Stochastic
    depth helps deep nets and hurts shallow ones (about 7 points on CIFAR-100 at depth 18 with
    final 0.5), so `final` is high here: lower it to 0.5 from some 50 layers on. In our runs, on
    nets of some ten layers, it was 3 to 4 points behind growth at random sites (docs/thesis.md,
    5.4), with a smaller gap between training and validation than any other row (6.1).
    Plain nets have no branches and are left as they are.

    Args:
        final: survival of the last block, above 0 and at most 1.
        newborn: survival of a block at birth, above 0 and at most 1.
        ramp: records over which a newborn rises to its place.
        every: records between insertions.
        share: the FLOPs a growth adds, as a fraction of the limit's, above 0 and at most 1.
        cooldown: records for which nothing is inserted next to a newborn.
    """

    final: float = 0.9
    newborn: float = 0.5
    ramp: int = 3
    every: int = 1
    share: float = 0.1
    cooldown: int = 2

    needs = ("importance",)

    def __post_init__(self) -> None:
        check_fraction("final", self.final)
        check_fraction("newborn", self.newborn)
        check_count("ramp", self.ramp)
        check_schedule(self.every, self.share, self.cooldown)

    def decide(self, history: History) -> Sequence[Action]:
        record = history[-1]
        if record.architecture.block == "plain":
            return []
        if not record.importance:
            raise ValueError("StochasticDepth needs the probe 'importance' in every record")
        actions: list[Action] = []
        for name, target in self._targets(history).items():
            if abs(target - record.architecture.blocks[name].survival) > 0.005:
                actions.append(SetSurvival(name, target, reason="linear decay with depth"))
        if due(history, self.every):
            importance = record.importance
            free = [site for site in sites(history, self.cooldown) if site in importance]
            for site in sorted(free, key=lambda site: importance[site], reverse=True):
                reason = f"most important, {importance[site]:.3g}"
                born = insert(history, site, self.share, reason, survival=self.newborn)
                if born:
                    return actions + born
        return actions

    def _targets(self, history: History) -> dict[str, float]:
        """Give each block's survival now: its place on the line, or on the way there."""
        blocks = history[-1].architecture.blocks
        targets = {}
        for depth, name in enumerate(blocks, start=1):
            place = 1 - depth / len(blocks) * (1 - self.final)
            age = sum(name in record.architecture.blocks for record in history)
            if age < len(history) and age < self.ramp:
                place = self.newborn + (place - self.newborn) * age / self.ramp
            targets[name] = round(place, 4)
        return targets
