"""Growth in depth, with blocks that live by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nets import Action, SetSurvival
from nets.checks import check_fraction
from policies.base import Policy, sites
from policies.fitting import Choice, check_growth, grow_at, share_of, shuffled
from policies.times import History, Time, check_time, due, in_records


@dataclass(frozen=True)
class StochasticDepth(Policy):
    """Keeps blocks with linearly decaying probability and inserts next to the most important one.

    Survival falls from 1 at the stem to `final` at the last block (Huang et al. 2016, arXiv
    1603.09382, equation 4). A newborn starts at `newborn` and rises to its place over `ramp`
    records. Importance is the loss without a block's branch minus the loss with it. Stochastic
    depth helps deep nets and hurts shallow ones (about 7 points on CIFAR-100 at depth 18 with
    final 0.5), so `final` is high here: lower it to 0.5 from some 50 layers on. It does not widen,
    so a start on thin streams ends in a deep thin net below the limit's FLOPs. Plain nets have no
    branches and are left as they are.

    Args:
        final: survival of the last block, above 0 and at most 1.
        newborn: survival of a block at birth, above 0 and at most 1.
        ramp: over which a newborn rises to its place: a fraction of the budget, or a number of
            records.
        every: between insertions: a fraction of the budget, or a number of records.
        share: the FLOPs an insertion adds, as a fraction of the limit's; None as of Periodic.
        cooldown: for how long nothing is inserted next to a newborn, as of Periodic.
    """

    final: float = 0.9
    newborn: float = 0.5
    ramp: Time = 0.15
    every: Time = 0.05
    share: float | None = None
    cooldown: Time = 0.1

    needs = ("importance",)

    def __post_init__(self) -> None:
        check_fraction("final", self.final)
        check_fraction("newborn", self.newborn)
        check_time("ramp", self.ramp)
        check_growth(self)

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
            names = [name for name in sites(history, self.cooldown) if name in importance]
            ranked = sorted(shuffled(record, names), key=importance.__getitem__, reverse=True)
            choices = [
                Choice("insert", name, f"most important, {importance[name]:.3g}") for name in ranked
            ]
            share = share_of(history, self.share, self.every)
            actions += grow_at(history, choices, share, survival=self.newborn)
        return actions

    def _targets(self, history: History) -> dict[str, float]:
        """Give each block's survival now: its place on the line, or on the way there."""
        blocks, ramp = history[-1].architecture.blocks, in_records(history, self.ramp)
        targets = {}
        for depth, name in enumerate(blocks, start=1):
            place = 1 - depth / len(blocks) * (1 - self.final)
            age = sum(name in record.architecture.blocks for record in history)
            if age < len(history) and age < ramp:
                place = self.newborn + (place - self.newborn) * age / ramp
            targets[name] = round(place, 4)
        return targets
