"""A comparison as one HTML file: tables, pictures, command and environment; nothing is fetched."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from analysis.judging.comparison_claims import Judgement
from analysis.recording.atomic_files import write_whole
from analysis.recording.record import read_history
from analysis.showing.architecture_pictures import Histories, architectures_of_rows, capacity
from analysis.showing.comparison_pictures import colors_of, layer_statistics, score_over
from analysis.showing.comparison_tables import judgement_text
from analysis.showing.matplotlib_figures import Undrawn, drawing

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 1080px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 0; } figure svg { width: 100%; min-width: 560px; height: auto; }
figcaption, .note { color: #555; font-size: 0.88rem; }
pre { background: #f5f5f5; padding: 0.7rem; overflow-x: auto; font-size: 0.82rem; }
"""


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
        f"<title>{escape(folder.name)}</title><style>{_STYLE}</style></head>\n<body>"
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
    with drawing():
        drawn = list(_drawn(judgement, histories))
    return [
        f'<h2>{title}</h2><figure><div class="wide">{svg}</div>'
        f"<figcaption>{note}</figcaption></figure>"
        for title, note, svg in drawn
    ]


def _drawn(judgement: Judgement, histories: Histories) -> Iterator[tuple[str, str, str]]:
    """Give the title, a note and the SVG of every picture."""
    titles = {"flops": "Score over training FLOPs", "seconds": "Score over time"}
    notes = {"flops": "", "seconds": " Seconds depend on the machine and on what else it did."}
    for axis in sorted(titles, key=lambda axis: axis != judgement.axis):
        grey = " Grey: the static frontier." if axis == judgement.axis else ""
        note = f"Mean over seeds, band: sample std.{grey}{notes[axis]}"
        yield titles[axis], note, score_over(judgement, axis)
    if any(record.applied for runs in histories.values() for one in runs for record in one):
        note = "Inner channels of every block, first seed; later blocks of a stage are paler."
        yield "Architectures over time", note, architectures_of_rows(histories)
        yield "Where each row put its capacity", "Means over seeds.", capacity(histories)
    note = "One point a block, first seed; means of the layers inside the block."
    svg = layer_statistics(histories, colors_of(judgement))
    yield "Layer statistics at the end, side by side", note, svg


def _provenance(folder: Path, run: Path) -> list[str]:
    """Give the exact command, the environment (a run's: its threads are its own) and settings."""
    command, environment = (
        json.loads((place / "environment.json").read_text(encoding="utf-8"))
        for place in (folder, run)
    )
    told = shlex.join(["python", *command["command"]])
    lines = "\n".join(
        f"{name}: {value}" for name, value in environment.items() if name != "command"
    )
    settings = (folder / "config.yaml").read_text(encoding="utf-8")
    return [
        f"<h2>Command</h2><pre>{escape(told)}</pre>",
        f"<h2>Environment</h2><pre>{escape(lines)}</pre>",
        f"<details><summary>All settings</summary><pre>{escape(settings)}</pre></details>",
    ]


def html_of(markdown: str) -> str:
    """Turn our own Markdown, paragraphs, tables and bold, into HTML."""
    parts = []
    for part in markdown.split("\n\n"):
        if not part.startswith("|"):
            words = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", escape(part))
            parts.append(f"<p>{words}</p>")
            continue
        lines = [line.strip("|").split("|") for line in part.splitlines()]
        rows = [[escape(cell.strip()) for cell in line] for line in lines]
        head = "".join(f"<th>{cell}</th>" for cell in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[2:]
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        parts.append(f'<div class="wide">{table}</div>')
    return "\n".join(parts)
