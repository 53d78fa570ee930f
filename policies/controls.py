"""The controls of every comparison: no growth, at random sites, at a recorded run's times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor, inf
from random import Random

from analysis import read_history
from analysis.recording.atomic_files import path_of
from analysis.recording.record import edits_of
from nets import Action, Architecture, Insert, Widen, WidenStage, cost
from policies.base import Policy, largest_amount, room, sites
from policies.fitting import (
    MOST,
    Choice,
    check_growth,
    check_widest,
    full_width,
    grow_at,
    kinds_of,
    last_kinds,
    share_of,
    shuffled,
)
from policies.times import History, Time, check_time, due

Growth = type[Widen | WidenStage | Insert]


@dataclass(frozen=True)
class Never(Policy):
    """Never grows: the static net, which a growth policy has to beat at equal training FLOPs.

    Of several sizes take the one that growth starts from too: on 15,000 CIFAR-10 images, at the
    training FLOPs of 1 and of 4 epochs of ResNet-14, it was the best size, at 4 level with the next
    (docs/thesis.md, 5.4).
    """

    def decide(self, history: History) -> Sequence[Action]:
        return []


@dataclass(frozen=True)
class RandomSite(Policy):
    """Grows every so often at a site and with an edit drawn from (seed, step).

    The control for every 'where': a statistic that does not beat it says nothing about where
    capacity is missing (Evci et al. 2022, arXiv 2201.05125, section 5, compare with random growth).
    With the same `every`, `share` and `edit` it grows as often as LayerStatistic, at the same times
    and by the same FLOPs, to the rounding of an edit, which the next growth makes up; beside a row
    that grows at other times stands Yoked.

    Args:
        every: between growths: a fraction of the budget, or a number of records.
        share: the FLOPs a growth adds, as a fraction of the limit's; None as of Periodic.
        cooldown: for how long an edited block is left alone, as `every`, or 0.
        edit: "widen", "insert" or "both": what is drawn from, for blocks.
        streams: widen residual streams too; None as of Periodic.
        widest: a block's inner width at most, as of Periodic; None for no cap.
    """

    every: Time = 0.05
    share: float | None = None
    cooldown: Time = 0.05
    edit: str = "both"
    streams: bool | None = None
    widest: float | None = MOST

    def __post_init__(self) -> None:
        check_growth(self)

    def decide(self, history: History) -> Sequence[Action]:
        if not due(history, self.every):
            return []
        free = sites(history, self.cooldown)
        choices = self._choices(history, kinds_of(history, self.edit, self.streams), free)
        others = self._choices(history, last_kinds(self.edit, self.streams), free)
        share = share_of(history, self.share, self.every)
        return grow_at(history, choices, share, self.widest, others=others)

    def _choices(
        self, history: History, kinds: Sequence[str], blocks: Sequence[str]
    ) -> list[Choice]:
        """Give the choices of these blocks, and of the streams of their stages, in random order."""
        record = history[-1]
        found = {
            f"{kind} {name}": Choice(kind, name, "drawn at random")
            for kind in kinds
            for name in blocks
        }
        return [found[key] for key in shuffled(record, found)]


@dataclass(frozen=True)
class Yoked(Policy):
    """Grows when a recorded run grew, by the same kinds of edit and FLOPs, at random sites.

    It separates *when* from *where*: what the recorded run has over this one, its places brought.
    Start it from the same net, on the same budget and records. Each growth makes up what the one
    before it missed in FLOPs, so that the two nets stay equally expensive, as far as the limit's
    parameters and `widest` allow it. Of our own comparisons none has such a row yet.

    Args:
        run: the folder of the recorded run; it is read when the policy decides.
        cooldown: for how long an edited block is left alone, unless no other is left: a fraction of
            the budget, or a number of records.
        widest: a block's inner width at most, as a multiple of its stream's; None for no cap, as
            the recorded run may have had none.
    """

    run: str
    cooldown: Time = 0.05
    widest: float | None = MOST

    def __post_init__(self) -> None:
        check_time("cooldown", self.cooldown, least=0)
        check_widest(self.widest)

    def decide(self, history: History) -> Sequence[Action]:
        now, actions = history[-1], list[Action]()
        architecture = now.architecture
        first = history[0].cost.flops
        random = Random(f"{now.seed}:{now.step}")
        free = sites(history, self.cooldown) or list(architecture.blocks)
        for spent, kind, added in _growths(*_version(self.run)):
            if now.spent <= spent or any(record.spent > spent for record in history[:-1]):
                continue
            flops = added - (cost(architecture).flops - first)
            ceiling = room(now)[1] + now.cost.parameters - cost(architecture).parameters
            places = list(free)
            if kind is WidenStage:
                places = [stage.name for stage in architecture.stages]
            random.shuffle(places)
            action = _somewhere(architecture, places, kind, (flops, ceiling), self.widest)
            if action is not None:
                actions.append(action)
                architecture = architecture.apply(action)
        return actions


def _somewhere(
    architecture: Architecture,
    places: Sequence[str],
    kind: Growth,
    cost_allowed: tuple[float, float],
    widest: float | None,
) -> Action | None:
    """Give an edit of a kind that adds so many FLOPs, at the first place that has room for all.

    If the limit's parameters and the cap allow it nowhere, at the first that has room for a part.
    """
    partial = None
    for place in places:
        action = _edit(architecture, kind, place, cost_allowed, widest)
        if action is not None and action == _edit(
            architecture, kind, place, (cost_allowed[0], inf), None
        ):
            return action
        partial = partial or action
    return partial


def _edit(
    architecture: Architecture,
    kind: Growth,
    place: str,
    cost_allowed: tuple[float, float],
    widest: float | None,
) -> Action | None:
    """Give the largest edit at a place that adds at most (FLOPs, parameters); None if none does."""
    block = architecture.blocks.get(place)  # none of a stage
    least = block.width if block and kind is Insert and architecture.block == "plain" else 1
    amount = largest_amount(architecture, lambda by: kind(place, by), least, *cost_allowed)
    if block and widest and architecture.block != "plain":
        most = floor(widest * full_width(architecture, architecture.stage_of(place)))
        amount = min(amount, most - (block.width if kind is Widen else 0))
    return kind(place, amount, reason="yoked, drawn at random") if amount > 0 else None


def _version(run: str) -> tuple[str, int]:
    """Give the run's file and its time of change, so that it is read once for every version."""
    path = path_of("policy.run", run) / "history.jsonl"
    if not path.is_file():
        raise ValueError(f"policy.run must be the folder of a recorded run, got {run!r}")
    return str(path), path.stat().st_mtime_ns


@lru_cache(maxsize=8)
def _growths(path: str, modified: int) -> tuple[tuple[float, Growth, int], ...]:
    """Give (spent, kind, FLOPs added since the start, its own included) of every growth.

    The time is amid the record and the one before: the yoked run's records come at the same parts
    of the budget, give or take a step.
    """
    history = read_history(path)
    before = dict(zip((r.step for r in history), (0.0, *(r.spent for r in history))))
    return tuple(
        (
            (before[record.step] + record.spent) / 2,
            type(action),
            cost(after).flops - history[0].cost.flops,
        )
        for record, action, _, after in edits_of(history)
        if isinstance(action, Widen | WidenStage | Insert)
    )
