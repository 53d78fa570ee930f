"""First updates of tensors that are new to an optimizer have the size of their siblings'."""

import pytest
import torch
from makers import normal, take_step

from nets import Freeze, Insert, Unfreeze, Widen, WidenStage, build, grow, preset, seed_of
from nets.modules.frozen_parts import parts_of

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


@pytest.mark.parametrize("choice", ["adam", "amsgrad", "fused", "rmsprop"])
def test_a_newborn_beside_one_that_has_taken_no_step_starts_like_it(choice):
    net, optimizer = started(choice, "post")
    first = grow(net, [Insert("stage1.block1", 8)], optimizer)
    second = grow(first.network, [Insert("stage1.block2", 8)], first.optimizer)
    elder, newborn = (second.network.get_submodule(f"stage1.block{n}") for n in (2, 3))
    for old, new in zip(elder.parameters(), newborn.parameters(), strict=True):
        states = [second.optimizer.state[each] for each in (old, new)]
        for key, value in states[0].items():
            torch.testing.assert_close(states[1][key].mean(), value.mean(), rtol=1e-5, atol=0)


def test_plain_descent_and_an_optimizer_without_steps_give_newborns_nothing():
    for kind in (torch.optim.SGD, torch.optim.Adam):
        net = build(seed_of(preset("resnet8", image=(3, 8, 8)), 0.5))
        optimizer = kind(net.parameters(), lr=0.1)
        grown = grow(net, [Insert("stage1.block1", 8)], optimizer)
        assert not grown.optimizer.state


# an entry in parts, of which some are younger

PIECES = "stage1.block1.conv1.weight"
BIASED = {"exp_avg": 0, "exp_avg_sq": 1, "max_exp_avg_sq": 1}


def in_parts(choice):
    """A net with an entry of which one part has 10,002 steps behind it, and a newborn one 2."""
    net, optimizer = started(choice, "post", 10_000)
    grown = grow(net, [Freeze("stage1.block1", 4), WidenStage("stage1", 4)], optimizer)
    train(grown.network, grown.optimizer, 2)
    young, old = parts_of(grown.network)[PIECES]
    steps = [int(grown.optimizer.state[part.parameter]["step"]) for part in (young, old)]
    assert steps == [2, 10_002]
    return grown


@pytest.mark.parametrize("choice", OPTIMIZERS)
@pytest.mark.parametrize("edit", [Widen("stage1.block1", 1), WidenStage("stage1", 2)], ids=repr)
def test_each_part_of_an_entry_keeps_its_own_step_and_moments(choice, edit):
    grown = in_parts(choice)
    after = grow(grown.network, [edit], grown.optimizer)
    pairs = zip(*(parts_of(each.network)[PIECES] for each in (grown, after)), strict=True)
    for part, successor in pairs:
        state, carried = grown.optimizer.state[part.parameter], after.optimizer.state
        corner = tuple(map(slice, part.parameter.shape))
        for key, value in carried[successor.parameter].items():
            kept = value[corner] if value.dim() else value
            assert torch.equal(kept, state[key]), (part.name, key)


@pytest.mark.parametrize("choice", OPTIMIZERS)
@pytest.mark.parametrize("edits", [[], [Widen("stage1.block1", 1)]], ids=repr)
def test_parts_that_become_one_keep_what_adam_makes_of_their_moments(choice, edits):
    grown = in_parts(choice)
    after = grow(grown.network, [Unfreeze("stage1.block1"), *edits], grown.optimizer)
    (whole,) = parts_of(after.network)[PIECES]
    state = after.optimizer.state[whole.parameter]
    assert int(state["step"]) == 10_002
    betas = grown.optimizer.param_groups[0].get("betas")

    def unbiased(state, key):
        power = float(betas[BIASED[key]]) ** int(state["step"]) if betas and key in BIASED else 0.0
        return state[key] / (1 - power)

    for part in parts_of(grown.network)[PIECES]:
        own = grown.optimizer.state[part.parameter]
        for key in own.keys() - {"step"}:
            found = unbiased(state, key)[part.place][tuple(map(slice, own[key].shape))]
            torch.testing.assert_close(found, unbiased(own, key), rtol=1e-5, atol=0)


def test_what_is_new_in_a_young_part_starts_as_large_as_the_rest_of_the_entry():
    grown = in_parts("adam")
    after = grow(grown.network, [WidenStage("stage1", 2)], grown.optimizer)
    sizes = [
        float(state["exp_avg_sq"].mean()) / (1 - 0.999 ** int(state["step"]))
        for part in parts_of(grown.network)[PIECES]
        if (state := grown.optimizer.state[part.parameter])
    ]
    young = parts_of(after.network)[PIECES][0].parameter
    new = after.optimizer.state[young]["exp_avg_sq"][:, -2:].unique()
    assert len(new) == 1
    assert min(sizes) <= float(new) / (1 - 0.999**2) <= max(sizes)
