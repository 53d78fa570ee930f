"""A loss that is not finite: the run stops before anything of it is written, or skips the step."""

from __future__ import annotations

import json
import math
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from makers import differences
from runs import csv_rows, quiet
from test_resume import ending, small
from torch.utils._python_dispatch import TorchDispatchMode

import run
import training.running.finished
import training.running.take_record
import training.running.write_down
import training.stepping.step
from analysis import LayerReading, read_history
from nets import Widen, build, preset
from policies import Never, Policy
from training.computing.evaluation import LOSSES
from training.computing.optimizer import Precision, make_optimizer
from training.keeping.nonfinite import NonFinite, check_state, finite_readings, first_nonfinite
from training.keeping.result_files import append_record, write_json
from training.running.loop import train
from training.settings.train_settings import Train
from training.stepping.step import train_step

pytestmark = pytest.mark.usefixtures("without_pictures")


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], value: float = math.nan) -> None:
    """Make the images of these steps, counted from 1 over all runs, NaN or infinite."""
    step, calls = training.stepping.step.train_step, 0

    def stepped(net: Any, optimizer: Any, inputs: Any, *rest: Any) -> bool:
        nonlocal calls
        calls += 1
        inputs = inputs.clone().fill_(value) if calls in steps else inputs
        return step(net, optimizer, inputs, *rest)

    monkeypatch.setattr(training.stepping.step, "train_step", stepped)


def is_finite(state: Any) -> bool:
    """Whether nested data holds no NaN and no infinity."""
    if isinstance(state, dict):
        return all(map(is_finite, state.values()))
    if isinstance(state, list | tuple):
        return all(map(is_finite, state))
    if torch.is_tensor(state):
        return not state.is_floating_point() or bool(state.isfinite().all())
    return not isinstance(state, float) or math.isfinite(state)


