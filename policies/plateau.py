"""The thesis: the whole net grows by a part when its error stalls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis import Record
from nets import Action, Architecture, Freeze, Insert, Unfreeze, Widen, cost
from nets.checks import check_choice, check_fraction
from nets.plan.blocks import Stage
from policies.base import Policy, largest_by, largest_width, room
from policies.fitting import Choice, grow_at, said, share_of
from policies.times import (
    History,
    Time,
    check_time,
    flat,
    growths_planned,
    in_records,
    levelled,
    records_to_level,
    since_growth,
)

LEVEL = 0.3
"""At which a fall of the loss is believed; of the levels from 0.05 to 0.5 that `benchmarks.stalls`
was tried with, one at which it errs little on either side."""


@dataclass(frozen=True)
class Plateau(Policy):
    """Grows the whole net when the validation loss stalls: the 2017 thesis, section 4.1.

    Every stage gets an equal part: its blocks widen up to the width of their stream, and what is
    left goes into new blocks. Streams stay as they are: begin with full ones.

    The loss has stalled when the mean of the last `patience` records is not lower by a tenth than
    that before, beyond its own noise (`policies.times.levelled`: a t test with a noise variance
    from second differences, Gasser et al. 1986); that a window's fall is held against the error
    itself is from Ash 1989 (Dynamic Node Creation). It is the loss of the running average if the
    run has one: it is worth reading at a constant learning rate too, and a falling one lowers it
    less. On simulated losses (`python -m benchmarks.stalls`: three curves, `hold` and `cosine`, 100
    seeds each; the noise of a loss that falls from some 3 to 1) a first growth came more than 0.1
    of the budget too early, of records 20 / 40 / 200, in 0 / 0 / 0 % of the runs at noise 0.01, in
    8 / 1 / 0 % at 0.03 and in 40 / 35 / 10 % at 0.1, and more than 0.1 late in none. A loss that
    falls until growth must end shows no stall; such a run grows once at `latest`, rather than by
    the chance of one noisy loss or not at all. Waiting for full convergence hurts (Wen et al. 2020,
    AutoGrow, arXiv 1906.02909, section 3.3).

    Our runs on the sine and on MNIST, at stalls alone (docs/thesis.md, 5.2 and 5.3), show no gain:
    on the sine it ends behind both static nets, and two runs of five saw no stall; on MNIST level
    with the full net and behind the quarter net. On both it was nearer to the best size over the
    whole budget than the full net (anytime regret). On CIFAR it has not been run. `freeze` cost in
    every one of them; under exact growth a thaw, tried on the sine, did not win it back.

    Args:
        patience: over how long the loss must be level: a fraction of the budget, or a number of
            records. The earliest stall is seen half as much later: 3 growths are possible until 0.6
            of the budget.
        min_delta: a fall counts from this part of the loss on; 0 or more.
        when: "stall" as above; "slope" tests whether a straight line through the losses of `window`
            falls (one-sided, level 0.3).
        window: of the slope test, as `patience`; at least 3 records.
        share: the FLOPs a growth adds, as a fraction of the limit's, above 0 and at most 1; None
            divides what is left by the growths to come if the loss stalls again and again. The
            thesis adds a quarter of the limit.
        freeze: hold what existed fixed when the net grows (the thesis, section 4.2). New channels
            and blocks train.
        thaw_after: how long after a growth all trains again, as `patience`; None for never.
        thaw_at: fraction of the budget at which all trains again and nothing is frozen any more;
            None for never.
        latest: fraction of the budget at which a net that has not grown yet grows without a stall,
            once, by as much as each of all possible growths would; of use below the run's
            `grow_until`. By default half, so that what is new has as long to train as what was
            there. None waits for a stall, as the thesis does.
    """

    patience: Time = 0.1
    min_delta: float = 0.1
    when: str = "stall"
    window: Time = 0.2
    share: float | None = None
    freeze: bool = False
    thaw_after: Time | None = None
    thaw_at: float | None = None
    latest: float | None = 0.5

    def __post_init__(self) -> None:
        check_time("patience", self.patience)
        if not self.min_delta >= 0:
            raise ValueError(f"min_delta must be at least 0, got {self.min_delta}")
        check_choice("when", self.when, ("stall", "slope"))
        check_time("window", self.window, least=3)
        if self.share is not None:
            check_fraction("share", self.share)
        if self.thaw_after is not None:
            check_time("thaw_after", self.thaw_after)
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
        rested = self.thaw_after is not None and len(since_growth(history)) >= in_records(
            history, self.thaw_after
        )
        if (late or rested) and record.architecture != record.architecture.thawed():
            after = f"{len(since_growth(history))} records after growth"
            reason = "the end is near" if late else after
            return [*(Unfreeze(p, reason=reason) for p in _parts(record.architecture)), *grown]
        return grown

    def _growth(self, history: History) -> list[Action]:
        if self.when == "slope":
            records = in_records(history, self.window, least=3)
            ready = flat(history, self.window, LEVEL)
            reason = f"no downward slope over {records} records"
        else:
            patience = in_records(history, self.patience)
            records = records_to_level(patience)
            ready = levelled(history, self.patience, self.min_delta, LEVEL)
            reason = f"validation loss level over {patience} records"
        if ready:
            return grow_all_stages(history[-1], share_of(history, self.share, records), reason)
        if self._at_latest(history):
            left = 1 - history[-1].cost.flops / history[-1].limit.flops
            share = self.share or left / growths_planned(history, records)
            return grow_all_stages(
                history[-1], share, f"no stall by {self.latest:.0%} of the budget"
            )
        return []

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
    if flops >= record.limit.flops - record.cost.flops:  # all of it: no crumbs are left
        now = replace(record, architecture=architecture)
        blocks = sorted(architecture.blocks.values(), key=lambda block: block.width)
        rest = [Choice("widen", block.name, reason) for block in blocks]
        return [*actions, *grow_at([now], rest, 1.0)]
    return said(actions, architecture, record.limit)


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
    while stage.width and architecture.repeatable:
        last = architecture.stage_of(stage.blocks[0].name).blocks[-1].name
        width = min(stage.width, largest_width(architecture, last, *left()))
        if width < max(1, stage.width / 4):
            break
        actions.append(Insert(last, width, reason=reason))
        architecture = architecture.apply(actions[-1])
    return actions
