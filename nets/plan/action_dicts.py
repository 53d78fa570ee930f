"""Actions as plain data, as they stand in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nets.checks import in_one_line
from nets.plan.actions import (
    MOST_OF_A_REASON,
    Action,
    Insert,
    SetSurvival,
    Widen,
    WidenStage,
)
from nets.plan.freezing import Freeze, Unfreeze
from nets.plan.removal import Narrow, Remove

_KINDS = (Widen, WidenStage, Insert, Remove, Narrow, Freeze, Unfreeze, SetSurvival)
ACTIONS = {kind.__name__: kind for kind in _KINDS}
"""The actions by name, as they stand in files."""
_RARE = ("initializer", "reason", "mode", "channels")
"""Fields that are left out where they have their default."""


def name_of(initializer: object) -> str:
    """Name an initializer in one line: a name, a function's or class's, or what an object prints.

    An object that prints its place in memory is named by its class.
    """
    if isinstance(initializer, str):
        return initializer
    known = getattr(initializer, "__name__", None)
    if known is None and type(initializer).__repr__ is object.__repr__:
        known = type(initializer).__name__
    return in_one_line(known or repr(initializer), MOST_OF_A_REASON)


def action_to_dict(action: Action) -> dict[str, Any]:
    """Give the action as plain data, an initializer of one's own by its name."""
    items = sorted(fields(action), key=lambda item: bool(item.kw_only))  # first what it does
    values = {item.name: getattr(action, item.name) for item in items}
    rare = {item.name: item.default for item in items if item.name in _RARE}
    initializer = values.get("initializer")
    if initializer is not None:
        values["initializer"] = name_of(initializer)
    kept = {name: value for name, value in values.items() if rare.get(name, ...) != value}
    return {"action": type(action).__name__, **kept}


def action_from_dict(d: Mapping[str, Any]) -> Action:
    """Read what `action_to_dict` wrote.

    Raises:
        ValueError: an unknown action or field, or data that is no action at all.
    """
    name = d.get("action") if isinstance(d, Mapping) else None
    if not isinstance(name, str) or name not in ACTIONS:
        raise ValueError(f"action must be one of {', '.join(ACTIONS)}; got {name!r}")
    kind = ACTIONS[name]
    unknown = set(d) - {"action"} - {item.name for item in fields(kind)}
    if unknown:
        names = " ".join(", ".join(sorted(map(str, unknown))).split())
        raise ValueError(f"{name} has unknown fields: {names}")
    try:
        return kind(**{key: value for key, value in d.items() if key != "action"})
    except TypeError as error:
        raise ValueError(f"{name} cannot be read: {error}") from None
