"""The optimizer does not notice a growth: state, groups, options and schedulers just go on."""

import copy
import itertools

import pytest
import torch
from makers import architecture_of, batch_for, differences
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from nets import Freeze, Insert, Unfreeze, Widen, build, grow

ACTIONS = [Widen("stage1.block1", 3), Insert("stage1.block2", 3), Widen("stage2.block1", 2)]
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.003, "betas": (0.8, 0.95)}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.003, "amsgrad": True, "weight_decay": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 0.003, "weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.002}),
    "centered": (torch.optim.RMSprop, {"lr": 0.002, "momentum": 0.9, "centered": True}),
}


def network(order="post", seed=0):
    return build(architecture_of(order=order), seed=seed)


def backward(net, seed):
    inputs, targets = batch_for(net.architecture, seed)
    net.zero_grad()
    loss = functional.cross_entropy(net(inputs), targets)
    if any(parameter.requires_grad for parameter in net.parameters()):
        loss.backward()


def train(net, optimizer, steps=4, first=0):
    for step in range(first, first + steps):
        backward(net, step)
        optimizer.step()


def started(choice, order="post", **options):
    """A net and an optimizer that has taken some steps."""
    net, (kind, settings) = network(order), OPTIMIZERS[choice]
    optimizer = kind(net.parameters(), **settings, **options)
    train(net, optimizer)
    return net, optimizer


def corner(old):
    return tuple(slice(size) for size in old.shape)


def names_of(net):
    return {id(parameter): name for name, parameter in net.named_parameters()}


def state_of(net, optimizer):
    names = names_of(net)
    return {names[id(parameter)]: state for parameter, state in optimizer.state.items()}


def give_equal_gradients(old, new):
    """Random gradients, the same on both sides where the entries are the same."""
    generator, before = torch.Generator().manual_seed(7), dict(old.named_parameters())
    for name, parameter in new.named_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if name in before:
            before[name].grad = parameter.grad[corner(before[name])].clone()


# state


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_old_entries_take_the_step_that_they_would_have_taken(choice):
    net, optimizer = started(choice)
    grown = grow(net, ACTIONS, optimizer)
    for _ in range(3):
        give_equal_gradients(net, grown.network)
        optimizer.step()
        grown.optimizer.step()
        for name, parameter in net.named_parameters():
            after = grown.network.get_parameter(name)
            if after.shape == parameter.shape:
                assert torch.equal(after, parameter), name
            else:
                # a vectorized kernel rounds an entry by its place in memory: within one rounding
                torch.testing.assert_close(
                    after[corner(parameter)], parameter, rtol=1e-6, atol=1e-8
                )


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_state_is_carried_entry_by_entry(choice):
    net, optimizer = started(choice)
    grown = grow(net, ACTIONS, optimizer)
    before, after = state_of(net, optimizer), state_of(grown.network, grown.optimizer)
    assert set(before) <= set(after)  # wholly new tensors: see test_newborn
    widened = 0
    for name, state in before.items():
        parameter, successor = net.get_parameter(name), grown.network.get_parameter(name)
        assert list(state) == list(after[name])
        for key, value in state.items():
            carried = after[name][key]
            if value is None:
                assert carried is None
                continue
            assert carried is not value
            assert carried.untyped_storage().data_ptr() != value.untyped_storage().data_ptr()
            assert carried.dtype == value.dtype
            if value.dim() == 0:
                assert torch.equal(carried, value)
                continue
            assert carried.shape == successor.shape
            assert torch.equal(carried[corner(parameter)], value)
            new = torch.ones_like(carried, dtype=torch.bool)
            new[corner(parameter)] = False
            widened += bool(new.any())
            expected = value.mean() if key in SECOND_MOMENTS else torch.tensor(0.0)
            assert torch.equal(carried[new], expected.expand(int(new.sum())))
    assert widened > 0 or choice == "sgd"


