"""Policies x seeds, one after the other, into one table; what is finished is not run again."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from analysis.tables import comparison_rows, comparison_table, result_of
from training.folder import check_same_settings, claim_comparison, write_whole
from training.loop import train
from training.run import ground_of
from training.settings import Cell, Common, Compare, Train, settings_to_dict, settings_to_yaml

_COLUMNS = ("policy", "parameters", "flops", "train_flops", "seconds", "steps", "train_loss")
_COLUMNS += ("train_accuracy", "validation_loss", "validation_accuracy", "test_accuracy")


def run_of(settings: Compare, name: str, cell: Cell, seed: int) -> Train:
    """Give the settings of one run of a comparison; its folder is OUT/ROW/seedN."""
    common: dict[str, Any] = {item.name: getattr(settings, item.name) for item in fields(Common)}
    common["schedule"] = cell.schedule or settings.schedule
    common["lr"] = cell.lr or settings.lr
    out = str(Path(settings.out) / name / f"seed{seed}")
    return Train(**common, policy=cell.policy, start=cell.start, seed=seed, out=out, resume=True)


def compare(
    settings: Compare,
    say: Callable[[str], None] = print,
    advance: Callable[[float], None] | None = None,
) -> str:
    """Run every row with every seed, and give the table.

    OUT/comparison.csv and OUT/comparison.md are written anew after each run.

    Args:
        settings: what to compare; a run that is finished in its folder is taken as it is.
        say: takes one line per finished run.
        advance: called with the finished fraction of the comparison.

    Raises:
        ValueError: settings, data or folder cannot be used.
        Interrupted: SIGINT or SIGTERM came; run again to go on.
    """
    folder = Path(settings.out)
    plan = [
        (name, run_of(settings, name, cell, seed))
        for name, cell in settings.cells.items()
        for seed in settings.seeds
    ]
    _check([run for _, run in plan])
    claim_comparison(folder, settings_to_dict(settings), settings_to_yaml(settings))
    summaries: dict[str, list[Mapping[str, Any]]] = {name: [] for name in settings.cells}
    table = ""
    for number, (name, run) in enumerate(plan):
        part = (lambda spent, done=number: advance((done + spent) / len(plan))) if advance else None
        summary = train(run, say=lambda line: None, advance=part)
        summaries[name].append(summary)
        table = comparison_table(comparison_rows(summaries))
        write_whole(folder / "comparison.md", table + "\n")
        write_whole(folder / "comparison.csv", _csv(summaries))
        place, seconds = f"{number + 1}/{len(plan)}", f"{summary['seconds']:.1f} s"
        say("  ".join([place, name, f"seed {run.seed}", result_of(summary), seconds]))
    return table


def _check(runs: Sequence[Train]) -> None:
    """Raise a ValueError for whatever any of the runs would refuse, before anything is written."""
    limit = ground_of(runs[0]).limit
    for run in runs:
        run.first(limit)
        if (run.folder / "config.yaml").exists():
            check_same_settings(run.folder, settings_to_dict(run))


def _csv(summaries: Mapping[str, list[Mapping[str, Any]]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["run", "seed", *_COLUMNS])
    for name, runs in summaries.items():
        writer.writerows([name, run["seed"], *(run[column] for column in _COLUMNS)] for run in runs)
    return text.getvalue()
