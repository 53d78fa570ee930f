"""Rows of a comparison as its config.yaml has them: what binds of them, and what has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from training.keeping.run_folder import binding
from training.settings.compare_settings import OWN
from training.settings.named_runs import seen_from_out


def settings_of(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Give what binds of each row's settings, as JSON has it, of a comparison as in config.yaml.

    What a row does not say is the comparison's; where recorded runs lie is as seen from its folder.
    """
    common = {item: comparison[item] for item in OWN if item in comparison}
    kept = {}
    for name, cell in comparison["cells"].items():
        if isinstance(cell, Mapping):
            own = {item: value for item, value in cell.items() if value is not None}
            told = binding(seen_from_out({**cell, **common, **own, "out": comparison.get("out")}))
            kept[str(name)] = {item: value for item, value in told.items() if item != "published"}
    return json.loads(json.dumps(kept, default=str), parse_constant=str)


def is_static(cell: Mapping[str, Any]) -> bool:
    """Say what `Cell.is_static` says of a row whose policy could be made, of the box's classes."""
    policy = cell.get("policy")
    path = policy.get("class_path") if isinstance(policy, Mapping) else policy
    return path == "policies.Never" and not cell.get("scratch") and not cell.get("yoked")


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Give the rows whose settings, of `settings_of`, are others now, of those in both."""
    return [name for name in now if name in before and _differ(before[name], now[name])]


def _differ(before: Any, now: Any, depth: int = 0) -> bool:
    """Say whether a row's settings differ; what only one of two versions knows does not count.

    That is so for the row, its policy, and what the policy is made of; deeper all must be alike.
    """
    if depth < 3 and isinstance(before, Mapping) and isinstance(now, Mapping):
        return any(_differ(before[key], now[key], depth + 1) for key in before.keys() & now.keys())
    return before != now
