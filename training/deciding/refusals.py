"""Which of a policy's actions are applied, and which refused: by the rules, or by the limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.recording.phrases import phrase
from nets import Action, Architecture, Cost, Freeze, Initializer, Unfreeze, cost, train_flops
from nets.checks import check_choice
from nets.plan.actions import INITIALIZERS, adds_capacity
from policies.base import History


@dataclass(frozen=True)
class Decision:
    """What was asked for, what will be done, and what will not and why."""

    decided: tuple[Action, ...] = ()
    applied: tuple[Action, ...] = ()
    refused: tuple[tuple[Action, str], ...] = ()


def admit(
    architecture: Architecture, decided: Sequence[Action], limit: Cost, may_grow: bool
) -> Decision:
    """Try the actions one after the other; one that is refused leaves the rest to be tried.

    Refused is what the architecture does not accept, what would cost more than the limit, and,
    unless `may_grow`, whatever adds capacity. If nothing of a growth is accepted, what was to be
    frozen for it is refused too; so is what would leave nothing that trains.
    """
    decision = _admit(architecture, decided, limit, may_grow)
    if any(map(adds_capacity, decided)) and not any(map(adds_capacity, decision.applied)):
        frozen = [action for action in decision.applied if isinstance(action, Freeze)]
        rest = [action for action in decided if action not in frozen]
        decision = _admit(architecture, rest, limit, may_grow)
        refused = [(action, "nothing grew that it was to make room for") for action in frozen]
        decision = replace(decision, refused=(*refused, *decision.refused))
    return replace(decision, decided=tuple(decided))


def _admit(
    architecture: Architecture, decided: Sequence[Action], limit: Cost, may_grow: bool
) -> Decision:
    applied: list[Action] = []
    refused: list[tuple[Action, str]] = []
    for index, action in enumerate(decided):
        try:
            after = _applied(action, architecture, limit, may_grow)
            if isinstance(action, Freeze) and not _trains(after, decided[index + 1 :]):
                raise ValueError("nothing would train any more")
        except ValueError as error:
            refused.append((action, str(error)))
        else:
            applied.append(action)
            architecture = after
    return Decision(applied=tuple(applied), refused=tuple(refused))


def _applied(
    action: Action, architecture: Architecture, limit: Cost, may_grow: bool
) -> Architecture:
    """Give the next architecture; a ValueError says why the action is refused."""
    if adds_capacity(action) and not may_grow:
        raise ValueError("no growth after grow_until")
    initializer = getattr(action, "initializer", None)
    if initializer and not (callable(initializer) or isinstance(initializer, Initializer)):
        check_choice("initializer", initializer, INITIALIZERS)
    after = architecture.apply(action)
    if adds_capacity(action):
        total = cost(after)
        if total.flops > limit.flops or total.parameters > limit.parameters:
            raise ValueError(f"the limit is {limit}, this would cost {total}")
    return after


def _trains(architecture: Architecture, following: Sequence[Action]) -> bool:
    """Say whether something trains, or will after an action that follows."""
    if any(adds_capacity(action) or isinstance(action, Unfreeze) for action in following):
        return True
    total = cost(architecture).flops
    return train_flops(architecture) > total


def first_refusals(history: History, refused: Sequence[tuple[Action, str]]) -> list[str]:
    """Give as text what is refused now and never was for that reason."""
    known = {why for record in history for _, why in record.refused}
    first = {why: action for action, why in reversed(refused) if why not in known}
    return [f"{phrase(action)} refused: {why}" for why, action in reversed(first.items())]
