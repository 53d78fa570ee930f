"""First updates of tensors that are new to an optimizer have the size of their siblings'."""

import pytest
import torch
from makers import normal, take_step

from nets import Freeze, Insert, Unfreeze, build, grow, preset, seed_of

IMAGES, RULE = normal(256, 3, 8, 8), normal(192, 10, seed=1)
TARGETS = (IMAGES.flatten(1) @ RULE).argmax(1)
OPTIMIZERS = {
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 1e-3}),
    "amsgrad": (torch.optim.Adam, {"lr": 1e-3, "amsgrad": True}),
    "no first moment": (torch.optim.Adam, {"lr": 1e-3, "betas": (0.0, 0.99)}),
    "fused": (torch.optim.Adam, {"lr": 1e-3, "fused": True}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-4}),
    "centered": (torch.optim.RMSprop, {"lr": 1e-4, "centered": True}),
    "momentum": (torch.optim.RMSprop, {"lr": 1e-4, "momentum": 0.5}),
}


def train(net, optimizer, steps, first=0):
    for step in range(first, first + steps):
        chosen = torch.randint(256, (32,), generator=torch.Generator().manual_seed(step))
        take_step(net, optimizer, IMAGES[chosen], TARGETS[chosen])


def moved(net, optimizer, names, steps):
    """Root mean square of the updates of some parameters over some steps each."""
    found = []
    for step in range(steps):
        before = [net.get_parameter(name).detach().clone() for name in names]
        train(net, optimizer, 1, 900 + step)
        after = [net.get_parameter(name).detach() for name in names]
        found.append([float((b - a).square().mean()) for a, b in zip(before, after)])
    return torch.tensor(found).mean(0).sqrt().tolist()


def started(choice, order, step=None):
    net = build(seed_of(preset("resnet8", image=(3, 8, 8), order=order), 0.5))
    kind, settings = OPTIMIZERS[choice]
    optimizer = kind(net.parameters(), **settings)
    train(net, optimizer, 60)
    for state in optimizer.state.values() if step else ():
        state["step"].fill_(step)
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            if key in state:  # as if the gradients had always been as they are
                state[key] /= 1 - 0.999**60
    return net, optimizer


@pytest.mark.parametrize("step", [None, 10_000])
@pytest.mark.parametrize(("order", "last"), [("post", "bn2"), ("pre", "conv2")])
@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_a_newborn_block_starts_with_updates_of_its_siblings_size(choice, order, last, step):
    net, optimizer = started(choice, order, step)
    grown = grow(net, [Insert("stage1.block1", 8)], optimizer, probe=IMAGES[:32])
    names = [f"stage1.block{number}.{last}.weight" for number in (2, 1)]
    new, old = moved(grown.network, grown.optimizer, names, 1)
    assert 0.3 <= new / old <= 3
    new, old = moved(grown.network, grown.optimizer, names, 10)
    assert 0.2 <= new / old <= 3


@pytest.mark.parametrize("choice", ["adam", "rmsprop"])
def test_incoming_entries_of_a_newborn_take_no_leaps(choice):
    net, optimizer = started(choice, "pre")
    grown = grow(net, [Insert("stage1.block1", 8)], optimizer, probe=IMAGES[:32])
    names = [f"stage1.block{number}.conv1.weight" for number in (2, 1)]
    new, old = moved(grown.network, grown.optimizer, names, 10)
    assert 0 < new <= 3 * old


def test_newborns_start_at_step_zero_with_moments_of_zero_and_what_is_thawed_too():
    net, optimizer = started("amsgrad", "post")
    grown = grow(net, [Insert("stage1.block1", 8), Freeze("stage2.block1")], optimizer)
    thawed = grow(grown.network, [Unfreeze("stage2.block1")], grown.optimizer)
    for each, path in ((grown, "stage1.block2"), (thawed, "stage2.block1")):
        for parameter in each.network.get_submodule(path).parameters():
            state = each.optimizer.state.get(parameter)
            if state:
                assert int(state["step"]) == 0
                assert not state["exp_avg"].any()
                assert (state["exp_avg_sq"] > 0).all()
                assert state["exp_avg_sq"].shape == parameter.shape
    assert grown.optimizer.state[grown.network.stage1.block2.conv1.weight]


def test_plain_descent_and_an_optimizer_without_steps_give_newborns_nothing():
    for kind in (torch.optim.SGD, torch.optim.Adam):
        net = build(seed_of(preset("resnet8", image=(3, 8, 8)), 0.5))
        optimizer = kind(net.parameters(), lr=0.1)
        grown = grow(net, [Insert("stage1.block1", 8)], optimizer)
        assert not grown.optimizer.state
