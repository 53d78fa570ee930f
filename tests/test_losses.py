"""losses.csv: the training loss of every step, also across records, growths and interruptions."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from runs import quiet, short_run

import training.stepping.step
from analysis import read_history
from analysis.judging.loss_after_growth import read_losses
from policies import Periodic
from training.computing.signals import Interrupted
from training.keeping.result_files import append_losses, cut_back
from training.running.loop import train
from training.settings.train_settings import Train


def small(out: Path) -> Train:
    return short_run(out, Periodic(), epochs=0.25, records=6, threads=1, resume=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("losses") / "run"
    train(small(folder), quiet)
    return folder


def test_every_step_has_its_loss_and_their_mean_is_the_records(whole):
    losses, history = read_losses(whole), read_history(whole)
    assert any(record.applied for record in history)
    assert len(losses) == history[-1].step
    lines = (whole / "losses.csv").read_text().splitlines()
    assert lines[0] == "step,train_loss"
    assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(1, len(losses) + 1))
    before = 0
    for record in history:
        assert losses[before : record.step].mean() == pytest.approx(record.train_loss)
        before = record.step


def test_a_run_that_was_interrupted_or_killed_has_the_same_losses(whole, tmp_path, monkeypatch):
    calls: list[float] = []

    def interrupt(spent: float) -> None:
        calls.append(spent)
        if len(calls) in (3, 8):
            os.kill(os.getpid(), signal.SIGINT)

    for _ in range(2):  # between two records
        with pytest.raises(Interrupted):
            train(small(tmp_path), quiet, interrupt)
    assert len(read_losses(tmp_path)) == 8
    step = training.stepping.step.train_step

    def crash(*values) -> None:
        if len(read_history(tmp_path)) == 4:
            raise KeyError
        step(*values)

    with monkeypatch.context() as patch:
        patch.setattr(training.stepping.step, "train_step", crash)
        with pytest.raises(KeyError):
            train(small(tmp_path), quiet)
    append_losses(
        tmp_path, len(read_losses(tmp_path)), [9.0, 9.0]
    )  # more than the checkpoint knows
    train(small(tmp_path), quiet)
    assert (tmp_path / "losses.csv").read_bytes() == (whole / "losses.csv").read_bytes()


def test_losses_are_cut_back_to_the_checkpoints_step(tmp_path):
    append_losses(tmp_path, 0, [1.0, 0.5])
    append_losses(tmp_path, 2, [0.25])
    (tmp_path / "history.jsonl").write_text("")
    cut_back(tmp_path, 0, 2)
    assert (tmp_path / "losses.csv").read_text() == "step,train_loss\n1,1.0\n2,0.5\n"
