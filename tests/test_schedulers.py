"""Learning-rate schedulers of torch, and those that hold several, go on after a growth."""

import copy
import itertools
import json
import pickle

import pytest
import torch
from makers import architecture_of, normal
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from nets import Insert, Widen, build, follow, grow

NET = architecture_of(widths=((3,),), streams=(4,), classes=3, image=(2, 4, 4))
ACTIONS = [Widen("stage1.block1", 2), Insert("stage1.block1", 2)]
IMAGES = normal(4, 2, 4, 4)


def warm(optimizer):
    return schedulers.LinearLR(optimizer, 0.1, 1.0, 4)


def sequential(optimizer):
    parts = [warm(optimizer), schedulers.CosineAnnealingLR(optimizer, 8)]
    return schedulers.SequentialLR(optimizer, parts, [4])


SCHEDULERS = {
    "lambda": lambda o: schedulers.LambdaLR(o, [lambda e: 0.9**e, lambda e: 0.8**e]),
    "multiplicative": lambda o: schedulers.MultiplicativeLR(o, lambda _: 0.95),
    "step": lambda o: schedulers.StepLR(o, 3),
    "multistep": lambda o: schedulers.MultiStepLR(o, [2, 6]),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.9),
    "polynomial": lambda o: schedulers.PolynomialLR(o, 8),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 8),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=1),
    "cyclic": lambda o: schedulers.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "onecycle": lambda o: schedulers.OneCycleLR(o, 0.2, total_steps=14),
    "averaging": lambda o: SWALR(o, 0.01, anneal_epochs=5),
    "sequential": sequential,
    "chained": lambda o: schedulers.ChainedScheduler([warm(o), schedulers.ExponentialLR(o, 0.9)]),
    "nested": lambda o: schedulers.ChainedScheduler(
        [sequential(o), schedulers.ExponentialLR(o, 0.9)]
    ),
}


def started(make):
    net = build(NET)
    weights = [p for p in net.parameters() if p.dim() > 1]
    rest = [p for p in net.parameters() if p.dim() == 1]
    groups = [{"params": weights}, {"params": rest, "lr": 0.03}]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9)
    return net, optimizer, make(optimizer)


def assign(scheduler, optimizer):
    scheduler.optimizer = optimizer


def rates(make, grow_at=(), early=False, reload=False, go_on=follow):
    """Rate and momentum of each group after each step; growth before or after the scheduler's."""
    net, optimizer, scheduler = started(make)
    found = []
    for step in range(10):
        optimizer.zero_grad()
        net(IMAGES).square().mean().backward()
        optimizer.step()
        for at_once in (True, False):
            if step in grow_at and early == at_once:
                before = [group["lr"] for group in optimizer.param_groups]
                grown = grow(
                    net, [Widen("stage1.block1", 2), Insert("stage1.block1", 2)], optimizer
                )
                go_on(scheduler, grown.optimizer)
                assert before == [group["lr"] for group in optimizer.param_groups]
                net, optimizer = grown.network, grown.optimizer
                if reload:
                    state = copy.deepcopy(scheduler.state_dict()), optimizer.state_dict()
                    scheduler = make(optimizer)
                    scheduler.load_state_dict(state[0])
                    optimizer.load_state_dict(state[1])
            if at_once:
                plateau = isinstance(scheduler, schedulers.ReduceLROnPlateau)
                scheduler.step(*([1.0] if plateau else []))
        found.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
    return found


@pytest.mark.parametrize("go_on", [follow, assign])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_rates_after_growth_are_those_without_it(kind, go_on):
    make = SCHEDULERS[kind]
    expected = rates(make)
    assert len(set(map(tuple, expected))) > 1
    for grow_at, early in itertools.product(([0], [2, 6]), (True, False)):
        assert rates(make, grow_at, early, go_on=go_on) == expected


def test_an_old_optimizer_that_goes_on_by_itself_drives_no_other():
    net, optimizer, scheduler = started(sequential)
    net(IMAGES).square().mean().backward()
    optimizer.step()
    grown = grow(net, ACTIONS, optimizer).optimizer
    before = [group["lr"] for group in grown.param_groups]
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        assert [group["lr"] for group in grown.param_groups] == before
    grown.param_groups[0]["lr"] = 0.5
    assert grown.param_groups[0]["lr"] == 0.5


def test_a_rate_in_a_tensor_follows_and_copies_are_plain():
    net = build(NET)
    optimizer = torch.optim.SGD(net.parameters(), torch.tensor(0.1))
    scheduler = sequential(optimizer)
    net(IMAGES).square().mean().backward()
    optimizer.step()
    grown = grow(net, ACTIONS, optimizer).optimizer
    scheduler.step()
    (group,) = grown.param_groups
    assert group["lr"] is not optimizer.param_groups[0]["lr"]
    assert group["lr"] == dict(group.items())["lr"] == optimizer.param_groups[0]["lr"]
    for other in (copy.deepcopy(grown), pickle.loads(pickle.dumps(grown))):
        assert type(other.param_groups[0]) is dict
        assert other.param_groups[0]["lr"] == group["lr"]
    assert grown.state_dict()["param_groups"][0]["lr"] == group["lr"]


