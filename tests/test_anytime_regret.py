"""Curves, the static frontier and the distances to it, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.judging.anytime_regret import (
    Curve,
    frontier,
    grid_of,
    read_curve,
    regret,
    spent_to_reach,
)
from analysis.judging.loss_after_growth import read_losses, transients


def curve(*points: tuple[float, float]) -> Curve:
    flops, score = np.array(points, dtype=float).T
    return Curve(flops, flops / 10, score, score)


def test_a_curve_is_read_with_averaged_weights_where_there_are_some(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "train_flops,seconds,validation_loss,validation_accuracy\n10,1.5,2.0,0.5\n20,3,1.0,0.75\n"
    )
    found = read_curve(tmp_path)
    assert found.flops.tolist() == [10, 20]
    assert found.seconds.tolist() == [1.5, 3]
    assert found.score.tolist() == [0.5, 0.75]
    path.write_text(
        "train_flops,seconds,validation_accuracy,ema_validation_accuracy\n10,1,0.5,0.625\n20,2,0.5,\n"
    )
    found = read_curve(tmp_path)
    assert (found.score.tolist(), found.weights.tolist()) == ([0.625, 0.5], [0.5, 0.5])
    path.write_text("train_flops,seconds,validation_loss,validation_accuracy\n10,1,2.5,\n")
    assert read_curve(tmp_path).score.tolist() == [-2.5]
    path.write_text(
        "train_flops,seconds,validation_loss,validation_accuracy,ema_validation_loss\n"
        "10,1,2.5,,2.25\n20,2,1.5,,\n"
    )
    found = read_curve(tmp_path)
    assert (found.score.tolist(), found.weights.tolist()) == ([-2.25, -1.5], [-2.5, -1.5])


def test_a_record_without_a_score_is_left_out_of_the_curve(tmp_path):
    path, header = tmp_path / "metrics.csv", "train_flops,seconds,validation_loss"
    path.write_text(f"{header}\n10,1,2.5\n20,2,\n30,3,inf\n40,4,nan\n50,5,2\n")
    found = read_curve(tmp_path)
    assert (found.flops.tolist(), found.weights.tolist()) == ([10, 50], [-2.5, -2])
    path.write_text(f"{header}\n10,1,\n")
    assert not read_curve(tmp_path).any


def test_scores_are_reached_by_the_weights_and_not_by_their_average():
    run = Curve(
        np.array([10.0, 20]), np.array([1.0, 4]), np.array([0.9, 0.9]), np.array([0.5, 0.7])
    )
    assert spent_to_reach(run, 0.6) == pytest.approx(15)
    assert spent_to_reach(run, 0.6, "seconds") == pytest.approx(2.5)
    assert spent_to_reach(run, 0.8) is None


def test_a_frontier_over_seconds():
    fast, slow = (
        Curve(np.array([0.0, 100]), np.array([0.0, end]), *[np.array([0.0, 1.0])] * 2)
        for end in (10, 20)
    )
    grid = grid_of([fast, slow], "seconds")
    assert (grid[0], grid[-1]) == (0, 10)
    best = frontier({"fast": [fast], "slow": [slow]}, grid, "seconds")
    assert best == pytest.approx(grid / 10)
    assert regret(slow, grid, best, "seconds") == pytest.approx(0.25)
    assert regret(slow, grid_of([fast, slow]), np.linspace(0, 1, 200)) == pytest.approx(0)


@pytest.mark.parametrize(
    "text", ["", "train_flops,seconds\n", "train_flops,seconds\n1,2\n", "a\nb\n"]
)
def test_a_damaged_curve_is_refused(tmp_path, text):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=r"metrics[.]csv cannot be read"):
        read_curve(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_curve(tmp_path / "nowhere")


def test_the_frontier_is_the_best_mean_at_each_point():
    small = [curve((0, 0.4), (100, 0.6)), curve((0, 0.6), (100, 0.6))]  # means 0.5 -> 0.6
    large = [curve((0, 0.1), (100, 0.9))]
    grid = np.array([0.0, 50.0, 100.0])
    best = frontier({"small": small, "large": large}, grid)
    assert best == pytest.approx([0.5, 0.55, 0.9])
    assert regret(curve((0, 0.5), (100, 0.5)), grid, best) == pytest.approx((0 + 0.05 + 0.4) / 3)
    assert regret(large[0], grid, best) == pytest.approx((0.4 + 0.05 + 0) / 3)
    assert regret(curve((0, 1), (100, 1)), grid, best) < 0


def test_the_grid_is_where_all_curves_have_values():
    grid = grid_of([curve((5, 0), (100, 1)), curve((10, 0), (90, 1))])
    assert (grid[0], grid[-1]) == (10, 90)
    assert np.allclose(np.diff(grid), np.diff(grid)[0])
    assert set(grid_of([curve((5, 0)), curve((10, 0))])) == {10}


@pytest.mark.parametrize(
    ("score", "expected"), [(0.1, 10), (0.3, 10), (0.4, 15), (0.5, 20), (0.6, 32.5), (0.71, None)]
)
def test_what_is_spent_until_a_score(score, expected):
    run = curve((10, 0.3), (20, 0.5), (30, 0.5), (40, 0.9))
    if score == 0.71:
        run = curve((10, 0.3), (20, 0.7))
    expected = None if expected is None else pytest.approx(expected)
    assert spent_to_reach(run, score) == expected
    in_seconds = spent_to_reach(run, score, "seconds")
    assert (None if in_seconds is None else 10 * in_seconds) == expected


def test_the_transient_is_the_loss_above_its_trend():
    falling = 5 - 0.01 * np.arange(300.0)
    assert transients(falling, [150]) == pytest.approx([0], abs=1e-9)
    bumped = falling.copy()
    bumped[150:200] += 0.5
    assert transients(bumped, [150]) == pytest.approx([0.25])
    assert transients(bumped, [150], window=50) == pytest.approx([0.5])
    # a window ends where another growth comes in between
    assert transients(bumped, [150, 200]) == pytest.approx([0.5, -0.5])
    assert transients(bumped, [150, 150, 155]) == []
    assert transients(falling, [5]) == transients(falling, [295]) == transients(falling, []) == []


def test_losses_are_read(tmp_path):
    assert read_losses(tmp_path).tolist() == []
    (tmp_path / "losses.csv").write_text("step,train_loss\n1,2.5\n")
    assert read_losses(tmp_path).tolist() == [2.5]
