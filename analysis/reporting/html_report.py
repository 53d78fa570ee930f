"""A comparison as one HTML file: tables, pictures, command and environment; nothing is fetched."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.judging.comparison_claims import Judgement
from analysis.judging.machines import environment_of
from analysis.recording.atomic_files import write_whole
from analysis.recording.record import read_history
from analysis.reporting.capacity_pictures import (
    Histories,
    architectures,
    capacity,
    layer_statistics,
    that_grew,
)
from analysis.reporting.page_style import STYLE
from analysis.reporting.score_pictures import final_scores, rows_beside_frontier, score_over
from analysis.reporting.verdict import verdict
from analysis.showing.comparison_tables import judgement_text
from analysis.showing.matplotlib_figures import Undrawn, drawing, svg_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPEN = 12
"""Rows whose layer statistics are in sight at once; those of more are to be opened."""


def write_report(
    folder: Path, groups: Sequence[tuple[str, Judgement]], parts_of: Sequence[Path] = ()
) -> str:
    """Write FOLDER/report.html, and give in one line why it has no pictures, or nothing.

    Args:
        folder: of the comparison, with config.yaml and environment.json.
        groups: a title (data and net) and a judgement each.
        parts_of: the comparisons whose runs are judged together, if it is not the folder's own.

    Raises:
        ValueError: a run's files cannot be read.
    """
    parts, missing = [f"<h1>{escape(folder.name)}</h1>"], ""
    for title, judgement in groups:
        parts.append(f"<h2>{escape(title)}</h2>")
        parts.append(html_of(verdict(judgement)).replace("<p>", '<p class="verdict">', 1))
        parts.append(html_of(judgement_text(judgement)))
        try:
            parts += _pictures(judgement)
        except Undrawn as failure:
            missing = f"report.html: {failure}"
            parts.append(f'<p class="note">{escape(str(failure))}</p>')
    runs = [
        run.folder for _, judged in groups for row in judged.rows.values() for run in row.values()
    ]
    for part in parts_of or [folder]:
        parts += [f"<h2>{escape(str(part))}</h2>"] if parts_of else []
        run = next((run for run in runs if run.is_relative_to(part)), part)
        parts += _provenance(part, run)
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # or a browser asks a server for one
        f"<title>{escape(folder.name)}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + "</body></html>\n"
    )
    write_whole(folder / "report.html", page)
    return missing


def _pictures(judgement: Judgement) -> list[str]:
    histories = {
        name: [read_history(run.folder) for run in runs.values()]
        for name, runs in judgement.rows.items()
    }
    parts = []
    with drawing():
        for title, note, kind, figures in _drawn(judgement, histories):
            pictures = "".join(svg_of(figure) for figure in figures)
            figure = f'<div class="{kind}">{pictures}</div><figcaption>{note}</figcaption>'
            figure = f"<figure>{figure}</figure>"
            if kind.endswith("long") and len(figures) > _OPEN:
                figure = f"<details><summary>{len(figures)} rows</summary>{figure}</details>"
            parts.append(f"<h2>{title}</h2>{figure}")
    return parts


def _drawn(
    judgement: Judgement, histories: Histories
) -> Iterator[tuple[str, str, str, list[Figure]]]:
    """Give the title, a note, the kind of its place and the pictures of every part."""
    note = "Means over seeds, as far as all seeds of a row go, named at their ends. Grey: static "
    note += "sizes; the thick line is the static frontier. Seconds depend on the machine and on "
    note += "what else it did: a row whose seeds took unlike times ends with the fastest, early."
    axes = sorted(("flops", "seconds"), key=lambda axis: axis != judgement.axis)
    over = [score_over(judgement, axis) for axis in axes]
    yield "Score over training FLOPs and over time", note, "two", over
    note = "Bars: means over seeds. Dotted: the reference, the best static size on validation."
    yield "Final scores, every seed", note, "two", [final_scores(judgement)]
    note = "Thin: every seed. Band: sample std around the mean. Thick grey: the static frontier."
    alone = [rows_beside_frontier(judgement, [name]) for name in judgement.rows]
    yield "Each row beside the frontier", note, "many", alone
    if grew := list(that_grew(histories)):
        note = "Inner channels of every block, first seed; later blocks of a stage are paler."
        yield "Architectures over time", note, "many", [architectures(histories, [n]) for n in grew]
        note = "Means over seeds."
        yield "Where each row put its capacity", note, "two", [capacity(histories)]
    note = "One point a block, first seed; means of the layers inside the block. Grey: from the "
    note += "least to the greatest of all rows at that depth."
    layers = [layer_statistics(histories, name) for name in histories]
    yield "Layer statistics at the end", note, "many long", layers


def _provenance(folder: Path, run: Path) -> list[str]:
    """Give the exact command, the environment (a run's: its threads are its own) and settings."""
    words, environment = environment_of(folder).get("command"), environment_of(run)
    told = shlex.join(["python", *map(str, words)]) if isinstance(words, list) else ""
    lines = "\n".join(
        f"{name}: {value}" for name, value in environment.items() if name != "command"
    )
    unknown = "not known: {}/environment.json is missing or damaged"
    settings = (folder / "config.yaml").read_text(encoding="utf-8")
    return [
        f"<h2>Command</h2><pre>{escape(told) or escape(unknown.format(folder))}</pre>",
        f"<h2>Environment</h2><pre>{escape(lines) or escape(unknown.format(run))}</pre>",
        f"<details><summary>All settings</summary><pre>{escape(settings)}</pre></details>",
    ]


def html_of(markdown: str) -> str:
    """Turn our own Markdown, paragraphs, tables and bold, into HTML."""
    parts = []
    for part in markdown.split("\n\n"):
        if not part.startswith("| ") or "\n" not in part:
            words = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(part))
            parts.append(f"<p>{words}</p>")
            continue
        lines = [re.split(r"(?<!\\)\|", line[1:-1]) for line in part.splitlines()]
        rows = [[escape(cell.strip().replace(r"\|", "|")) for cell in line] for line in lines]
        head = "".join(f"<th>{cell}</th>" for cell in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[2:]
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        parts.append(f'<div class="wide">{table}</div>')
    return "\n".join(parts)
