"""The thesis: the whole net grows by a quarter when its error stalls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis import Record
from nets import Action, Architecture, Freeze, Insert, Unfreeze, Widen, cost
from nets.checks import check_choice, check_count, check_fraction
from nets.plan.blocks import Stage
from policies.base import (
    History,
    Policy,
    flat,
    largest_by,
    largest_width,
    room,
    since_growth,
    stalled,
)


@dataclass(frozen=True)
class Plateau(Policy):
    """Grows the whole net, a quarter of the limit at a time, when the validation loss stalls.

    Every stage gets an equal part: its blocks widen up to the width of their stream, and what is
    left goes into new blocks. A budget so short that the loss falls until growth must end shows no
    stall; such a run grows once at `latest`, rather than by the chance of one noisy loss or not at
    all. It works when the learning rate is constant while growing (schedule `hold`); under a
    falling rate the loss rarely stalls before growth must end. Waiting for full convergence hurts,
    so keep `patience` short (Wen et al. 2020, AutoGrow, arXiv 1906.02909, section 3.3). Source: the
    2017 thesis that this project finishes, section 4.1, which grows at stalls alone (`latest`
    None).

    Our runs (docs/thesis.md; all at stalls alone) show no gain in accuracy: on CIFAR-10 images,
    with 4 epochs of ResNet-14's FLOPs, it is level with the net that it starts from (-0.19 points,
    5 seeds) where it grew in one run of five, and 2.4 points behind it where a patience of 2 made
    it grow in all (3 seeds); on MNIST level with the full net, behind the quarter net; on the sine
    behind both static nets. On these two it was nearer to the best size over the whole budget than
    the full net (anytime regret). `freeze` without a thaw cost accuracy in every experiment; a thaw
    won a part of it back, on the sine all of it.

    Args:
        patience: records without improvement before growing; 2 to 4 of 20.
        min_delta: an improvement is a loss lower by more than this; 0 or more.
        when: "stall" waits for `patience`; "slope" tests whether the loss still falls over
            `window`.
        window: records of the slope test, at least 3.
        share: the FLOPs a growth adds, as a fraction of the limit's, above 0 and at most 1.
        freeze: hold what existed fixed when the net grows (the thesis, section 4.2). New channels
            and blocks train.
        thaw_after: records after a growth at which all trains again; None for never.
        thaw_at: fraction of the budget at which all trains again and nothing is frozen any more;
            None for never.
        latest: fraction of the budget at which a net that has not grown yet grows without a stall,
            once; of use below the run's `grow_until`. By default half, so that what is new has as
            long to train as what was there. None waits for a stall.
    """

    patience: int = 2
    min_delta: float = 0.0
    when: str = "stall"
    window: int = 4
    share: float = 0.25
    freeze: bool = False
    thaw_after: int | None = None
    thaw_at: float | None = None
    latest: float | None = 0.5

    def __post_init__(self) -> None:
        check_count("patience", self.patience)
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta must be at least 0, got {self.min_delta}")
        check_choice("when", self.when, ("stall", "slope"))
        check_count("window", self.window, least=3)
        check_fraction("share", self.share)
        if self.thaw_after is not None:
            check_count("thaw_after", self.thaw_after)
        if self.thaw_at is not None:
            check_fraction("thaw_at", self.thaw_at)
        if self.latest is not None:
            check_fraction("latest", self.latest)

    def decide(self, history: History) -> Sequence[Action]:
        grown = self._growth(history)
        record = history[-1]
        late = self.thaw_at is not None and record.spent >= self.thaw_at
        if grown and self.freeze and not late:
            reason = "what existed is held when the net grows"
            return [*(Freeze(part, reason=reason) for part in _parts(record.architecture)), *grown]
        rested = self.thaw_after is not None and len(since_growth(history)) >= self.thaw_after
        if (late or rested) and record.architecture != record.architecture.thawed():
            reason = "the end is near" if late else f"{self.thaw_after} records after growth"
            return [*(Unfreeze(p, reason=reason) for p in _parts(record.architecture)), *grown]
        return grown

    def _growth(self, history: History) -> list[Action]:
        if self.when == "slope":
            ready = flat(history, self.window)
            reason = f"no downward slope over {self.window} records"
        else:
            ready = stalled(history, self.patience, self.min_delta)
            reason = f"no better validation loss in {self.patience} records"
        if not ready and self._at_latest(history):
            ready, reason = True, f"no stall by {self.latest:.0%} of the budget"
        return grow_all_stages(history[-1], self.share, reason) if ready else []

    def _at_latest(self, history: History) -> bool:
        """Say whether the present record is the first at or past `latest`, and none has grown."""
        before = history[-2].spent if len(history) > 1 else 0.0
        due = self.latest is not None and before < self.latest <= history[-1].spent
        return due and len(since_growth(history)) == len(history)


def _parts(architecture: Architecture) -> list[str]:
    stem = [] if architecture.stem == "none" else ["stem"]
    return [*stem, *(stage.name for stage in architecture.stages), "head"]


def grow_all_stages(record: Record, share: float, reason: str = "") -> list[Action]:
    """Give the actions that spread `share` of the limit's FLOPs evenly over the stages."""
    architecture, actions = record.architecture, []
    flops, parameters = room(record, share)
    ceiling = cost(architecture).parameters + parameters
    for stage in record.architecture.stages:
        target = cost(architecture).flops + flops / len(record.architecture.stages)
        for action in _fill(architecture, stage, target, ceiling, reason):
            architecture = architecture.apply(action)
            actions.append(action)
    return actions


def _fill(
    architecture: Architecture, stage: Stage, flops: float, parameters: float, reason: str
) -> list[Action]:
    """Give widenings up to the stream's width, then insertions, until the stage's part is gone."""
    actions: list[Action] = []

    def left() -> tuple[float, float]:
        now = cost(architecture)
        return flops - now.flops, parameters - now.parameters

    for block in stage.blocks:
        by = largest_by(architecture, block.name, *left())
        if stage.width:
            by = min(by, stage.width - block.width)
        if by > 0:
            actions.append(Widen(block.name, by, reason=reason))
            architecture = architecture.apply(actions[-1])
    while stage.width:
        last = architecture.stage_of(stage.blocks[0].name).blocks[-1].name
        width = min(stage.width, largest_width(architecture, last, *left()))
        if width < max(1, stage.width / 4):
            break
        actions.append(Insert(last, width, reason=reason))
        architecture = architecture.apply(actions[-1])
    return actions
