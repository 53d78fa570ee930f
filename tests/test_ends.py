"""What a run needs at its end: reasons that are text, a summary that is true, TensorBoard whole."""

from __future__ import annotations

import enum
import json
import signal
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.summary_pb2 import Summary

from analysis import read_history
from analysis.showing.tensorboard_event_file import EventFile
from nets import Architecture, Remove, SetSurvival, Widen, action_from_dict, action_to_dict, cost
from policies import Policy
from run import main
from training.computing.signals import Interrupted
from training.deciding.call_policy import ask, attempt
from training.keeping.checkpoint import load_checkpoint
from training.keeping.run_folder import binding, read_config
from training.running.loop import train
from training.settings.start_settings import Start
from training.settings.train_settings import Train

QUICK = {"net": "resnet8", "epochs": 0.1, "records": 4, "batch_size": 32, "device": "cpu"}
REASONS = {
    "None": (None, ""),
    "float": (0.25, "0.25"),
    "zero": (0, "0"),
    "numpy": (np.float64(0.5), "0.5"),
    "float32": (np.float32(0.5), "0.5"),
    "tensor": (torch.tensor(2), "tensor(2)"),
    "list": ([1, "a"], "[1, 'a']"),
    "bytes": (b"x", "b'x'"),
    "lines": ("one\n  two\t", "one two"),
    "colours": ("\x1b[31mred", r"\x1b[31mred"),
    "half a pair": ("\udcff", r"\udcff"),
    "text": ("spread ± 0.1, größer: 網", "spread ± 0.1, größer: 網"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_reason_is_one_line_of_text(name):
    given, text = REASONS[name]
    action = Widen("stage1.block1", 2, reason=given)
    assert action.reason == text
    action.reason.encode()
    again = action_from_dict(json.loads(json.dumps(action_to_dict(action))))
    assert again == action
    assert again.reason == text


def test_a_long_reason_is_cut():
    reason = Widen("stage1.block1", 2, reason="x" * 10**5).reason
    assert (len(reason), reason[-4:]) == (1000, "x...")


class Place(enum.StrEnum):
    FIRST = "stage1.block1"


@dataclass(frozen=True)
class Giving(Policy):
    """Gives one action at its second record."""

    what: str = "reason"

    def decide(self, history):
        if len(history) != 2:
            return []
        actions = {
            "reason": Widen("stage1.block1", 2, reason=0.5),  # pyright: ignore
            "numbers": SetSurvival(Place.FIRST, np.float64(0.5)),
            "fading": Remove("stage1.block2", steps=1),
        }
        return [actions[self.what]]


def test_numbers_that_json_takes_for_its_own_become_plain(finished_run):
    present = read_history(finished_run)[:2]
    (action,) = ask(Giving("numbers"), present)
    assert attempt(Giving("numbers"), present).actions == (action,)
    assert isinstance(action, SetSurvival)
    assert (type(action.block), type(action.probability)) == (str, float)


@pytest.mark.parametrize("what", ["reason", "numbers"])
def test_a_run_ends_and_is_inspected_whatever_its_policy_gave(tmp_path, capsys, what):
    out = tmp_path / "run"
    settings = Train(**QUICK, budget="epochs", grow_until=1, policy=Giving(what), out=str(out))
    train(settings, lambda line: None)
    assert [type(a) for record in read_history(out) for a in record.applied] == [
        {"reason": Widen, "numbers": SetSurvival}[what]
    ]
    load_checkpoint(out / "checkpoint.pt", binding(read_config(out)))
    assert main(["inspect", str(out)]) == 0
    assert "Growth and other edits" in capsys.readouterr().out


def test_a_history_with_a_number_for_a_reason_is_read(finished_run, tmp_path):
    record = read_history(finished_run)[0]
    plain = replace(record, applied=(Widen("stage1.block1", 2),)).to_dict()
    plain["applied"][0]["reason"] = 0.75
    (tmp_path / "history.jsonl").write_text(json.dumps(plain) + "\n")
    (read,) = read_history(tmp_path)
    assert read.applied[0].reason == "0.75"  # pyright: ignore


@dataclass(frozen=True)
class Fading(Policy):
    """Removes a block so late that its branch has faded at the last record alone."""

    def decide(self, history):
        return [Remove("stage3.block2", steps=1)] if len(history) == 3 else []


def test_the_summary_is_of_the_network_that_is_kept(tmp_path, capsys):
    settings = Train(
        **{**QUICK, "net": "resnet14"},
        budget="epochs",
        policy=Fading(),
        start=Start(0.25, None),
        out=str(tmp_path),
    )
    summary = train(settings, lambda line: None)
    kept = Architecture.from_dict(json.loads((tmp_path / "architecture.json").read_text()))
    last = read_history(tmp_path)[-1]
    assert "stage3.block2" in last.architecture.blocks
    assert "stage3.block2" not in kept.blocks
    assert (summary["parameters"], summary["flops"]) == (cost(kept).parameters, cost(kept).flops)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    shown = EventAccumulator(str(tmp_path)).Reload()
    assert shown.Scalars("network/parameters")[-1].value == cost(kept).parameters
    capsys.readouterr()
    assert main(["inspect", str(tmp_path)]) == 0
    assert f"{cost(kept).parameters:,} at the end" in capsys.readouterr().out


def test_charts_are_there_after_a_resume_before_the_first_record(tmp_path):
    settings = Train(**QUICK, out=str(tmp_path), resume=True)

    def stop(spent):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(settings, lambda line: None, stop)
    train(settings, lambda line: None)
    shown = EventAccumulator(str(tmp_path)).Reload()
    assert "custom_scalars__config__" in shown.Tags()["tensors"]
    assert len(shown.Tensors("custom_scalars__config__")) == 1


NOW = 1_800_000_000 * 10**9
CLOCKS = {
    "forward": (NOW, NOW + 10**9),
    "the same": (NOW, NOW),
    "an hour back": (NOW, NOW - 3600 * 10**9),
    "back for long": (NOW, NOW - 3600 * 10**9, NOW - 3600 * 10**9, NOW - 10**9),
    "no clock at first": (60 * 10**9, NOW),
    "no clock later": (NOW, 60 * 10**9, 61 * 10**9),
}


def loss(value):
    return Summary(value=[Summary.Value(tag="loss", simple_value=value)])


@pytest.mark.parametrize("name", CLOCKS)
def test_a_resumed_run_is_shown_whatever_the_clock_did(tmp_path, monkeypatch, name):
    for number, clock in enumerate(CLOCKS[name]):
        monkeypatch.setattr(time, "time_ns", lambda clock=clock: clock)
        monkeypatch.setattr("socket.gethostname", lambda number=number: "cab"[number % 3])
        events = EventFile(tmp_path, number + 1)
        for step in range(number + 1, 9):
            events.add(loss(float(number)), step)
        events.flush()
    shown = EventAccumulator(str(tmp_path)).Reload()
    last = len(CLOCKS[name]) - 1
    expected = [(step, float(min(step - 1, last))) for step in range(1, 9)]
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == expected


def test_another_tools_event_files_are_read_before_a_later_one(tmp_path):
    for name in ("1900000000.host.1.0", "1700000000.host.1.0", "notes"):
        (tmp_path / f"events.out.tfevents.{name}").write_bytes(b"")
    EventFile(tmp_path)
    (ours,) = (path for path in tmp_path.iterdir() if path.stat().st_size)
    assert sorted(path.name for path in tmp_path.iterdir())[-2] == ours.name
