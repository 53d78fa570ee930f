"""Figures of matplotlib as it comes, whatever the user's settings, as PNG and as SVG.

matplotlib is imported when something is drawn, and pyplot never: it would keep a figure for ever.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING

from nets.checks import in_one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 720, 420
"""Pixels of a PNG."""

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


def axes_of(title: str, left: float, right: float, size: int = 8) -> Axes:
    """Give the axes of a new figure, which become a PNG; its labels have `size` points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 80, HEIGHT / 80), dpi=80)
    below = 0.1 * size / 8
    axes = figure.add_axes((left, below, right - left, 0.92 - below))
    axes.set_title(title, fontsize=size + 3)
    axes.tick_params(labelsize=size)
    return axes


def at_the_end(
    axes: Axes, words: str, point: tuple[float, float], height: float, color: str, size: int = 8
) -> None:
    """Write a name to the right of the axes at a height, and lead a hair line to its point."""
    between = ("axes fraction", "data")
    arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "relpos": (0, 0.5)}
    place = {"xytext": (1.04, height), "textcoords": between, "va": "center"}
    axes.annotate(words, point, arrowprops=arrow, color=color, fontsize=size, **place)


@own_settings()
def png_of(drawn: Axes | Figure, dpi: int = 80) -> bytes:
    """Give a figure, or that of axes, as a PNG with so many pixels an inch."""
    file = io.BytesIO()
    drawn.figure.savefig(file, format="png", dpi=dpi)  # pyright: ignore[reportAttributeAccessIssue]
    return file.getvalue()


def size_of_png(png: bytes) -> tuple[int, int]:
    """Give the width and height of a PNG in pixels."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def figure_of(
    width: float, height: float, panels: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """Give a figure in inches with so many panels, which becomes an SVG or a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    rows = -(-panels // columns)
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(panels)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=8)
    return figure, axes


@own_settings()
def svg_of(figure: Figure) -> str:
    """Give an <svg> element that names no address and is the same for the same picture.

    It has no background, and what is black has the colour of the page's text: so it is read on a
    dark page too.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "growthrings", "svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", text)  # inline in HTML they are implied
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"((?:fill|stroke): )#000000", r"\1currentColor", text)
    text = text.replace("<svg ", '<svg fill="currentColor" ', 1)
    return re.sub(r' (?:width|height)="[^"]*pt"', "", text, count=2)  # as wide as its place