@pytest.mark.parametrize("choice", ["adam", "rmsprop"])
def test_newborn_tensors_start_at_step_zero_and_old_ones_keep_theirs(choice):
    net, optimizer = started(choice)
    grown = grow(net, ACTIONS, optimizer)
    train(grown.network, grown.optimizer, steps=2)
    steps = {
        name: int(state["step"]) for name, state in state_of(grown.network, grown.optimizer).items()
    }
    assert {count for name, count in steps.items() if name.startswith("stage1.block3.")} == {2}
    assert {count for name, count in steps.items() if not name.startswith("stage1.block3.")} == {6}
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}


@pytest.mark.parametrize("choice", ["momentum", "adam", "adamw", "rmsprop"])
def test_first_updates_of_newborn_outgoing_entries_have_the_size_of_the_old(choice):
    net, (kind, settings) = network(), OPTIMIZERS[choice]
    optimizer = kind(net.parameters(), **settings)
    train(net, optimizer, steps=150)
    grown = grow(net, [Widen("stage1.block1", 8)], optimizer)
    weight = grown.network.stage1.block1.conv2.weight
    ratios = []
    before = weight.detach().clone()
    for step in range(150, 155):
        train(grown.network, grown.optimizer, steps=1, first=step)
        moved = (weight.detach() - before).square()
        ratios.append(float(moved[:, 3:].mean().sqrt() / moved[:, :3].mean().sqrt()))
        before = weight.detach().clone()
    assert all(0.3 <= ratio <= 3 for ratio in ratios), ratios


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_both_sides_go_on_without_touching_each_other(choice):
    net, optimizer = started(choice)
    grown = grow(net, ACTIONS, optimizer)
    witness = copy.deepcopy((net, optimizer))
    train(grown.network, grown.optimizer, steps=3)
    for first, second in zip(net.parameters(), witness[0].parameters(), strict=True):
        assert torch.equal(first, second)
    kept = copy.deepcopy(grown.network.state_dict())
    train(net, optimizer, steps=3, first=20)
    train(*witness, steps=3, first=20)
    for first, second in zip(net.parameters(), witness[0].parameters(), strict=True):
        assert torch.equal(first, second)
    assert all(torch.equal(value, kept[name]) for name, value in grown.network.state_dict().items())


def test_growing_again_and_again_keeps_the_state():
    net, optimizer = started("adam")
    first = net.stage1.block1.conv1.weight
    for count in range(1, 4):
        kept = optimizer.state[first]["exp_avg"].clone()
        grown = grow(net, [Widen("stage1.block1", 2), Insert("stage1.block1", 2)], optimizer)
        net, optimizer = grown.network, grown.optimizer
        first = net.stage1.block1.conv1.weight
        assert torch.equal(optimizer.state[first]["exp_avg"][corner(kept)], kept)
        assert first.shape[0] == 3 + 2 * count
        train(net, optimizer, steps=2)


def test_an_optimizer_without_a_step_behind_it_is_carried_too():
    net = network()
    grown = grow(net, ACTIONS, torch.optim.Adam(net.parameters()))
    assert not grown.optimizer.state
    train(grown.network, grown.optimizer, steps=1)
    assert len(grown.optimizer.state) == len(list(grown.network.parameters()))


# groups and options