def strict(text: str) -> Any:
    """Read JSON that has no NaN, as everybody else's parsers do."""

    def refuse(token: str) -> None:
        raise AssertionError(token)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_stops_at_the_record_after_its_loss_broke(tmp_path, monkeypatch, value, precision):
    settings = small(tmp_path, precision=precision, observe_every=1)
    poison(monkeypatch, {14}, value)
    with pytest.raises(NonFinite) as stop:
        train(settings, quiet)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    last = state["progress"]["step"]
    told = str(stop.value)
    assert told.startswith("the training loss is nan at step 14, in the layers' readings first ")
    assert told.endswith(f"; the last checkpoint, of step {last}, is {tmp_path}/checkpoint.pt")
    assert last < 14
    assert is_finite(state)
    records = [strict(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert is_finite(records)
    assert records[-1]["step"] == last == len((tmp_path / "losses.csv").read_text().split()) - 1
    assert not (tmp_path / "summary.json").exists()


def test_a_run_that_stopped_resumes_as_one_whose_loss_never_broke(tmp_path, monkeypatch):
    train(small(tmp_path / "whole"), quiet)
    with monkeypatch.context() as patch:
        poison(patch, {14})
        with pytest.raises(NonFinite):
            train(small(tmp_path / "broken"), quiet)
    train(small(tmp_path / "broken", resume=True), quiet)
    assert not differences(ending(tmp_path / "broken"), ending(tmp_path / "whole"))


def test_without_a_checkpoint_or_a_reading_that_broke_the_line_says_so(tmp_path, monkeypatch):
    poison(monkeypatch, {2})
    with pytest.raises(NonFinite) as stop:
        train(small(tmp_path, observe_every=1000), quiet)
    told = "the training loss is nan at step 2, every layer's reading so far is finite; "
    assert str(stop.value) == told + "there is no checkpoint yet"
    assert not (tmp_path / "history.jsonl").exists()


def test_an_interrupted_run_writes_no_checkpoint_of_a_broken_state(tmp_path, monkeypatch):
    def interrupt(spent: float) -> None:
        if spent > 0.5:
            signal.raise_signal(signal.SIGTERM)

    poison(monkeypatch, {2})
    with pytest.raises(NonFinite, match="step 2"):
        train(small(tmp_path, records=1), quiet, interrupt)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_validation_loss_or_a_weight_that_broke_stops_the_run(tmp_path, monkeypatch):
    validate = training.running.take_record.validate
    with monkeypatch.context() as patch:
        patch.setattr(training.running.take_record, "validate", lambda run, net: (math.inf, 0.0))
        with pytest.raises(NonFinite, match=r"^the validation loss is inf at step \d+, every"):
            train(small(tmp_path / "loss"), quiet)
    assert not (tmp_path / "loss" / "history.jsonl").exists()

    def spoilt(run: Any, net: Any) -> Any:
        read = validate(run, net)
        next(net.parameters()).data.view(-1)[0] = math.nan
        return read

    monkeypatch.setattr(training.running.take_record, "validate", spoilt)
    with pytest.raises(NonFinite, match=r"^stem.conv.weight is not finite at step \d+, every"):
        train(small(tmp_path / "weight", policy=Never()), quiet)
    assert not (tmp_path / "weight" / "history.jsonl").exists()


def test_the_readings_tell_where_it_began(tmp_path, monkeypatch):
    step, calls = training.stepping.step.train_step, 0

    def stepped(net: Any, *rest: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == 5:
            net.get_parameter("stage2.block1.conv1.weight").data.fill_(math.inf)
        return step(net, *rest)

    monkeypatch.setattr(training.stepping.step, "train_step", stepped)
    with pytest.raises(NonFinite) as stop:
        train(small(tmp_path, observe_every=1, policy=Never()), quiet)
    assert "at step 5, in the layers' readings first" in str(stop.value)
    assert "of stage2.block1.bn1 (at once with" in str(stop.value)


def test_the_command_ends_with_one_line_and_code_1(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, {3})
    words = f"train --net resnet8 --epochs 0.1 --batch_size 32 --device cpu --out {tmp_path / 'a'}"
    assert run.main(words.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run.py: error: the training loss is nan at step 3, ")


def test_in_a_comparison_the_cell_has_failed_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, {3})
    words = "compare --net resnet8 --epochs 0.1 --batch_size 32 --device cpu --workers 1"
    cells = {"full": {"policy": {"class_path": "policies.Never"}}}
    config = tmp_path / "c.yaml"
    config.write_text(json.dumps({"cells": cells}))
    out = tmp_path / "out"
    words = f"{words} --seeds [0,1] --config {config} --out {out}"
    assert run.main(words.split()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("full  seed 0  failed: the training loss is nan at step 3, ")
    assert (out / "full" / "seed1" / "summary.json").exists()
    assert run.main([*words.split(), "--nonfinite", "skip"]) == 0  # what failed goes on that way
    capsys.readouterr()


def skipping(out: Path, **changes: Any) -> Any:
    return small(out, nonfinite="skip", **changes)


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"optimizer": "adam", "ema": 0.0}])
def test_skipping_changes_nothing_in_a_run_whose_losses_are_finite(tmp_path, changes):
    train(small(tmp_path / "stop", epochs=0.1, **changes), quiet)
    train(skipping(tmp_path / "skip", epochs=0.1, **changes), quiet)
    assert not differences(ending(tmp_path / "skip"), ending(tmp_path / "stop"))


@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_step_changes_nothing(kind, accumulate):
    from nets import build, preset

    settings = small(Path("unused"), optimizer=kind)
    net = build(preset("resnet8", image=(1, 8, 8)), seed=1)
    optimizer, window = make_optimizer(net, settings), torch.zeros(3, dtype=torch.float64)
    precision = Precision(torch.device("cpu"), torch.float32)

    def step(images: torch.Tensor) -> bool:
        targets = torch.arange(8)
        how = (LOSSES["classification"], precision, window, accumulate)
        return train_step(net, optimizer, images, targets, *how, skip=True)

    images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not step(images)
    before = [value.clone() for value in state_of(net, optimizer, window)]
    spoilt = images.clone()
    spoilt[0, 0, 0, 0] = math.inf
    assert step(spoilt)
    after = state_of(net, optimizer, window)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not step(images)
    assert not torch.equal(before[0], next(net.parameters()))


def state_of(net: Any, optimizer: Any, window: torch.Tensor) -> list[torch.Tensor]:
    kept = [value for values in optimizer.state.values() for value in values.values()]
    return [*net.parameters(), *net.buffers(), *filter(torch.is_tensor, kept), window]


def test_skipped_steps_are_counted_and_resumed(tmp_path, monkeypatch):
    lines: list[str] = []
    with monkeypatch.context() as patch:
        poison(patch, {2, 3, 14})
        summary = train(skipping(tmp_path / "whole"), lines.append)
    assert summary["skipped_steps"] == 3
    assert "  2 steps skipped" in lines[1]
    assert "  3 steps skipped" in lines[-1]
    losses = (tmp_path / "whole" / "losses.csv").read_text().splitlines()
    assert [line for line in losses if line.endswith("nan")] == ["2,nan", "3,nan", "14,nan"]
    assert is_finite([record.to_dict() for record in read_history(tmp_path / "whole")])
    state = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["step"] == state["observer"]["step"]
    assert is_finite(state)

    calls = 0

    def crash(*values: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyError
        return append_record(*values)

    with monkeypatch.context() as patch:
        poison(patch, {2, 3, 14})
        patch.setattr(training.running.write_down, "append_record", crash)
        with pytest.raises(KeyError):
            train(skipping(tmp_path / "parts"), quiet)
    assert read_history(tmp_path / "parts")[-1].step >= 14
    train(skipping(tmp_path / "parts", resume=True), quiet)
    assert not differences(ending(tmp_path / "parts"), ending(tmp_path / "whole"))


def test_a_run_that_skips_every_step_stops(tmp_path, monkeypatch):
    poison(monkeypatch, set(range(1, 1000)))
    with pytest.raises(NonFinite, match=r"^no loss and gradients of steps 1 to \d+ were finite, "):
        train(skipping(tmp_path), quiet)
    assert not (tmp_path / "history.jsonl").exists()


def test_infinite_gradients_of_float16_are_the_scalers_affair(tmp_path, monkeypatch):
    def large(precision: Precision) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(precision.device.type, init_scale=2.0**30)

    monkeypatch.setattr(Precision, "scaler", large)
    for name in ("stop", "skip"):
        changes = {"precision": "fp16", "nonfinite": name, "epochs": 0.02, "batch_size": 8}
        summary = train(small(tmp_path / name, observe_every=1, **changes), quiet)
        assert summary["skipped_steps"] == 0
        text = (tmp_path / name / "history.jsonl").read_text()
        assert is_finite([strict(line) for line in text.splitlines()])
    first = read_history(tmp_path / "skip")[0].layers["stem"]
    assert first.gradient_norm is None  # of a step that the scaler left out
    assert first.response_std
    skipped, plain = (
        ending(tmp_path / name)["states"]["checkpoint.pt"] for name in ("skip", "stop")
    )
    for part in ("weights", "ema", "optimizer", "scaler"):
        assert not differences(skipped[part], plain[part])
        assert is_finite(plain[part])


def test_a_statistic_that_is_not_finite_is_none():
    broken = {"gradient_norm": math.inf, "response_std": 1.0, "extra": {"a": math.nan, "b": 2.0}}
    layers = {"stem": LayerReading(None, "stem", edited=3, **broken)}
    expected = LayerReading(None, "stem", response_std=1.0, edited=3, extra={"b": 2.0})
    assert finite_readings(layers) == {"stem": expected}


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"a": math.nan})
    train(small(tmp_path / "a"), quiet)
    record = replace(read_history(tmp_path / "a")[-1], train_loss=math.inf)
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_record(tmp_path, record)
    assert not list(tmp_path.glob("*.json*"))


