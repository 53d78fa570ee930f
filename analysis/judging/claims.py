"""What a comparison can claim: the reference, the primary comparison, the others, the figures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

from analysis.judging.frontier import (
    Curve,
    Numbers,
    flops_to_reach,
    frontier,
    grid_of,
    read_curve,
    read_losses,
    regret,
    transients,
)
from analysis.judging.significance import Difference, against, holm, paired
from analysis.showing.tables import EXPLORATORY, comparison_rows, comparison_table, markdown, number

UNEQUAL = 0.02
"""Rows whose training FLOPs differ by more than this share get a note."""


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder and its summary."""

    folder: Path
    summary: Mapping[str, Any]


Rows = Mapping[str, Mapping[int, Finished]]
"""Finished runs by row and seed."""


@dataclass(frozen=True)
class Figures:
    """What is read off one run beside its final score; None where there is nothing to read.

    Args:
        regret: anytime regret, the mean distance below the static frontier (`frontier.regret`).
        flops_to_reference: training FLOPs at which the run first had the reference's final score.
        transient: mean over its growths of the loss above its trend in the next 100 steps.
    """

    regret: float | None
    flops_to_reference: float | None
    transient: float | None


@dataclass(frozen=True, eq=False)
class Judgement:
    """A comparison of rows on one data set and net.

    Args:
        rows: the runs judged.
        static: those of them that make the static frontier.
        measure: what is compared: test_accuracy if every run has read it, else
            validation_accuracy, or minus validation_loss for a regression.
        seeds: those that every row has; tests use these alone.
        reference: the static row with the best mean on validation, None if there is none.
        pair: the rows of the primary comparison.
        primary: its difference, None with fewer than two seeds or if none was named.
        others: the other rows that grow, against the reference.
        adjusted: their p-values, Holm-corrected.
        curves: every run's score over FLOPs, by row and seed.
        grid, best: the static frontier: scores at FLOPs.
        notes: what a reader has to know.
    """

    rows: Rows
    static: frozenset[str]
    measure: str
    seeds: tuple[int, ...]
    reference: str | None
    pair: tuple[str, str] | None
    primary: Difference | None
    others: Mapping[str, Difference]
    adjusted: Mapping[str, float]
    figures: Mapping[str, Mapping[int, Figures]]
    curves: Mapping[str, Mapping[int, Curve]]
    grid: Numbers
    best: Numbers | None
    notes: tuple[str, ...]


def judge(
    rows: Rows, static: Collection[str], pair: tuple[str, str] | None, budget: str
) -> Judgement:
    """Judge the finished runs of one data set and net.

    Args:
        rows: the runs; a row must have at least one.
        static: the rows of the static frontier.
        pair: the primary comparison, named beforehand.
        budget: what all rows had equally much of: flops, epochs or seconds.

    Raises:
        ValueError: a run has another data set or limit than the first, or its files cannot be read.
    """
    runs = [run for row in rows.values() for run in row.values()]
    _check_equal(rows)
    validation = _scores(rows, _measure(runs, ("validation_accuracy",)))
    reference = max(
        (name for name in rows if name in static),
        key=lambda name: mean(validation[name].values()),
        default=None,
    )
    measure = _measure(runs, ("test_accuracy", "validation_accuracy"))
    scores = _scores(rows, measure)
    seeds = tuple(sorted(set.intersection(*(set(row) for row in rows.values()))))
    enough = len(seeds) > 1
    table = {name: [row[seed] for seed in seeds] for name, row in scores.items()}
    primary = paired(table[pair[0]], table[pair[1]]) if pair and enough else None
    growing = [name for name in rows if name not in static]
    others = against(table, reference) if reference and growing and enough else {}
    others = {name: others[name] for name in growing if name in others}
    if pair and reference in pair:
        others = {name: found for name, found in others.items() if name not in pair}
    curves = {
        name: {seed: read_curve(run.folder) for seed, run in row.items()}
        for name, row in rows.items()
    }
    grid = grid_of([curve for row in curves.values() for curve in row.values()])
    fixed = {name: list(curves[name].values()) for name in rows if name in static}
    best = frontier(fixed, grid) if fixed else None
    goal = mean(run.score[-1] for run in curves[reference].values()) if reference else None
    figures = {
        name: {
            seed: _figures(run, curves[name][seed], grid, best, goal) for seed, run in row.items()
        }
        for name, row in rows.items()
    }
    return Judgement(
        rows=rows,
        static=frozenset(static),
        measure=measure,
        seeds=seeds,
        reference=reference,
        pair=pair,
        primary=primary,
        others=others,
        adjusted=holm({name: found.p for name, found in others.items()}),
        figures=figures,
        curves=curves,
        grid=grid,
        best=best,
        notes=tuple(_notes(rows, seeds, budget)),
    )


