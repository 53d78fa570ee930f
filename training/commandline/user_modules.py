"""Where modules come from: a user's own last, so that none hides another. No torch here."""

from __future__ import annotations

import os
import sys
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
