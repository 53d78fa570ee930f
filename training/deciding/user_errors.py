"""A user's own code that fails: what is said of it, in one line. Nothing here imports torch."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from traceback import extract_tb

_ROOT = Path(__file__).parents[2]
_OURS = [_ROOT / name for name in ("nets", "analysis", "policies", "training", "run.py")]
_LIBRARIES = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]


class PolicyFailed(Exception):
    """A policy raised, or gave what cannot be done; the message is one line that names it."""

    code = 1


def told(error: BaseException) -> str:
    """Give an error as one line that ends with its place in the user's code, as (mine.py:12)."""
    if isinstance(error, SyntaxError) and error.filename:
        text, place = error.msg, f"{Path(error.filename).name}:{error.lineno}"
    else:
        frames = extract_tb(error.__traceback__)
        last = ([frame for frame in frames if _theirs(frame.filename)] or frames)[-1:]
        text = str(error)
        place = "".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in last)
    words = " ".join(f"{type(error).__name__}: {text}".split()).removesuffix(":")
    return f"{words} ({place})" if place else words


def _theirs(file: str) -> bool:
    path = Path(file)
    return path.is_file() and not any(map(path.is_relative_to, [*_OURS, *_LIBRARIES]))