READS = {
    "[]": lambda group: group["lr"],
    "get": lambda group: group.get("lr"),
    "dict": lambda group: dict(group)["lr"],
    "unpacked": lambda group: {**group}["lr"],
    "keywords": lambda group: (lambda lr, **_: lr)(**group),
    "copy": lambda group: group.copy()["lr"],
    "copied": lambda group: copy.copy(group)["lr"],
    "or": lambda group: (group | {})["lr"],
    "or of another": lambda group: ({} | group)["lr"],
    "updated": lambda group: (lambda made: made.update(group) or made["lr"])({}),
    "items": lambda group: dict(group.items())["lr"],
    "values": lambda group: dict(zip(group.keys(), group.values()))["lr"],
    "pop": lambda group: group.pop("lr"),
    "setdefault": lambda group: group.setdefault("lr", 0.0),
    "text": lambda group: float(repr(group).split("'lr': ")[1].split(",")[0]),
    "state": lambda group: json.loads(json.dumps(group, default=repr))["lr"],
}


@pytest.mark.parametrize("read", READS)
def test_every_way_of_reading_a_group_gives_the_rate_of_now(read):
    net, optimizer, scheduler = started(sequential)
    net(IMAGES).square().mean().backward()
    optimizer.step()
    grown = grow(net, ACTIONS, optimizer).optimizer
    group, before = grown.param_groups[0], optimizer.param_groups[0]["lr"]
    twin = {**group}
    scheduler.step()  # the one inside goes on with the optimizer that was grown
    rate = optimizer.param_groups[0]["lr"]
    assert rate != before
    if read == "text":
        assert group != twin
    assert READS[read](group) == rate


@pytest.mark.parametrize("write", ["[]", "update", "or"])
def test_a_rate_that_is_written_replaces_what_a_scheduler_set_before(write):
    net, optimizer, scheduler = started(sequential)
    grown = grow(net, ACTIONS, optimizer).optimizer
    optimizer.step()
    scheduler.step()
    group = grown.param_groups[0]
    if write == "[]":
        group["lr"] = 0.5
    elif write == "update":
        group.update(lr=0.5)
    else:
        group |= {"lr": 0.5}
    assert group["lr"] == 0.5
    scheduler.step()
    assert group["lr"] == optimizer.param_groups[0]["lr"] != 0.5


@pytest.mark.parametrize("kind", ["sequential", "nested", "onecycle"])
def test_a_scheduler_that_followed_is_saved_and_loaded(kind):
    assert rates(SCHEDULERS[kind], [3], reload=True) == rates(SCHEDULERS[kind])


def test_an_optimizer_that_loads_its_state_is_driven_as_before():
    def back(scheduler, optimizer):
        scheduler.optimizer = optimizer
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    assert rates(sequential, [0, 2], go_on=back) == rates(sequential)


def test_a_state_is_loaded_where_the_optimizer_between_is_gone_and_a_group_was_added():
    net, optimizer, scheduler = started(sequential)
    optimizer.step()
    for _ in range(2):
        grown = grow(net, ACTIONS, optimizer)
        net, optimizer = grown.network, grown.optimizer
        scheduler.optimizer = optimizer
    del grown
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.5})
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler.step()
    rates_now = [group["lr"] for group in optimizer.param_groups]
    assert rates_now == pytest.approx([0.0325, 0.00975, 0.5])


def test_an_optimizer_with_a_life_of_its_own_drives_no_other_that_loads_a_state():
    net, old, _ = started(sequential)
    net(IMAGES).square().mean().backward()
    grown = grow(net, ACTIONS, old).optimizer
    before = [group["lr"] for group in grown.param_groups]
    old.step()
    old.param_groups[0]["lr"] = 7.0
    grown.load_state_dict(grown.state_dict())
    old.param_groups[0]["lr"] = 8.0
    assert [group["lr"] for group in grown.param_groups] == before


def test_a_scheduler_of_ones_own_that_holds_others_follows():
    class Warm(schedulers.LRScheduler):
        def __init__(self, optimizer, after):
            self.after = {"then": after}
            super().__init__(optimizer)

        def get_lr(self):
            return [rate * (self.last_epoch + 1) for rate in self.base_lrs]

    net, optimizer, scheduler = started(lambda o: Warm(o, schedulers.StepLR(o, 2)))
    grown = grow(net, [Widen("stage1.block1", 2)], optimizer)
    follow(scheduler, grown.optimizer)
    assert scheduler.optimizer is scheduler.after["then"].optimizer is grown.optimizer


def test_what_is_no_scheduler_and_other_groups_are_refused():
    net, optimizer, scheduler = started(sequential)
    with pytest.raises(ValueError, match=r"^scheduler must be one of an optimizer, got a list$"):
        follow([scheduler], optimizer)
    with pytest.raises(ValueError, match=r"^optimizer must be the grown one, got a Grown$"):
        follow(scheduler, grow(net, [], optimizer))
    other = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"must have the scheduler's 2 parameter groups, got 1$"):
        follow(scheduler, other)
    assert scheduler.optimizer is optimizer
