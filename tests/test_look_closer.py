"""Steps of a run are taken again, exactly, from what it kept; and nothing of it changes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from runs import csv_rows, refusal_of, short_run

import run
import training.running.loop
import training.stepping.step
from analysis import Record, read_history
from nets import Action, Initializer, VarianceTransfer, Widen
from policies import Periodic, Policy
from training.asking.look_closer import look_closer
from training.running.loop import train


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some 40 steps that grows several times."""
    folder = tmp_path_factory.mktemp("look") / "run"
    settings = short_run(folder, Periodic(every=2, share=0.1), epochs=0.25, records=8)
    train(settings, lambda line: None)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and "closer" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def numbers(path: Path) -> dict[tuple[int, str, str], float]:
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    return {(int(r["step"]), r["layer"], r["statistic"]): float(r["value"]) for r in rows}


def test_the_steps_are_the_runs_own_from_whatever_it_kept(grown):
    history, before = read_history(grown), contents(grown)
    growths = [record.step for record in history if record.applied]
    assert len(growths) > 1
    last = history[-1].step
    # from the first step, from before a growth that is done at once, and across another one
    for after, begun in (
        (growths[0] - 2, 0),
        (growths[0], growths[0]),
        (growths[1] - 1, growths[0]),
    ):
        told = look_closer(str(grown), after, 6)
        until = min(after + 6, last)
        assert told.startswith(f"steps {after + 1} to {until}, taken again from step {begun}; ")
        assert told.endswith("the losses are those of losses.csv: these are the run's own steps")
        found = numbers(grown / "closer" / f"step{after:07d}.csv")
        assert {step for step, *_ in found} == set(range(after + 1, until + 1))
        assert found[until, "head", "max_abs"] > found[until, "head", "response_std"]
    assert contents(grown) == before


def test_where_another_step_was_taken_it_is_said(grown, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name, content in contents(grown).items():
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_bytes(content)
    rows: list[dict[str, Any]] = csv_rows(other / "losses.csv")
    rows[3]["train_loss"] = 7.0
    lines = [f"{row['step']},{row['train_loss']}" for row in rows]
    (other / "losses.csv").write_text("\n".join(["step,train_loss", *lines, ""]))
    assert "losses.csv has 7 at step 4, not " in look_closer(str(other), 0, 5)
    for wrong in ("nan", "inf"):
        told = [*lines[:3], f"4,{wrong}", *lines[4:]]
        (other / "losses.csv").write_text("\n".join(["step,train_loss", *told, ""]))
        assert f"losses.csv has {wrong} at step 4, not " in look_closer(str(other), 0, 5)
    (other / "losses.csv").write_text("\n".join(["step,train_loss", *lines[:2], ""]))
    assert look_closer(str(other), 0, 3).endswith("the run's own is not known")
    (other / "losses.csv").unlink()
    assert look_closer(str(other), 0, 2).endswith("the run's own steps is not known")


def test_rates_are_near_those_of_a_run_that_had_seconds(tmp_path, monkeypatch):
    """By a clock that goes on by a second a look, several of them at a record."""
    looks, rates = count(), list[float]()
    rate_of = training.stepping.step.learning_rate

    def kept(*given: Any) -> float:
        rates.append(rate_of(*given))
        return rates[-1]

    monkeypatch.setattr(training.running.loop, "perf_counter", lambda: float(next(looks)))
    monkeypatch.setattr(training.stepping.step, "learning_rate", kept)
    train(short_run(tmp_path, budget="seconds", epochs=30, records=5), lambda line: None)
    own = list(rates)
    rates.clear()
    assert "these are the run's own steps" in look_closer(str(tmp_path), 0, 1)  # at the first rate
    rates.clear()
    told = look_closer(str(tmp_path), 0, len(own))
    assert "the budget was in seconds: the rate of a step hung on its time, and only" in told
    assert rates == pytest.approx(own, abs=0.02)
    assert min(own) < 0.02 < 0.09 < max(own)


@dataclass(frozen=True)
class Rescaling(Policy):
    """Widens once, by an initializer of its own."""

    how: Initializer

    def decide(self, history: Sequence[Record]) -> Sequence[Action]:
        return [Widen("stage1.block1", 1, initializer=self.how)] if len(history) == 1 else []


def test_initializers_of_settings_and_policy_are_those_of_the_run(tmp_path):
    how: dict[str, Any] = {"initializer": VarianceTransfer(), "epochs": 0.1, "records": 3}
    policy = Rescaling(VarianceTransfer(rescale=False))
    train(short_run(tmp_path, policy, **how), lambda line: None)
    growth, *_ = [record.step for record in read_history(tmp_path) if record.applied]
    told = look_closer(str(tmp_path), growth - 1, 3)  # from the first step, across the growth
    assert told.endswith("these are the run's own steps")


def test_the_command(grown, capsys):
    assert run.main(["inspect", str(grown), "--after", "1", "--steps", "2"]) == 0
    output = capsys.readouterr().out
    assert "| step | training loss | gradient norm |" in output
    assert [line[:3] for line in output.splitlines() if line.startswith(("| 2", "| 3"))] == [
        "| 2",
        "| 3",
    ]
    last = read_history(grown)[-1].step
    told = f"after must be below {last}, the last step, got {last}"
    assert refusal_of(capsys, ["inspect", grown, "--after", last]) == told
    (place := grown / "closer" / "step0000001.csv").unlink()
    place.mkdir()
    told = f"run: {place} cannot be written: Is a directory"
    assert refusal_of(capsys, ["inspect", grown, "--after", 1]) == told
    assert "steps must be at least 1, got 0" in refusal_of(
        capsys, ["inspect", grown, "--after", 1, "--steps", 0]
    )
