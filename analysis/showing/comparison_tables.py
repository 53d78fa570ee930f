"""A judged comparison as Markdown: its rows, what it claims, what the runs did on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from analysis.judging.comparison_claims import Judgement
from analysis.recording.phrases import number
from analysis.showing.tables import markdown

EXPLORATORY = 5
"""Below so many seeds a comparison is exploratory."""


def judgement_text(judgement: Judgement) -> str:
    """Give the judgement as Markdown: the table, the claims, the figures, the notes."""
    rows = {name: [run.summary for run in row.values()] for name, row in judgement.rows.items()}
    table = comparison_table(comparison_rows(rows, judgement.published))
    parts = [table, *judgement.notes, *_claims(judgement)]
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
        regrets, reached, losses = (
            [found for run in runs.values() if (found := getattr(run, key)) is not None]
            for key in ("regret", "flops_to_reference", "transient")
        )
        told = f"{mean(reached):.3g} ({len(reached)} of {len(runs)})" if reached else "never"
        loss = number(mean(losses)) if losses else "-"
        lines.append([name, value(mean(regrets)) if regrets else "-", told, loss])
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


@dataclass(frozen=True)
class Row:
    """One row of a comparison: means over seeds, and the accuracy's sample std.

    `published` is what the literature gives for it, in %: nothing, (mean,) or (mean, spread).
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


def comparison_rows(
    summaries: Mapping[str, Sequence[Mapping[str, Any]]],
    published: Mapping[str, Sequence[float]] | None = None,
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
        )
        for name, runs in summaries.items()
        if runs
    ]


def _mean_and_spread(
    runs: Sequence[Mapping[str, Any]], key: str
) -> tuple[float | None, float | None]:
    values = [run[key] for run in runs]
    if None in values:
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
            f"{row.seconds:.1f}",
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
