"""A policy is checked and asked: its answer is actions that a history can hold, or it failed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from traceback import format_exc

from analysis import Record, read_history
from nets import Action, Initializer, action_to_dict
from nets.plan.action_dicts import ACTIONS, action_from_dict
from policies import Policy, Yoked
from policies.base import History
from training.deciding.check_probes import check_needs, missing
from training.deciding.user_errors import PolicyFailed, told


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
        read_history(policy.run, name="policy.run")


@dataclass(frozen=True)
class Answer:
    """What a policy asks for, or in one line how it failed, and the traceback if it raised."""

    actions: tuple[Action, ...] = ()
    failure: str = ""
    trace: str = ""


def ask(policy: Policy, history: History) -> tuple[Action, ...]:
    """Ask the policy about a recorded history.

    Raises:
        ValueError: a probe that the policy needs is not in the record, the policy refuses the
            history, or what it returns is no sequence of actions.
        PolicyFailed: it raised something else.
    """
    try:
        without = missing(policy, history)
        if without:
            raise ValueError(without)
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
    initializer = getattr(action, "initializer", None)
    if callable(initializer) or isinstance(initializer, Initializer):
        return replace(plain, initializer=initializer)  # pyright: ignore[reportCallIssue]
    return plain


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:200]
