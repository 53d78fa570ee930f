"""The verdict in one sentence, for every kind of judgement."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.judging.comparable_runs import Finished
from analysis.judging.significance import Difference
from analysis.reporting.verdict import verdict


def difference(mean: float, low: float, high: float, p: float = 0.01) -> Difference:
    return Difference(mean=mean, low=low, high=high, p=p, seeds=5, sides=2)


def judgement(seeds: int = 5, measure: str = "validation_accuracy", **values: Any) -> Any:
    rows = {
        name: {seed: Finished(Path(), {measure: score}) for seed in range(seeds)}
        for name, score in (("small", 0.5), ("grown", 0.75))
    }
    given = {"pair": None, "primary": None, "others": {}, "adjusted": {}, "reference": "small"}
    given["broken"] = {}
    return SimpleNamespace(
        rows=rows, measure=measure, seeds=tuple(range(seeds)), **{**given, **values}
    )


PAIR = ("grown", "small")
BETTER, OPEN = difference(0.012, 0.002, 0.022), difference(0.004, -0.01, 0.018, p=0.4)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"pair": PAIR, "primary": BETTER},
            "**grown is better than small**: +1.20 points of validation accuracy "
            "(95 % interval +0.20 to +2.20).",
        ),
        (
            {"pair": PAIR, "primary": difference(-0.01, -0.02, -0.001)},
            "**grown is worse than small**: -1.00 points of validation accuracy "
            "(95 % interval -2.00 to -0.10).",
        ),
        (
            {"pair": PAIR, "primary": OPEN},
            "**No difference shown between grown and small**: +0.40 points of validation accuracy "
            "(95 % interval -1.00 to +1.80).",
        ),
        (  # some of its runs have no score: the row is never called better
            {"pair": PAIR, "primary": BETTER, "broken": {"grown": [3]}},
            "**No difference shown between grown and small**: +1.20 points of validation accuracy "
            "(95 % interval +0.20 to +2.20).",
        ),
        (
            {"others": {"grown": BETTER, "other": OPEN}, "adjusted": {"grown": 0.02, "other": 0.4}},
            "**1 of 2 growing rows is better than small**, the best static size: grown is at +1.20 "
            "points of validation accuracy (95 % interval +0.20 to +2.20).",
        ),
        (
            {"others": {"grown": BETTER, "other": OPEN}, "adjusted": {"grown": 0.08, "other": 0.4}},
            "**None of 2 growing rows is shown to be better than small**, the best static size: "
            "grown is at +1.20 points of validation accuracy (95 % interval +0.20 to +2.20).",
        ),
        (
            {"others": {"grown": OPEN}, "adjusted": {"grown": 0.4}, "measure": "validation_loss"},
            "**The growing row is not shown to be better than small**, the best static size: grown "
            "is at +0.004 of minus the validation loss (95 % interval -0.01 to +0.018).",
        ),
        (
            {},
            "**grown** has the best mean of 2 rows, which no test compares: "
            "validation accuracy 75.00 %.",
        ),
    ],
)
def test_a_judgement_in_one_sentence(values, told):
    assert verdict(judgement(**values)) == told


@pytest.mark.parametrize(("seeds", "words"), [(1, "1 seed."), (3, "3 seeds."), (5, None)])
def test_few_seeds_are_said_to_be_few(seeds, words):
    told = verdict(judgement(seeds, others={"grown": BETTER}, adjusted={"grown": 0.02}))
    assert told.endswith(f" Exploratory: {words}" if words else "+2.20).")
