"""Resuming is exact: killed or interrupted anywhere, a run ends as one that was left alone."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import differences
from runs import bytes_of, csv_rows, quiet, short_run
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

import run
import training.running.loop
import training.stepping.step
from analysis import read_history
from analysis.showing.tensorboard_writer import Board
from policies import Never, Periodic, Plateau, StochasticDepth
from training.computing.signals import Interrupted
from training.running.loop import train
from training.settings.train_settings import Train

ROOT = Path(__file__).parents[1]

# A process that has torch imported and has computed nothing; its children start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch._dynamo", "training.running.loop"])


def command(out: Path, policy: str = "Periodic", *more: str) -> list[str]:
    """The command line of a run of half a second that grows at its first records."""
    words = (
        "train --data digits --net resnet8 --epochs 0.25 --records 6 --batch_size 32 --threads 1"
    )
    if policy == "Periodic":
        policy += " --policy.share 0.1"
    if policy == "StochasticDepth":  # its probes take a good part of the budget
        policy += " --policy.cooldown 1 --epochs 0.5"
    return [
        *f"{words} --observe_every 3 --save_every 0 --device cpu --policy {policy} --out".split(),
        str(out),
        *more,
    ]


def small(out: Path, **changes: Any) -> Train:
    """The same as settings."""
    given = {"epochs": 0.25, "records": 6, "observe_every": 3, "policy": Periodic(share=0.1)}
    return short_run(out, **{**given, **changes})


def run_until(arguments: Sequence[str], where: str, count: int, number: int) -> None:
    """Run the command; a signal comes at the count-th call of `where`, a function's import path."""
    module, _, name = where.rpartition(".")
    owner, calls = importlib.import_module(module), 0
    function = getattr(owner, name)

    def called(*values: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), number)
        return function(*values, **options)

    setattr(owner, name, called)
    Board.pictures = lambda *_: None  # as conftest does in the tests' own process
    sys.exit(run.main(arguments))


def exit_code(
    arguments: Sequence[str], where: str = "os.getcwd", count: int = 0, number: int = 0
) -> int | None:
    """Run the command in a process of its own, to its end or to the signal; give its exit code."""
    process = PROCESSES.Process(target=run_until, args=(arguments, where, count, number))
    process.start()
    process.join(60)
    return process.exitcode


