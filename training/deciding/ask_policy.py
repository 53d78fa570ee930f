"""A policy is asked: its answer is a sequence of actions that a history can hold, or it failed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from traceback import format_exc

from analysis import Record
from nets import Action, action_to_dict
from nets.plan.action_dicts import ACTIONS, action_from_dict
from policies import Policy
from policies.base import History
from training.deciding.user_errors import PolicyFailed, told


@dataclass(frozen=True)
class Answer:
    """What a policy asks for, or in one line how it failed, and the traceback if it raised."""

    actions: tuple[Action, ...] = ()
    failure: str = ""
    trace: str = ""


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
