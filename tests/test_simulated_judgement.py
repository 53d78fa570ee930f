"""The simulated error rates of benchmarks/judging.py, on fewer comparisons."""

from __future__ import annotations

from math import sqrt

import pytest

from benchmarks.judging import SETTINGS, shares

TRIES = 150
BY_NAME = {setting.name: setting for setting in SETTINGS}


@pytest.mark.parametrize("name", [name for name, each in BY_NAME.items() if not each.better])
def test_without_a_difference_one_comparison_in_twenty_errs_at_most(name):
    most = 0.05 + 2.5 * sqrt(0.05 * 0.95 / TRIES)
    assert max(shares(BY_NAME[name], TRIES)) <= most


def test_a_difference_is_found_with_ten_seeds_and_with_runs_missing():
    assert min(shares(BY_NAME["1 point better, 10 seeds"], 40)) > 0.6
    others, primary = shares(BY_NAME["the same, a fifth of the runs missing"], 40)
    assert others > 0.2
    assert primary > 0.4
