"""Checkpoints at growths, at the end, at a signal and every so many seconds; resume stays exact."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from makers import differences
from runs import csv_rows, quiet
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from test_kill import all_of
from test_nonfinite import poison
from test_resume import command, exit_code, small

import training.running.loop
import training.running.write_down
from analysis import Record, read_history
from nets import Action
from policies import Never, Periodic, Policy
from training.computing.signals import Interrupted
from training.deciding.user_errors import PolicyFailed
from training.keeping.nonfinite import NonFinite
from training.keeping.run_folder import read_config
from training.running.loop import train

pytestmark = pytest.mark.usefixtures("without_pictures")
NEVER = 1e9
"""Seconds: no checkpoint that a growth, the end or a signal has not asked for."""
STEP = "training.stepping.step.train_step"


def seldom(out: Path, policy: str = "Periodic", *more: str) -> list[str]:
    """The command of a run that saves at growths and at its end alone."""
    return command(out, policy, "--save_every", str(NEVER), *more)


def saved_step(folder: Path) -> int:
    """The step of the checkpoint, 0 without one."""
    path = folder / "checkpoint.pt"
    return torch.load(path, weights_only=True)["progress"]["step"] if path.exists() else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What uninterrupted runs leave that save at every record."""
    folder = tmp_path_factory.mktemp("whole")
    endings = {}
    for policy in ("Periodic", "StochasticDepth", "Never"):
        assert exit_code(command(folder / policy, policy)) == 0
        endings[policy] = all_of(folder / policy)
    return endings


KILLED = [  # where, which call of it, and how many records the checkpoint does not know
    ("Periodic", STEP, 2, 0),
    ("Periodic", STEP, 16, 1),
    ("Periodic", STEP, 18, 2),
    ("Periodic", "training.running.write_down.append_metrics", 5, 2),
    ("Periodic", "training.running.write_down.append_losses", 5, 1),
    ("Periodic", "training.running.write_down.save_checkpoint", 7, 3),  # the last
    ("Never", STEP, 3, 1),  # and no checkpoint is there
    ("Never", STEP, 5, 2),
    ("StochasticDepth", "training.running.write_down.append_metrics", 3, 1),
]


@pytest.mark.parametrize(("policy", "where", "count", "lost"), KILLED)
def test_records_that_no_checkpoint_knows_are_made_again(
    tmp_path, whole, policy, where, count, lost
):
    assert exit_code(seldom(tmp_path, policy), where, count, signal.SIGKILL) == -signal.SIGKILL
    recorded = tmp_path / "history.jsonl"
    steps = [record.step for record in read_history(recorded)] if recorded.exists() else []
    assert sum(step > saved_step(tmp_path) for step in steps) == lost
    assert exit_code(seldom(tmp_path, policy, "--resume")) == 0
    assert not differences(all_of(tmp_path), whole[policy])


def test_killed_again_and_again_tensorboard_shows_every_step_once(tmp_path, whole):
    words = seldom(tmp_path, "Periodic", "--resume")
    for count in (18, 3, 6):
        assert exit_code(words, STEP, count, signal.SIGKILL) == -signal.SIGKILL
    assert exit_code(words) == 0
    assert not differences(all_of(tmp_path), whole["Periodic"])
    board = EventAccumulator(str(tmp_path), {"tensors": 0}).Reload()
    shown = {tag: [event.step for event in board.Tensors(tag)] for tag in board.Tags()["tensors"]}
    history = read_history(tmp_path)
    assert shown["loss/validation"] == [record.step for record in history]
    assert shown["growth/text_summary"] == [record.step for record in history if record.applied]
    for tag, steps in shown.items():
        assert steps == sorted(set(steps)), tag


