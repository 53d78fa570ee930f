"""Entries born at one growth move by a learning rate of their own, whatever becomes of them."""

import copy
from dataclasses import replace

import pytest
import torch
from makers import NETS, batch_for, differences, plain, take_step, trained
from runs import short_run
from test_captured_step import Scripted, opened, train

import training.asking.branch
from analysis import Observer, read_history
from nets import (
    CohortRates,
    Freeze,
    Insert,
    Narrow,
    Remove,
    Unfreeze,
    Widen,
    WidenStage,
    build,
    grow,
)
from nets.modules.frozen_parts import join_values
from nets.plan.actions import adds_capacity
from policies import Periodic
from training.asking.branch import branch
from training.keeping.run_folder import read_config
from training.running.loop import train as train_run
from training.stepping.update import step_unless

BLOCK, OTHER = "stage1.block2", "stage1.block1"
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, weight_decay=0.01),
}
EDITS = [
    [Widen(BLOCK, 2), Freeze(OTHER, channels=3)],
    [Insert(BLOCK, 3), WidenStage("stage1", 2)],
    [Narrow(BLOCK, 2)],
    [Unfreeze(OTHER), Widen(OTHER, 1), Freeze(BLOCK, channels=2)],
    [Remove("stage1.block3"), Widen("stage2.block1", 2)],
    [Freeze("stem")],
]
OLD = 1000.0


def marked(net):
    """A copy in which every value says that it was there from the first."""
    marks = copy.deepcopy(net)
    for value in marks.state_dict().values():
        if value.is_floating_point():
            value.fill_(OLD)
    return marks


@torch.no_grad()
def mark_new(marks, number):
    """Mark what has grown: it is no mark yet, but a small number."""
    for value in marks.state_dict().values():
        if value.is_floating_point():
            value.masked_fill_(value < OLD, OLD + number)


def ratios_of(net, marks):
    """Ratio by mark, each entry of each weight looked at by itself."""
    squares = {}
    weights, labels = (join_values(each, each.state_dict()) for each in (net, marks))
    for name, value in weights.items():
        if value.dim() > 1:
            for entry, mark in zip(value.flatten().tolist(), labels[name].flatten().tolist()):
                squares[mark] = squares.get(mark, 0.0) + entry**2
    return {mark: (squares[mark] / squares[min(squares)]) ** 0.5 for mark in sorted(squares)}


def moved_at(net, optimizer, batch, ratio):
    """Parameters by name after a step of copies whose learning rate is multiplied."""
    net, optimizer = copy.deepcopy((net, optimizer))
    for group in optimizer.param_groups:
        group["lr"] *= ratio
    take_step(net, optimizer, *batch)
    return dict(net.named_parameters())


def grown_with_rates(name, kind, edits):
    """Grow a net edit by edit and train a step before each: net, optimizer, rates and marks."""
    net = trained(NETS[name], torch.float64)
    optimizer = OPTIMIZERS[kind](net.parameters())
    marks, rates = marked(net), CohortRates(net, optimizer)
    for number, actions in enumerate(edits, start=1):
        take_step(net, optimizer, *batch_for(net.architecture, number, dtype=torch.float64))
        grown = grow(net, actions, optimizer, ema=marks, seed=number)
        rates.follow(grown)
        net, optimizer, marks = grown.network, grown.optimizer, grown.ema
        mark_new(marks, number)
    return net, optimizer, rates, marks


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["basic", "bottleneck pre", "dense"])
def test_every_entry_moves_as_at_the_rate_of_its_cohort(name, kind):
    for count in range(1, len(EDITS) + 1):
        net, optimizer, rates, marks = grown_with_rates(name, kind, EDITS[:count])
        batch = batch_for(net.architecture, 99, dtype=torch.float64)
        expected, labels = ratios_of(net, marks), dict(marks.named_parameters())
        assert len(expected) > 1
        assert len(optimizer._optimizer_step_post_hooks) == 1
        assert rates.ratios().tolist() == pytest.approx(list(expected.values()), rel=1e-12)
        moved = {mark: moved_at(net, optimizer, batch, r) for mark, r in expected.items()}
        take_step(net, optimizer, *batch)
        for path, value in net.named_parameters():
            for mark in expected:
                here = labels[path] == mark
                torch.testing.assert_close(
                    value[here], moved[mark][path][here], rtol=1e-12, atol=1e-13
                )
            first = labels[path] == OLD
            assert torch.equal(value[first], moved[OLD][path][first])


def test_under_sgd_an_update_is_multiplied():
    net, optimizer, _, marks = grown_with_rates("basic", "sgd", EDITS[:2])
    batch = batch_for(net.architecture, 99, dtype=torch.float64)
    ratios, labels = ratios_of(net, marks), dict(marks.named_parameters())
    before = {path: value.detach().clone() for path, value in net.named_parameters()}
    shared = moved_at(net, optimizer, batch, 1.0)
    take_step(net, optimizer, *batch)
    for path, value in net.named_parameters():
        factor = labels[path].detach().apply_(ratios.__getitem__)
        update = factor * (shared[path] - before[path])
        torch.testing.assert_close(value - before[path], update, rtol=1e-9, atol=1e-14)


def test_nothing_is_done_until_something_is_born():
    net = build(NETS["basic"])
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    rates = CohortRates(net, optimizer)
    grown = grow(net, Freeze(BLOCK), optimizer)
    rates.follow(grown)
    assert rates.ratios().tolist() == [1.0]
    assert rates.state_dict() == {}
    assert not grown.optimizer._optimizer_step_pre_hooks
    with pytest.raises(ValueError, match="grown must come from grow with an optimizer, got none"):
        rates.follow(grow(net, Freeze(BLOCK)))
    with pytest.raises(ValueError, match="grown must come from grow with an optimizer, got a Netw"):
        rates.follow(grown.network)  # pyright: ignore[reportArgumentType]


