"""Histories and summaries as tables: of layers, of growth, of compared runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from analysis.recording.record import Record
from analysis.recording.timeline import statistics_of
from nets import Action, SetSurvival, action_to_dict, cost
from nets.plan.actions import adds_capacity

EXPLORATORY = 5
"""Below so many seeds a comparison is exploratory."""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a Markdown table whose columns also line up as plain text."""
    lines = [list(header), *map(list, rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    rule = [
        ("-" * width if column == 0 else "-" * (width - 1) + ":")
        for column, width in enumerate(widths)
    ]
    aligned = [
        [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def number(value: float | None) -> str:
    """Give a number in four digits, a dash for None."""
    return "-" if value is None else f"{value:.4g}"


def phrase(action: Action) -> str:
    """Give an action as it is written in Python, without its reason."""
    values = action_to_dict(action)
    name = values.pop("action")
    values.pop("reason", None)
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"


def layer_table(record: Record) -> str:
    """Give the statistics of every layer as a table; columns that no layer has are left out."""
    names = statistics_of([record])
    rows = []
    for path, reading in record.layers.items():
        edited = "-" if reading.edited is None else str(reading.edited)
        values = [number(reading.value(name)) for name in names]
        rows.append([path, reading.role, *values, edited])
    return markdown(["layer", "role", *names, "edited"], rows)


def growth_table(history: Sequence[Record]) -> str:
    """Give what was added, taken away, held or thawed: when, why, and the network's size then.

    Changes of survival probabilities are left out: some policies make them at every record.
    """
    rows = []
    for record in history:
        architecture = record.architecture
        for action in record.applied:
            architecture = architecture.apply(action)
            if not isinstance(action, SetSurvival):
                size, reason = cost(architecture).parameters, getattr(action, "reason", "")
                when = [str(record.step), f"{record.spent:.0%}"]
                rows.append([phrase(action), *when, f"{size:,}", reason])
    header = ["action", "step", "spent", "parameters after", "reason"]
    return markdown(header, rows) if rows else "none"


def no_growth(history: Sequence[Record]) -> str:
    """Give why a run never grew, and what to do, as far as its records tell; nothing if it did."""
    if any(map(adds_capacity, (action for record in history for action in record.applied))):
        return ""
    refused = [why for record in history for action, why in record.refused if adds_capacity(action)]
    first, limit = history[0].cost, history[0].limit
    if refused:
        why = f"what its policy asked for was refused: {refused[0]}"
    elif first.flops >= limit.flops or first.parameters >= limit.parameters:
        why = "it began at its limit: start smaller, such as with --start.width 0.25"
    else:
        why = "its policy asked for no growth: another may, and Periodic does, by the clock"
    return f"the run never grew; {why}"


@dataclass(frozen=True)
class Row:
    """One row of a comparison: means over seeds, and the accuracy's sample std."""

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


def comparison_rows(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Average the summaries of each row over its seeds; accuracies are fractions in [0, 1]."""
    return [_row(name, runs) for name, runs in summaries.items() if runs]


def _row(name: str, runs: Sequence[Mapping[str, Any]]) -> Row:
    accuracy, spread = _mean_and_spread(runs, "validation_accuracy")
    test, test_spread = _mean_and_spread(runs, "test_accuracy")
    return Row(
        name=name,
        seeds=len(runs),
        parameters=mean(run["parameters"] for run in runs),
        train_flops=mean(run["train_flops"] for run in runs),
        seconds=mean(run["seconds"] for run in runs),
        loss=_mean_and_spread(runs, "validation_loss")[0],
        accuracy=accuracy,
        spread=spread,
        test=test,
        test_spread=test_spread,
    )


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
    header += ["validation accuracy %", "test accuracy %", "seeds"]
    lines = [
        [
            row.name,
            f"{row.parameters:,.0f}",
            f"{row.train_flops:.3g}",
            f"{row.seconds:.1f}",
            number(row.loss),
            _percent(row.accuracy, row.spread),
            _percent(row.test, row.test_spread),
            str(row.seeds),
        ]
        for row in rows
    ]
    shown = [k for k in range(len(header)) if any(line[k] != "-" for line in lines)]
    table = markdown([header[k] for k in shown], [[line[k] for k in shown] for line in lines])
    if min((row.seeds for row in rows), default=0) < EXPLORATORY:
        table += f"\n\nExploratory: fewer than {EXPLORATORY} seeds. "
        table += "Accuracies are mean ± sample std over seeds."
    return table


def result_of(summary: Mapping[str, Any]) -> str:
    """Give a run's result in two words: its validation accuracy, the loss of a regression."""
    accuracy = summary["validation_accuracy"]
    loss = f"loss {summary['validation_loss']:.4g}"
    return loss if accuracy is None else f"accuracy {accuracy:.2%}"


def _percent(value: float | None, spread: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}")
