"""A judged comparison in one sentence: what it says of growing, and how much it can carry."""

from __future__ import annotations

from math import isfinite
from statistics import mean

from analysis.judging.comparable_runs import scores_of
from analysis.judging.comparison_claims import Judgement
from analysis.judging.significance import Difference
from analysis.showing.comparison_tables import EXPLORATORY, scale_of, words_of

_LEVEL = 0.05


def verdict(judgement: Judgement) -> str:
    """Give the verdict as Markdown, one sentence and how far it carries.

    The primary comparison if one was named; else the growing rows against the best static size;
    without either, the row with the best mean.
    """
    primary = _primary(judgement)
    told = primary or _others(judgement) or _best(judgement)
    seeds = judgement.primary.seeds if primary and judgement.primary else len(judgement.seeds)
    if seeds >= EXPLORATORY:
        return told
    return f"{told} Exploratory: {seeds} seed{'' if seeds == 1 else 's'}."


def _primary(judgement: Judgement) -> str | None:
    if not judgement.pair or judgement.primary is None:
        return None
    (first, second), found = judgement.pair, judgement.primary
    ahead = first if found.mean > 0 else second
    if found.low <= 0 <= found.high or found.p >= _LEVEL or ahead in judgement.broken:
        return f"**No difference shown between {first} and {second}**: {_told(judgement, found)}."
    word = "better" if found.mean > 0 else "worse"
    return f"**{first} is {word} than {second}**: {_told(judgement, found)}."


def _others(judgement: Judgement) -> str | None:
    if not judgement.others or judgement.reference is None:
        return None
    others, reference = judgement.others, judgement.reference
    better = [name for name in others if judgement.adjusted[name] < _LEVEL]
    better = [name for name in better if not {name, reference} & set(judgement.broken)]
    finite = [name for name in others if isfinite(others[name].mean)]
    first = max(better or finite or others, key=lambda name: others[name].mean)
    told = f"{first} is at {_told(judgement, others[first])}"
    if better:
        rows = f"{len(better)} of {len(others)} growing rows"
        verb = "is" if len(better) == 1 else "are"
        return f"**{rows} {verb} better than {reference}**, the best static size: {told}."
    count = len(others)
    rows = "The growing row is not" if count == 1 else f"None of {count} growing rows is"
    return f"**{rows} shown to be better than {reference}**, the best static size: {told}."


def _told(judgement: Judgement, found: Difference) -> str:
    value, of = scale_of(judgement), words_of(judgement)
    unit = "" if judgement.measure == "validation_loss" else " points"
    if found.sides == 2 and found.has_spread:
        sure = f"95 % interval {value(found.low)} to {value(found.high)}"
    else:
        sure = f"95 % sure: at least {value(found.low)}" if found.has_spread else "no spread"
    return f"{value(found.mean)}{unit} of {of} ({sure})"


def _best(judgement: Judgement) -> str:
    scores = scores_of(judgement.rows, judgement.measure)
    means = {name: mean(runs.values()) for name, runs in scores.items() if runs}
    if not means:
        return "No run has a score."
    best = max(means, key=lambda name: means[name])
    score = means[best]
    if judgement.measure == "validation_loss":
        told = f"validation loss {-score:.4g}"
    else:
        told = f"{words_of(judgement)} {100 * score:.2f} %"
    if len(means) == 1:
        return f"**{best}** is the only row: {told}."
    return f"**{best}** has the best mean of {len(means)} rows, which no test compares: {told}."
