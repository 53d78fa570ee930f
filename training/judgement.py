"""What of a policy's wishes is done: each action in turn, within the rules and the limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from analysis import Record
from nets import Action, Architecture, Cost, Freeze, Unfreeze, cost, train_flops
from nets.actions import adds_capacity
from policies import Policy
from policies.base import History


@dataclass(frozen=True)
class Verdict:
    """What was asked for, what will be done, and what will not and why."""

    decided: tuple[Action, ...] = ()
    applied: tuple[Action, ...] = ()
    refused: tuple[tuple[Action, str], ...] = ()


def ask(policy: Policy, history: History) -> tuple[Action, ...]:
    """Ask the policy; a ValueError names it if what it returns is no sequence of actions."""
    answer = policy.decide(history)
    if not isinstance(answer, Sequence) or not all(isinstance(action, Action) for action in answer):
        name = type(policy).__name__
        raise ValueError(f"policy {name} must return a sequence of actions, got {answer!r}")
    return tuple(answer)


def judge(
    architecture: Architecture, decided: Sequence[Action], limit: Cost, may_grow: bool
) -> Verdict:
    """Try the actions one after the other; one that is refused leaves the rest to be tried.

    Refused is what the architecture does not accept, what would cost more than the limit, and,
    unless `may_grow`, whatever adds capacity. If nothing of a growth is accepted, what was to be
    frozen for it is refused too; so is what would leave nothing that trains.
    """
    verdict = _judge(architecture, decided, limit, may_grow)
    if any(map(adds_capacity, decided)) and not any(map(adds_capacity, verdict.applied)):
        frozen = [action for action in verdict.applied if isinstance(action, Freeze)]
        rest = [action for action in decided if action not in frozen]
        verdict = _judge(architecture, rest, limit, may_grow)
        refused = [(action, "nothing grew that it was to make room for") for action in frozen]
        verdict = replace(verdict, refused=(*refused, *verdict.refused))
    return replace(verdict, decided=tuple(decided))


def _judge(
    architecture: Architecture, decided: Sequence[Action], limit: Cost, may_grow: bool
) -> Verdict:
    applied: list[Action] = []
    refused: list[tuple[Action, str]] = []
    for index, action in enumerate(decided):
        if adds_capacity(action) and not may_grow:
            refused.append((action, "no growth after grow_until"))
            continue
        try:
            after = architecture.apply(action)
        except ValueError as error:
            refused.append((action, str(error)))
            continue
        if isinstance(action, Freeze) and not _trains(after, decided[index + 1 :]):
            refused.append((action, "nothing would train any more"))
            continue
        total = cost(after)
        above = total.flops > limit.flops or total.parameters > limit.parameters
        if adds_capacity(action) and above:
            refused.append((action, f"the limit is {limit}, this would cost {total}"))
            continue
        applied.append(action)
        architecture = after
    return Verdict(tuple(decided), tuple(applied), tuple(refused))


def _trains(architecture: Architecture, following: Sequence[Action]) -> bool:
    """Say whether something trains, or will after an action that follows."""
    if any(adds_capacity(action) or isinstance(action, Unfreeze) for action in following):
        return True
    total = cost(architecture).flops
    return train_flops(architecture) > total


def replay(policy: Policy, history: History) -> Iterator[tuple[Record, tuple[Action, ...]]]:
    """Give, record by record, what the policy would have asked for given the history as recorded.

    One step at a time: each answer is conditional on what was really done before, and predicts no
    outcome. As in the loop, nobody is asked once the budget is spent.
    """
    for index, record in enumerate(history):
        present = replace(record, decided=(), applied=(), refused=())
        yield record, ask(policy, (*history[:index], present)) if record.spent < 1 else ()