def real(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start the command as a user does."""
    words = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Crash(Exception):
    """What stops a run of this process."""


def crash(settings: Train, monkeypatch: pytest.MonkeyPatch, where: str, count: int) -> None:
    """Run until the count-th call of `where`, and no further."""
    module, _, name = where.rpartition(".")
    calls = 0
    function = getattr(importlib.import_module(module), name)

    def called(*values: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            raise Crash
        return function(*values, **options)

    with monkeypatch.context() as patch:
        patch.setattr(where, called)
        with pytest.raises(Crash):
            train(settings, quiet)


def ending(folder: Path) -> dict[str, Any]:
    """All that a run leaves but for the clock's part of it."""
    states = {"checkpoint.pt": folder / "checkpoint.pt"}
    states |= {path.name: path for path in (folder / "growth").glob("*")}
    loaded = {name: torch.load(path, weights_only=True) for name, path in states.items()}
    for state in loaded.values():
        del state["progress"]["seconds"]
    rows = csv_rows(folder / "metrics.csv")
    for row in rows:
        del row["seconds"], row["images_per_second"]
    summary = json.loads((folder / "summary.json").read_text())
    del summary["seconds"]
    history = (folder / "history.jsonl").read_bytes()
    architecture = (folder / "architecture.json").read_bytes()
    line_ends = (folder / "metrics.csv").read_bytes().count(b"\r\n")
    return {
        "history": history,
        "states": loaded,
        "metrics": (rows, line_ends),
        "summary": summary,
        "architecture": architecture,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The endings of uninterrupted runs by policy, each run in a process of its own."""
    folder = tmp_path_factory.mktemp("whole")
    endings = {}
    for policy in ("Periodic", "StochasticDepth"):
        assert exit_code(command(folder / policy, policy)) == 0
        endings[policy] = ending(folder / policy)
        assert len(endings[policy]["summary"]["growth"]) >= 2
        assert endings[policy]["states"]["checkpoint.pt"]["optimizer"]["state"]
    return endings


KILLED = [
    ("Periodic", "training.stepping.step.train_step", 2),  # before the first record
    ("Periodic", "training.stepping.step.train_step", 13),  # between two records, after a growth
    # a record is written, its checkpoint is not
    ("Periodic", "training.running.write_down.save_checkpoint", 3),
    ("Periodic", "os.fsync", 11),  # a file is written, but not in its place
    ("StochasticDepth", "training.stepping.step.train_step", 17),
    (
        "StochasticDepth",
        "training.running.write_down.append_metrics",
        3,
    ),  # history has a line more than metrics.csv
]


@pytest.mark.parametrize(("policy", "where", "count"), KILLED)
def test_a_run_that_was_killed_ends_as_one_that_was_not(tmp_path, whole, policy, where, count):
    assert exit_code(command(tmp_path, policy), where, count, signal.SIGKILL) == -signal.SIGKILL
    assert not (tmp_path / "summary.json").exists()
    if where == "os.fsync":
        assert list(tmp_path.rglob("*.part"))
    assert exit_code(command(tmp_path, policy, "--resume")) == 0
    assert not differences(ending(tmp_path), whole[policy])


@pytest.mark.parametrize(
    ("policy", "signals"),
    [
        ("Periodic", [signal.SIGINT]),
        ("Periodic", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGINT]),
        ("StochasticDepth", [signal.SIGTERM, signal.SIGTERM]),
    ],
)
def test_an_interrupted_run_has_its_checkpoint_at_the_very_step(tmp_path, whole, policy, signals):
    step = 0
    for number in signals:
        resume = ["--resume"] if step else []
        code = exit_code(
            command(tmp_path, policy, *resume), "training.stepping.step.train_step", 5, number
        )
        assert code == (-number if number == signal.SIGKILL else 128 + number)
        if number != signal.SIGKILL:
            state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
            assert state["progress"]["step"] == state["observer"]["step"] > step
            step = state["progress"]["step"]
            recorded = tmp_path / "history.jsonl"
            last = read_history(recorded)[-1].step if recorded.exists() else 0
            assert state["window"][2] == 32 * (step - last)  # in the middle between two records
    assert exit_code(command(tmp_path, policy, "--resume")) == 0
    assert not differences(ending(tmp_path), whole[policy])


def test_a_run_resumed_where_there_is_none_starts_anew(tmp_path, whole):
    assert exit_code(command(tmp_path, "Periodic", "--resume")) == 0
    assert not differences(ending(tmp_path), whole["Periodic"])


def test_kill_9_from_outside_at_some_record(tmp_path, whole):
    """The real command line in a real process; what moment is hit is left to chance."""
    process = real(command(tmp_path))
    assert process.stdout is not None
    for start in ("augmentation: ", "step ", "step "):
        assert process.stdout.readline().startswith(start)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=1200)
    assert process.returncode == -signal.SIGKILL
    assert exit_code(command(tmp_path, "Periodic", "--resume")) == 0
    assert not differences(ending(tmp_path), whole["Periodic"])


def test_ctrl_c_ends_the_real_command_with_one_line(tmp_path):
    words = command(tmp_path, "Never", "--epochs", "1000", "--records", "100000")
    process = real(words)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("augmentation: ")
    assert process.stdout.readline().startswith("step ")
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=1200)
    assert process.returncode == 130
    (line,) = errors.splitlines()
    assert line.startswith("stopped at step ")
    assert line.endswith("; --resume goes on")
    assert "Traceback" not in output + errors
    step = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["progress"]["step"]
    assert f"step {step};" in line


CRASHED = [
    ({}, "training.stepping.step.train_step", 9),
    ({}, "training.running.take_record.validate", 2),
    ({}, "training.running.decide_and_grow.grow", 1),
    ({}, "training.running.decide_and_grow.grow", 3),
    ({}, "training.running.write_down.append_record", 2),
    ({}, "training.running.write_down.save_checkpoint", 2),
    ({}, "training.running.write_down.save_checkpoint", 5),
    ({}, "training.running.loop.finish", 1),
    ({}, "training.running.finished.write_json", 1),
    ({"optimizer": "adamw"}, "training.stepping.step.train_step", 18),
    (
        {"policy": StochasticDepth(), "optimizer": "adam", "epochs": 0.5},
        "training.stepping.step.train_step",
        14,
    ),
    (
        {"policy": Plateau(patience=1), "schedule": "hold"},
        "training.stepping.step.train_step",
        20,
    ),
    (
        {"precision": "bf16", "policy": Never(), "momentum": 0.0},
        "training.stepping.step.train_step",
        7,
    ),
    (
        {"precision": "fp16", "optimizer": "rmsprop", "accumulate": 3},
        "training.stepping.step.train_step",
        14,
    ),
    ({"ema": 0.0}, "training.stepping.step.train_step", 14),
    (
        {"observe_every": 100, "budget": "epochs", "epochs": 1.1},
        "training.stepping.step.train_step",
        43,
    ),
    (
        {"batch_growth": 4, "epochs": 0.5, "policy": Periodic(share=0.3)},
        "training.stepping.step.train_step",
        9,
    ),
    ({"data": "sine", "net": "mlp-30", "epochs": 2}, "training.stepping.step.train_step", 40),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Give the ending of a run of this process that is left alone, each only once."""
    known: dict[str, dict[str, Any]] = {}

    def run_alone(**changes: Any) -> dict[str, Any]:
        name = repr(changes)
        if name not in known:
            folder = tmp_path_factory.mktemp("alone")
            train(small(folder, **changes), quiet)
            known[name] = ending(folder)
        return known[name]

    return run_alone


@pytest.mark.parametrize(("changes", "where", "count"), CRASHED)
def test_a_run_that_crashed_ends_as_one_that_did_not(
    tmp_path, monkeypatch, alone, changes, where, count
):
    expected = alone(**changes)
    settings = small(tmp_path, **changes)
    crash(settings, monkeypatch, where, count)
    train(replace(settings, resume=True), quiet)
    assert not differences(ending(tmp_path), expected)


def test_stale_files_and_torn_lines_are_harmless(tmp_path, monkeypatch, alone):
    settings = small(tmp_path)
    crash(settings, monkeypatch, "training.stepping.step.train_step", 16)
    for name in (
        "checkpoint.pt.part",
        "history.jsonl.part",
        "summary.json.part",
        "config.yaml.part",
    ):
        (tmp_path / name).write_bytes(b"half of a file" * 1000)
    for name, torn in (("history.jsonl", '{"step": 99, "epo'), ("metrics.csv", "99,0.3")):
        with (tmp_path / name).open("a") as file:
            file.write(torn)
    train(replace(settings, resume=True), quiet)
    assert not differences(ending(tmp_path), alone())


def test_a_finished_run_is_left_as_it_is(tmp_path, monkeypatch):
    summary = train(small(tmp_path), quiet)
    before = bytes_of(tmp_path)
    monkeypatch.setattr(training.running.loop, "open_run", None)
    assert train(small(tmp_path, resume=True), quiet) == summary
    assert bytes_of(tmp_path) == before


def test_an_interrupt_at_the_last_step_loses_nothing(tmp_path, monkeypatch, alone):
    steps = alone()["summary"]["steps"]
    settings, step = small(tmp_path), training.stepping.step.train_step
    calls = 0

    def stepped(*values: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == steps:
            signal.raise_signal(signal.SIGTERM)
        step(*values)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(training.stepping.step, "train_step", stepped)
        with pytest.raises(Interrupted) as stop:
            train(settings, quiet)
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    train(replace(settings, resume=True), quiet)
    assert not differences(ending(tmp_path), alone())
    shown = EventAccumulator(str(tmp_path), {"tensors": 0}).Reload()
    over = [event.step for event in shown.Tensors("loss_over_MFLOPs/validation")]
    assert over == [record.train_flops // 10**6 for record in read_history(tmp_path)]


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its second record; tests take copies."""
    folder = tmp_path_factory.mktemp("second")
    with pytest.MonkeyPatch.context() as patch:  # a growth keeps a state too
        crash(small(folder), patch, "training.running.write_down.save_checkpoint", 6)
    assert len(read_history(folder)) >= 2
    return folder


def resuming(run: Path, folder: Path) -> Train:
    """Give settings that resume a copy of the run."""
    shutil.copytree(run, folder, dirs_exist_ok=True)
    return small(folder, resume=True)


def without(part: str) -> Any:
    def change(state: dict[str, Any]) -> None:
        del state[part]

    return change


def of_another_net(state: dict[str, Any]) -> None:
    state["architecture"]["stages"][0]["blocks"][0]["width"] += 1


@pytest.mark.parametrize(
    "change",
    [
        *(without(part) for part in ("architecture", "weights", "optimizer", "generator")),
        *(without(part) for part in ("ema", "scaler")),
        *(without(part) for part in ("observer", "window", "progress", "identity")),
        of_another_net,
        lambda state: state["optimizer"]["groups"][0]["params"].append("stage9.conv1.weight"),
        lambda state: state["progress"].update(laps=3),
        lambda state: state.update(generator=torch.zeros(3)),
        lambda state: state.update(window=torch.zeros(4)),
    ],
)
def test_a_checkpoint_that_lacks_something_is_refused_and_nothing_is_touched(
    tmp_path, second, change
):
    settings = resuming(second, tmp_path)
    path = tmp_path / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match=r"^checkpoint .*checkpoint\.pt.*(cannot be read|weights)"):
        train(settings, quiet)
    assert bytes_of(tmp_path) == before


def test_the_checkpoint_of_another_policy_is_refused(tmp_path, second):
    settings = resuming(second, tmp_path / "periodic")
    train(small(tmp_path / "never", policy=Never()), quiet)
    other = (tmp_path / "never" / "checkpoint.pt").read_bytes()
    (tmp_path / "periodic" / "checkpoint.pt").write_bytes(other)
    with pytest.raises(ValueError, match=r"is of another run: policy is .*Never.*, not .*Periodic"):
        train(settings, quiet)


@pytest.mark.parametrize("lines", [0, 1])
def test_a_history_that_lacks_records_is_refused(tmp_path, second, lines):
    settings = resuming(second, tmp_path)
    path = tmp_path / "history.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))
    before = bytes_of(tmp_path)
    with pytest.raises(ValueError, match=rf"history\.jsonl holds {lines} of 2 records"):
        train(settings, quiet)
    assert bytes_of(tmp_path) == before


def test_tensorboard_shows_every_step_once(tmp_path):
    # the board has a record that no checkpoint knows
    where = "training.running.write_down.save_checkpoint"
    assert exit_code(command(tmp_path), where, 4, signal.SIGKILL) == -signal.SIGKILL
    resumed = command(tmp_path, "Periodic", "--resume")
    assert exit_code(resumed, "training.stepping.step.train_step", 6, signal.SIGINT) == 130
    assert exit_code(resumed) == 0
    files = list(tmp_path.glob("events*"))
    assert len(files) == 3
    board, killed = (
        EventAccumulator(str(at), {"tensors": 0}).Reload() for at in (tmp_path, min(files))
    )
    history = read_history(tmp_path)
    shown = {tag: [event.step for event in board.Tensors(tag)] for tag in board.Tags()["tensors"]}
    for tag in ("loss/validation", "learning_rate", "network/parameters", "stem/response_std"):
        assert shown[tag] == [record.step for record in history], tag
    for tag in ("unchanged_outputs/growth_difference", "growth/text_summary"):
        assert shown[tag] == [record.step for record in history if record.applied], tag
    for tag, steps in shown.items():
        assert steps == sorted(set(steps)), tag
    losses = [float(make_ndarray(event.tensor_proto)) for event in board.Tensors("loss/validation")]
    assert losses == pytest.approx([record.validation_loss for record in history])
    assert len(killed.Tensors("loss/validation")) == 2  # the second is what had to be hidden
