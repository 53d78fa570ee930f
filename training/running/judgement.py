"""What of a policy's wishes is done: each action in turn, within the rules and the limit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from traceback import format_exc

from analysis import Record, read_history
from analysis.showing.tables import phrase
from nets import Action, Architecture, Cost, Freeze, Unfreeze, action_to_dict, cost, train_flops
from nets.checks import check_choice
from nets.plan.action_dicts import ACTIONS, action_from_dict
from nets.plan.actions import adds_capacity
from policies import Policy, Yoked
from policies.base import History
from training.keeping.failures import PolicyFailed, told
from training.settings.checks import INITIALIZERS

PROBES = ("importance", "effective_rank")
"""The names in a policy's `needs`: Record.importance, and LayerReading.extra["effective_rank"]."""


@dataclass(frozen=True)
class Verdict:
    """What was asked for, what will be done, and what will not and why."""

    decided: tuple[Action, ...] = ()
    applied: tuple[Action, ...] = ()
    refused: tuple[tuple[Action, str], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a policy asks for, or in one line how it failed, and the traceback if it raised."""

    actions: tuple[Action, ...] = ()
    failure: str = ""
    trace: str = ""


def own_copy(policy: Policy) -> Policy:
    """Give a run a policy of its own: what one run changes in it no other run sees.

    Raises:
        ValueError: it holds something that cannot be copied.
    """
    try:
        return deepcopy(policy)
    except Exception as error:
        kind = type(policy).__name__
        raise ValueError(f"policy {kind} must be plain data, to be copied: {told(error)}") from None


def state_of(policy: Policy) -> bytes:
    """Give what a policy holds, to tell whether it changes; nothing if that cannot be told."""
    try:
        return pickle.dumps(getattr(policy, "__dict__", {}))
    except Exception:
        return b""


def is_frozen(policy: Policy) -> bool:
    """Say whether a policy is a frozen dataclass, as it must be to decide by the history alone."""
    made = getattr(type(policy), "__dataclass_params__", None)
    return made is not None and made.frozen


def told_of_state(policy: Policy) -> str:
    """Give in one line what comes of a policy that keeps a state."""
    return (
        f"policy {type(policy).__name__} keeps a state: a run that is resumed, or replayed, begins "
        "with a new one, and may decide otherwise; see docs/policies.md"
    )


def check_policy(policy: Policy) -> None:
    """Raise a ValueError if a run could not ask the policy, before anything is written."""
    check_needs(policy)
    if isinstance(policy, Yoked):
        read_history(policy.run)


def check_needs(policy: Policy) -> None:
    """Raise a ValueError if the policy needs something that is no probe."""
    needs = policy.needs
    named = isinstance(needs, tuple | list)
    unknown = [name for name in needs if name not in PROBES] if named else [needs]
    if unknown:
        name = type(policy).__name__
        raise ValueError(
            f"policy {name} must need probes of {', '.join(PROBES)}, got {unknown[0]!r}"
        )


def ask(policy: Policy, history: History) -> tuple[Action, ...]:
    """Ask the policy about a recorded history.

    Raises:
        ValueError: the policy refuses the history, or what it returns is no sequence of actions.
        PolicyFailed: it raised something else.
    """
    try:
        answer = policy.decide(history)
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        raise PolicyFailed(failure_of(policy, history[-1], told(error))) from None
    wrong = _wrong(answer)
    if wrong:
        raise ValueError(f"policy {type(policy).__name__} {wrong}")
    return tuple(map(_as_recorded, answer))


def attempt(policy: Policy, history: History) -> Answer:
    """Ask the policy, and whatever it does give an answer."""
    trace = ""
    try:
        answer = policy.decide(history)
        wrong = _wrong(answer)
    except (Exception, SystemExit) as error:
        answer, wrong, trace = (), told(error), format_exc()
    if not wrong:
        return Answer(tuple(map(_as_recorded, answer)))
    return Answer(failure=failure_of(policy, history[-1], wrong), trace=trace)


def failure_of(policy: Policy, record: Record, why: str) -> str:
    """Give in one line that a policy failed, and when."""
    return f"policy {type(policy).__name__} failed at step {record.step}: {why}"


def _wrong(answer: object) -> str:
    """Say why an answer is no sequence of actions that a history can hold; nothing if it is one."""
    if not isinstance(answer, Sequence) or isinstance(answer, str | bytes):
        return f"must return a sequence of actions, got {_short(answer)}"
    for action in answer:
        if not isinstance(action, Action):
            return f"must return a sequence of actions, got {_short(answer)}"
        if type(action) not in ACTIONS.values():
            return f"must return actions of {', '.join(ACTIONS)}; got {_short(action)}"
        try:
            json.dumps(action_to_dict(action), allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            return f"must return actions of plain numbers and text, got {_short(action)}"
    return ""


def _as_recorded(action: Action) -> Action:
    """Give the action with the numbers and texts that a history and a checkpoint hold.

    A numpy float, which JSON takes for a number, would make a checkpoint that cannot be read.
    """
    plain = action_from_dict(json.loads(json.dumps(action_to_dict(action))))
    if callable(initializer := getattr(action, "initializer", None)):
        return replace(plain, initializer=initializer)  # pyright: ignore[reportCallIssue]
    return plain


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:200]


def first_refusals(history: History, refused: Sequence[tuple[Action, str]]) -> list[str]:
    """Give as text what is refused now and never was for that reason."""
    known = {why for record in history for _, why in record.refused}
    first = {why: action for action, why in reversed(refused) if why not in known}
    return [f"{phrase(action)} refused: {why}" for why, action in reversed(first.items())]


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
            if getattr(action, "initializer", None) and not callable(action.initializer):  # pyright: ignore
                check_choice("initializer", action.initializer, INITIALIZERS)  # pyright: ignore
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
