"""The files of a comparison: comparison.csv as runs end, then what it has judged.

That is comparison.md, report.html and the run _comparison for TensorBoard.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.judging.comparable_runs import BOARD, Finished, seeds_text
from analysis.judging.comparison_claims import Judgement, judge
from analysis.recording.atomic_files import write_whole
from analysis.reporting.comparison_board import write_board
from analysis.reporting.html_report import write_report
from analysis.showing.comparison_tables import judgement_text
from training.settings.compare_settings import Compare

_COLUMNS = ("data", "net", "policy", "parameters", "flops", "train_flops", "seconds", "steps")
_COLUMNS += ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_COLUMNS += ("test_loss", "test_accuracy")
_JUDGED = ("regret", "flops_to_reference", "seconds_to_reference", "transient")

Runs = Mapping[tuple[str, int], Finished]
"""Finished runs by row and seed."""


@dataclass(frozen=True)
class Matrix:
    """What a judgement is about.

    Args:
        grounds: data and net of each row, in order; rows that share them are judged together.
        seeds: those that every row is to have.
        static: the rows of the static frontier.
        pair: the primary comparison.
        budget: flops, epochs or seconds.
        published: what the literature gives for a row.
        controls: the rows that train the final net of another from fresh weights.
    """

    grounds: Mapping[str, tuple[str, str]]
    seeds: Sequence[int]
    static: Collection[str]
    pair: tuple[str, str] | None
    budget: str
    published: Mapping[str, Sequence[float]]
    controls: Collection[str]

    @classmethod
    def of(cls, settings: Compare) -> Matrix:
        """Give the matrix of a comparison."""
        cells = settings.cells
        return cls(
            {name: settings.ground(name) for name in cells},
            settings.seeds,
            [name for name, cell in cells.items() if cell.is_static],
            settings.pair,
            settings.budget,
            {name: cell.published for name, cell in cells.items() if cell.published},
            [name for name, cell in cells.items() if cell.scratch],
        )


def write_csv(
    folder: Path,
    matrix: Matrix,
    runs: Runs,
    judged: Mapping[tuple[str, int], Mapping[str, Any]] | None = None,
) -> None:
    """Write comparison.csv: a row for each finished run, the judged columns once given."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["run", "seed", *_COLUMNS, *_JUDGED])
    for name in matrix.grounds:
        for seed in matrix.seeds:
            if (run := runs.get((name, seed))) is not None:
                values = [run.summary[column] for column in _COLUMNS]
                more = [(judged or {}).get((name, seed), {}).get(column) for column in _JUDGED]
                writer.writerow([name, seed, *values, *more])
    write_whole(folder / "comparison.csv", text.getvalue())


def write_judged(
    folder: Path,
    matrix: Matrix,
    runs: Runs,
    notes: Mapping[tuple[str, str], Sequence[str]],
    parts: Sequence[Path] = (),
) -> str:
    """Judge the rows of each data set and net, write all files, and give the text.

    Args:
        folder: where the files go.
        matrix: what is judged.
        runs: the finished ones.
        notes: by data and net, what else a reader has to know.
        parts: the comparisons whose runs are judged together, if they are not the folder's own.
    """
    judged, texts = dict[tuple[str, int], Mapping[str, Any]](), list[str]()
    groups: list[tuple[str, Judgement]] = []
    grounds = dict.fromkeys(matrix.grounds.values())
    for ground in grounds:
        names = [name for name, of in matrix.grounds.items() if of == ground]
        more = [*notes.get(ground, ()), *_missing(matrix, runs, names)]
        title = f"## {ground[0]}, {ground[1]}\n\n" if len(grounds) > 1 else ""
        judgement = _judgement(matrix, runs, names)
        if judgement is None:
            texts.append(title + "\n\n".join(more))
            continue
        judgement = replace(judgement, notes=(*more, *judgement.notes))
        groups.append((f"{ground[0]}, {ground[1]}", judgement))
        texts.append(title + judgement_text(judgement))
        for name, row in judgement.figures.items():
            judged |= {(name, seed): vars(figures) for seed, figures in row.items()}
    text = "\n\n".join(texts)
    write_csv(folder, matrix, runs, judged)
    write_whole(folder / "comparison.md", text + "\n")
    if groups:
        for missing in (write_report(folder, groups, parts), _write_board(folder, groups)):
            text += f"\n\n{missing}" if missing else ""
    return text


def _write_board(folder: Path, groups: Sequence[tuple[str, Judgement]]) -> str:
    """Write the board, which has the times of the runs; give what it lacks in one line."""
    rows = [row for _, judgement in groups for row in judgement.rows.values()]
    for config in (run.folder / "config.yaml" for row in rows for run in row.values()):
        if not config.exists():
            return f"{BOARD} is left as it was: {config} is missing"
    return write_board(folder, groups)


def _judgement(matrix: Matrix, runs: Runs, names: Sequence[str]) -> Judgement | None:
    """Judge rows of one data set and net; None if none of their runs is finished."""
    rows = {
        name: {seed: runs[name, seed] for seed in matrix.seeds if (name, seed) in runs}
        for name in names
    }
    rows = {name: row for name, row in rows.items() if row}
    if not rows:
        return None
    static = [name for name in rows if name in matrix.static]
    pair = matrix.pair if matrix.pair and set(matrix.pair) <= set(names) else None
    published = {name: told for name, told in matrix.published.items() if name in rows}
    found = judge(rows, static, pair, matrix.budget, matrix.controls)
    return replace(found, published=published)


def _missing(matrix: Matrix, runs: Runs, names: Sequence[str]) -> list[str]:
    """Say which runs are not there, and what that means for the reference."""
    gone = {name: [s for s in matrix.seeds if (name, s) not in runs] for name in names}
    gone = {name: seeds for name, seeds in gone.items() if seeds}
    if not gone:
        return []
    rows = [
        name if len(seeds) == len(matrix.seeds) else f"{name} {seeds_text(seeds)}"
        for name, seeds in gone.items()
    ]
    told = f"Not run yet, or not to the end: {'; '.join(rows)}."
    if any(name in matrix.static for name in gone):
        told += " Static sizes are among them: the reference may change."
    return [told]
