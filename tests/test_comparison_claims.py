"""What a comparison claims: the reference, who is tested against whom, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from analysis.judging.comparable_runs import Finished
from analysis.judging.comparison_claims import Judgement, judge
from analysis.showing.comparison_tables import judgement_text

SMALL = [0.80, 0.82, 0.81, 0.79, 0.83]
LARGE = [0.70, 0.71, 0.69, 0.72, 0.70]
GROWN = [0.86, 0.87, 0.85, 0.84, 0.88]
RANDOM = [0.81, 0.80, 0.83, 0.78, 0.84]
ROWS = {"small": SMALL, "large": LARGE, "grown": GROWN, "random": RANDOM}


def finished(folder: Path, seed: int, accuracy: float | None, **changes: Any) -> Finished:
    """A run whose accuracy rises in a straight line over ten records."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["train_flops,seconds,validation_loss,validation_accuracy"]
    for number in range(1, 11):
        score = "" if accuracy is None else accuracy * number / 10
        lines.append(f"{100 * number},{number},{1 / number},{score}")
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
    return judge(runs, ["small", "large"], pair, "flops")


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


def test_seeds_that_a_row_lacks_are_left_out_of_the_tests(tmp_path):
    found = judged(tmp_path, **{**ROWS, "random": RANDOM[:3]})
    assert found.seeds == (0, 1, 2)
    assert found.others["grown"].seeds == 3
    assert "tests use those that all have: 0, 1, 2." in judgement_text(found)


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
    assert note.startswith("grown spent 10% more training FLOPs")
    (note,) = judge(runs, ["small"], None, "seconds").notes
    assert note.startswith("The budget was in seconds")


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
