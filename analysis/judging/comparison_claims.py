"""What a comparison can claim: the reference, the primary comparison, the others, the figures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

from analysis.judging.anytime_regret import (
    Curve,
    Numbers,
    frontier,
    grid_of,
    read_curve,
    regret,
    spent_to_reach,
)
from analysis.judging.comparable_runs import (
    Finished,
    Rows,
    best_static,
    broken_of,
    check_equal,
    measure_of,
    notes_on,
    resolution_of,
    scores_of,
    validation_of,
    whole_static,
)
from analysis.judging.loss_after_growth import read_losses, transients
from analysis.judging.machines import machine_notes
from analysis.judging.significance import (
    Difference,
    each_against,
    each_paired,
    holm,
)


@dataclass(frozen=True)
class Figures:
    """What is read off one run beside its final score; None where there is nothing to read.

    Args:
        regret: anytime regret, the mean distance below the static frontier.
        flops_to_reference: training FLOPs at which the run's weights first had the score with which
            those of the reference end: its mean over seeds at the last record.
        seconds_to_reference: the seconds at which they had it.
        transient: mean over its growths of the loss above its trend in the next 100 steps.
    """

    regret: float | None
    flops_to_reference: float | None
    seconds_to_reference: float | None
    transient: float | None


@dataclass(frozen=True, eq=False)
class Judgement:
    """A comparison of rows on one data set and net.

    Args:
        rows: the runs judged.
        static: those of them that make the static frontier.
        budget: what all rows had equally much of: flops, epochs or seconds.
        measure: what is compared, of the weights at the end: test_accuracy if every run has read
            it, else validation_accuracy, or minus validation_loss for a regression.
        seeds: those that some row has.
        reference: the static row with the best mean on validation, by the same weights; None if
            there is none. A static row with fewer seeds than another cannot be it.
        pair: the rows of the primary comparison.
        primary: its difference over the seeds that both have; None with fewer than two, or if no
            pair was named.
        others: the other rows that grow, against the reference, each over the seeds that both have.
        adjusted: their p-values, Holm-corrected.
        controls: rows that do not grow and are no static size, against the reference: paired, each
            alone.
        broken: by row, the seeds whose runs ended without a finite score; tests leave them out.
        curves: every run's score over FLOPs, by row and seed.
        grid, best: the static frontier: scores at FLOPs, or at seconds if the budget was in them.
        notes: what a reader has to know.
        published: the test accuracy in % that the literature gives for a row, (mean,) or (mean,
            spread), by row.
    """

    rows: Rows
    static: frozenset[str]
    budget: str
    measure: str
    seeds: tuple[int, ...]
    reference: str | None
    pair: tuple[str, str] | None
    primary: Difference | None
    others: Mapping[str, Difference]
    adjusted: Mapping[str, float]
    broken: Mapping[str, Sequence[int]]
    figures: Mapping[str, Mapping[int, Figures]]
    curves: Mapping[str, Mapping[int, Curve]]
    grid: Numbers
    best: Numbers | None
    notes: tuple[str, ...]
    published: Mapping[str, Sequence[float]] = field(default_factory=dict)
    controls: Mapping[str, Difference] = field(default_factory=dict)

    @property
    def axis(self) -> str:
        """Over what the frontier and regret are taken: seconds if all had the same, else flops."""
        return axis_of(self.budget)


def axis_of(budget: str) -> str:
    """Give the axis that belongs to a budget."""
    return "seconds" if budget == "seconds" else "flops"


def judge(
    rows: Rows,
    static: Collection[str],
    pair: tuple[str, str] | None,
    budget: str,
    controls: Collection[str] = (),
) -> Judgement:
    """Judge the finished runs of one data set and net.

    Args:
        rows: the runs; a row must have at least one.
        static: the rows of the static frontier.
        pair: the primary comparison, named beforehand.
        budget: what all rows had equally much of: flops, epochs or seconds.
        controls: rows that train the final net of another from fresh weights.

    Raises:
        ValueError: a run has another data set or limit than the first, or its files cannot be read.
    """
    check_equal(rows)
    rows = {name: dict(sorted(row.items())) for name, row in rows.items()}
    measure, axis = measure_of(rows), axis_of(budget)
    scores, seen = scores_of(rows, measure), scores_of(rows, validation_of(rows))
    reference, resolution = best_static(seen, static), resolution_of(rows, measure)
    primary = each_paired(scores, pair[1], pair[:1], resolution).get(pair[0]) if pair else None
    told = {*static, *(pair if pair and reference in pair else ())}
    others, beside = {}, {}
    if reference is not None:
        growing = [name for name in scores if name not in {*told, *controls}]
        others = each_against(scores, reference, growing, resolution)
        fixed = [name for name in controls if name in scores and name not in told]
        beside = each_paired(scores, reference, fixed, resolution)
    curves = {
        name: {seed: read_curve(run.folder) for seed, run in row.items()}
        for name, row in rows.items()
    }
    grid = grid_of([curve for row in curves.values() for curve in row.values()], axis)
    drawn = {name: [curve for curve in row.values() if curve.any] for name, row in curves.items()}
    fixed = {name: runs for name in whole_static(seen, static) if (runs := drawn[name])}
    best = frontier(fixed, grid, axis) if fixed else None
    ends = [run.weights[-1] for run in drawn[reference]] if reference else []
    goal = mean(ends) if ends else None
    along = grid, best, axis
    return Judgement(
        rows=rows,
        static=frozenset(static),
        budget=budget,
        measure=measure,
        seeds=tuple(sorted({seed for row in rows.values() for seed in row})),
        reference=reference,
        pair=pair,
        primary=primary,
        others=others,
        adjusted=holm({name: found.p for name, found in others.items()}),
        broken=broken_of(rows, scores),
        figures={
            name: {s: _figures(run, curves[name][s], along, goal) for s, run in row.items()}
            for name, row in rows.items()
        },
        curves=curves,
        grid=grid,
        best=best,
        notes=(*notes_on(rows, scores, static, budget), *machine_notes(rows, budget)),
        controls=beside,
    )


def _figures(
    run: Finished, curve: Curve, along: tuple[Numbers, Numbers | None, str], goal: float | None
) -> Figures:
    steps = [entry["step"] for entry in run.summary["growth"]]
    found = transients(read_losses(run.folder), steps) if steps else []
    grid, best, axis = along
    flops, seconds = (
        None if goal is None else spent_to_reach(curve, goal, spent)
        for spent in ("flops", "seconds")
    )
    away = regret(curve, grid, best, axis) if best is not None and curve.any else None
    return Figures(away, flops, seconds, mean(found) if found else None)
