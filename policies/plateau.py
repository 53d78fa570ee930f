"""The thesis: the whole net grows by a part when its error stalls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis import Record
from nets import Action, Architecture, Freeze, Insert, Unfreeze, Widen, cost
from nets.checks import check_choice, check_fraction
from nets.plan.actions import adds_capacity
from nets.plan.blocks import Stage
from policies.base import Policy, largest_by, largest_width, room
from policies.fitting import Choice, grow_at, said
from policies.times import (
    History,
    Time,
    check_time,
    flat,
    growths_planned,
    in_records,
    levelled,
    losses_of,
    records_to_level,
    since_growth,
)

LEVEL = 0.2
"""At which a fall of the loss is believed: one that goes unseen is as bad as one that is not."""


@dataclass(frozen=True)
class Plateau(Policy):
    """DOC"""

    patience: Time = 0.1
    min_delta: float = 0.05
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
            losses = losses_of(since_growth(history))[:1]
            least = self.min_delta * abs(losses[0]) if losses else 0.0
            ready = levelled(history, self.patience, least, LEVEL)
            reason = f"validation loss level over {patience} records"
        if not ready and self._at_latest(history):
            ready, reason = True, f"no stall by {self.latest:.0%} of the budget"
        if not ready:
            return []
        return grow_all_stages(history[-1], self._share_now(history, records), reason)

    def _share_now(self, history: History, records: int) -> float:
        """Give the share of a growth, if one that comes each `records` is to reach the limit."""
        if self.share is not None:
            return self.share
        record, first = history[-1], history[0].cost.flops
        done = sum(any(map(adds_capacity, past.applied)) for past in history)
        part = min(1.0, (done + 1) / growths_planned(history, records))
        goal = first + part * (record.limit.flops - first)
        return max(0.0, goal - record.cost.flops) / record.limit.flops

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
    while stage.width:
        last = architecture.stage_of(stage.blocks[0].name).blocks[-1].name
        width = min(stage.width, largest_width(architecture, last, *left()))
        if width < max(1, stage.width / 4):
            break
        actions.append(Insert(last, width, reason=reason))
        architecture = architecture.apply(actions[-1])
    return actions
