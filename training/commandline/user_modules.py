"""Where modules come from: a user's own last, so that none hides another. No torch here."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path


def import_from(folder: str, ours: str) -> None:
    """Let modules of `folder` be imported, after all others: its statistics.py hides none.

    `ours`, the folder of our own packages, comes before it, for the processes that run cells too.
    """
    if os.path.abspath(folder) == ours:
        return
    sys.path[:] = [path for path in sys.path if path not in ("", folder)]
    sys.path += [path for path in (ours, folder) if path not in sys.path]


def hidden(import_path: str) -> str:
    """Say in words that a user's module in the working folder is hidden by another, or nothing."""
    name = import_path.partition(".")[0]
    if not name:
        return ""
    here = [path for path in (Path(f"{name}.py"), Path(name) / "__init__.py") if path.is_file()]
    module = sys.modules.get(name)
    if not here or module is None:
        return ""
    file = getattr(module, "__file__", None)
    if file is not None and Path(file).resolve() in [path.resolve() for path in here]:
        return ""
    place = file or "a built-in module"
    return f"{here[0]} is hidden by {place}, which has the same name: rename it"


def unloaded(import_path: str, kind: type) -> str:
    """Say why the class of an import path was taken for a mere name; nothing if it is a name."""
    module, dot, name = import_path.rpartition(".")
    if not dot:
        return ""
    try:
        found = getattr(import_module(module), name, None)
    except Exception as error:
        return hidden(module) or " ".join(str(error).split()) or type(error).__name__
    if found is None:
        return hidden(module) or f"{module} has no {name}"
    if not (isinstance(found, type) and issubclass(found, kind)):
        return f"it is no class of {kind.__name__}"
    return "its settings do not make one"