def test_an_average_or_a_test_loss_that_is_not_finite_is_none(tmp_path, monkeypatch):
    validate = training.running.take_record.validate
    nets: list[Any] = []

    def spoilt(run: Any, net: Any) -> Any:
        nets.append(net)
        loss, accuracy = validate(run, net)
        return (loss if next(net.parameters()).requires_grad else math.inf), accuracy

    monkeypatch.setattr(training.running.take_record, "validate", spoilt)
    monkeypatch.setattr(training.running.finished, "evaluate", lambda *_: (math.nan, 0.5))
    summary = train(small(tmp_path, final=True), quiet)
    assert strict((tmp_path / "summary.json").read_text()) == summary
    assert (summary["ema_validation_loss"], summary["test_loss"]) == (None, None)
    rows = csv_rows(tmp_path / "metrics.csv")
    assert {row["ema_validation_loss"] for row in rows} == {""}


@dataclass(frozen=True)
class Spoils(Policy):
    """Widens once, with weights that are not numbers."""

    def decide(self, history):
        spoilt = Widen("stage1.block1", 2, initializer=lambda shape, _: torch.full(shape, math.nan))
        return [spoilt] if len(history) == 2 else []


def test_a_growth_whose_outputs_are_not_finite_stops_the_run(tmp_path):
    with pytest.raises(NonFinite, match=r"^outputs after growth are not finite at step \d+: ") as s:
        train(small(tmp_path, policy=Spoils()), quiet)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert "\n" not in str(s.value)
    assert str(s.value).endswith(
        f"of step {state['progress']['step']}, is {tmp_path}/checkpoint.pt"
    )
    assert is_finite(state)
    assert not list((tmp_path / "growth").glob("*.pt")) if (tmp_path / "growth").exists() else True
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 1


def tensors_of_all_kinds(device: str) -> dict[str, torch.Tensor]:
    """Weights in two layouts, numbers, half precision at its largest, nothing, whole numbers."""
    kinds = {
        "weight": torch.ones(300, 3, 3, 3).to(memory_format=torch.channels_last),
        "step": torch.tensor(5.0),
        "half": torch.full((5000,), 65504.0, dtype=torch.float16),
        "bf16": torch.full((70,), -3e38, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "count": torch.tensor(3),
        "double": torch.full((2, 70_000), 1e300, dtype=torch.float64),
        "bias": torch.zeros(7),
    }
    return {name: value.to(device) for name, value in kinds.items()}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_first_tensor_that_is_not_finite_is_named(device):
    tensors = tensors_of_all_kinds(device)
    assert first_nonfinite(tensors) is None
    assert first_nonfinite({name: tensors[name] for name in ("empty", "count")}) is None
    for name in ("weight", "step", "half", "bf16", "double", "bias"):
        for value in (math.nan, math.inf, -math.inf):
            for place in (0, -1):
                broken = tensors[name].clone()
                broken[(place,) * broken.dim()] = value
                spoilt = {**tensors, name: broken}
                assert first_nonfinite(spoilt) == name
                assert first_nonfinite({**spoilt, "bias": broken}) == name
                assert first_nonfinite(dict(reversed({"bias": broken, **spoilt}.items()))) == name


def test_all_tensors_of_a_kind_are_one_question():
    class Counted(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for name in ("resnet8", "resnet20"):
        net = build(preset(name))
        run: Any = SimpleNamespace(net=net, ema=net, optimizer=make_optimizer(net, Train()))
        with Counted() as counted:
            check_state(run)
        counts.append(counted.calls)
    assert counts[0] == counts[1]
