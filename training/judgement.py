"""What of a policy's wishes is done: each action in turn, within the rules and the limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from analysis import Record
from nets import Action, Architecture, Cost, Freeze, cost, train_flops
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

    Refused is what the architecture does not accept, what would cost more than the limit, unless
    `may_grow` whatever adds capacity, and freezing (as it comes with a growth that was refused)
    that leaves nothing to train.
    """
    applied: list[Action] = []
    refused: list[tuple[Action, str]] = []
    for action in decided:
        if adds_capacity(action) and not may_grow:
            refused.append((action, "no growth after grow_until"))
            continue
        try:
            after = architecture.apply(action)
        except ValueError as error:
            refused.append((action, str(error)))
            continue
        total = cost(after)
        above = total.flops > limit.flops or total.parameters > limit.parameters
        if adds_capacity(action) and above:
            refused.append((action, f"the limit is {limit}, this would cost {total}"))
            continue
        applied.append(action)
        architecture = after
    if applied and train_flops(architecture) == cost(architecture).flops:
        frozen = [action for action in applied if isinstance(action, Freeze)]
        refused += [(action, "nothing would be left to train") for action in frozen]
        applied = [action for action in applied if not isinstance(action, Freeze)]
    return Verdict(tuple(decided), tuple(applied), tuple(refused))


def replay(policy: Policy, history: History) -> Iterator[tuple[Record, tuple[Action, ...]]]:
    """Give, record by record, what the policy would have asked for given the history as recorded.

    One step at a time: each answer is conditional on what was really done before, and predicts no
    outcome. As in the loop, nobody is asked once the budget is spent.
    """
    for index, record in enumerate(history):
        present = replace(record, decided=(), applied=(), refused=())
        yield record, ask(policy, (*history[:index], present)) if record.spent < 1 else ()