def test_where_the_first_cohort_is_gone_the_oldest_is_the_first():
    net = build(plain(4))
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    rates = CohortRates(net, optimizer)
    for actions in ([Widen("stage1.block1", 4)], [Narrow("stage1.block1", 4)]):
        grown = grow(net, actions, optimizer)
        rates.follow(grown)
        net, optimizer = grown.network, grown.optimizer
        with torch.no_grad():
            net.head.linear.weight[:, :4] = 0  # the least useful: those that it began with
            net.head.linear.weight[:, 4:] = 1
    assert rates.ratios().tolist() == [1.0]
    batch = batch_for(net.architecture)
    expected = moved_at(net, optimizer, batch, 1.0)
    take_step(net, optimizer, *batch)
    assert not differences(dict(net.named_parameters()), expected)


def test_a_cohort_of_zeros_learns():
    net = build(NETS["basic"])
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    rates = CohortRates(net, optimizer)
    rates.follow(
        grow(net, Widen(BLOCK, 2), optimizer, initializer=lambda shape, _: torch.zeros(shape))
    )
    assert rates.ratios().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_that_is_left_out_changes_nothing(kind):
    net, optimizer, _, _ = grown_with_rates("basic", kind, EDITS[:2])
    before = copy.deepcopy(net.state_dict())
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    step_unless(torch.ones(()), optimizer)
    assert not differences(before, net.state_dict())


class Outer(torch.optim.SGD):
    """An optimizer whose step is another's, so that torch calls hooks for both."""

    def step(self, closure=None):
        return super().step(closure)


def test_a_step_within_a_step_is_scaled_once():
    net, _, rates, _ = grown_with_rates("basic", "sgd", EDITS[:1])
    batch = batch_for(net.architecture, 99, dtype=torch.float64)
    found = []
    for kind in (torch.optim.SGD, Outer):
        own = copy.deepcopy(net)
        optimizer = kind(own.parameters(), 0.1)
        CohortRates(own, optimizer).load_state_dict(rates.state_dict())
        take_step(own, optimizer, *batch)
        found.append(dict(own.named_parameters()))
    assert not differences(*found)


def test_the_observer_reads_the_updates_that_are_made():
    net = trained(NETS["basic"])
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    ratios, layer = [], "stage1.block3.bn1"
    for by_cohort in (False, True):
        rates = CohortRates(net, optimizer)
        with Observer(net, optimizer) as observer:
            take_step(*copy.deepcopy((net, optimizer)), *batch_for(net.architecture, 1))
            grown = grow(net, Insert(BLOCK, 3), optimizer)
            if by_cohort:
                rates.follow(grown)
            observer.follow(grown)
            expected = float(rates.ratios()[-1])
            take_step(grown.network, grown.optimizer, *batch_for(net.architecture, 2))
            readings = observer.readings()
        ratios.append(readings[layer].update_ratio)
    assert expected != 1
    assert ratios[1] == pytest.approx(expected * ratios[0], rel=1e-4)


def run_of(folder, **options):
    return opened(folder, rates="cohort", **options)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_that_is_resumed_goes_on_bit_for_bit(tmp_path, kind):
    whole, parts = (run_of(tmp_path / name, optimizer=kind) for name in ("whole", "parts"))
    train(whole)
    for step in (2, 7, 14):
        train(parts, until=step)
        parts = run_of(tmp_path / "parts", optimizer=kind)
    assert parts.rates.state_dict()
    train(parts)
    assert not differences(whole.net.state_dict(), parts.net.state_dict())
    assert not differences(whole.rates.state_dict(), parts.rates.state_dict())
    shared = opened(tmp_path / "shared", optimizer=kind)
    train(shared)
    assert differences(whole.net.state_dict(), shared.net.state_dict())
    assert Scripted().decide(whole.history[:1]) == list(whole.history[0].applied)


def test_branches_go_on_at_the_rates_of_their_cohorts(tmp_path, monkeypatch):
    how = {"epochs": 0.5, "records": 4, "policy": Periodic(), "rates": "cohort"}
    train_run(short_run(tmp_path, **how), lambda _: None)
    steps = [each.step for each in read_history(tmp_path) if any(map(adds_capacity, each.applied))]
    hooks, plain_step = [], training.asking.branch.train_step

    def watched(net, optimizer, *how):
        hooks.append(len(optimizer._optimizer_step_post_hooks))
        return plain_step(net, optimizer, *how)

    monkeypatch.setattr(training.asking.branch, "train_step", watched)
    branch(tmp_path, steps[0], steps=1, orders=1, say=lambda _: None, budget="steps")
    assert hooks[0] == 0  # nothing grew in the first branch, nor before
    assert set(hooks[1:]) == {1}
    hooks.clear()
    branch(tmp_path, steps[1], steps=1, orders=1, say=lambda _: None, budget="steps")
    assert set(hooks) == {1}


def test_the_setting_binds_a_run_and_an_older_run_had_none(tmp_path):
    settings = short_run(tmp_path, epochs=0.1, records=2)
    train_run(settings, lambda _: None)
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("rates: shared\n", ""))
    assert read_config(tmp_path)["rates"] == "shared"
    train_run(replace(settings, resume=True), lambda _: None)
    with pytest.raises(ValueError, match="rates must be 'shared' to resume the run in"):
        train_run(replace(settings, resume=True, rates="cohort"), lambda _: None)
