"""The finished runs of a comparison: whether they can be compared, and what their scores are."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import Any

from analysis.judging.significance import Scores, shared_seeds

UNEQUAL = 0.02
"""Rows that spent more of the budget than others by this share get a note."""

BOARD = "_comparison"
"""The folder beside the rows' that TensorBoard reads as a run; no row may be called so."""
FRONTIER = "static-frontier"
"""What stands there beside the rows; no row may be called so either."""


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, its summary, and how many runs went on at a time, if known."""

    folder: Path
    summary: Mapping[str, Any]
    at_a_time: int | None = None


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


def measure_of(rows: Rows) -> str:
    """Give what is compared: test accuracy once every run has read it, else validation's.

    It is the validation loss where no run has an accuracy.
    """
    runs = [run.summary for row in rows.values() for run in row.values()]
    if all(run["test_accuracy"] is not None for run in runs):
        return "test_accuracy"
    return validation_of(rows)


def validation_of(rows: Rows) -> str:
    """Give what is compared on validation: accuracy, or the loss where no run has an accuracy."""
    runs = [run.summary for row in rows.values() for run in row.values()]
    known = any(run["validation_accuracy"] is not None for run in runs)
    return "validation_accuracy" if known else "validation_loss"


def scores_of(rows: Rows, measure: str) -> dict[str, dict[int, float]]:
    """Give each run's score, higher is better; a run whose score is no finite number has none."""
    sign, found = -1 if measure == "validation_loss" else 1, {}
    for name, row in rows.items():
        values = {seed: run.summary[measure] for seed, run in row.items()}
        finite = {seed: x for seed, x in values.items() if x is not None and isfinite(x)}
        found[name] = {seed: sign * finite[seed] for seed in sorted(finite)}
    return found


def resolution_of(rows: Rows, measure: str) -> float:
    """Give the least step of a score: 1 / images of an accuracy, as data.json counts them.

    0 where that is not known, and of a loss.
    """
    (first, *_) = (run for row in rows.values() for run in row.values())
    part, _, what = measure.partition("_")
    try:
        images = json.loads((first.folder / "data.json").read_text(encoding="utf-8"))["images"]
        return 1 / int(images[part]) if what == "accuracy" else 0.0
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return 0.0  # a run of an earlier version


def whole_static(scores: Scores, static: Collection[str]) -> list[str]:
    """Give the static rows that can be the reference: no other static row has more seeds.

    A lucky seed or a broken run makes no size the best.
    """
    counts = {name: len(of) for name, of in scores.items() if name in static and of}
    return [name for name, count in counts.items() if count == max(counts.values())]


def best_static(scores: Scores, static: Collection[str]) -> str | None:
    """Give the static row with the best mean, over the seeds of `whole_static` rows alike."""
    names = whole_static(scores, static)
    if not names:
        return None
    seeds = shared_seeds(scores, names)
    return max(names, key=lambda name: mean(scores[name][s] for s in seeds or scores[name]))


def notes_on(rows: Rows, scores: Scores, static: Collection[str], budget: str) -> list[str]:
    """Say which runs have no score, which seeds rows lack, and who spent more of the budget."""
    notes, every = [], sorted({seed for row in rows.values() for seed in row})
    broken = broken_of(rows, scores)
    for name, seeds in broken.items():
        notes.append(
            f"{name} has no finite score at {seeds_text(seeds)}: the tests leave that out, and so "
            "the row is never called better."
        )
    lacking = {
        name: gone for name, row in rows.items() if (gone := [s for s in every if s not in row])
    }
    if lacking:
        told = "; ".join(f"{name} lacks {seeds_text(seeds)}" for name, seeds in lacking.items())
        notes.append(
            f"Not every row has every seed: {told}. Every test takes the seeds that its two rows "
            "share."
        )
    whole = whole_static(scores, static)
    if fewer := [name for name in rows if name in static and name not in whole]:
        words = "is neither the reference nor part of" if len(fewer) == 1 else "are not in"
        notes.append(
            f"{', '.join(fewer)} {words} the static frontier: other static sizes have more seeds."
        )
    return [*notes, *_still(rows), *_tested(rows), *_spent(rows, budget)]


def _still(rows: Rows) -> list[str]:
    """Say which rows have a policy, and never grew; they may have shed or frozen."""
    still = [
        name
        for name, row in rows.items()
        if not any(run.summary["growth"] for run in row.values())
        and all(run.summary.get("policy", "Never") != "Never" for run in row.values())
    ]
    told = f"{', '.join(still)} never grew: nothing was added to the net that a run began with."
    return [told] if still else []


def _tested(rows: Rows) -> list[str]:
    """Say why the judgement is on validation although test sets were read."""
    runs = [run.summary for row in rows.values() for run in row.values()]
    read = [run for run in runs if run.get("test_readings") or run["test_accuracy"] is not None]
    told = f"{len(read)} of {len(runs)} runs have read the test set"
    if read and validation_of(rows) == "validation_loss":
        return [f"{told}: its losses are in comparison.csv; a regression is judged on validation."]
    if 0 < len(read) < len(runs):
        return [f"{told}: the judgement is on validation until all have."]
    return []


def broken_of(rows: Rows, scores: Scores) -> dict[str, list[int]]:
    """Give by row the seeds whose runs are finished without a finite score."""
    found = {name: sorted(set(row) - set(scores[name])) for name, row in rows.items()}
    return {name: seeds for name, seeds in found.items() if seeds}


def seeds_text(seeds: Collection[int]) -> str:
    """Give seeds as text: seed 3, or seeds 3, 4."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _spent(rows: Rows, budget: str) -> list[str]:
    notes = []
    if budget != "flops":
        notes.append(f"The budget was in {budget}: rows did not spend the same training FLOPs.")
    if budget == "epochs":
        return [*notes, "Anytime regret is over the FLOPs that every run has spent, no further."]
    key, unit = ("seconds", "seconds") if budget == "seconds" else ("train_flops", "training FLOPs")
    spent = {name: mean(run.summary[key] for run in row.values()) for name, row in rows.items()}
    least = min(spent.values())
    allowed = (1 + UNEQUAL) * least
    beyond = [(name, each / least - 1) for name, each in spent.items() if each > allowed]
    if beyond:
        (first, part), *others = beyond
        rest = "".join(f", {name} {each:.0%}" for name, each in others)
        whose = "their" if others else "its"
        notes.append(
            f"{first} spent {part:.0%}{rest} more {unit} than the row that spent least: {whose} "
            "last step or probe passed the end of the budget."
        )
    return notes