def decay_groups(net, named=False):
    parameters = list(net.named_parameters())
    decay = [pair for pair in parameters if pair[1].dim() > 1]
    rest = [pair for pair in parameters if pair[1].dim() == 1]
    return [
        {
            "params": decay if named else [value for _, value in decay],
            "weight_decay": 0.1,
            "lr": 0.01,
        },
        {"params": rest if named else [value for _, value in rest], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("choice", OPTIMIZERS)
def test_groups_keep_their_count_order_and_options(choice):
    net, (kind, settings) = network(), OPTIMIZERS[choice]
    optimizer = kind(decay_groups(net), **settings)
    train(net, optimizer)
    optimizer.param_groups[1]["mine"] = "kept"
    grown = grow(net, ACTIONS, optimizer)
    assert type(grown.optimizer) is kind
    assert grown.optimizer.defaults == optimizer.defaults
    assert len(grown.optimizer.param_groups) == 2
    old_names, new_names = names_of(net), names_of(grown.network)
    for before, after, dimensions in zip(
        optimizer.param_groups, grown.optimizer.param_groups, (4, 1), strict=True
    ):
        options = [
            {key: value for key, value in group.items() if key != "params"}
            for group in (before, after)
        ]
        assert options[0] == options[1]
        old = [old_names[id(parameter)] for parameter in before["params"]]
        new = [new_names[id(parameter)] for parameter in after["params"]]
        assert [name for name in new if name in old] == old
        newborn = {name for name in new_names.values() if name.startswith("stage1.block3.")}
        of_group = {
            name
            for name in newborn
            if min(grown.network.get_parameter(name).dim(), 4) == dimensions
        }
        assert {name for name in new if name not in old} == of_group
        assert of_group
    train(grown.network, grown.optimizer)


@pytest.mark.parametrize("actions", [ACTIONS, [Freeze("stage1.block1"), Freeze("stem")]])
def test_an_optimizer_made_anew_takes_the_state_of_a_grown_one(actions):
    # torch loads a state place by place
    def made(net):
        # a parameter from outside the network comes first in one group, last in the other
        first, last = (nn.Parameter(torch.ones(2)) for _ in range(2))
        kernels, rest = decay_groups(net)
        groups = [
            {**kernels, "params": [first, *kernels["params"]]},
            {**rest, "params": [*rest["params"], last]},
        ]
        return torch.optim.Adam(groups, 0.01)

    net = network()
    optimizer = made(net)
    train(net, optimizer)
    grown = grow(net, actions, optimizer)
    if actions is not ACTIONS:
        grown = grow(grown.network, [Unfreeze("stem"), Unfreeze("stage1.block1")], grown.optimizer)
    train(grown.network, grown.optimizer)
    other = build(grown.network.architecture)
    other.load_state_dict(grown.network.state_dict())
    again = made(other)
    again.load_state_dict(copy.deepcopy(grown.optimizer.state_dict()))
    train(grown.network, grown.optimizer)
    train(other, again)
    assert differences(other.state_dict(), grown.network.state_dict()) == []


def test_a_newborn_joins_the_group_of_its_own_stage():
    net = network()
    stages = [
        list(net.stem.parameters()),
        list(net.stage1.parameters()),
        list(net.stage2.parameters()),
    ]
    optimizer = torch.optim.SGD(
        [{"params": part, "lr": 0.1 * place} for place, part in enumerate(stages)], lr=1.0
    )
    actions = [Insert("stage1.block1", 2), Insert("stage2.block1", 2)]
    grown = grow(net, actions, optimizer)
    for group, block in ((1, grown.network.stage1.block3), (2, grown.network.stage2.block2)):
        places = {id(parameter) for parameter in grown.optimizer.param_groups[group]["params"]}
        assert all(id(parameter) in places for parameter in block.parameters())
    held = {
        id(parameter) for group in grown.optimizer.param_groups for parameter in group["params"]
    }
    assert not any(id(parameter) in held for parameter in grown.network.head.parameters())


@pytest.mark.parametrize("choice", ["momentum", "adam", "adamw"])
def test_names_of_named_groups_stay_in_line(choice):
    net, (kind, settings) = network(), OPTIMIZERS[choice]
    optimizer = kind(decay_groups(net, named=True), **settings)
    train(net, optimizer)
    grown = grow(net, ACTIONS, optimizer)
    for group in grown.optimizer.param_groups:
        assert len(group["param_names"]) == len(group["params"])
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert grown.network.get_parameter(name) is parameter
    assert "stage1.block3.conv1.weight" in grown.optimizer.param_groups[0]["param_names"]
    assert "stage1.block3.conv1.weight" not in optimizer.param_groups[0]["param_names"]
    train(grown.network, grown.optimizer)
    extra = nn.Parameter(torch.zeros(3))
    grown.optimizer.add_param_group({"params": [("extra", extra)]})


@pytest.mark.parametrize(
    ("choice", "options"),
    [
        *itertools.product(
            ["momentum", "adam", "adamw", "rmsprop"], [{"foreach": True}, {"foreach": False}]
        ),
        *itertools.product(["momentum", "adam", "adamw"], [{"fused": True}]),
        *itertools.product(
            ["momentum", "adam", "rmsprop"], [{"maximize": True}, {"differentiable": False}]
        ),
    ],
)
def test_flags_are_kept(choice, options):
    net, optimizer = started(choice, **options)
    grown = grow(net, ACTIONS, optimizer)
    (key, value), group = next(iter(options.items())), grown.optimizer.param_groups[0]
    assert group[key] is value
    assert grown.optimizer.defaults == optimizer.defaults
    # the flag by which GradScaler leaves unscaling to a fused step
    flag = "_step_supports_amp_scaling"
    assert getattr(grown.optimizer, flag, None) == getattr(optimizer, flag, None)
    give_equal_gradients(net, grown.network)
    optimizer.step()
    grown.optimizer.step()
    assert torch.equal(grown.network.stem.conv.weight, net.stem.conv.weight)


def test_a_learning_rate_in_a_tensor_is_not_shared():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=torch.tensor(0.01), foreach=False)
    train(net, optimizer)
    grown = grow(net, ACTIONS, optimizer)
    grown.optimizer.param_groups[0]["lr"].fill_(0.5)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.01)
    train(grown.network, grown.optimizer, steps=1)


