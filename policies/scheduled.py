"""The controls of every comparison: no growth, growth in turn, growth at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from nets import Action, Architecture, Insert, Widen
from nets.checks import check_count, check_fraction
from policies.base import History, Policy, due, growths, insert, sites, widen


@dataclass(frozen=True)
class Never(Policy):
    """Never grows: the static net, which a growth policy has to beat at equal training FLOPs.

    Of several sizes take the one that growth starts from too: on CIFAR-10 images, at the training
    FLOPs of 1 and of 4 epochs of ResNet-14, no row was shown to be better (docs/thesis.md, 5.4).
    """

    def decide(self, history: History) -> Sequence[Action]:
        return []


@dataclass(frozen=True)
class Periodic(Policy):
    """Grows every k records, round robin over the stages: widens each, then inserts into each.

    The standard baseline: growth at fixed times usually beats growth at plateaus (Wen et al. 2020,
    AutoGrow, arXiv 1906.02909). It looks at nothing, so a policy that looks should do better. In a
    stage it takes the narrowest block, and begins with the first stage. In our runs on CIFAR-10
    images it had 61.1 %, as growth at random sites and by three statistics, on a short budget, and
    70.9 % on a long one, where random sites had 72.0 and the best statistic 72.9 (three seeds;
    docs/thesis.md, 5.4).

    Args:
        every: records between growths. With 20 records and growth until 0.6 of the budget, 1 gives
            up to 12 growths, 2 up to 6.
        share: the FLOPs a growth adds, as a fraction of the limit's, above 0 and at most 1.
        cooldown: records for which an edited block is left alone.
    """

    every: int = 1
    share: float = 0.1
    cooldown: int = 1

    def __post_init__(self) -> None:
        check_schedule(self.every, self.share, self.cooldown)

    def decide(self, history: History) -> Sequence[Action]:
        if not due(history, self.every):
            return []
        architecture, free = history[-1].architecture, set(sites(history, self.cooldown))
        done, count = growths(history), len(architecture.stages)
        first = _turn_of(done[-1], architecture) + 1 if done else 0
        for turn in range(first, first + 2 * count):
            stage = architecture.stages[turn % count]
            blocks = [block for block in stage.blocks if block.name in free]
            if blocks:
                block = min(blocks, key=lambda block: block.width).name
                edit = insert if turn // count % 2 else widen
                actions = edit(history, block, self.share, f"turn {len(done) + 1}: {stage.name}")
                if actions:
                    return actions
        return []


def _turn_of(growth: Widen | Insert, architecture: Architecture) -> int:
    """Give a growth's place in a round: 0, 1, ... widen the stages, the next as many insert."""
    block = growth.after if isinstance(growth, Insert) else growth.block
    place = architecture.stages.index(architecture.stage_of(block))
    return place + isinstance(growth, Insert) * len(architecture.stages)


@dataclass(frozen=True)
class RandomSite(Policy):
    """Grows every k records at a site and with an edit drawn from (seed, step).

    The control for every 'where': a statistic that does not beat it says nothing about where
    capacity is missing (Evci et al. 2022, arXiv 2201.05125, section 5, compare with random growth).
    In our runs no statistic was shown to beat it; the residual ratio came nearest (docs/thesis.md,
    5.4).

    Args:
        every: records between growths.
        share: the FLOPs a growth adds, as a fraction of the limit's, above 0 and at most 1.
        cooldown: records for which an edited block is left alone.
    """

    every: int = 1
    share: float = 0.1
    cooldown: int = 1

    def __post_init__(self) -> None:
        check_schedule(self.every, self.share, self.cooldown)

    def decide(self, history: History) -> Sequence[Action]:
        if not due(history, self.every):
            return []
        random = Random(f"{history[-1].seed}:{history[-1].step}")
        choices = [
            (edit, site) for site in sites(history, self.cooldown) for edit in (widen, insert)
        ]
        random.shuffle(choices)
        for edit, site in choices:
            actions = edit(history, site, self.share, "drawn at random")
            if actions:
                return actions
        return []


def check_schedule(every: int, share: float, cooldown: int) -> None:
    """Raise a ValueError unless the settings that the scheduled policies share are in range."""
    check_count("every", every)
    check_fraction("share", share)
    check_count("cooldown", cooldown, least=0)
