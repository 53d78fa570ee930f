"""Growth where the statistics ask, then removal of what contributes least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis import Record
from nets import Action, Architecture, Narrow, Remove, cost
from nets.checks import check_choice, check_count, check_fraction
from nets.plan.removal import SALIENCIES
from policies.base import Policy
from policies.fitting import shuffled
from policies.layer_statistic import LayerStatistic
from policies.times import History, Time


@dataclass(frozen=True)
class GrowAndPrune(Policy):
    """Grows as LayerStatistic does, then sheds what contributes least, down to a parameter limit.

    From `prune_from` on, what is allowed falls in a straight line to `parameters`, which it reaches
    at `prune_until`. The block with the least importance for each of its parameters gives way: its
    branch fades and goes, or, where the block must stay, it loses channels. (After Dai et al. 2019,
    NeST, arXiv 1711.02017: growth by gradient, then pruning.) Growth is spread over the budget up
    to `prune_from`, and reaches the limit's FLOPs there: so spread it has not been measured on real
    data. Pruning a large net alone, to half of its parameters, ended 6 points below growing a small
    one up to as many at equal FLOPs, by whatever saliency (docs/thesis.md, chapter 3).

    Args:
        statistic: of the layers, that chooses where to grow, as of LayerStatistic.
        pick: "highest" or "lowest".
        every: between growths: a fraction of the budget, or a number of records.
        share: the FLOPs a growth adds, as a fraction of the limit's; None as of Periodic.
        cooldown: for how long an edited block is left alone, as `every`, or 0.
        parameters: what the net ends with at most, as a fraction of the limit's parameters.
        prune_from: fraction of the budget at which growth ends and shedding begins.
        prune_until: fraction of the budget at which nothing is above `parameters` any more.
        fade: steps over which a block's branch fades before it goes; 0 takes it away at once, as
            what is left to shed at `prune_until` is.
        saliency: of channels: "magnitude", "activation" or "obd".
    """

    needs = ("importance",)

    statistic: str = "residual_ratio"
    pick: str = "highest"
    every: Time = 0.05
    share: float | None = None
    cooldown: Time = 0.05
    parameters: float = 0.5
    prune_from: float = 0.5
    prune_until: float = 0.8
    fade: int = 20
    saliency: str = "magnitude"

    def __post_init__(self) -> None:
        self._grower()  # checks what it shares with LayerStatistic
        check_fraction("parameters", self.parameters)
        check_fraction("prune_from", self.prune_from)
        check_fraction("prune_until", self.prune_until)
        if self.prune_until < self.prune_from:
            raise ValueError(
                f"prune_until must be at least prune_from {self.prune_from}, got {self.prune_until}"
            )
        check_count("fade", self.fade, least=0)
        check_choice("saliency", self.saliency, SALIENCIES)

    def _grower(self) -> LayerStatistic:
        return LayerStatistic(
            self.statistic, self.pick, every=self.every, share=self.share, cooldown=self.cooldown
        )

    def decide(self, history: History) -> Sequence[Action]:
        record = history[-1]
        if record.spent < self.prune_from:
            end = min(record.grow_until, self.prune_from)
            return self._grower().decide((*history[:-1], replace(record, grow_until=end)))
        if not record.importance and record.architecture.block != "plain":
            raise ValueError("importance must be in the record: name it in `needs`, got none")
        allowed = self._allowed(record, max(past.cost.parameters for past in history))
        actions: list[Action] = []
        fade = self.fade
        if record.spent >= self.prune_until:
            fading = [name for name, block in record.architecture.blocks.items() if block.fade]
            actions = [Remove(name, reason="no time is left to fade") for name in fading]
            fade = 0
        architecture = without_fading(record.architecture)
        while cost(architecture).parameters > allowed:
            found = self._shed(architecture, record, allowed, fade)
            if found is None:
                break
            gone = Remove(found.block) if isinstance(found, Remove) else found
            architecture = architecture.apply(gone)
            actions.append(found)
        return actions

    def _allowed(self, record: Record, start: int) -> float:
        """Give the parameters allowed now, on the line from the largest net to `parameters`."""
        end = self.parameters * record.limit.parameters
        length = self.prune_until - self.prune_from
        way = 1.0 if length == 0 else min(1.0, (record.spent - self.prune_from) / length)
        return start + way * (end - start)

    def _shed(
        self, architecture: Architecture, record: Record, allowed: float, fade: int
    ) -> Remove | Narrow | None:
        """Give the next block or channels to go; None if nothing can."""
        ranked = sorted(
            shuffled(record, architecture.blocks),
            key=lambda name: record.importance.get(name, 0.0) / _parameters(architecture, name),
        )
        for name in ranked:
            reason = f"importance {record.importance.get(name, 0.0):.3g}"
            removal = Remove(name, fade, reason=reason)
            if _accepts(architecture, removal):
                return removal
            by = _enough(architecture, name, allowed)
            if by:
                return Narrow(name, by, self.saliency, reason=reason)
        return None


def without_fading(architecture: Architecture) -> Architecture:
    """Give the architecture that is left when all that fades now is gone."""
    for name, block in list(architecture.blocks.items()):
        if block.fade:
            architecture = architecture.apply(Remove(name))
    return architecture


def _parameters(architecture: Architecture, block: str) -> int:
    """Give the parameters that all of a block's channels hold which may go, but one at least."""
    width, frozen = architecture.blocks[block].width, architecture.blocks[block].frozen
    most = min(width - 1, width - frozen)
    return cost(architecture).parameters - _narrowed(architecture, block, most) if most else 1


def _narrowed(architecture: Architecture, block: str, by: int) -> int:
    return cost(architecture.apply(Narrow(block, by))).parameters


def _accepts(architecture: Architecture, action: Action) -> bool:
    try:
        architecture.apply(action)
    except ValueError:
        return False
    return True


def _enough(architecture: Architecture, block: str, allowed: float) -> int:
    """Give how many channels must go to come down to `allowed`: at most half; 0 if none can."""
    width, frozen = architecture.blocks[block].width, architecture.blocks[block].frozen
    most = min(width // 2, width - frozen)
    fits = (by for by in range(1, most) if _narrowed(architecture, block, by) <= allowed)
    return next(fits, most)
