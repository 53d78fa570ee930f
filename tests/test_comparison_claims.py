"""What a comparison claims: the reference, who is tested against whom, and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from analysis.judging.comparable_runs import Finished
from analysis.judging.comparison_claims import Judgement, judge
from analysis.reporting.verdict import verdict
from analysis.showing.comparison_tables import judgement_text

SMALL = [0.80, 0.82, 0.81, 0.79, 0.83]
LARGE = [0.70, 0.71, 0.69, 0.72, 0.70]
GROWN = [0.86, 0.87, 0.85, 0.84, 0.88]
RANDOM = [0.81, 0.80, 0.83, 0.78, 0.84]
ROWS = {"small": SMALL, "large": LARGE, "grown": GROWN, "random": RANDOM}


def finished(
    folder: Path,
    seed: int,
    accuracy: float | None,
    averaged: float | None = None,
    pace: float = 1.0,
    **changes: Any,
) -> Finished:
    """A run whose accuracies rise in a straight line over ten records, `pace` seconds each."""
    folder.mkdir(parents=True, exist_ok=True)
    names = "train_flops,seconds,validation_loss,validation_accuracy,ema_validation_accuracy"
    lines = [names]
    for number in range(1, 11):
        scores = ["" if x is None else str(x * number / 10) for x in (accuracy, averaged)]
        lines.append(f"{100 * number},{pace * number},{1 / number},{','.join(scores)}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    summary: dict[str, Any] = {"data": "digits", "net": "resnet8", "limit": {"flops": 5}}
    summary |= {"parameters": 10, "train_flops": 1000, "seconds": 1.0, "seed": seed, "growth": []}
    summary |= {"validation_loss": 0.1, "validation_accuracy": accuracy, "test_accuracy": None}
    return Finished(folder, {**summary, **changes})


def judged(
    folder: Path, pair: tuple[str, str] | None = None, seeds: int = 5, **rows: Any
) -> Judgement:
    runs = {
        name: {s: finished(folder / name / str(s), s, x) for s, x in enumerate(values[:seeds])}
        for name, values in (rows or ROWS).items()
    }
    return judge(runs, ["small", "large"], pair, "flops", controls=["fresh"])


def test_the_best_static_size_is_the_reference_and_rows_that_grow_are_tested(tmp_path):
    found = judged(tmp_path)
    assert found.reference == "small"
    assert list(found.others) == ["grown", "random"]
    assert found.others["grown"].mean == pytest.approx(0.05)
    assert found.adjusted["grown"] < 0.05 < found.adjusted["random"]
    assert (found.pair, found.primary, found.measure) == (None, None, "validation_accuracy")
    text = judgement_text(found)
    assert "Reference, the best static size on validation: **small**." in text
    (row,) = [line for line in text.splitlines() if line.startswith("| grown") and "better" in line]
    assert "+5.00" in row
    assert "not shown" in text
    assert "xploratory" not in text
    assert "Primary" not in text


def test_a_row_that_never_grew_is_told(tmp_path):
    grew = {"growth": [{"step": 5}]}
    rows = {
        "small": [{"policy": "Never"}, {"policy": "Never"}],
        "stuck": [{"policy": "LayerStatistic"}, {"policy": "LayerStatistic"}],
        "late": [{"policy": "Plateau"}, {"policy": "Plateau", **grew}],
    }
    runs = {
        name: {s: finished(tmp_path / name / str(s), s, 0.5, **each) for s, each in enumerate(own)}
        for name, own in rows.items()
    }
    (note,) = judge(runs, ["small"], None, "flops").notes
    assert note == "stuck never grew: nothing was added to the net that a run began with."


def test_a_difference_of_losses_says_which_sign_is_better(tmp_path):
    rows = {
        name: {
            seed: finished(tmp_path / name / str(seed), seed, None, validation_loss=loss)
            for seed, loss in enumerate(losses)
        }
        for name, losses in (("small", (0.2, 0.3, 0.41)), ("grown", (0.3, 0.42, 0.5)))
    }
    text = judgement_text(judge(rows, ["small"], ("grown", "small"), "flops"))
    assert "**grown - small** in minus the validation loss: -0.1033," in text
    text = judgement_text(judge(rows, ["small"], None, "flops"))
    assert "Against small, in minus the validation loss:" in text


def test_the_primary_comparison_is_a_paired_t_interval(tmp_path):
    found = judged(tmp_path, ("grown", "random"))
    test = stats.ttest_rel(GROWN, RANDOM)
    assert found.primary is not None
    assert found.primary.p == pytest.approx(test.pvalue)
    interval = test.confidence_interval(0.95)
    assert (found.primary.low, found.primary.high) == pytest.approx((interval.low, interval.high))
    assert list(found.others) == ["grown", "random"]  # another question: against the reference
    text = judgement_text(found)
    assert (
        "Primary comparison, named beforehand: **grown - random** in validation accuracy: " in text
    )
    assert f"{100 * found.primary.mean:+.2f}, 95 % interval" in text


def test_a_primary_comparison_with_the_reference_is_not_made_twice(tmp_path):
    found = judged(tmp_path, ("grown", "small"))
    assert list(found.others) == ["random"]
    assert found.adjusted["random"] == found.others["random"].p


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_under_five_seeds_nothing_is_claimed(tmp_path, seeds):
    found = judged(tmp_path, ("grown", "random"), seeds)
    text = judgement_text(found)
    assert "Exploratory: fewer than 5 seeds" in text
    assert "better |" not in text
    if seeds == 1:
        assert found.primary is None
        assert "at least two seeds are needed" in text
    else:
        assert "; exploratory)" in text


def test_a_grown_net_from_fresh_weights_is_a_control_and_no_row_that_grows(tmp_path):
    fresh = [score + gain for score, gain in zip(SMALL, (0.10, 0.11, 0.12, 0.11, 0.10))]
    found, without = judged(tmp_path, **ROWS, fresh=fresh), judged(tmp_path)
    assert list(found.others) == list(found.adjusted) == ["grown", "random"]
    assert found.controls["fresh"].mean == pytest.approx(0.108)
    assert found.reference == "small"
    assert found.grid.tolist() == without.grid.tolist()
    assert "**1 of 2 growing rows is better than small**" in verdict(found)
    text = judgement_text(found)
    assert "p (Holm) is corrected over 2 rows" in text
    assert "Controls against small, in validation accuracy: the final net of a row" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| fresh | ")]
    assert line.split()[3] == "+10.80"
    assert "growing" not in verdict(judged(tmp_path, small=SMALL, fresh=fresh))
    named = judged(tmp_path, ("fresh", "small"), **ROWS, fresh=fresh)
    assert not named.controls
    assert named.primary == found.controls["fresh"]


def test_a_row_with_fewer_seeds_takes_none_from_the_primary_comparison(tmp_path):
    pair = ("grown", "small")
    whole = judged(tmp_path, pair)
    found = judged(tmp_path, pair, **{**ROWS, "random": RANDOM[:3]})
    assert found.primary == whole.primary
    assert (found.primary.seeds, found.others["random"].seeds) == (5, 3)
    text = judgement_text(found)
    assert "Not every row has every seed: random lacks seeds 3, 4." in text
    (row,) = [line for line in text.splitlines() if line.endswith("exploratory |")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert (cells[0], cells[-2]) == ("random", "3")


def test_a_static_row_with_fewer_seeds_is_not_the_reference(tmp_path):
    lucky = {**ROWS, "large": [0.95]}
    found = judged(tmp_path, ("grown", "small"), **lucky)
    assert found.reference == "small"
    assert found.figures["small"][0].regret == judged(tmp_path).figures["small"][0].regret
    assert "large is neither the reference nor part of the static frontier" in judgement_text(found)
    assert judged(tmp_path, **{**ROWS, "small": SMALL[:2], "large": LARGE[:2]}).reference == "small"


@pytest.mark.parametrize("lost", [None, float("nan"), float("inf")])
def test_a_run_without_a_finite_score_makes_nothing_nan(tmp_path, lost):
    losses = {"small": [0.5, 0.51, 0.52, 0.53, 0.54, 0.55], "large": [lost, *[0.1] * 5]}
    losses |= {"grown": [0.4, 0.42, 0.41, 0.43, 0.44, 0.42], "broken": [lost, *[0.2, 0.1] * 2, 0.1]}
    runs = {
        name: {
            s: finished(tmp_path / f"{name}{s}", s, None, validation_loss=x)
            for s, x in enumerate(values)
        }
        for name, values in losses.items()
    }
    found = judge(runs, ["small", "large"], ("grown", "broken"), "flops")
    assert found.reference == "small"
    assert found.primary is not None
    assert found.primary.seeds == 5
    assert found.others["broken"].seeds == 5
    assert found.adjusted["grown"] < 0.05
    text = judgement_text(found)
    assert "nan" not in text.lower()
    assert "broken has no finite score at seed 0" in text
    verdicts = [line for line in text.splitlines() if line.endswith(("better |", "not shown |"))]
    assert [line.split("|")[1].strip() for line in verdicts if "better" in line] == ["grown"]
    assert len(verdicts) == 2


def test_differences_without_spread_get_no_p(tmp_path):
    images = {"images": {"validation": 100}}
    shifted = [score + 0.03 for score in SMALL]
    found = judged(tmp_path, ("grown", "small"), small=SMALL, grown=shifted, other=shifted)
    text = judgement_text(found)
    assert "+3.00, no spread, no p (5 seeds)" in text
    (row,) = [line for line in text.splitlines() if "no spread |" in line]
    assert [cell.strip() for cell in row.split("|")[4:8]] == ["-", "-", "5", "not shown"]
    assert "p = " not in text
    nearly = [score + 0.03 + (seed == 2) * 0.01 for seed, score in enumerate(SMALL)]
    assert "p = " in judgement_text(judged(tmp_path, ("grown", "small"), small=SMALL, grown=nearly))
    (tmp_path / "small" / "0" / "data.json").write_text(json.dumps(images))
    found = judged(tmp_path, ("grown", "small"), small=SMALL, grown=nearly)
    assert "no spread, no p" in judgement_text(found)  # one image of a hundred


def test_table_reference_and_goal_read_the_weights_and_regret_their_average(tmp_path):
    small, grown = (
        {s: finished(tmp_path / f"{name}{s}", s, end, averaged=average) for s in (0, 1)}
        for name, end, average in (("s", 0.8, 0.9), ("g", 0.85, 0.85))
    )
    found = judge({"small": small, "grown": grown}, ["small"], None, "flops")
    assert found.figures["small"][0].flops_to_reference == pytest.approx(1000)
    assert found.figures["grown"][0].flops_to_reference == pytest.approx(1000 * 0.8 / 0.85)
    assert found.figures["grown"][0].seconds_to_reference == pytest.approx(10 * 0.8 / 0.85)
    assert found.figures["grown"][0].regret == pytest.approx(0.05 * 0.55)


def test_under_a_budget_in_seconds_regret_is_over_them(tmp_path):
    runs = {
        "small": {0: finished(tmp_path / "a", 0, 0.8)},
        "fast": {0: finished(tmp_path / "b", 0, 0.8, pace=0.5)},
    }
    equal = judge(runs, ["small"], None, "flops")
    found = judge(runs, ["small"], None, "seconds")
    assert (found.axis, equal.axis) == ("seconds", "flops")
    assert equal.figures["fast"][0].regret == pytest.approx(0)
    assert found.figures["fast"][0].regret < -0.1
    assert found.figures["fast"][0].seconds_to_reference == pytest.approx(5)
    assert "| anytime regret over seconds | seconds to the" in judgement_text(found)
    assert "| anytime regret over FLOPs | FLOPs to the" in judgement_text(equal)


def test_a_primary_comparison_of_rows_that_are_not_there_says_so(tmp_path):
    text = judgement_text(judged(tmp_path, ("grown", "later")))
    assert "**grown - later** in validation accuracy: later not run yet." in text


def test_figures_are_distances_to_the_frontier_and_flops_to_the_reference(tmp_path):
    found = judged(tmp_path, **{name: values[:1] for name, values in ROWS.items()})
    assert found.figures["small"][0].regret == pytest.approx(0)
    assert found.figures["grown"][0].regret == pytest.approx((0.80 - 0.86) * 0.55, abs=1e-3)
    assert found.figures["large"][0].regret == pytest.approx(0.1 * 0.55, abs=1e-3)
    assert found.figures["small"][0].flops_to_reference == pytest.approx(1000)
    assert found.figures["grown"][0].flops_to_reference == pytest.approx(1000 * 0.80 / 0.86)
    assert found.figures["large"][0].flops_to_reference is None
    assert "never" in judgement_text(found)


def test_the_transient_is_the_mean_over_a_runs_growths(tmp_path):
    steps = {"growth": [{"step": 50}, {"step": 100}]}
    runs = {
        "small": {0: finished(tmp_path / "s", 0, 0.8)},
        "grown": {0: finished(tmp_path / "g", 0, 0.8, **steps)},
    }
    losses = [1.0] * 50 + [1.5] * 50 + [2.5] * 50
    lines = [f"{step},{loss}" for step, loss in enumerate(losses, start=1)]
    (tmp_path / "g" / "losses.csv").write_text("\n".join(["step,train_loss", *lines]))
    found = judge(runs, ["small"], None, "flops")
    assert found.figures["grown"][0].transient == pytest.approx(0.75)
    assert found.figures["small"][0].transient is None


@pytest.mark.parametrize(
    ("key", "value"), [("data", "mnist"), ("net", "resnet14"), ("limit", {"flops": 6})]
)
def test_a_run_with_another_limit_or_data_set_is_refused(tmp_path, key, value):
    runs = {
        "small": {0: finished(tmp_path / "a", 0, 0.8)},
        "grown": {0: finished(tmp_path / "b", 0, 0.8), 1: finished(tmp_path / "c", 1, 0.8)},
    }
    runs["grown"][1] = Finished(tmp_path / "c", {**runs["grown"][1].summary, key: value})
    with pytest.raises(ValueError, match=f"{key} of grown, seed 1, must be"):
        judge(runs, ["small"], None, "flops")


def test_who_spent_more_is_named(tmp_path):
    runs = {
        "small": {0: finished(tmp_path / "a", 0, 0.8)},
        "grown": {0: finished(tmp_path / "b", 0, 0.8, train_flops=1100)},
    }
    (note,) = judge(runs, ["small"], None, "flops").notes
    assert note.startswith("grown spent 10% more training FLOPs than the row that spent least: its")
    more = {0: finished(tmp_path / "c", 0, 0.8, train_flops=1050)}
    (note,) = judge({**runs, "more": more}, ["small"], None, "flops").notes
    assert note.startswith("grown spent 10%, more 5% more training FLOPs than the row that spent")
    (note,) = judge(runs, ["small"], None, "seconds").notes
    assert note.startswith("The budget was in seconds")
    note, regret = judge(runs, ["small"], None, "epochs").notes
    assert note.startswith("The budget was in epochs")
    assert regret == "Anytime regret is over the FLOPs that every run has spent, no further."


def test_once_every_run_has_read_the_test_set_it_is_what_counts(tmp_path):
    runs = {
        "small": {0: finished(tmp_path / "a", 0, 0.8, test_accuracy=0.5)},
        "large": {0: finished(tmp_path / "b", 0, 0.7, test_accuracy=0.9)},
        "grown": {0: finished(tmp_path / "c", 0, 0.6, test_accuracy=0.6)},
    }
    found = judge(runs, ["small", "large"], None, "flops")
    assert found.measure == "test_accuracy"
    assert found.reference == "small"  # chosen on validation


def test_a_regression_is_judged_by_its_loss_and_no_static_row_by_no_reference(tmp_path):
    runs = {
        "small": {s: finished(tmp_path / f"a{s}", s, None, validation_loss=0.2) for s in (0, 1)},
        "grown": {
            s: finished(tmp_path / f"b{s}", s, None, validation_loss=0.1 + s / 100) for s in (0, 1)
        },
    }
    found = judge(runs, ["small"], None, "flops")
    assert found.measure == "validation_loss"
    assert found.others["grown"].mean == pytest.approx(0.095)
    assert "+0.095" in judgement_text(found)
    alone = judge(runs, [], None, "flops")
    assert (alone.reference, alone.best, dict(alone.others)) == (None, None, {})
    assert "Reference" not in judgement_text(alone)
