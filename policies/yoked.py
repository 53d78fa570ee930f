"""The control that takes a recorded run's times and costs, and none of its places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from random import Random

from analysis import read_history
from analysis.recording.atomic_files import path_of
from analysis.recording.record import edits_of
from nets import Action, Architecture, Insert, Widen, WidenStage, cost
from nets.checks import check_count
from policies.base import History, Policy, largest_amount, largest_width, room, sites

Growth = type[Widen | WidenStage | Insert]


@dataclass(frozen=True)
class Yoked(Policy):
    """Grows when a recorded run grew, by the same kinds of edit and FLOPs, at random sites.

    It separates *when* from *where*: what the recorded run has over this one, its places brought.
    Start it from the same net, on the same budget and records. Each growth makes up what the one
    before it missed in FLOPs, so that the two nets stay equally expensive, as far as the limit's
    parameters allow it. Of our own comparisons none has such a row yet.

    Args:
        run: the folder of the recorded run; it is read when the policy decides.
        cooldown: records for which an edited block is left alone, unless no other is left.
    """

    run: str
    cooldown: int = 1

    def __post_init__(self) -> None:
        check_count("cooldown", self.cooldown, least=0)

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
            action = _somewhere(random, architecture, free, kind, flops, ceiling)
            if action is not None:
                actions.append(action)
                architecture = architecture.apply(action)
        return actions


def _somewhere(
    random: Random,
    architecture: Architecture,
    free: Sequence[str],
    kind: Growth,
    flops: float,
    parameters: float,
) -> Action | None:
    """Give an edit of a kind that adds `flops`, at the first random place that has room for all.

    If the limit's parameters allow it nowhere, at the first that has room for a part.
    """
    places = [stage.name for stage in architecture.stages] if kind is WidenStage else list(free)
    random.shuffle(places)
    partial = None
    for place in places:
        action = _edit(architecture, kind, place, flops, parameters)
        if action is not None and action == _edit(architecture, kind, place, flops, inf):
            return action
        partial = partial or action
    return partial


def _edit(
    architecture: Architecture, kind: Growth, place: str, flops: float, parameters: float
) -> Action | None:
    """Give the largest edit of a kind at a place that adds at most so much; None if none does."""
    if kind is Insert:
        amount = largest_width(architecture, place, flops, parameters)
    else:
        amount = largest_amount(architecture, lambda by: kind(place, by), 1, flops, parameters)
    return kind(place, amount, reason="yoked, drawn at random") if amount else None


def _version(run: str) -> tuple[str, int]:
    """Give the run's file and its time of change, so that it is read once for every version."""
    path = path_of("run", run) / "history.jsonl"
    if not path.is_file():
        raise ValueError(f"run must be the folder of a recorded run, got {run!r}")
    return str(path), path.stat().st_mtime_ns


@lru_cache(maxsize=8)
def _growths(path: str, modified: int) -> tuple[tuple[float, Growth, int], ...]:
    """Give (spent, kind, FLOPs added since the start, its own included) of every growth.

    The time is half a record early: the yoked run's records come at the same parts of the budget,
    give or take a step.
    """
    history = read_history(path)
    return tuple(
        (
            record.spent - 0.5 / len(history),
            type(action),
            cost(after).flops - history[0].cost.flops,
        )
        for record, action, _, after in edits_of(history)
        if isinstance(action, Widen | WidenStage | Insert)
    )