@pytest.mark.parametrize("choice", ["momentum", "adam", "adamw"])
def test_state_lies_as_its_parameter_does(choice):
    # fused steps go through both as they lie; a net in channels_last in part becomes so as a whole
    net, (kind, settings) = network(), OPTIMIZERS[choice]
    net.get_submodule("stage2").to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = kind(net.parameters(), **settings, fused=True)
    train(net, optimizer)
    grown = grow(net, ACTIONS, optimizer)
    train(net, optimizer, steps=1)
    train(grown.network, grown.optimizer, steps=1)
    old, new = (each.get_parameter("stage1.block2.conv1.weight") for each in (net, grown.network))
    torch.testing.assert_close(new, old, rtol=0, atol=1e-4)


def test_later_groups_start_from_the_first_defaults():
    net = network()
    optimizer = torch.optim.SGD(
        [{"params": list(net.parameters()), "lr": 0.5}], lr=0.125, momentum=0.9
    )
    grown = grow(net, ACTIONS, optimizer)
    grown.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert [group["lr"] for group in grown.optimizer.param_groups] == [0.5, 0.125]


# what the optimizer holds


def test_a_parameter_from_outside_stays_itself():
    net = network()
    temperature = nn.Parameter(torch.ones(()))
    weights = nn.Parameter(torch.ones(5))
    optimizer = torch.optim.Adam([*net.parameters(), temperature, weights], lr=0.01)
    for step in range(3):
        backward(net, step)
        temperature.grad, weights.grad = torch.ones(()), torch.ones(5)
        optimizer.step()
    grown = grow(net, ACTIONS, optimizer)
    held = grown.optimizer.param_groups[0]["params"]
    assert any(parameter is temperature for parameter in held)
    assert any(parameter is weights for parameter in held)
    assert torch.equal(
        grown.optimizer.state[weights]["exp_avg"], optimizer.state[weights]["exp_avg"]
    )
    assert grown.optimizer.state[temperature]["step"] is not optimizer.state[temperature]["step"]
    train(grown.network, grown.optimizer, steps=1)


def test_an_optimizer_over_a_part_of_the_net_stays_one():
    net = network()
    optimizer = torch.optim.SGD(
        [*net.stage2.parameters(), *net.head.parameters()], lr=0.1, momentum=0.9
    )
    train(net, optimizer)
    grown = grow(net, [*ACTIONS, Insert("stage2.block1", 2)], optimizer)
    names = names_of(grown.network)
    held = {names[id(parameter)] for parameter in grown.optimizer.param_groups[0]["params"]}
    before = {name for name, _ in net.named_parameters() if name.startswith(("stage2", "head"))}
    assert before <= held
    assert {name for name in held - before if name.startswith("stage2")} == {
        name for name, _ in grown.network.named_parameters() if name.startswith("stage2.block2.")
    }
    assert not {
        name for name in held if name.startswith(("stem", "stage1.block1.", "stage1.block2."))
    }
    train(grown.network, grown.optimizer)


