"""What a comparison can claim: the reference, the primary comparison, the others, the figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from analysis.judging.anytime_regret import (
    Curve,
    Numbers,
    flops_to_reach,
    frontier,
    grid_of,
    read_curve,
    regret,
)
from analysis.judging.comparable_runs import (
    Finished,
    Rows,
    check_equal,
    measure_of,
    notes_on,
    scores_of,
)
from analysis.judging.loss_after_growth import read_losses, transients
from analysis.judging.significance import Difference, against, holm, paired


@dataclass(frozen=True)
class Figures:
    """What is read off one run beside its final score; None where there is nothing to read.

    Args:
        regret: anytime regret, the mean distance below the static frontier.
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
        published: the test accuracy in % that the literature gives for a row, (mean,) or (mean,
            spread), by row.
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
    published: Mapping[str, Sequence[float]] = field(default_factory=dict)


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
    check_equal(rows)
    reference = _reference(rows, static)
    measure = measure_of(rows, ("test_accuracy", "validation_accuracy"))
    seeds = tuple(sorted(set.intersection(*(set(row) for row in rows.values()))))
    scores = {name: [row[seed] for seed in seeds] for name, row in scores_of(rows, measure).items()}
    primary = paired(scores[pair[0]], scores[pair[1]]) if pair and len(seeds) > 1 else None
    others = _others(scores, static, reference, pair) if len(seeds) > 1 else {}
    curves = {
        name: {seed: read_curve(run.folder) for seed, run in row.items()}
        for name, row in rows.items()
    }
    grid = grid_of([curve for row in curves.values() for curve in row.values()])
    fixed = {name: list(curves[name].values()) for name in rows if name in static}
    best = frontier(fixed, grid) if fixed else None
    goal = mean(run.score[-1] for run in curves[reference].values()) if reference else None
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
        figures={
            name: {s: _figures(run, curves[name][s], grid, best, goal) for s, run in row.items()}
            for name, row in rows.items()
        },
        curves=curves,
        grid=grid,
        best=best,
        notes=tuple(notes_on(rows, seeds, budget)),
    )


def _reference(rows: Rows, static: Collection[str]) -> str | None:
    scores = scores_of(rows, measure_of(rows, ("validation_accuracy",)))
    means = {name: mean(scores[name].values()) for name in rows if name in static}
    return max(means, key=lambda name: means[name], default=None)


def _others(
    scores: Mapping[str, list[float]],
    static: Collection[str],
    reference: str | None,
    pair: tuple[str, str] | None,
) -> dict[str, Difference]:
    """Compare the rows that grow with the reference; what the primary comparison tells is out."""
    growing = [name for name in scores if name not in static]
    if reference is None or not growing:
        return {}
    found = against(scores, reference)
    told = pair if pair and reference in pair else ()
    return {name: found[name] for name in growing if name not in told}


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
