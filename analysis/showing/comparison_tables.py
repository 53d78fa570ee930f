"""A judged comparison as Markdown: its rows, what it claims, what the runs did on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean, stdev
from typing import Any

from analysis.judging.comparison_claims import Judgement
from analysis.judging.machines import seconds_mark
from analysis.recording.phrases import number
from analysis.showing.tables import markdown

EXPLORATORY = 5
"""Below so many seeds a comparison is exploratory."""


def judgement_text(judgement: Judgement) -> str:
    """Give the judgement as Markdown: the table, the claims, the figures, the notes."""
    rows = {name: [run.summary for run in row.values()] for name, row in judgement.rows.items()}
    marks = {name: seconds_mark(row) for name, row in judgement.rows.items()}
    table = comparison_table(comparison_rows(rows, judgement.published, marks))
    parts = [table, *judgement.notes, *_claims(judgement)]
    return "\n\n".join([*parts, figures_table(judgement)])


def _claims(judgement: Judgement) -> list[str]:
    parts, what = [], words_of(judgement)
    reference = judgement.reference
    if reference:
        parts.append(f"Reference, the best static size on validation: **{reference}**.")
    if judgement.pair:
        first, second = judgement.pair
        label = "Primary comparison, named beforehand"
        parts.append(f"{label}: **{first} - {second}** in {what}: {difference_text(judgement)}")
    if judgement.others:
        count = len(judgement.others)
        parts.append(f"Against {reference}, in {what}:\n\n{others_table(judgement)}")
        parts.append(
            "Row + seed block model with pooled error, and a paired test that must agree. p and "
            f"the bound are one-sided (better than {reference}, by at least so much); p (Holm) is "
            f"corrected over {count} row{'s' if count > 1 else ''}, the bound is of each row alone."
        )
    if judgement.controls:
        parts.append(
            f"Controls against {reference}, in {what}: the final net of a row, from fresh weights. "
            "They do not grow and count in no correction: paired t, two-sided, each alone.\n\n"
            f"{controls_table(judgement)}"
        )
    alike = [judgement.primary, *judgement.others.values(), *judgement.controls.values()]
    if any(found is not None and not found.has_spread for found in alike):
        parts.append(
            "No spread: the differences of all seeds are alike to within what the score resolves, "
            "one image of an accuracy. There is nothing to judge them by, and so no p."
        )
    return parts


def difference_text(judgement: Judgement) -> str:
    """Give the primary comparison in one sentence."""
    assert judgement.pair is not None
    found, value = judgement.primary, scale_of(judgement)
    if gone := [name for name in judgement.pair if name not in judgement.rows]:
        return f"{' and '.join(gone)} not run yet."
    if found is None:
        return "at least two seeds are needed, which both rows have."
    test = f"paired t, two-sided, {found.seeds} seeds, p = {found.p:.2g}"
    interval = f"95 % interval {value(found.low)} to {value(found.high)}"
    if not found.has_spread:
        test, interval = f"{found.seeds} seeds", "no spread, no p"
    exploratory = "" if found.seeds >= EXPLORATORY else "; exploratory"
    return f"{value(found.mean)}, {interval} ({test}{exploratory})."


def others_table(judgement: Judgement) -> str:
    """Give the other comparisons as a table."""
    value, lines = scale_of(judgement), []
    for name, found in judgement.others.items():
        adjusted = judgement.adjusted[name]
        broke = name in judgement.broken or judgement.reference in judgement.broken
        verdict = "better" if adjusted < 0.05 and not broke else "not shown"
        if found.seeds < EXPLORATORY:
            verdict = "exploratory"
        told = [value(found.low), f"{found.p:.2g}", f"{adjusted:.2g}"]
        told = told if found.has_spread else ["no spread", "-", "-"]
        lines.append([name, value(found.mean), *told, str(found.seeds), verdict])
    header = ["row", "difference", "at least (95 %)", "p", "p (Holm)", "seeds", "verdict"]
    return markdown(header, lines)


def controls_table(judgement: Judgement) -> str:
    """Give the differences of rows that do not grow and are no static size as a table."""
    value, lines = scale_of(judgement), []
    for name, found in judgement.controls.items():
        interval = f"{value(found.low)} to {value(found.high)}" if found.has_spread else "no spread"
        lines.append([name, value(found.mean), interval, str(found.seeds)])
    return markdown(["row", "difference", "95 % interval", "seeds"], lines)


def figures_table(judgement: Judgement) -> str:
    """Give what the runs did on the way, as means over seeds."""
    value, lines, axis = scale_of(judgement), [], judgement.axis
    reaching = sorted(("flops", "seconds"), key=lambda name: name != axis)
    keys = ("regret", *(f"{name}_to_reference" for name in reaching), "transient")
    for name, runs in judgement.figures.items():
        regrets, *reached, losses = (
            [found for run in runs.values() if (found := getattr(run, key)) is not None]
            for key in keys
        )
        told = [f"{mean(x):.3g} ({len(x)} of {len(runs)})" if x else "never" for x in reached]
        loss = number(mean(losses)) if losses else "-"
        lines.append([name, value(mean(regrets)) if regrets else "-", *told, loss])
    units = {"flops": "FLOPs", "seconds": "seconds"}
    header = [f"{units[name]} to the reference's score" for name in reaching]
    header = ["row", f"anytime regret over {units[axis]}", *header, "loss after growth"]
    return markdown(header, lines) + (
        "\n\nAnytime regret: mean distance below the static frontier over the budget, by the "
        "averaged weights where a run has them. All other scores are of the weights themselves: "
        "those of the table, and the reference's, its mean at the last record. "
        "Loss after growth: training loss of the next 100 steps above its trend."
    )


def words_of(judgement: Judgement) -> str:
    """Give what is compared in words; higher is better."""
    if judgement.measure == "validation_loss":
        return "minus the validation loss"
    return judgement.measure.replace("_", " ")


def scale_of(judgement: Judgement) -> Callable[[float], str]:
    """Give how score differences are written: points for accuracies, four digits for losses."""
    if judgement.measure == "validation_loss":
        return lambda score: f"{score:+.4g}"
    return lambda score: f"{100 * score:+.2f}"


@dataclass(frozen=True)
class Row:
    """One row of a comparison: means over seeds, and the accuracy's sample std.

    `published` is what the literature gives for it, in %: nothing, (mean,) or (mean, spread).
    `mark` says what its seconds must not be read without.
    """

    name: str
    seeds: int
    parameters: float
    train_flops: float
    seconds: float
    loss: float | None
    accuracy: float | None
    spread: float | None
    test: float | None
    test_spread: float | None
    published: Sequence[float] = ()
    mark: str = ""


def comparison_rows(
    summaries: Mapping[str, Sequence[Mapping[str, Any]]],
    published: Mapping[str, Sequence[float]] | None = None,
    marks: Mapping[str, str] | None = None,
) -> list[Row]:
    """Average the summaries of each row over its seeds; accuracies are fractions in [0, 1]."""
    return [
        Row(
            name,
            len(runs),
            mean(run["parameters"] for run in runs),
            mean(run["train_flops"] for run in runs),
            mean(run["seconds"] for run in runs),
            _mean_and_spread(runs, "validation_loss")[0],
            *_mean_and_spread(runs, "validation_accuracy"),
            *_mean_and_spread(runs, "test_accuracy"),
            published=tuple((published or {}).get(name, ())),
            mark=(marks or {}).get(name, ""),
        )
        for name, runs in summaries.items()
        if runs
    ]


def _mean_and_spread(
    runs: Sequence[Mapping[str, Any]], key: str
) -> tuple[float | None, float | None]:
    values = [run[key] for run in runs]
    if not all(value is not None and isfinite(value) for value in values):
        return None, None
    return mean(values), stdev(values) if len(values) > 1 else None


def comparison_table(rows: Sequence[Row]) -> str:
    """Give the comparison as Markdown, with a line that says how much it can carry."""
    header = ["run", "parameters", "training FLOPs", "seconds", "validation loss"]
    header += ["validation accuracy %", "test accuracy %", "published %", "seeds"]
    lines = [
        [
            row.name,
            f"{row.parameters:,.0f}",
            f"{row.train_flops:.3g}",
            f"{row.seconds:.1f}" + (f" ({row.mark})" if row.mark else ""),
            number(row.loss),
            _percent(row.accuracy, row.spread),
            _percent(row.test, row.test_spread),
            " ± ".join(f"{number:.2f}" for number in row.published) or "-",
            str(row.seeds),
        ]
        for row in rows
    ]
    shown = [k for k in range(len(header)) if any(line[k] != "-" for line in lines)]
    table = markdown([header[k] for k in shown], [[line[k] for k in shown] for line in lines])
    if min((row.seeds for row in rows), default=0) < EXPLORATORY:
        table += f"\n\nExploratory: fewer than {EXPLORATORY} seeds. "
        table += "Accuracies are mean ± sample std over seeds."
    if any(row.published for row in rows):
        table += (
            "\n\nPublished: test accuracy as the literature gives it for such a row, under its "
        )
        table += "own settings; the configuration says which."
    return table


def _percent(value: float | None, spread: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")
