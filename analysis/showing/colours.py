"""Colours that everyone can tell apart, and what else tells lines apart: markers, dashes, labels.

Okabe and Ito's palette ("Color Universal Design", 2008) without its yellow, which is too pale on
white, and its black, which is no colour on a dark page.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STAGES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
"""Of the stages of a network: vermilion is left for marks on them."""
MARK = "#D55E00"
GREY = "#7f7f7f"
"""Is seen on white and on black."""
MARKERS = "osD^vPX"
"""Seven, and six hues: 42 rows differ in one or the other."""
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Style:
    """How the line of one row is drawn."""

    color: str
    marker: str
    line: str = "-"


def styles_of(rows: Iterable[str], static: Collection[str] = ()) -> dict[str, Style]:
    """Give each row its style; those of the static frontier are grey and differ in their dashes."""
    hues, markers, dashes, places = cycle(HUES), cycle(MARKERS), cycle(_DASHES), cycle(MARKERS)
    return {
        name: Style(GREY, next(places), next(dashes))
        if name in static
        else Style(next(hues), next(markers))
        for name in rows
    }


def shade_of(stage: int, place: int = 0, count: int = 1) -> tuple[float, float, float]:
    """Give the colour of a stage's block: one hue a stage, later blocks paler, neighbours unlike.

    Args:
        stage: its number, from 0.
        place: of the block in it, from 0.
        count: of the blocks in it.
    """
    paler = 0.55 * place / max(1, count - 1) if count > 1 else 0.0
    red, green, blue = (int(STAGES[stage % len(STAGES)][k : k + 2], 16) / 255 for k in (1, 3, 5))
    return red + (1 - red) * paler, green + (1 - green) * paler, blue + (1 - blue) * paler


def apart(heights: Sequence[float], least: float) -> list[float]:
    """Move labels apart that would lie over one another: at least `least` between two of them.

    Their order stays, and the middle of those that are pushed.
    """
    order = sorted(range(len(heights)), key=lambda k: heights[k])
    groups: list[list[float]] = []  # each: the sum of wanted first places, and how many labels
    for rank, k in enumerate(order):
        groups.append([heights[k] - rank * least, 1.0])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1] = [groups[-1][0] + total, groups[-1][1] + count]
    shifts = [total / count for total, count in groups for _ in range(int(count))]
    moved = [0.0] * len(heights)
    for rank, k in enumerate(order):
        moved[k] = shifts[rank] + rank * least
    return moved
