"""Tables as Markdown and CSV: of a record's layers, of a run's growth, of the gains of growths."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from math import factorial
from statistics import mean
from textwrap import wrap
from typing import Any

from analysis.judging.growth_sites import Site
from analysis.judging.rank_correlation import LEVEL, Chance, Correlation, Pooled, adjusted
from analysis.recording.phrases import number, phrase, spread
from analysis.recording.record import Record, edits_of
from analysis.recording.timeline import statistics_of
from nets import Action, SetSurvival, cost

_NARROWEST = 8
"""Characters that a column keeps when a table must fit."""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a Markdown table whose columns also line up as plain text.

    A bar inside a cell is written as \\|, so that it parts no cells; a cell is one line.
    """
    return _table([[_cell(text) for text in line] for line in (header, *rows)])


def _cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", r"\|")


def _table(lines: Sequence[Sequence[str]]) -> str:
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
    lines = [[_cell(text) for text in line] for line in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    while width and sum(widths) + 3 * len(widths) + 1 > width and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    folded: list[list[str]] = []
    for line in lines:
        cells = [_folded(cell, size) for cell, size in zip(line, widths)]
        folded += [list(row) for row in zip_longest(*cells, fillvalue="")]
    return _table(folded)


def _folded(cell: str, size: int) -> list[str]:
    """Part a text at blanks; a word that is too long behind a bracket, a / or =, else anywhere."""
    parts = []
    for word in cell.split():
        while len(word) > size:
            cut = 1 + max(word.rfind(mark, 0, size) for mark in "(/=") or size
            parts.append(word[:cut])
            word = word[cut:]
        parts.append(word)
    return wrap(" ".join(parts), size) or [""]


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
    for site in sorted(sites, key=lambda site: (site.finite, mean(site.gains)), reverse=True):
        mark = "yes" if site.action is None or [site.action] == list(done) else ""
        size = [f"{site.flops:,}", f"{site.parameters:,}", f"{site.steps:,}"]
        better = f"{sum(gain > 0 for gain in site.gains)} of {len(site.gains)}"
        gain = spread(site.gains) if site.finite else "not finite"
        rows.append([site.name, *size, gain, better, mark])
    header = ["growth", "FLOPs added", "parameters added", "steps", "gain in validation loss"]
    return markdown([*header, "orders with a gain", "was done"], rows)


def correlation_table(found: Sequence[Correlation], chance: Sequence[Chance]) -> str:
    """Give the correlations as Markdown, the strongest first, and what chance alone gives.

    A cell is the mean over data orders, the lowest and the highest of them, and p.
    """
    telling = [each for each in chance if each.least_p <= LEVEL]
    kinds = [each.kind for each in telling]
    by_name: dict[str, dict[str, Correlation]] = {}
    for each in found:
        if each.kind in kinds:
            by_name.setdefault(each.statistic, {})[each.kind] = each
    strength = {name: max(abs(each.rho) for each in of.values()) for name, of in by_name.items()}
    ordered = sorted(by_name, key=lambda name: -strength[name])
    rows = [[name, *(_rho(by_name[name].get(kind)) for kind in kinds)] for name in ordered]
    header = ["statistic", *(f"{each.kind} ({each.sites} sites)" for each in telling)]
    table = markdown(header, rows) if rows else "no rank correlation could be told from chance"
    lines = [f"- {_by_chance(each, found)}" for each in chance]
    return "\n\n".join([table, "\n".join(lines)]) if lines else table


def _by_chance(chance: Chance, found: Sequence[Correlation]) -> str:
    """Say what chance alone gives for a kind of site, and what was found beyond it."""
    what = f"{chance.kind}: {chance.sites} sites, data orders: {chance.orders}"
    if chance.least_p > LEVEL:
        few = factorial(chance.sites) * LEVEL < 2
        why = "Too few sites to tell" if few else "The orders disagree too much"
        return f"{what}. {why}: by chance p = {chance.least_p:.2g} at the least."
    own = [each for each in found if each.kind == chance.kind and each.telling]
    many, raised = sum(each.p <= LEVEL for each in own), adjusted(found)
    held = [each.statistic for each in own if raised[each.statistic, each.kind] <= LEVEL]
    return (
        f"{what}. Chance alone stays within ±{chance.bound:.2f} in 95 % of the cases; p <= {LEVEL} "
        f"for {many} of {len(own)} statistics ({LEVEL * len(own):.1f} by chance), with Holm's "
        f"correction for {', '.join(held) or 'none'}. Rank agreement between data orders: "
        f"{number(chance.agreement)}."
    )


def pooled_table(found: Sequence[Pooled], points: int) -> str:
    """Give the correlations of several growth steps together: mean, lowest and highest."""
    if not found:
        return "too few sites at every step"
    kinds = list(dict.fromkeys(each.kind for each in found))
    cells = {(each.statistic, each.kind): each for each in found}
    strength = {name: max(abs(e.rho) for e in found if e.statistic == name) for name, _ in cells}
    rows = []
    for name in sorted(strength, key=lambda name: -strength[name]):
        row = [cells.get((name, kind)) for kind in kinds]
        rows.append([name, *("-" if e is None else _ranged(e.rho, e.points) for e in row)])
    told = {kind: max(len(e.points) for e in found if e.kind == kind) for kind in kinds}
    header = ["statistic", *(f"{kind} ({many} of {points} steps)" for kind, many in told.items())]
    return markdown(header, rows)


def _rho(each: Correlation | None) -> str:
    if each is None:
        return "-"
    if not each.telling:
        return "too few differ"
    return f"{_ranged(each.rho, each.orders)}, p {each.p:.2g}"


def _ranged(value: float, single: Sequence[float]) -> str:
    """Give a mean of correlations with the lowest and the highest of them."""
    low, mid, high = (f"{round(x, 2) + 0.0:+.2f}" for x in (min(single), value, max(single)))
    return f"{mid} [{low}, {high}]" if len(single) > 1 else mid


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Give rows of the same keys as CSV with a header; nothing for no rows."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
