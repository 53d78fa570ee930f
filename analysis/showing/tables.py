"""Tables as Markdown and CSV: of a record's layers, of a run's growth, of the gains of growths."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from statistics import mean, stdev
from textwrap import wrap
from typing import Any

from analysis.judging.rank_correlation import Correlation, Site
from analysis.recording.phrases import number, phrase, spread
from analysis.recording.record import Record, edits_of
from analysis.recording.timeline import statistics_of
from nets import Action, SetSurvival, cost

_NARROWEST = 8
"""Characters that a column keeps when a table must fit."""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a Markdown table whose columns also line up as plain text."""
    lines = [list(header), *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [cell.rjust(width) if k else cell.ljust(width) for k, (cell, width) in enumerate(pairs)]
        for pairs in (zip(line, widths) for line in (lines[0], rule, *lines[1:]))
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def fitted(header: Sequence[str], rows: Iterable[Sequence[str]], width: int | None = None) -> str:
    """Give a Markdown table of at most `width` characters a line, as long as it has room for words.

    The widest columns give way, and their text goes on in rows that are blank elsewhere.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    while width and sum(widths) + 3 * len(widths) + 1 > width and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    folded: list[list[str]] = []
    for line in lines:
        cells = [wrap(cell, size) or [""] for cell, size in zip(line, widths)]
        folded += [list(row) for row in zip_longest(*cells, fillvalue="")]
    return markdown(folded[0], folded[1:])


def layer_table(record: Record) -> str:
    """Give the statistics of every layer as a table; columns that no layer has are left out."""
    names = statistics_of([record])
    rows = []
    for path, reading in record.layers.items():
        edited = "-" if reading.edited is None else str(reading.edited)
        values = [number(reading.value(name)) for name in names]
        rows.append([path, reading.role, *values, edited])
    return markdown(["layer", "role", *names, "edited"], rows)


def growth_table(history: Sequence[Record]) -> str:
    """Give what was added, taken away, held or thawed: when, why, and the network's size then.

    Changes of survival probabilities are left out: some policies make them at every record.
    """
    rows = []
    for record, action, _, after in edits_of(history):
        if not isinstance(action, SetSurvival):
            when = [str(record.step), f"{record.spent:.0%}"]
            size, reason = cost(after).parameters, getattr(action, "reason", "")
            rows.append([phrase(action), *when, f"{size:,}", reason])
    header = ["action", "step", "spent", "parameters after", "reason"]
    return markdown(header, rows) if rows else "none"


def gain_table(sites: Sequence[Site], done: Sequence[Action]) -> str:
    """Give the growths as Markdown, the most useful first; `done` is marked."""
    rows = []
    for site in sorted(sites, key=lambda site: mean(site.gains), reverse=True):
        mark = "yes" if site.action is None or [site.action] == list(done) else ""
        size = [f"{site.flops:,}", f"{site.parameters:,}"]
        better = f"{sum(gain > 0 for gain in site.gains)} of {len(site.gains)}"
        rows.append([site.name, *size, spread(site.gains), better, mark])
    header = ["growth", "FLOPs added", "parameters added", "gain in validation loss"]
    return markdown([*header, "orders with a gain", "was done"], rows)


def correlation_table(found: Sequence[Correlation], agreed: float | None) -> str:
    """Give the correlations as Markdown, the strongest first, with the number of sites."""
    by_name: dict[str, dict[str, Correlation]] = {}
    kinds: dict[str, int] = {}
    for each in found:
        by_name.setdefault(each.statistic, {})[each.kind] = each
        kinds[each.kind] = max(each.sites, kinds.get(each.kind, 0))
    strength = {name: max(abs(each.rho) for each in of.values()) for name, of in by_name.items()}
    ordered = sorted(by_name, key=lambda name: -strength[name])
    rows = [[name, *(_rho(by_name[name].get(kind)) for kind in kinds)] for name in ordered]
    header = ["statistic", *(f"{kind} ({sites} sites)" for kind, sites in kinds.items())]
    table = markdown(header, rows) if rows else "too few sites for a rank correlation"
    return f"{table}\n\nRank agreement of the gains between data orders: {number(agreed)}"


def _rho(each: Correlation | None) -> str:
    if each is None:
        return "-"
    return f"{each.rho:+.2f}" + (f" ± {stdev(each.orders):.2f}" if len(each.orders) > 1 else "")


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Give rows of the same keys as CSV with a header; nothing for no rows."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
