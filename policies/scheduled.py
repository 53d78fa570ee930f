"""Growth by the clock: round robin, or the whole net at given times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor, inf

from analysis import Record
from nets import Action, Architecture, Widen, WidenStage, cost
from nets.checks import check_count
from nets.plan.actions import adds_capacity
from policies.base import Policy, growths, room, sites
from policies.fitting import (
    MOST,
    Choice,
    check_growth,
    check_widest,
    full_width,
    grow_at,
    kinds_of,
    said,
    share_of,
    shuffled,
    site_of,
)
from policies.times import History, Time, due


@dataclass(frozen=True)
class Periodic(Policy):
    """Grows every so often, round robin over the stages: widens, inserts, then widens the streams.

    The standard baseline: growth at fixed times usually beats growth at plateaus (Wen et al. 2020,
    AutoGrow, arXiv 1906.02909). It looks at nothing, so a policy that looks should do better. In a
    stage it takes the narrowest block, of equal ones one drawn from (seed, step); it begins with
    the first stage. In simulated runs of 20, 40 and 200 records it grows at the same parts of the
    budget and reaches the limit's FLOPs (tests/test_schedules.py); what its schedule before did on
    images (docs/thesis.md, 5.4) was another: all growth in the first 8 % of a run of 200 records.

    Args:
        every: between growths: a fraction of the budget, or a number of records. The default gives
            11 growths in the 0.6 of the budget in which a run grows.
        share: the FLOPs a growth adds, as a fraction of the limit's, above 0 and at most 1; None
            divides what is left by the growths to come.
        cooldown: for how long an edited block is left alone, as `every`, or 0.
        streams: widen residual streams too, in turn with blocks; None does if the blocks of the
            first net fill theirs, as where it began with thin ones (`--start.stream`).
        widest: a block's inner width at most, as a multiple of its stream's (of a quarter of it in
            a bottleneck); None for no cap.
    """

    every: Time = 0.05
    share: float | None = None
    cooldown: Time = 0.05
    streams: bool | None = None
    widest: float | None = MOST

    def __post_init__(self) -> None:
        check_growth(self)

    def decide(self, history: History) -> Sequence[Action]:
        if not due(history, self.every):
            return []
        share = share_of(history, self.share, self.every)
        free = set(sites(history, self.cooldown))
        choices = self._choices(history, kinds_of(history, "both", self.streams), free)
        return grow_at(history, choices, share, self.widest)

    def _choices(self, history: History, kinds: Sequence[str], free: set[str]) -> list[Choice]:
        """Give a whole round of choices from the next turn on, of the blocks that are free."""
        record = history[-1]
        stages = record.architecture.stages
        number = 1 + sum(any(map(adds_capacity, past.applied)) for past in history)
        first, choices = _next_turn(history, kinds), []
        for turn in range(first, first + len(kinds) * len(stages)):
            stage = stages[turn % len(stages)]
            kind = kinds[turn // len(stages) % len(kinds)]
            widths = {block.name: block.width for block in stage.blocks}
            names = [name for name in shuffled(record, widths) if name in free]
            if names:
                block = min(names, key=lambda name: widths[name])
                choices.append(Choice(kind, block, f"turn {number}: {stage.name}"))
        return choices


def _next_turn(history: History, kinds: Sequence[str]) -> int:
    """Give the turn after that of the last growth: 0, 1, ... widen the stages, then insert."""
    grown = [found for record in history if (found := growths([record]))]
    if not grown:
        return 0
    architecture = history[-1].architecture
    kind, place = site_of(grown[-1][0])  # what came after it filled up what it left
    stage = place.partition(".")[0]
    names = [each.name for each in architecture.stages]
    return (kinds.index(kind) if kind in kinds else -1) * len(names) + names.index(stage) + 1


@dataclass(frozen=True)
class WholeNet(Policy):
    """Grows all widths at once at given times: the schedules of GradMax and of Variance Transfer.

    Every width is a multiple of what the first net had, so that proportions stay. Without `factor`
    the widths rise in equal steps, and at the last time the net is the largest of its proportions
    within the limit: from a quarter of the inner widths, 12 growths add 1/16 of the full inner
    width each (Evci et al. 2022, GradMax, arXiv 2201.05125; `streams` false, `at` 10/78, 12.5/78
    ... 37.5/78). With `factor` 1.2, `multiple` 2, `streams` and 8 times from a quarter of all
    widths it is that of Yuan et al. 2023 (arXiv 2306.12700). A growth makes up what was refused
    before. Plain nets grow in width alone.

    Args:
        at: fractions of the budget at which the net grows, in order, above 0 and below 1. What is
            past the run's `grow_until` is refused.
        factor: each growth multiplies the widths by it, above 1, while the limit allows; None
            reaches the limit.
        streams: residual streams too, or inner widths alone.
        multiple: widths are rounded to a multiple of it; 2 makes them even.
        widest: a block's inner width at most, as a multiple of its stream's; None for no cap.
    """

    at: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    factor: float | None = None
    streams: bool = True
    multiple: int = 1
    widest: float | None = MOST

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", tuple(self.at))
        rising = all(before < after for before, after in zip((0, *self.at), (*self.at, 1)))
        if not self.at or not rising:
            raise ValueError(
                f"at must be fractions of the budget in rising order, above 0 and below 1, got "
                f"{list(self.at)}"
            )
        number = isinstance(self.factor, int | float) and not isinstance(self.factor, bool)
        if self.factor is not None and not (number and 1 < self.factor < inf):
            raise ValueError(f"factor must be above 1 and finite, or null, got {self.factor!r}")
        check_count("multiple", self.multiple)
        check_widest(self.widest)

    def decide(self, history: History) -> Sequence[Action]:
        record, start = history[-1], history[0].architecture
        before = history[-2].spent if len(history) > 1 else 0.0
        number = sum(time <= record.spent + 1e-9 for time in self.at)
        if number == sum(time <= before + 1e-9 for time in self.at):
            return []
        room(record)  # refuses a record without a limit
        widths = self._widths(start, record, number)
        actions, architecture = list[Action](), record.architecture
        for stage in start.stages:  # streams first: blocks are no wider than theirs allow
            for name, kind in ((stage.name, WidenStage), *((b.name, Widen) for b in stage.blocks)):
                by = widths[name] - _widths_of(architecture).get(name, widths[name])
                if by > 0:
                    actions.append(kind(name, by, reason=f"growth {number} of {len(self.at)}"))
                    architecture = architecture.apply(actions[-1])
        return said(actions, architecture, record.limit)

    def _widths(self, start: Architecture, record: Record, number: int) -> dict[str, int]:
        """Give the widths after growth of that number, by block and stage."""

        def fits(scale: float) -> bool:
            total = cost(_with_widths(start, self._scaled(start, scale)))
            return total.flops <= limit.flops and total.parameters <= limit.parameters

        limit, low, high = record.limit, 1.0, self.factor**number if self.factor else 2.0
        while self.factor is None and high < 2**10 and fits(high):
            high *= 2
        if not fits(high):
            for _ in range(30):
                middle = (low + high) / 2
                low, high = (middle, high) if fits(middle) else (low, middle)
            high = low
        last = self._scaled(start, high)
        if self.factor is not None:
            return last
        part, first = number / len(self.at), _widths_of(start)
        return {
            name: self._rounded(first[name] + part * (width - first[name]))
            if width > first[name] and part < 1
            else width
            for name, width in last.items()
        }

    def _scaled(self, start: Architecture, scale: float) -> dict[str, int]:
        """Give every width times `scale`, by block and stage, no smaller than it is."""
        found = {}
        for stage in start.stages:
            stream = max(stage.width, self._rounded(stage.width * scale) if self.streams else 0)
            found[stage.name] = stream
            for block in stage.blocks:
                width = self._rounded(block.width * scale)
                if stream and self.widest:
                    full = full_width(start, replace(stage, width=stream))
                    width = min(width, floor(self.widest * full))
                found[block.name] = max(block.width, width)
        return found

    def _rounded(self, width: float) -> int:
        return self.multiple * round(width / self.multiple)


def _widths_of(architecture: Architecture) -> dict[str, int]:
    """Give inner widths by block and widths of streams by stage."""
    streams = {stage.name: stage.width for stage in architecture.stages}
    return streams | {name: block.width for name, block in architecture.blocks.items()}


def _with_widths(architecture: Architecture, widths: Mapping[str, int]) -> Architecture:
    """Give the architecture with those widths; a stem that is part of a stream is as wide."""
    stages = tuple(
        replace(
            stage,
            width=widths[stage.name],
            blocks=tuple(replace(block, width=widths[block.name]) for block in stage.blocks),
        )
        for stage in architecture.stages
    )
    first = stages[0]
    stem = first.width if first.width and not first.projection else architecture.stem_width
    return replace(architecture, stages=stages, stem_width=stem)
