"""An action, a number, a run's result in one line of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from analysis.recording.record import Record
from nets import Action, action_to_dict
from nets.plan.actions import adds_capacity


def phrase(action: Action) -> str:
    """Give an action as it is written in Python, without its reason."""
    values = action_to_dict(action)
    name = values.pop("action")
    values.pop("reason", None)
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"


def number(value: float | None) -> str:
    """Give a number in four digits, a dash for None."""
    return "-" if value is None else f"{value:.4g}"


def result_of(summary: Mapping[str, Any], part: str = "validation") -> str:
    """Give a run's result in two words: its accuracy on "validation" or "test", else its loss."""
    accuracy, loss = summary[f"{part}_accuracy"], summary[f"{part}_loss"]
    return f"loss {number(loss)}" if accuracy is None else f"accuracy {accuracy:.2%}"


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


def spread(values: Sequence[float]) -> str:
    """Give mean ± sample std, the mean alone for one value."""
    return number(mean(values)) + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")
