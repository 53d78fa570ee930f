"""matplotlib as it comes, whatever the user's settings: what a picture shows is ours to say."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType

from nets.checks import in_one_line

_THEIRS = ("backend", "backend_fallback", "interactive", "toolbar")
"""Settings of the windows that a user opens; nothing here opens one."""


class Undrawn(Exception):
    """Pictures that matplotlib could not draw; the message is one line."""


@contextmanager
def drawing() -> Iterator[None]:
    """Raise `Undrawn` for whatever fails inside: pictures decide nothing."""
    try:
        yield
    except Exception as error:
        words = in_one_line(f"{type(error).__name__}: {error}", 300)
        raise Undrawn(f"no pictures could be drawn: {words}") from error


@contextmanager
def own_settings() -> Iterator[None]:
    """Draw with matplotlib's default settings; the user's are as they were afterwards.

    It imports matplotlib, which takes a while, and no pyplot. Text is taken as it is: a `$` in a
    name begins no formula. What matplotlib would tell of fonts and of its cache is left out.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        matplotlib = _import()
        own = {k: v for k, v in dict(matplotlib.rcParamsDefault).items() if k not in _THEIRS}
        own["text.parse_math"] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of glyphs that the font lacks
            with matplotlib.rc_context(own):
                yield
    finally:
        logger.setLevel(level)


def _import() -> ModuleType:
    """Import matplotlib even if MPLBACKEND names a backend that is not installed.

    Every command that is started from a notebook's cell inherits the notebook's.
    """
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib
