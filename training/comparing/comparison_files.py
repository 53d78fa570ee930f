"""The files of a comparison: comparison.csv as runs end, then what it has judged.

That is comparison.md, report.html and the run _comparison for TensorBoard.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.judging.comparable_runs import Finished
from analysis.judging.comparison_claims import Judgement, judge
from analysis.recording.atomic_files import write_whole
from analysis.reporting.comparison_board import write_board
from analysis.reporting.html_report import write_report
from analysis.showing.comparison_tables import judgement_text
from training.comparing.jobs import Job
from training.settings.compare_settings import Compare

_COLUMNS = ("data", "net", "policy", "parameters", "flops", "train_flops", "seconds", "steps")
_COLUMNS += ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_COLUMNS += ("test_accuracy",)
_JUDGED = ("regret", "flops_to_reference", "transient")


def write_csv(
    folder: Path,
    jobs: Sequence[Job],
    summaries: Mapping[str, Mapping[str, Any]],
    judged: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write comparison.csv: a row for each job with a summary, the judged columns once given."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["run", "seed", *_COLUMNS, *_JUDGED])
    for job in jobs:
        if job.name in summaries:
            values = [summaries[job.name][column] for column in _COLUMNS]
            more = [(judged or {}).get(job.name, {}).get(column) for column in _JUDGED]
            writer.writerow([job.row, job.settings.seed, *values, *more])
    write_whole(folder / "comparison.csv", text.getvalue())


def write_judged(
    settings: Compare, jobs: Sequence[Job], summaries: Mapping[str, Mapping[str, Any]]
) -> str:
    """Judge the rows of each data set and net, write all files, and give the text."""
    folder, judged, texts = settings.folder, dict[str, Mapping[str, Any]](), []
    grounds = dict.fromkeys(settings.ground(name) for name in settings.cells)
    groups: list[tuple[str, Judgement]] = []
    for ground in grounds:
        names = [name for name in settings.cells if settings.ground(name) == ground]
        rows = {
            name: {
                job.settings.seed: Finished(job.settings.folder, summaries[job.name])
                for job in jobs
                if job.row == name and job.name in summaries
            }
            for name in names
        }
        rows = {name: runs for name, runs in rows.items() if runs}
        if not rows:
            continue
        static = [name for name in rows if settings.cells[name].is_static]
        pair = settings.pair if settings.pair and set(settings.pair) <= set(rows) else None
        published = {name: settings.cells[name].published for name in rows}
        published = {name: told for name, told in published.items() if told}
        judgement = replace(judge(rows, static, pair, settings.budget), published=published)
        groups.append((f"{ground[0]}, {ground[1]}", judgement))
        title = f"## {ground[0]}, {ground[1]}\n\n" if len(grounds) > 1 else ""
        texts.append(title + judgement_text(judgement))
        for name, runs in judgement.figures.items():
            judged |= {f"{name}  seed {seed}": vars(figures) for seed, figures in runs.items()}
    text = "\n\n".join(texts)
    write_csv(folder, jobs, summaries, judged)
    write_whole(folder / "comparison.md", text + "\n")
    if groups:
        for missing in (write_report(folder, groups), write_board(folder, groups)):
            text += f"\n\n{missing}" if missing else ""
    return text
