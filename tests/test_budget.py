"""The budget: counted exactly, spent to the first step that reaches it, and what follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
from runs import quiet, short_run

import training.running.decide_and_grow
import training.running.loop
import training.running.measure_probes
import training.stepping.step
from analysis import Record, read_history
from nets import Action, Insert, SetSurvival, Widen, cost, preset, train_flops
from nets.plan.actions import adds_capacity
from policies import Never, Periodic, Policy, StochasticDepth
from training.computing.budget import Budget, Progress
from training.computing.learning_rate import learning_rate
from training.running.loop import train
from training.running.prepare import CHECKED, PROBE
from training.settings.start_settings import Start
from training.settings.train_settings import Train

LIMIT = preset("resnet8", image=(1, 8, 8))
IMAGES = 1295
"""Training images of the digits."""


def small(folder: Path, **changes: Any) -> Train:
    """Settings of a run of a second."""
    return short_run(folder, **{"epochs": 0.5, "records": 8, "policy": Periodic(), **changes})


@dataclass
class Log:
    """What a run did, seen from outside: each step's images, FLOPs so far and learning rate."""

    images: list[int] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    total: int = 0


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Count FLOPs beside the loop: steps by what was trained, growths by what they ran."""
    log = Log()
    step, grow = training.stepping.step.train_step, training.running.decide_and_grow.grow
    probe = training.running.measure_probes.block_importance

    def stepped(net: Any, optimizer: Any, inputs: Any, *rest: Any) -> None:
        step(net, optimizer, inputs, *rest)
        log.total += len(inputs) * train_flops(net.architecture)
        log.images.append(len(inputs))
        log.flops.append(log.total)
        log.rates.append(float(optimizer.param_groups[0]["lr"]))

    def grown(net: Any, *rest: Any, **options: Any) -> Any:
        result = grow(net, *rest, **options)
        forwards = 2 * cost(net.architecture).flops + 3 * cost(result.network.architecture).flops
        log.total += CHECKED * forwards
        return result

    def probed(net: Any, *rest: Any) -> Any:
        log.total += (1 + len(net.architecture.blocks)) * PROBE * cost(net.architecture).flops
        return probe(net, *rest)

    monkeypatch.setattr(training.stepping.step, "train_step", stepped)
    monkeypatch.setattr(training.running.decide_and_grow, "grow", grown)
    monkeypatch.setattr(training.running.measure_probes, "block_importance", probed)
    return log


def test_a_budget_is_the_training_of_so_many_epochs_of_the_limit():
    flops = 2.5 * 1000 * train_flops(LIMIT)
    assert Budget.of(Train(epochs=2.5), LIMIT, 1000) == Budget("flops", flops)
    assert Budget.of(Train(epochs=2.5, budget="epochs"), LIMIT, 1000) == Budget("epochs", 2500)
    assert Budget.of(Train(epochs=2.5, budget="seconds"), LIMIT, 1000) == Budget("seconds", 2.5)


@pytest.mark.parametrize(
    ("kind", "used", "spent"),
    [
        ("flops", Progress(flops=0, images=9, seconds=9), 0.0),
        ("flops", Progress(flops=50, images=9, seconds=9), 0.5),
        ("flops", Progress(flops=100), 1.0),
        ("flops", Progress(flops=130), 1.0),
        ("epochs", Progress(flops=9, images=25, seconds=9), 0.25),
        ("seconds", Progress(flops=9, images=9, seconds=12.5), 0.125),
    ],
)
def test_spent_is_the_used_part_and_at_most_all(kind, used, spent):
    assert Budget(kind, 100).spent(used) == spent


def test_the_smallest_budget_is_one_step():
    for kind in ("flops", "epochs"):
        budget = Budget.of(Train(epochs=1e-12, budget=kind), LIMIT, images=100)
        assert budget.spent(Progress()) == 0
        assert budget.spent(Progress(images=1, flops=1)) == 1


@pytest.mark.parametrize(
    ("changes", "spent", "rate"),
    [
        ({}, 0, 0.1),
        ({}, 0.25, 0.1 * (1 + 2**-0.5) / 2),
        ({}, 0.5, 0.05),
        ({}, 1, 0),
        ({"lr": 3.0}, 0.5, 1.5),
        ({"optimizer": "adamw"}, 0, 0.001),
        ({"schedule": "hold"}, 0, 0.1),
        ({"schedule": "hold"}, 0.6, 0.1),
        ({"schedule": "hold"}, 0.8, 0.05),
        ({"schedule": "hold"}, 1, 0),
        ({"schedule": "hold", "grow_until": 0}, 0.5, 0.05),
        ({"schedule": "hold", "grow_until": 1}, 0.999, 0.1),
        ({"schedule": "hold", "grow_until": 1}, 1, 0.1),
    ],
)
def test_the_learning_rate_is_a_function_of_the_spent_part(changes, spent, rate):
    assert learning_rate(Train(**changes), spent) == pytest.approx(rate, abs=1e-15)


def test_flops_are_counted_as_the_exact_sum_over_steps_and_growths(tmp_path, log):
    summary = train(small(tmp_path), quiet)
    assert len(summary["growth"]) >= 3
    assert isinstance(summary["train_flops"], int)
    assert summary["train_flops"] == log.total
    assert summary["steps"] == len(log.flops)
    assert summary["epochs"] == sum(log.images) / IMAGES


def test_probes_are_counted_too(tmp_path, log):
    summary = train(small(tmp_path, policy=StochasticDepth(every=2)), quiet)
    history = read_history(tmp_path)
    assert sum(bool(record.importance) for record in history) == len(history) - 1  # none at the end
    assert summary["growth"]
    assert summary["train_flops"] == log.total == history[-1].train_flops


@pytest.mark.parametrize("policy", [Never(), Periodic()])
def test_a_run_stops_at_the_first_step_that_reaches_the_budget(tmp_path, log, policy):
    summary = train(small(tmp_path, policy=policy), quiet)
    total = 0.5 * IMAGES * train_flops(LIMIT)
    assert log.flops[-2] < total <= log.flops[-1] == summary["train_flops"]


@pytest.mark.parametrize("policy", [Never(), Periodic()])
def test_records_lie_at_equal_parts_of_the_budget(tmp_path, log, policy):
    start = Start(0.25, 1)
    train(small(tmp_path, records=7, policy=policy, start=start), quiet)
    history, total = read_history(tmp_path), 0.5 * IMAGES * train_flops(LIMIT)
    assert len(history) == 7
    for number, record in enumerate(history, start=1):
        assert record.train_flops >= number / 7 * total
        assert log.flops[record.step - 2] < number / 7 * total  # the step before was short of it
        assert record.spent == min(1, record.train_flops / total)
    assert history[-1].spent == 1


def test_a_budget_of_fewer_steps_than_records_has_a_record_at_every_step(tmp_path):
    summary = train(small(tmp_path, epochs=0.1, records=50, policy=Never()), quiet)
    history = read_history(tmp_path)
    assert [record.step for record in history] == list(range(1, summary["steps"] + 1))
    assert history[-1].spent == 1


@pytest.mark.parametrize("schedule", ["cosine", "hold"])
def test_every_step_has_the_learning_rate_of_what_was_spent_before_it(tmp_path, log, schedule):
    train(small(tmp_path, policy=Never(), schedule=schedule, grow_until=0.3, lr=0.2), quiet)
    total = 0.5 * IMAGES * train_flops(LIMIT)
    for before, rate in zip([0, *log.flops], log.rates):
        spent = before / total
        if schedule == "hold":
            spent = max(0.0, spent - 0.3) / 0.7
        assert rate == pytest.approx(0.2 * (1 + cos(pi * spent)) / 2)


def test_an_epochs_budget_is_passes_over_the_data(tmp_path, log):
    summary = train(small(tmp_path, budget="epochs", epochs=1.5, records=6), quiet)
    total = round(1.5 * IMAGES)
    assert sum(log.images[:-1]) < total <= sum(log.images)
    assert summary["growth"]
    assert summary["train_flops"] == log.total
    history = read_history(tmp_path)
    assert len(history) == 6
    for number, record in enumerate(history, start=1):
        assert 32 * (record.step - 1) < number / 6 * total <= 32 * record.step
        assert record.epoch == 32 * record.step / IMAGES


def test_a_seconds_budget_is_the_clock(tmp_path, monkeypatch):
    clock = [0.0]

    def tick() -> float:
        clock[0] += 0.125
        return clock[0]

    monkeypatch.setattr(training.running.loop, "perf_counter", tick)
    summary = train(small(tmp_path, budget="seconds", epochs=5, records=4), quiet)
    history = read_history(tmp_path)
    assert [record.spent for record in history] == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.125)
    assert summary["seconds"] >= 5
    assert summary["steps"] <= 40  # the clock ticks at least once a step
    assert summary["seconds"] == pytest.approx(5, abs=0.5)


@dataclass(frozen=True)
class Greedy(Policy):
    """Asks at every record for too much, a little, a block, and what adds nothing."""

    def decide(self, history: Sequence[Record]) -> Sequence[Action]:
        return [
            Widen("stage3.block1", 1000),
            Widen("stage1.block1", 1),
            Insert("stage2.block1", 4),
            SetSurvival("stage1.block1", round(1 - len(history) / 100, 2)),
        ]


def test_nothing_grows_after_grow_until_and_nothing_beyond_the_limit(tmp_path):
    settings = small(tmp_path, policy=Greedy(), grow_until=0.4, records=10)
    summary = train(settings, quiet)
    late = 0
    for record in read_history(tmp_path)[:-1]:
        assert record.cost.flops <= cost(LIMIT).flops
        assert record.cost.parameters <= cost(LIMIT).parameters
        assert len(record.decided) == 4
        reasons = dict(record.refused)
        assert {*record.applied, *reasons} == set(record.decided)
        assert record.decided[3] in record.applied
        if record.spent > 0.4:
            late += 1
            assert list(map(adds_capacity, record.applied)) == [False]
            assert set(reasons.values()) == {"no growth after grow_until"}
        else:
            assert record.applied[:1] == record.decided[1:2]
            assert "the limit is" in reasons[record.decided[0]]
    assert late >= 5
    assert {entry["spent"] <= 0.4 for entry in summary["growth"]} == {True}
    assert len(summary["growth"]) >= 4


def test_the_last_record_is_of_the_final_network_even_if_a_probe_uses_up_the_budget(tmp_path):
    """Two parts of the budget are less than one probe here."""
    settings = small(
        tmp_path,
        policy=StochasticDepth(every=1, share=0.2, cooldown=0),
        grow_until=1,
        epochs=0.3,
        records=20,
    )
    summary = train(settings, quiet)
    history = read_history(tmp_path)
    assert history[-2].spent == 1  # what this test needs: the probe spent the rest
    assert history[-1].spent == 1
    assert history[-1].step == history[-2].step + 1
    assert not history[-1].decided
    grown = history[-2].architecture
    for action in history[-2].applied:
        grown = grown.apply(action)
    assert history[-1].architecture == grown
    assert summary["parameters"] == cost(grown).parameters
