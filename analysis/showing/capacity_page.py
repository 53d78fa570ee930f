"""Where a network lacks capacity, as a text with a table, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.capacity.missing_capacity import Place, Ranking, rank
from analysis.recording.record import Record
from analysis.showing.matplotlib_figures import axes_of, own_settings, png_of
from analysis.showing.tables import markdown

_ROWS = 24
"""So many blocks are drawn: the first ones."""
_AXIS = (
    "sensitivity of the loss to one channel, per FLOP\n(1: mean of all; bars: one standard error)"
)
_NOTE = (
    "Sensitivity is how much an image's loss depends on one inner channel (to first order), over "
    "the FLOPs that one more would cost; 1 is the mean of all stages. In brackets one standard "
    "error, of which most is what other seeds would show. docs/capacity.md has how often this "
    "finds a stage that was starved on purpose, and what does not."
)


def capacity_text(history: Sequence[Record]) -> str:
    """Give the verdict in one sentence, and the stages as a Markdown table, the first on top."""
    found = rank(history)
    if not found.places:
        return found.why
    return f"**{found.why}**\n\n{capacity_table(found)}\n\n{_NOTE}"


def capacity_table(found: Ranking) -> str:
    """Give the places of a ranking as Markdown."""
    rows = [
        [
            place.name,
            f"{place.score:.2f} ({place.low:.2f} to {place.high:.2f})",
            str(place.width),
            f"{place.share:.0%}",
        ]
        for place in found.places
    ]
    return markdown(["where", "sensitivity", "inner channels", "share of FLOPs"], rows)


@own_settings()
def capacity_picture(found: Ranking) -> bytes:
    """Draw the blocks of a ranking with their error bars, the first on top, one marker a stage.

    The stage in which capacity is missing is named in the title; its blocks are vermilion.
    """
    title = f"in {found.first}" if found.first else "no stage stands out"
    shown = found.blocks[:_ROWS]
    size = 15 if len(shown) <= 12 else 8  # a page of cards shows it at half its size
    axes = axes_of(f"where capacity is missing: {title}", left=0.26, right=0.96, size=size)
    for row, place in enumerate(shown):
        colour = "#D55E00" if _within(place, found) else "#7F7F7F"
        bars = [[place.score - place.low], [place.high - place.score]]
        style = {"color": colour, "capsize": 3, "markersize": 7}
        marker = "osD^v<>p"[(int(place.name.partition(".")[0][5:]) - 1) % 8]
        axes.errorbar([place.score], [row], xerr=bars, fmt=marker, **style)
    axes.axvline(1.0, color="lightgrey", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xticks(log_ticks(*axes.get_xlim()))
    axes.minorticks_off()
    axes.set_yticks(range(len(shown)), [place.name for place in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel(_AXIS, fontsize=size - 2)
    return png_of(axes)


def log_ticks(least: float, most: float) -> list[float]:
    """Give round numbers for a logarithmic axis: those in the box leave a short one nearly bare."""
    digits = (1, 1.2, 1.5, 2, 3, 4, 5, 6, 8) if most < 4 * least else (1, 2, 5)
    return [
        d * 10.0**power
        for power in range(-9, 10)
        for d in digits
        if least <= d * 10.0**power <= most
    ]


def _within(place: Place, found: Ranking) -> bool:
    """Say whether a block is the one in which capacity is missing, or in the stage."""
    return found.first is not None and f"{place.name}.".startswith(f"{found.first}.")