@pytest.mark.parametrize("choice", ["momentum", "adam"])
def test_parameters_that_need_no_gradient_are_carried(choice):
    net, (kind, settings) = network(), OPTIMIZERS[choice]
    net.stem.requires_grad_(False)
    net.stage1.block1.requires_grad_(False)
    optimizer = kind(net.parameters(), **settings)
    train(net, optimizer)
    grown = grow(net, ACTIONS, optimizer)
    held = grown.network.stage1.block1.conv1.weight
    value = held.detach().clone()
    assert len(grown.optimizer.param_groups[0]["params"]) == len(list(grown.network.parameters()))
    train(grown.network, grown.optimizer)
    assert torch.equal(held, value)


def test_an_optimizer_of_another_net_is_refused():
    net, optimizer = started("adam")
    grown = grow(net, ACTIONS, optimizer)
    with pytest.raises(
        ValueError, match="optimizer must hold parameters of net, got one that holds none"
    ):
        grow(grown.network, ACTIONS, optimizer)


@pytest.mark.parametrize("kind", [torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.NAdam])
def test_an_unsupported_optimizer_is_refused_by_name(kind):
    net = network()
    message = f"optimizer must be one of SGD, Adam, AdamW, RMSprop; got {kind.__name__}"
    with pytest.raises(ValueError, match=message):
        grow(net, ACTIONS, kind(net.parameters()))


# schedulers


@pytest.mark.parametrize("grow_at", [0, 1, 5])
@pytest.mark.parametrize("step_first", [True, False])
def test_a_live_scheduler_follows(grow_at, step_first):
    net, reference = network(), network()
    optimizer, twin = (torch.optim.SGD(decay_groups(each), lr=0.1) for each in (net, reference))
    scheduler, expected = CosineAnnealingLR(optimizer, 12), CosineAnnealingLR(twin, 12)

    def grown(net, optimizer):
        result = grow(net, ACTIONS, optimizer)
        scheduler.optimizer = result.optimizer
        return result.network, result.optimizer

    for step in range(10):
        if step == grow_at and step_first:
            net, optimizer = grown(net, optimizer)
        train(net, optimizer, steps=1, first=step)
        train(reference, twin, steps=1, first=step)
        if step == grow_at and not step_first:
            net, optimizer = grown(net, optimizer)
        scheduler.step()
        expected.step()
        assert scheduler.get_last_lr() == expected.get_last_lr()
        rates = [[group["lr"] for group in each.param_groups] for each in (optimizer, twin)]
        assert rates[0] == rates[1]


def test_a_scheduler_that_moves_momentum_follows():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = OneCycleLR(optimizer, max_lr=0.2, total_steps=10)
    seen = []
    for step in range(9):
        train(net, optimizer, steps=1, first=step)
        if step == 4:
            result = grow(net, ACTIONS, optimizer)
            net, optimizer, scheduler.optimizer = result.network, result.optimizer, result.optimizer
        scheduler.step()
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
    assert len(set(seen)) == 9
    assert seen[-1][0] < 0.01


@pytest.mark.parametrize("choice", ["adam", "adamw", "amsgrad"])
def test_at_step_1000_newborn_outgoing_entries_move_as_much_as_the_old(choice):
    net, (kind, settings) = network(), OPTIMIZERS[choice]
    optimizer = kind(net.parameters(), **{**settings, "betas": (0.9, 0.999)})
    train(net, optimizer, steps=200)
    for state in optimizer.state.values():
        state["step"].fill_(1000)  # as far along as bias correction goes
    grown = grow(net, [Widen("stage1.block1", 8)], optimizer)
    weight = grown.network.stage1.block1.conv2.weight
    assert int(grown.optimizer.state[weight]["step"]) == 1000
    squares, before = torch.zeros(10, 2), weight.detach().clone()
    for step in range(10):
        train(grown.network, grown.optimizer, steps=1, first=200 + step)
        moved = (weight.detach() - before).square()
        squares[step] = torch.stack([moved[:, 3:].mean(), moved[:, :3].mean()])
        before = weight.detach().clone()
    new, old = squares.mean(0).sqrt()
    assert 0.3 <= float(new / old) <= 3
