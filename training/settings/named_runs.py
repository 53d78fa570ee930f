"""The recorded runs that a run's settings name: one to start from, one at whose times it grows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from analysis.recording.atomic_files import write_whole

NAME = "named_runs.json"
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


def check_same_runs(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raise a ValueError if a run was made after another net or other growths than lie there now.

    A run of an earlier version, which did not say what it saw, passes, and so do runs that are not
    there.

    Args:
        folder: of the run.
        settings: as in its config.yaml; paths are as seen from the `out` that stands there.
    """
    path = folder / NAME
    if not path.exists():
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ValueError(f"out: {path} cannot be read") from None
    for place, now in _contents(folder, settings).items():
        if now and before.get(place, now) != now:
            raise ValueError(
                f"{folder} must be made after the run that {os.path.normpath(folder / place)} is "
                "now, got one made after another; remove the folder to run it again"
            )


def settle_runs(folder: Path, settings: Mapping[str, Any]) -> None:
    """Check the recorded runs that a run names, or write down, before it begins, what they are."""
    if (folder / "checkpoint.pt").exists():
        check_same_runs(folder, settings)
    elif found := _contents(folder, settings):
        write_whole(folder / NAME, json.dumps(found, indent=2) + "\n")


def _contents(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Give, by its place seen from the folder, a hash of what is read of each run; "" of none."""
    found = dict[str, str]()
    with_names(seen_from_out(settings), lambda name: found.setdefault(name, "") or name)
    return {name: _hash(folder / name) for name in found}


def _hash(path: Path) -> str:
    """Give a hash of an architecture.json, or of when and what the run of a folder grew."""
    try:
        if path.is_dir():
            lines = (path / "history.jsonl").read_text(encoding="utf-8").splitlines()
            read = [(each["spent"], each["applied"]) for each in map(json.loads, lines)]
            for _, applied in read:
                for action in applied:
                    action.pop("reason", None)
        else:
            read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ""  # who reads it says what is wrong
    return blake2b(json.dumps(read).encode(), digest_size=16).hexdigest()
