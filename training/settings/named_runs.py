"""The recorded runs that a run's settings name: one to start from, one at whose times it grows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

_YOKED = "policies.Yoked"


def with_names(settings: Mapping[str, Any], name: Callable[[str], str]) -> dict[str, Any]:
    """Give settings as plain data with every path of a recorded run by the name it gets."""
    found, start, policy = dict(settings), settings.get("start"), settings.get("policy")
    if isinstance(start, Mapping) and isinstance(path := start.get("architecture"), str):
        found["start"] = {"architecture": name(path)}  # beside it all else says nothing
    if isinstance(policy, Mapping) and policy.get("class_path") == _YOKED:
        made = policy.get("init_args")
        if isinstance(made, Mapping) and isinstance(path := made.get("run"), str):
            found["policy"] = {**policy, "init_args": {**made, "run": name(path)}}
    return found


def seen_from_out(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give settings with the paths of recorded runs as they are seen from the run's own folder.

    A comparison that is moved, or named by another path, holds its runs in the same places.
    """
    own = os.path.expanduser(str(settings.get("out") or "."))

    def beside(path: str) -> str:
        try:
            return os.path.relpath(os.path.expanduser(path), own)
        except ValueError:  # empty, or on another drive
            return path

    return with_names(settings, beside)
