"""What is checked of a policy before it is asked, and whether it keeps a state."""

from __future__ import annotations

import pickle
from copy import deepcopy

from analysis import read_history
from policies import Policy, Yoked
from training.deciding.user_errors import told

PROBES = ("importance", "effective_rank")
"""The names in a policy's `needs`: Record.importance, and LayerReading.extra["effective_rank"]."""


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
