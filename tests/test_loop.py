"""The loop: the same seed gives the same run, growing shifts nothing else, all is written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import differences
from runs import csv_rows, quiet, short_run

import training.running.decide_and_grow
import training.running.finished
import training.running.measure_probes
import training.running.take_record
import training.stepping.step
from analysis import Record, read_history
from nets import Action, Architecture, Insert, SetSurvival, Widen, build, cost, preset, seed_of
from policies import Never, Periodic, Policy, StochasticDepth
from training.data.splits import channel_statistics, load
from training.running.loop import train
from training.running.write_down import line_of
from training.settings.start_settings import Start
from training.settings.train_settings import Train

LIMIT = preset("resnet8", image=(1, 8, 8))


@dataclass(frozen=True)
class Planned(Policy):
    """Grows at the second, third and fourth record, and lets blocks live by chance."""

    def decide(self, history: Sequence[Record]) -> Sequence[Action]:
        plan = {
            2: [Widen("stage1.block1", 2, reason="planned"), SetSurvival("stage2.block1", 0.8)],
            3: [Insert("stage3.block1", 8, 0.5), Widen("stage9.block1", 1)],
            4: [Widen("stage3.block2", 3)],
        }
        return plan.get(len(history), [])


def small(folder: Path, **changes: Any) -> Train:
    """Settings of a run of less than a second."""
    given = {"epochs": 0.3, "records": 8, "policy": Planned(), "budget": "epochs"}
    return short_run(folder, **{**given, "grow_until": 0.8, **changes})


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["weights"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_same_seed_gives_the_same_run(tmp_path, precision):
    for name in ("a", "b"):
        torch.manual_seed(hash(name))  # what happened before must not matter
        train(small(tmp_path / name, precision=precision), quiet)
    texts = [(tmp_path / name / "history.jsonl").read_bytes() for name in ("a", "b")]
    assert texts[0] == texts[1]
    assert not differences(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))


def test_the_first_weights_are_those_of_the_initializer(tmp_path, monkeypatch):
    first: list[torch.Tensor] = []
    step = training.stepping.step.train_step

    def stepped(net: Any, *rest: Any) -> Any:
        first.append(net.stem.conv.weight.detach().clone())
        return step(net, *rest)

    monkeypatch.setattr(training.stepping.step, "train_step", stepped)
    train(small(tmp_path, initializer="xavier"), quiet)
    expected = build(seed_of(LIMIT), initializer="xavier").stem.conv.weight
    assert torch.equal(first[0], expected)
    assert not torch.equal(first[0], build(seed_of(LIMIT)).stem.conv.weight)


def test_another_seed_gives_another_run(tmp_path):
    for seed in (0, 1):
        train(small(tmp_path / str(seed), seed=seed), quiet)
    first, second = (read_history(tmp_path / name)[0] for name in ("0", "1"))
    assert first.train_loss != second.train_loss
    assert (first.step, first.architecture) == (second.step, second.architecture)


def test_growing_shifts_no_data_order(tmp_path, monkeypatch):
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = []
    step = training.stepping.step.train_step

    def stepped(net: Any, optimizer: Any, inputs: Any, targets: Any, *rest: Any) -> None:
        seen[-1].append((inputs, targets))
        step(net, optimizer, inputs, targets, *rest)

    monkeypatch.setattr(training.stepping.step, "train_step", stepped)
    for policy in (Planned(), Never(), StochasticDepth()):
        seen.append([])
        train(
            small(
                tmp_path / str(len(seen)), policy=policy, start=Start(), epochs=1.1, batch_size=64
            ),
            quiet,
        )
    static = seen[1]
    assert len(static) > 21  # into the second epoch
    for grown in (seen[0], seen[2]):
        assert len(grown) == len(static)
        for one, other in zip(grown, static, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])


def test_a_grown_run_is_the_static_run_until_it_grows(tmp_path):
    train(small(tmp_path / "grown"), quiet)
    train(small(tmp_path / "static", policy=Never(), start=Start()), quiet)
    grown, static = (read_history(tmp_path / name) for name in ("grown", "static"))
    empty = {"decided": (), "applied": (), "refused": ()}
    assert grown[0] == static[0]
    assert replace(grown[1], **empty) == static[1]
    assert grown[2].train_loss != static[2].train_loss


def test_records_look_at_a_part_of_the_validation_split_and_the_summary_at_all(
    tmp_path, monkeypatch
):
    seen: list[int] = []
    sums_over = training.running.take_record.sums_over

    def counted(net: Any, images: Any, *rest: Any) -> Any:
        seen.append(len(images))
        return sums_over(net, images, *rest)

    monkeypatch.setattr(training.running.take_record, "sums_over", counted)
    whole = train(small(tmp_path / "whole"), quiet)
    assert seen == [143] * 16  # the net and its average
    seen.clear()
    part = train(small(tmp_path / "part", validation_images=50), quiet)
    assert seen == [50] * 16
    for name in ("validation", "ema_validation"):
        assert part[f"{name}_loss"] == whole[f"{name}_loss"]
        assert part[f"{name}_accuracy"] == whole[f"{name}_accuracy"]
    last = [read_history(tmp_path / name)[-1].validation_loss for name in ("whole", "part")]
    assert last[0] == whole["validation_loss"] != last[1]


def test_history_tells_what_was_asked_for_done_and_refused(tmp_path):
    train(small(tmp_path), quiet)
    history = read_history(tmp_path)
    assert [len(record.decided) for record in history] == [0, 2, 2, 1, 0, 0, 0, 0]
    assert [len(record.applied) for record in history] == [0, 2, 1, 1, 0, 0, 0, 0]
    ((action, why),) = history[2].refused
    assert (action, why.startswith("block must be one of")) == (Widen("stage9.block1", 1), True)
    architecture = seed_of(LIMIT)
    for before, record in pairwise(history):
        for done in before.applied:
            architecture = architecture.apply(done)
        assert record.architecture == architecture
        assert record.limit == cost(LIMIT)
    edited = {name: reading.edited for name, reading in history[-1].layers.items()}
    assert edited["stage1.block1.bn1"] == history[1].step
    assert (
        edited["stage3.block2"] == history[3].step
    )  # born at the record before, widened at this one
    assert edited["stage2.block1"] is None
    assert edited["head"] is None


def test_the_policy_is_asked_at_every_record_but_the_last(tmp_path):
    seen: list[list[Record]] = []

    @dataclass(frozen=True)
    class Watching(Policy):
        def decide(self, history: Sequence[Record]) -> Sequence[Action]:
            seen.append(list(history))
            return [SetSurvival("stage1.block1", 0.9)]

    train(small(tmp_path, policy=Watching()), quiet)
    history = read_history(tmp_path)
    assert [len(shown) for shown in seen] == list(range(1, len(history)))
    empty = {"decided": (), "applied": (), "refused": ()}
    for shown in seen:
        assert shown[:-1] == history[: len(shown) - 1]
        assert shown[-1] == replace(history[len(shown) - 1], **empty)
    assert not history[-1].decided


def test_growing_moves_no_output_and_keeps_the_state_before_it(tmp_path, monkeypatch):
    differences = []
    grow = training.running.decide_and_grow.grow

    def grown(*arguments: Any, **options: Any) -> Any:
        result = grow(*arguments, **options)
        differences.append(result.difference)
        return result

    monkeypatch.setattr(training.running.decide_and_grow, "grow", grown)
    train(small(tmp_path), quiet)
    history = read_history(tmp_path)
    assert len(differences) == 3
    assert max(differences) < 1e-5
    kept = sorted((tmp_path / "growth").iterdir())
    assert [path.name for path in kept] == [f"step{r.step:07d}.pt" for r in history[1:4]]
    for path, record in zip(kept, history[1:4], strict=True):
        state = torch.load(path, weights_only=True)
        assert Architecture.from_dict(state["architecture"]) == record.architecture


def test_every_record_has_readings_of_its_own_however_seldom_layers_are_read(tmp_path):
    train(small(tmp_path, observe_every=1000), quiet)
    history = read_history(tmp_path)
    for before, record in pairwise(history):
        assert record.layers.keys() >= before.layers.keys()
        for path, reading in record.layers.items():
            assert None not in (reading.response_std, reading.gradient_norm, reading.update_ratio)
            assert reading != before.layers.get(path)


def test_a_summary_says_how_it_ended(tmp_path):
    summary = train(small(tmp_path), quiet)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    history = read_history(tmp_path)
    last = history[-1]
    assert summary["policy"] == "Planned"
    assert (summary["seed"], summary["data"], summary["net"]) == (0, "digits", "resnet8")
    assert (summary["parameters"], summary["flops"]) == (last.cost.parameters, last.cost.flops)
    assert summary["validation_accuracy"] == last.validation_accuracy
    assert summary["train_loss"] == last.train_loss
    assert (summary["test_loss"], summary["test_accuracy"], summary["test_readings"]) == (
        None,
        None,
        0,
    )
    assert [(entry["step"], entry["action"]["action"]) for entry in summary["growth"]] == [
        (history[1].step, "Widen"),
        (history[2].step, "Insert"),
        (history[3].step, "Widen"),
    ]
    assert summary["growth"][0]["action"]["reason"] == "planned"
    architecture = json.loads((tmp_path / "architecture.json").read_text())
    assert Architecture.from_dict(architecture) == last.architecture


def test_metrics_have_a_row_for_every_record(tmp_path):
    train(small(tmp_path), quiet)
    rows = csv_rows(tmp_path / "metrics.csv")
    history = read_history(tmp_path)
    assert [int(row["step"]) for row in rows] == [record.step for record in history]
    assert [float(row["validation_loss"]) for row in rows] == [r.validation_loss for r in history]
    assert [int(row["parameters"]) for row in rows] == [r.cost.parameters for r in history]
    assert [float(row["seconds"]) for row in rows] == sorted(float(row["seconds"]) for row in rows)
    assert all(float(row["images_per_second"]) > 0 for row in rows)


def test_the_average_of_the_weights_is_judged_at_every_record_and_grows_along(tmp_path):
    summary = train(small(tmp_path), quiet)
    rows = csv_rows(tmp_path / "metrics.csv")
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len({row["ema_validation_loss"] for row in rows}) == len(rows) == 8
    assert all(row["ema_validation_loss"] != row["validation_loss"] for row in rows)
    for name in ("ema_validation_loss", "ema_validation_accuracy"):
        assert summary[name] == float(rows[-1][name])
    weights, averages = state["weights"], state["ema"]
    shapes = [{name: value.shape for name, value in one.items()} for one in (weights, averages)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(
        weights["stage3.block2.conv1.weight"], averages["stage3.block2.conv1.weight"]
    )


def test_a_run_without_an_average_is_the_same_but_for_it(tmp_path):
    with_it = train(small(tmp_path / "with"), quiet)
    without = train(small(tmp_path / "without", ema=0), quiet)
    histories = [read_history(tmp_path / name) for name in ("with", "without")]
    assert [replace(now, ema_validation_loss=None) for now in histories[0]] == histories[1]
    rows = csv_rows(tmp_path / "with" / "metrics.csv")
    read = [float(row["ema_validation_loss"]) for row in rows]
    assert [record.ema_validation_loss for record in histories[0]] == pytest.approx(read)
    assert not differences(weights_of(tmp_path / "with"), weights_of(tmp_path / "without"))
    assert with_it.keys() - without.keys() == {"ema_validation_loss", "ema_validation_accuracy"}
    assert torch.load(tmp_path / "without" / "checkpoint.pt")["ema"] is None
    rows = csv_rows(tmp_path / "without" / "metrics.csv")
    assert {row["ema_validation_loss"] for row in rows} == {""}


def test_the_sine_is_judged_as_a_regression_and_has_no_accuracy(tmp_path):
    settings = small(tmp_path, data="sine", net="mlp-40", policy=Periodic(), epochs=2)
    summary = train(replace(settings, final=True, optimizer="adam", precision="float32"), quiet)
    assert summary["growth"]
    net = build(Architecture.from_dict(json.loads((tmp_path / "architecture.json").read_text())))
    net.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["weights"])
    splits, losses = load("sine"), {}
    mean, std = channel_statistics(splits.train)
    for part, points in (("validation", splits.validation), ("test", splits.test)):
        error = net.eval()((points.pixels - mean) / std) - points.targets
        losses[part] = error.square().mean().item()
    assert (summary["validation_accuracy"], summary["test_accuracy"]) == (None, None)
    for part, loss in losses.items():
        assert summary[f"{part}_loss"] == pytest.approx(loss, rel=1e-4)
    assert summary["test_readings"] == 1


def test_a_run_says_a_line_for_every_record_and_how_far_it_is(tmp_path):
    lines: list[str] = []
    spent: list[float] = []
    train(small(tmp_path), lines.append, spent.append)
    history = read_history(tmp_path)
    first, *lines = lines
    assert first == "augmentation: crop (pad 1) (--augment auto)"
    assert len(lines) == len(history)
    assert spent == sorted(spent)
    assert len(spent) == history[-1].step
    assert spent[-1] == 1
    assert lines[0].startswith(f"step {history[0].step}   16%  train ")
    assert "Widen(block='stage1.block1', by=2): planned" in lines[1]
    assert "SetSurvival" not in lines[1]
    assert "Insert(after='stage3.block1', width=8, survival=0.5)" in lines[2]


def test_the_line_of_a_regression_leaves_accuracies_out():
    record = Record(7, 0.5, 0.25, 0, LIMIT, cost(LIMIT), train_loss=0.123456, validation_loss=2.0)
    line = "step 7   25%  train 0.1235  validation 2  77,754 parameters  1,235 images/s"
    assert line_of(record, 1234.6) == line


def test_importance_is_measured_only_for_a_policy_that_needs_it(tmp_path, monkeypatch):
    def unwanted(*_: Any) -> None:
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr(training.running.measure_probes, "block_importance", unwanted)
    train(small(tmp_path), quiet)
    assert not any(record.importance for record in read_history(tmp_path))


def test_the_test_set_is_read_once_and_only_if_asked_for(tmp_path, monkeypatch):
    read: list[int] = []
    evaluate = training.running.finished.evaluate

    def evaluated(net: Any, images: Any, *rest: Any) -> Any:
        if len(images) != 143:  # the average of the weights is judged on the validation split
            read.append(len(images))
        return evaluate(net, images, *rest)

    monkeypatch.setattr(training.running.finished, "evaluate", evaluated)
    settings = small(tmp_path)
    assert train(settings, quiet)["test_readings"] == 0
    assert read == []
    resumed = replace(settings, resume=True)
    assert train(resumed, quiet)["test_accuracy"] is None
    final = train(replace(resumed, final=True), quiet)
    assert final["test_readings"] == 1
    assert final["test_accuracy"] is not None
    for again in (replace(resumed, final=True), resumed):
        assert train(again, quiet) == final
    assert read == [359]  # a fifth of the digits
    once = train(small(tmp_path / "at once", final=True), quiet)
    assert (once["test_loss"], once["test_accuracy"]) == (
        final["test_loss"],
        final["test_accuracy"],
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"])
def test_a_damaged_summary_is_refused(tmp_path, text):
    train(small(tmp_path, epochs=0.01), quiet)
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=r"out: .*summary\.json cannot be read"):
        train(small(tmp_path, epochs=0.01, resume=True), quiet)
