"""The simulated figures in Plateau's docstring, on fewer runs."""

import pytest

from benchmarks import stalls


@pytest.mark.parametrize(
    ("noise", "records", "false", "missed"),
    [(0.01, 20, 0.0, 0.0), (0.01, 200, 0.0, 0.0), (0.03, 40, 0.1, 0.05), (0.1, 200, 0.2, 0.05)],
)
def test_plateau_errs_as_little_as_its_docstring_says(monkeypatch, noise, records, false, missed):
    monkeypatch.setattr(stalls, "RUNS", 5)
    found = stalls.errors(noise, records)
    assert found[0] <= false
    assert found[1] <= missed