@pytest.mark.parametrize("save_every", [0, NEVER])
def test_a_signal_saves_at_once_and_a_run_goes_on_with_another_value(tmp_path, whole, save_every):
    code = exit_code(seldom(tmp_path, "Never"), STEP, 8, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert saved_step(tmp_path) == 8 > read_history(tmp_path)[-1].step
    resumed = command(tmp_path, "Never", "--save_every", str(save_every), "--resume")
    assert exit_code(resumed, STEP, 3, signal.SIGKILL) == -signal.SIGKILL
    assert (saved_step(tmp_path) > 8) == (save_every == 0)
    assert exit_code(resumed) == 0
    assert read_config(tmp_path)["save_every"] == NEVER
    assert not differences(all_of(tmp_path), whole["Never"])


def test_a_folder_of_a_run_before_the_setting_resumes(tmp_path, whole):
    assert exit_code(command(tmp_path), STEP, 16, signal.SIGINT) == 130
    path = tmp_path / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["save_every"]
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert "save_every" not in state["identity"]
    assert exit_code(seldom(tmp_path, "Periodic", "--resume")) == 0
    assert not differences(all_of(tmp_path), whole["Periodic"])


def savings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give a list that will hold the steps at which a checkpoint is written."""
    steps: list[int] = []
    save = training.running.loop.save

    def noted(run: Any) -> None:
        steps.append(run.progress.step)
        save(run)

    monkeypatch.setattr(training.running.loop, "save", noted)
    return steps


@pytest.mark.parametrize("policy", [Never(), Periodic(share=0.1)])
@pytest.mark.parametrize("save_every", [0.0, 60.0, 100.0, NEVER])
def test_checkpoints_come_at_growths_at_the_end_and_in_time(
    tmp_path, monkeypatch, policy, save_every
):
    """A step takes seven seconds of this clock."""
    steps, now, step = savings(monkeypatch), 1000.0, training.running.loop.take_step

    def stepped(run: Any) -> None:
        nonlocal now
        now += 7
        step(run)

    monkeypatch.setattr(training.running.loop, "take_step", stepped)
    monkeypatch.setattr(training.running.loop, "perf_counter", lambda: now)
    settings = small(tmp_path, policy=policy, records=20, save_every=save_every)
    train(settings, quiet)
    history, expected = read_history(tmp_path), [0]
    for record in history:
        late = 7 * (record.step - expected[-1]) >= save_every
        if record.applied or record is history[-1] or late:
            expected.append(record.step)
    assert steps == expected[1:]
    assert (len(steps) == len(history)) == (save_every == 0)


def test_a_resumed_run_counts_from_its_checkpoint(tmp_path, monkeypatch):
    settings = small(tmp_path, policy=Never(), save_every=60.0)

    def interrupt(spent: float) -> None:
        if spent > 0.5:
            signal.raise_signal(signal.SIGTERM)

    now = iter(range(0, 10**6, 50))
    with monkeypatch.context() as patch:
        patch.setattr(training.running.loop, "perf_counter", lambda: next(now))
        with pytest.raises(Interrupted):
            train(settings, quiet, interrupt)
    steps = savings(monkeypatch)
    train(replace(settings, resume=True), quiet)
    assert steps == [read_history(tmp_path)[-1].step]


def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give a list that will hold the names of the files that are flushed to the disk."""
    names: list[str] = []
    fsync = os.fsync

    def noted(number: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        fsync(number)

    monkeypatch.setattr(os, "fsync", noted)
    return names


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_what_a_checkpoint_counts_on_is_on_the_disk_before_it_and_no_record_waits(
    tmp_path, monkeypatch
):
    names = flushed(monkeypatch)
    lines: list[list[str]] = []
    train(
        small(tmp_path, policy=Never(), save_every=NEVER), lambda line: lines.append(names.copy())
    )
    assert [len(line) for line in lines[1:-1]] == [len(lines[0])] * 5  # five of six records
    told = [name[:10] for name in names[len(lines[0]) :]]
    assert told == [
        *("history.js", "metrics.cs", "losses.csv", "events.out", "checkpoint"),
        *("architectu", "summary.js"),
    ]


@dataclass(frozen=True)
class Broken(Policy):
    """Grows at its first record, and fails at its fourth until it is mended."""

    mended: ClassVar[bool] = False

    def decide(self, history: Sequence[Record]) -> Sequence[Action]:
        if len(history) == 4 and not self.mended:
            raise ZeroDivisionError
        return Periodic(share=0.1).decide(history) if len(history) == 1 else []


def test_a_policy_that_failed_leaves_the_last_checkpoint_and_goes_on_mended(tmp_path, monkeypatch):
    settings = small(tmp_path / "broken", policy=Broken(), save_every=NEVER)
    for _ in range(2):
        with pytest.raises(PolicyFailed, match="failed at step"):
            train(settings, quiet)
        first, *_, last = read_history(settings.folder)
        assert (saved_step(settings.folder), len(read_history(settings.folder))) == (first.step, 3)
        assert [int(row["step"]) for row in csv_rows(settings.folder / "metrics.csv")][-1] == (
            last.step
        )
        settings = replace(settings, resume=True)
    monkeypatch.setattr(Broken, "mended", True)
    train(settings, quiet)
    train(small(tmp_path / "whole", policy=Broken()), quiet)
    assert not differences(all_of(tmp_path / "broken"), all_of(tmp_path / "whole"))


@pytest.mark.parametrize(("policy", "told"), [("Periodic", "of step "), ("Never", "no checkpoint")])
def test_a_loss_that_broke_names_the_checkpoint_there_is(tmp_path, monkeypatch, policy, told):
    policy = {"Periodic": Periodic(share=0.1), "Never": Never()}[policy]
    settings = small(tmp_path / "broken", policy=policy, save_every=NEVER)
    with monkeypatch.context() as patch:
        poison(patch, {18 if told == "of step " else 5})
        with pytest.raises(NonFinite) as stop:
            train(settings, quiet)
    step = saved_step(settings.folder)
    assert told in str(stop.value)
    assert (f"the last checkpoint, of step {step}, is" in str(stop.value)) == (step > 0)
    assert read_history(settings.folder)[-1].step > step
    train(replace(settings, resume=True), quiet)
    train(small(tmp_path / "whole", policy=policy), quiet)
    assert not differences(all_of(settings.folder), all_of(tmp_path / "whole"))