def _check_equal(rows: Rows) -> None:
    (first, *_) = (run for row in rows.values() for run in row.values())
    for name, row in rows.items():
        for seed, run in row.items():
            for key in ("data", "net", "limit"):
                if run.summary[key] != first.summary[key]:
                    raise ValueError(
                        f"{key} of {name}, seed {seed}, must be {first.summary[key]!r} as in the "
                        f"other runs, got {run.summary[key]!r}"
                    )


def _measure(runs: Collection[Finished], names: tuple[str, ...]) -> str:
    for name in names:
        if all(run.summary[name] is not None for run in runs):
            return name
    return "validation_loss"


def _scores(rows: Rows, measure: str) -> dict[str, dict[int, float]]:
    """Give each run's score, higher is better; a loss that is no number is the worst there is."""

    def score(value: float | None) -> float:
        value = inf if value is None or value != value else value
        return -value if measure == "validation_loss" else value

    return {
        name: {seed: score(run.summary[measure]) for seed, run in row.items()}
        for name, row in rows.items()
    }


def _figures(
    run: Finished, curve: Curve, grid: Numbers, best: Numbers | None, goal: float | None
) -> Figures:
    steps = [entry["step"] for entry in run.summary["growth"]]
    found = transients(read_losses(run.folder), steps) if steps else []
    return Figures(
        regret=None if best is None else regret(curve, grid, best),
        flops_to_reference=None if goal is None else flops_to_reach(curve, goal),
        transient=mean(found) if found else None,
    )


def _notes(rows: Rows, seeds: tuple[int, ...], budget: str) -> list[str]:
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


def judgement_text(judgement: Judgement) -> str:
    """Give the judgement as Markdown: the table, the claims, the figures, the notes."""
    rows = {name: [run.summary for run in row.values()] for name, row in judgement.rows.items()}
    parts = [comparison_table(comparison_rows(rows)), *judgement.notes, *_claims(judgement)]
    return "\n\n".join([*parts, figures_table(judgement)])


def _claims(judgement: Judgement) -> list[str]:
    parts, what = [], judgement.measure.replace("_", " ")
    reference = judgement.reference
    if reference:
        parts.append(f"Reference, the best static size on validation: **{reference}**.")
    if judgement.pair:
        (first, second), found = judgement.pair, judgement.primary
        told = "at least two seeds are needed." if found is None else difference_text(judgement)
        label = "Primary comparison, named beforehand"
        parts.append(f"{label}: **{first} - {second}** in {what}: {told}")
    if judgement.others:
        count = len(judgement.others)
        parts.append(f"Against {reference}, in {what}:\n\n{others_table(judgement)}")
        parts.append(
            "Row + seed block model with pooled error, and a paired test that must agree; p is "
            f"one-sided (better than {reference}), Holm-corrected over {count} rows."
        )
    return parts


def difference_text(judgement: Judgement) -> str:
    """Give the primary comparison in one sentence."""
    found, value = judgement.primary, scale_of(judgement)
    assert found is not None
    interval = f"95 % interval {value(found.low)} to {value(found.high)}"
    test = f"paired t, {found.seeds} seeds, p = {found.p:.2g}"
    exploratory = "" if found.seeds >= EXPLORATORY else "; exploratory"
    return f"{value(found.mean)}, {interval} ({test}{exploratory})."


def others_table(judgement: Judgement) -> str:
    """Give the other comparisons as a table."""
    value, lines = scale_of(judgement), []
    for name, found in judgement.others.items():
        adjusted = judgement.adjusted[name]
        verdict = "better" if adjusted < 0.05 else "not shown"
        if found.seeds < EXPLORATORY:
            verdict = "exploratory"
        interval = f"{value(found.low)} to {value(found.high)}"
        row = [name, value(found.mean), interval, f"{found.p:.2g}", f"{adjusted:.2g}", verdict]
        lines.append(row)
    header = ["row", "difference", "95 % interval", "p", "p (Holm)", "verdict"]
    return markdown(header, lines)


def figures_table(judgement: Judgement) -> str:
    """Give what the runs did on the way, as means over seeds."""
    value, lines = scale_of(judgement), []
    for name, runs in judgement.figures.items():
        reached = [r.flops_to_reference for r in runs.values() if r.flops_to_reference is not None]
        regrets = [run.regret for run in runs.values() if run.regret is not None]
        losses = [run.transient for run in runs.values() if run.transient is not None]
        lines.append(
            [
                name,
                value(mean(regrets)) if regrets else "-",
                f"{mean(reached):.3g} ({len(reached)} of {len(runs)})" if reached else "never",
                number(mean(losses)) if losses else "-",
            ]
        )
    header = ["row", "anytime regret", "FLOPs to the reference's score", "loss after growth"]
    return markdown(header, lines) + (
        "\n\nAnytime regret: mean distance below the static frontier over the budget. "
        "Loss after growth: training loss of the next 100 steps above its trend."
    )


def scale_of(judgement: Judgement) -> Callable[[float], str]:
    """Give how score differences are written: points for accuracies, four digits for losses."""
    if judgement.measure == "validation_loss":
        return lambda score: f"{score:+.4g}"
    return lambda score: f"{100 * score:+.2f}"
