"""The finished runs of a comparison: whether they can be compared, and what their scores are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

UNEQUAL = 0.02
"""Rows whose training FLOPs differ by more than this share get a note."""

BOARD = "_comparison"
"""The folder beside the rows' that TensorBoard reads as a run; no row may be called so."""


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder and its summary."""

    folder: Path
    summary: Mapping[str, Any]


Rows = Mapping[str, Mapping[int, Finished]]
"""Finished runs by row and seed."""


def check_equal(rows: Rows) -> None:
    """Raise a ValueError unless all runs have the data set, the net and the limit of the first."""
    (first, *_) = (run for row in rows.values() for run in row.values())
    for name, row in rows.items():
        for seed, run in row.items():
            for key in ("data", "net", "limit"):
                if run.summary[key] != first.summary[key]:
                    raise ValueError(
                        f"{key} of {name}, seed {seed}, must be {first.summary[key]!r} as in the "
                        f"other runs, got {run.summary[key]!r}"
                    )


def measure_of(rows: Rows, names: tuple[str, ...]) -> str:
    """Give the first that every run has read, or else the loss."""
    for name in names:
        if all(run.summary[name] is not None for row in rows.values() for run in row.values()):
            return name
    return "validation_loss"


def scores_of(rows: Rows, measure: str) -> dict[str, dict[int, float]]:
    """Give each run's score, higher is better; a loss that is no number is the worst there is."""

    def score(value: float | None) -> float:
        value = inf if value is None or value != value else value
        return -value if measure == "validation_loss" else value

    return {
        name: {seed: score(run.summary[measure]) for seed, run in row.items()}
        for name, row in rows.items()
    }


def notes_on(rows: Rows, seeds: tuple[int, ...], budget: str) -> list[str]:
    """Say where rows lack seeds, and where they did not spend the same training FLOPs."""
    notes = []
    if len(seeds) < max(map(len, rows.values())):
        told = ", ".join(map(str, seeds)) or "none"
        notes.append(f"Not every row has every seed; tests use those that all have: {told}.")
    spent = {
        name: mean(run.summary["train_flops"] for run in row.values()) for name, row in rows.items()
    }
    least = min(spent.values())
    if budget != "flops":
        notes.append(f"The budget was in {budget}: rows did not spend the same training FLOPs.")
        return notes
    for name, flops in spent.items():
        if flops > (1 + UNEQUAL) * least:
            notes.append(
                f"{name} spent {flops / least - 1:.0%} more training FLOPs than the row that spent "
                "least: its last step or probe passed the end of the budget."
            )
    return notes
