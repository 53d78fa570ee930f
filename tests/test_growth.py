"""Growing over random nets and edits: nothing is lost, what is new is alive, nothing else moves."""

import copy
import random
from dataclasses import replace
from functools import partial

import makers
import pytest
import torch
from makers import KINDS, architecture_of, differences, sgd, take_step
from torch import nn
from torch.nn import functional

from nets import (
    Insert,
    Narrow,
    SetSurvival,
    Widen,
    WidenStage,
    build,
    grow,
    preset,
)
from nets.growing.grow import output_difference
from nets.initializing.distributions import he, xavier
from nets.modules.random_draws import uniform
from nets.plan.actions import Action

batch_for = partial(makers.batch_for, drawn=torch.float64)


def random_architecture(draw, kind):
    stages = draw.choice((1, 2, 3))
    order = draw.choice(("post", "pre"))
    stem = draw.choice(("cifar", "cifar", "imagenet")) if stages < 3 else "cifar"
    widths = tuple(
        tuple(draw.randint(1, 4) for _ in range(draw.randint(1, 2))) for _ in range(stages)
    )
    streams = tuple(draw.randint(3, 6) for _ in range(stages))
    survival = draw.choice((1.0, 0.6)) if kind != "plain" else 1.0
    survivals = tuple(survival if k else 1.0 for inner in widths for k in range(len(inner)))
    return architecture_of(kind, order, stem, widths, streams, survivals=survivals)


def random_action(draw, architecture):
    name = draw.choice(list(architecture.blocks))
    if architecture.block != "plain" and draw.random() < 0.25:
        return WidenStage(draw.choice(architecture.stages).name, draw.randint(1, 3))
    if draw.random() < 0.5:
        return Widen(name, draw.randint(1, 4))
    least = architecture.blocks[name].width if architecture.block == "plain" else 1
    survival = draw.choice((1.0, 0.7)) if architecture.block != "plain" else 1.0
    return Insert(name, draw.randint(least, least + 3), survival)


def train(net, optimizer=None, steps=3, seed=0):
    optimizer = optimizer or sgd(net, 0.05)
    return makers.train(net, optimizer, steps, 1000 * seed, drawn=torch.float64)


def outputs_of(net, inputs, training):
    """Outputs of a copy, so that neither statistics nor the step count of the net move."""
    with torch.no_grad():
        return copy.deepcopy(net).train(training)(inputs)


def distance(old, new, inputs):
    """The largest difference of outputs, eval and train mode, relative to the largest output."""
    worst = 0.0
    for training in (False, True):
        before, after = (outputs_of(net, inputs, training).double() for net in (old, new))
        worst = max(worst, float((after - before).abs().max() / before.abs().max()))
    return worst


def trained(architecture, dtype=torch.float32, seed=0, steps=3):
    net = build(architecture, seed=seed).to(dtype)
    train(net, steps=steps, seed=seed)
    return net


def snapshot(net):
    return {
        "values": {name: value.detach().clone() for name, value in net.state_dict().items()},
        "identities": [id(parameter) for parameter in net.parameters()],
        "gradients": {
            name: None if value.grad is None else value.grad.clone()
            for name, value in net.named_parameters()
        },
        "trained": [parameter.requires_grad for parameter in net.parameters()],
        "modes": [module.training for module in net.modules()],
        "settings": [
            (getattr(m, "momentum", None), getattr(m, "survival", None)) for m in net.modules()
        ],
        "architecture": net.architecture,
    }


# nothing is lost


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", range(5))
def test_no_sequence_of_edits_changes_the_outputs(kind, case):
    draw = random.Random(f"{kind}{case}")
    net = trained(random_architecture(draw, kind), torch.float64, seed=case)
    optimizer = train(net, steps=1)
    for edit in range(6):
        actions = [random_action(draw, net.architecture)]
        if edit % 2:
            actions.append(random_action(draw, net.architecture.apply(actions[0])))
        probe = (
            batch_for(net.architecture, seed=edit, dtype=torch.float64)
            if draw.random() < 0.5
            else None
        )
        grown = grow(net, actions, optimizer, seed=draw.choice((0, edit)), probe=probe)
        inputs, _ = batch_for(net.architecture, seed=90 + edit, dtype=torch.float64)
        assert distance(net, grown.network, inputs) <= 1e-10
        net, optimizer = grown.network, grown.optimizer
        train(net, optimizer, steps=draw.choice((0, 1, 3)), seed=edit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["post", "pre"])
def test_outputs_stay_in_single_precision(kind, order):
    net = trained(architecture_of(kind, order, survivals=(1.0, 1.0 if kind == "plain" else 0.5)))
    name = next(iter(net.architecture.blocks))
    for action in (Widen(name, 5), Insert(name, 9), Widen(name, 3), Insert(name, 12)):
        grown = grow(net, [action], probe=batch_for(net.architecture))
        assert distance(net, grown.network, batch_for(net.architecture, seed=5)[0]) <= 1e-5
        assert 0 <= grown.difference <= 1e-5
        net = grown.network
        train(net, steps=2)


@pytest.mark.parametrize("order", ["post", "pre"])
def test_outputs_stay_over_many_steps_with_equal_drop_masks(order):
    net = trained(architecture_of("basic", order, survivals=(1.0, 0.5)), torch.float64)
    actions = [SetSurvival("stage1.block1", 0.4), SetSurvival("stage2.block1", 0.7)]
    net = grow(net, actions).network
    train(net, steps=2)
    grown = grow(net, [Insert("stage1.block1", 3, 0.5), Widen("stage1.block2", 2)]).network
    kept = set()
    for step in range(12):
        inputs, _ = batch_for(net.architecture, seed=step, dtype=torch.float64)
        before, after = net(inputs), grown(inputs)  # both in train mode: the step count moves on
        assert float((before - after).detach().abs().max()) <= 1e-10
        kept.add(bool(uniform(grown.draw, grown.stage1.block1.salt) < 0.4))
    assert kept == {True, False}
    assert torch.equal(net.draw, grown.draw)


def test_several_edits_at_once_equal_the_same_edits_one_by_one():
    net = trained(architecture_of("basic"), torch.float64)
    actions = [Widen("stage1.block1", 2), Insert("stage1.block2", 3), Widen("stage1.block1", 1)]
    together, one_by_one = grow(net, actions).network, net
    for action in actions:
        one_by_one = grow(one_by_one, [action]).network
    assert not differences(dict(together.state_dict()), dict(one_by_one.state_dict()))


def test_edits_around_a_newborn_plain_layer_keep_the_outputs():
    net = trained(architecture_of("plain", widths=((4, 3),), streams=(0,)), torch.float64)
    actions = [Insert("stage1.block1", 4), Widen("stage1.block1", 3), Widen("stage1.block3", 2)]
    grown = grow(net, actions).network
    assert distance(net, grown, batch_for(net.architecture, dtype=torch.float64)[0]) <= 1e-12


def test_survival_keeps_the_outputs_of_evaluation():
    net = trained(architecture_of("bottleneck", "pre"))
    grown = grow(
        net, [SetSurvival("stage1.block1", 0.3), SetSurvival("stage2.block1", 0.9)]
    ).network
    inputs, _ = batch_for(net.architecture)
    assert torch.equal(outputs_of(net, inputs, False), outputs_of(grown, inputs, False))
    assert [module.survival for module in (grown.stage1.block1, grown.stage2.block1)] == [0.3, 0.9]
    assert not differences(dict(net.state_dict()), dict(grown.state_dict()))


def test_no_edit_at_all_gives_an_equal_net():
    net = trained(architecture_of("basic"))
    grown = grow(net, [], probe=batch_for(net.architecture)[0])
    assert not differences(dict(net.state_dict()), dict(grown.network.state_dict()))
    assert grown.difference == 0
    assert grown.optimizer is None
    assert grown.ema is None


# everything new is alive


def new_entries(old, new):
    """A mask for every parameter of the grown net: which entries the old net did not have."""
    before = dict(old.named_parameters())
    masks = {}
    for name, parameter in new.named_parameters():
        masks[name] = torch.ones_like(parameter, dtype=torch.bool)
        if name in before:
            masks[name][tuple(slice(size) for size in before[name].shape)] = False
    return masks


def asleep_after(old, net, steps=2, optimizer=None):
    """The share of new entries, per parameter, that got no gradient in any of some steps."""
    masks, moved = new_entries(old, net), {}
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(steps):
        dtype = net.head.linear.weight.dtype
        take_step(net, optimizer, *batch_for(net.architecture, 70 + step, 64, dtype))
        for name, parameter in net.named_parameters():
            moved[name] = moved.get(name, False) | (parameter.grad != 0)
    assert any(bool(mask.any()) for mask in masks.values())
    return {
        name: float((~moved[name][mask]).double().mean())
        for name, mask in masks.items()
        if mask.any()
    }


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "dense"])
@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize(
    "actions",
    [
        [Widen("stage1.block2", 3)],
        [Widen("stage2.block1", 3)],
        [WidenStage("stage1", 3)],
        [WidenStage("stage2", 2), Widen("stage2.block1", 2)],
        [Insert("stage1.block2", 3)],
        [Insert("stage2.block1", 3)],
        [Insert("stage1.block1", 3), Widen("stage1.block3", 2), Widen("stage1.block1", 2)],
        [
            Widen("stage1.block1", 2),
            Widen("stage1.block1", 2),
            Insert("stage1.block1", 3),
            Insert("stage1.block1", 3),
        ],
    ],
)
def test_every_new_entry_has_a_gradient_within_two_steps(kind, order, actions):
    net = trained(architecture_of(kind, order), torch.float64)
    grown = grow(net, actions, probe=batch_for(net.architecture, dtype=torch.float64)).network
    assert set(asleep_after(net, grown).values()) == {0.0}


@pytest.mark.parametrize("kind", ["basic", "bottleneck", "dense"])
@pytest.mark.parametrize("case", range(4))
def test_random_edits_leave_nothing_asleep(kind, case):
    draw = random.Random(f"alive{kind}{case}")
    net = trained(random_architecture(draw, kind), torch.float64, seed=case)
    net = grow(net, [SetSurvival(name, 1.0) for name in net.architecture.blocks]).network
    actions, plan = [], net.architecture
    for _ in range(4):
        action = random_action(draw, plan)
        actions.append(replace(action, survival=1.0) if isinstance(action, Insert) else action)
        plan = plan.apply(actions[-1])
    # a block born on channels that are themselves new wakes one step later
    steps = 3 if any(isinstance(action, WidenStage) for action in actions) else 2
    assert set(asleep_after(net, grow(net, actions).network, steps).values()) == {0.0}


@pytest.mark.parametrize("order", ["post", "pre"])
def test_a_newborn_block_starts_gently(order):
    # a zero convolution before a BatchNorm is exact too, with a gradient 100 times its neighbours'
    net = trained(architecture_of("basic", order))
    grown = grow(net, [Insert("stage1.block2", 3)]).network
    inputs, targets = batch_for(net.architecture)
    functional.cross_entropy(grown(inputs), targets).backward()
    largest = {
        name: max(
            float(parameter.grad.norm()) for parameter in grown.get_submodule(name).parameters()
        )
        for name in ("stage1.block2", "stage1.block3")
    }
    assert largest["stage1.block3"] < 5 * largest["stage1.block2"]


def test_new_units_of_a_plain_net_are_alive():
    # a unit without BatchNorm may be silent on a whole batch, as in any relu net: most, not all
    net = trained(architecture_of("plain", widths=((8, 8),), streams=(0,)), torch.float64)
    for actions in (
        [Widen("stage1.block1", 8)],
        [Insert("stage1.block1", 12)],
        [Insert("stage1.block2", 8)],
    ):
        asleep = asleep_after(net, grow(net, actions).network)
        assert max(asleep.values()) < 0.35, (actions, asleep)


# nothing else moves


ACTIONS = [Widen("stage1.block1", 2), Insert("stage1.block2", 3), SetSurvival("stage2.block1", 0.5)]


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("training", [True, False])
def test_growing_leaves_the_old_side_as_it_was(order, training):
    net = build(architecture_of("basic", order, survivals=(1.0, 0.5)))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    train(net, optimizer)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    net.train(training)
    probe = batch_for(net.architecture)
    before = [
        snapshot(net),
        snapshot(ema),
        copy.deepcopy(optimizer.state_dict()),
        torch.get_rng_state(),
    ]
    grow(net, ACTIONS, optimizer, ema=ema, probe=probe)
    after = [snapshot(net), snapshot(ema), optimizer.state_dict(), torch.get_rng_state()]
    assert not any(map(differences, before, after))


@pytest.mark.parametrize(
    "bad",
    [
        Widen("stage1.block2", 0),
        Insert("stage9.block1", 4),
        Widen("stage1.block1", 2, initializer="hee"),
        Widen("stage1.block1", 2, initializer=lambda shape, generator: torch.zeros(3)),
    ],
)
def test_nothing_happens_if_one_action_is_refused(bad):
    net = build(architecture_of("basic"))
    optimizer = train(net)
    before = [snapshot(net), copy.deepcopy(optimizer.state_dict()), torch.get_rng_state()]
    with pytest.raises(ValueError):
        grow(net, [*ACTIONS, bad], optimizer, probe=batch_for(net.architecture))
    assert not any(
        map(differences, before, [snapshot(net), optimizer.state_dict(), torch.get_rng_state()])
    )


def test_the_grown_side_shares_no_memory_with_the_old_one():
    net = build(architecture_of("basic"))
    optimizer = torch.optim.Adam(net.parameters(), amsgrad=True)
    train(net, optimizer)
    ema = copy.deepcopy(net)
    grown = grow(net, ACTIONS, optimizer, ema=ema)

    def places(network, owner=None):
        tensors = [*network.parameters(), *network.buffers()]
        if owner is not None:
            tensors += [value for state in owner.state.values() for value in state.values()]
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    sides = [
        places(net, optimizer),
        places(ema),
        places(grown.network, grown.optimizer),
        places(grown.ema),
    ]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_what_is_made_in_inference_mode_trains():
    with torch.inference_mode():
        net = build(architecture_of("basic"))
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    with torch.inference_mode():
        grown = grow(net, ACTIONS, optimizer)
    before = grown.network.head.linear.weight.detach().clone()
    train(grown.network, grown.optimizer)
    assert not torch.equal(before, grown.network.head.linear.weight)


def test_old_entries_keep_their_place():
    net = trained(architecture_of("bottleneck"))
    grown = grow(net, ACTIONS, probe=batch_for(net.architecture)).network.state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(grown[name][tuple(slice(size) for size in value.shape)], value)


def test_frozen_parameters_stay_frozen_and_newborns_train():
    net = trained(architecture_of("basic"))
    net.stem.requires_grad_(False)
    net.stage1.block1.conv1.requires_grad_(False)
    grown = grow(net, ACTIONS).network
    before = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    for name, parameter in grown.named_parameters():
        assert parameter.requires_grad == before.get(name, True)
        assert parameter.is_leaf
    assert not any(
        p.requires_grad for p in grow(net.requires_grad_(False), ACTIONS).network.parameters()
    )


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept_module_by_module(training):
    net = trained(architecture_of("basic")).train(training)
    net.stage1.block1.bn1.train(not training)
    grown = grow(net, ACTIONS, probe=batch_for(net.architecture)).network
    held = grown.stage1.block1.bn1
    assert held.training != training
    assert all(module.training == training for module in grown.modules() if module is not held)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    net = build(architecture_of("basic")).to(dtype)
    grown = grow(net, ACTIONS).network
    floating = [value for value in grown.state_dict().values() if value.is_floating_point()]
    assert {value.dtype for value in floating} == {dtype}


def test_mixed_dtypes_are_kept():
    net = build(architecture_of("basic")).to(torch.bfloat16)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    net.stage1.block1.conv2.double()
    grown = grow(net, ACTIONS).network
    assert grown.stage1.block1.conv2.weight.dtype == torch.float64
    grown.stage1.block1.conv2.to(torch.bfloat16)
    for module in grown.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert {value.dtype for value in (module.weight, module.bias, module.running_var)} == {
                torch.float32
            }
        if isinstance(module, nn.Conv2d):
            assert module.weight.dtype == torch.bfloat16


def test_the_device_is_kept():
    net = build(architecture_of("basic")).to("meta")
    grown = grow(net, ACTIONS, torch.optim.SGD(net.parameters(), lr=0.1))
    assert {value.device.type for value in grown.network.state_dict().values()} == {"meta"}
    net = build(architecture_of("basic"))
    with torch.device("meta"):
        grown = grow(net, ACTIONS).network
    assert {value.device.type for value in grown.state_dict().values()} == {"cpu"}


def test_the_default_device_may_be_another():
    net = trained(architecture_of("basic"))
    actions = [
        Widen("stage1.block1", 2, initializer="net2net"),
        *(Narrow("stage1.block1", 1, saliency) for saliency in ("magnitude", "activation", "obd")),
    ]
    batch, loss = batch_for(net.architecture), functional.cross_entropy
    expected = grow(net, actions, probe=batch, loss=loss).network
    with torch.device("meta"):
        found = grow(net, actions, probe=batch, loss=loss).network
    assert differences(found.state_dict(), expected.state_dict()) == []


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_the_memory_format_is_kept(kind, last):
    wanted = torch.channels_last if last else torch.contiguous_format
    net = build(architecture_of(kind, widths=((3, 2), (4,)))).to(memory_format=wanted)
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer)
    grown = grow(net, ACTIONS, optimizer)
    for parameter in grown.network.parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=wanted)
    state = grown.optimizer.state[grown.network.stage1.block1.conv1.weight]["exp_avg"]
    assert state.is_contiguous(memory_format=wanted)


# statistics, difference, averages


def responses_of(net, inputs, names):
    """What some layers give in train mode with no block dropped."""
    net, seen = copy.deepcopy(net).train(), {}
    for name in net.architecture.blocks:
        net.get_submodule(name).survival = 1.0
    for name in names:
        net.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: output})
        )
    with torch.no_grad():
        net(inputs)
    return seen


@pytest.mark.parametrize("form", ["inputs", "pair", "list"])
def test_new_channels_take_the_statistics_of_the_probe(form):
    net = trained(architecture_of("basic", survivals=(1.0, 0.5)))
    inputs, targets = batch_for(net.architecture, seed=8)
    probe = {"inputs": inputs, "pair": (inputs, targets), "list": [inputs, targets]}[form]
    grown = grow(net, [Widen("stage1.block2", 3), Insert("stage1.block2", 5)], probe=probe).network
    norms = {"stage1.block2.bn1": 2, "stage1.block3.bn1": 0, "stage1.block3.bn2": 0}
    seen = responses_of(grown, inputs, [name.replace("bn", "conv") for name in norms])
    for name, start in norms.items():
        norm, values = grown.get_submodule(name), seen[name.replace("bn", "conv")]
        torch.testing.assert_close(norm.running_mean[start:], values.mean((0, 2, 3))[start:])
        torch.testing.assert_close(norm.running_var[start:], values.var((0, 2, 3))[start:])
        assert norm.momentum == 0.1
    old, held = net.stage1.block2.bn1, grown.stage1.block2.bn1
    assert torch.equal(held.running_mean[:2], old.running_mean)
    assert torch.equal(held.running_var[:2], old.running_var)
    assert held.num_batches_tracked == old.num_batches_tracked == 3
    assert grown.stage1.block3.bn1.num_batches_tracked == 0


def test_new_channels_start_from_zero_and_one_without_a_probe():
    norm = grow(
        trained(architecture_of("basic")), [Widen("stage1.block1", 3)]
    ).network.stage1.block1.bn1
    assert norm.running_mean[3:].tolist() == [0, 0, 0]
    assert norm.running_var[3:].tolist() == [1, 1, 1]


def test_an_action_is_asked_once_for_its_edit():
    """One of the user's own may draw what it does."""
    drawn = iter((2, 3))

    class Draw(Action):
        def edit(self, architecture):
            return Widen("stage1.block1", next(drawn)).edit(architecture)

    net = build(architecture_of("basic"))
    width = net.architecture.blocks["stage1.block1"].width
    assert grow(net, Draw()).network.architecture.blocks["stage1.block1"].width == width + 2


def test_the_difference_is_tiny_for_exact_edits_and_seen_for_others():
    class Spoil(Action):
        """An edit that is not exact: the last block of the first stage disappears."""

        def edit(self, architecture):
            stage = architecture.stages[0]
            return architecture.with_stage(replace(stage, blocks=stage.blocks[:-1]))

    net = trained(architecture_of("basic"), torch.float64)
    inputs, targets = batch_for(net.architecture, dtype=torch.float64)
    assert grow(net, ACTIONS).difference is None
    assert grow(net, ACTIONS, probe=(inputs, targets)).difference <= 1e-12
    spoiled = grow(net, [Spoil()], probe=inputs)
    assert spoiled.difference > 1e-3
    assert spoiled.difference == pytest.approx(distance(net, spoiled.network, inputs), rel=1e-9)


def test_the_difference_looks_at_both_modes():
    net = trained(architecture_of("basic"), torch.float64)
    inputs, _ = batch_for(net.architecture, dtype=torch.float64)
    in_evaluation, in_training = copy.deepcopy(net), copy.deepcopy(net)
    in_evaluation.stage1.block1.bn1.running_mean += 1
    norm = in_training.stage1.block1.bn1
    with (
        torch.no_grad()
    ):  # twice the weight over twice the held deviation: the same in eval mode alone
        norm.weight *= 2
        norm.running_var.mul_(4).add_(3 * norm.eps)
    assert torch.allclose(outputs_of(net, inputs, False), outputs_of(in_training, inputs, False))
    assert output_difference(net, in_training, inputs) > 1e-3
    assert torch.equal(outputs_of(net, inputs, True), outputs_of(in_evaluation, inputs, True))
    assert output_difference(net, in_evaluation, inputs) > 1e-3
    assert output_difference(net, copy.deepcopy(net), inputs) == 0


def test_the_average_follows():
    net = trained(architecture_of("basic"), torch.float64)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    train(net, steps=3, seed=1)
    inputs, targets = batch_for(net.architecture, dtype=torch.float64)
    grown = grow(net, ACTIONS[:2], ema=ema, probe=(inputs, targets))
    assert grown.ema.architecture == grown.network.architecture
    assert distance(ema, grown.ema, inputs) <= 1e-12
    assert not grown.ema.training
    assert not any(parameter.requires_grad for parameter in grown.ema.parameters())
    seen = responses_of(grown.ema, inputs, ["stage1.block1.conv1"])["stage1.block1.conv1"]
    torch.testing.assert_close(
        grown.ema.stage1.block1.bn1.running_mean[3:], seen.mean((0, 2, 3))[3:]
    )
    # the newborn entries of both are the same, so that their average means something
    new = new_entries(net, grown.network)
    for name, mask in new.items():
        assert torch.equal(
            grown.ema.get_parameter(name)[mask], grown.network.get_parameter(name)[mask]
        )
    with pytest.raises(ValueError, match="ema must have the architecture of net"):
        grow(grown.network, ACTIONS, ema=ema)


def test_an_average_of_another_dtype_grows_along():
    net = trained(architecture_of("basic"))
    ema = copy.deepcopy(net).double()
    inputs, _ = batch_for(net.architecture, 5, dtype=torch.float64)
    grown = grow(net, ACTIONS[:2], ema=ema, probe=inputs.float())
    assert distance(ema, grown.ema, inputs) <= 1e-12
    norm = grown.ema.stage1.block1.bn1
    torch.testing.assert_close(
        norm.running_mean[3:].float(), grown.network.stage1.block1.bn1.running_mean[3:]
    )


# refusals


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def test_a_wrapped_or_compiled_net_is_refused_with_advice():
    net = build(architecture_of("basic"))
    for wrapped, advice in (
        (Wrapped(net), "pass net.module and wrap or compile the grown network again"),
        (nn.DataParallel(net), "pass net.module"),
        (torch.optim.swa_utils.AveragedModel(net), "pass net.module"),
        (torch.compile(net), "pass net._orig_mod"),
    ):
        with pytest.raises(
            ValueError, match=f"net must be a network from nets.build, got .*{advice}"
        ):
            grow(wrapped, ACTIONS)
    with pytest.raises(
        ValueError, match=r"ema must be a network from nets.build, got .*; pass ema.module"
    ):
        grow(net, ACTIONS, ema=torch.optim.swa_utils.AveragedModel(net))
    with pytest.raises(ValueError, match=r"got Linear$"):
        grow(nn.Linear(2, 2), ACTIONS)


@pytest.mark.parametrize("initializer", ["kaiming", None, 3])
def test_an_unknown_initializer_lists_the_known_ones(initializer):
    net = build(architecture_of("basic"))
    with pytest.raises(
        ValueError,
        match=r"initializer must be one of he, xavier, net2net, gradmax, .*, or a function; got",
    ):
        grow(net, ACTIONS, initializer=initializer)


# new values


def test_a_function_of_the_user_gives_the_new_weights():
    asked = []

    def mine(shape, generator):
        asked.append((shape, generator.device.type))
        return torch.full(shape, 0.25, dtype=torch.float64)

    net = trained(architecture_of("basic"))
    grown = grow(
        net, [Widen("stage1.block1", 2), Insert("stage1.block2", 3)], initializer=mine
    ).network
    assert torch.all(grown.stage1.block1.conv1.weight[3:] == 0.25)
    assert torch.all(grown.stage1.block3.conv1.weight == 0.25)
    assert torch.all(grown.stage1.block1.conv2.weight[:, 3:] == 0)
    assert ((5, 4, 3, 3), "cpu") in asked
    assert grown.stage1.block3.conv1.weight.dtype == torch.float32


def test_a_tensor_that_the_users_function_keeps_is_not_written_to():
    kept = {}

    def mine(shape, generator):
        return kept.setdefault(shape, torch.ones(shape))

    net = trained(architecture_of("basic", "pre"))
    grown = grow(
        net, [Widen("stage1.block1", 2), Insert("stage1.block2", 3)], initializer=mine
    ).network
    train(grown, steps=1)
    assert all(torch.all(value == 1) for value in kept.values())


def test_a_function_that_gives_the_wrong_shape_is_refused():
    net = build(architecture_of("basic"))
    with pytest.raises(
        ValueError, match=r"initializer must give a tensor of shape \(5, 4, 3, 3\) for .*got \(1,\)"
    ):
        grow(net, [Widen("stage1.block1", 2)], initializer=lambda shape, generator: torch.ones(1))
    with pytest.raises(ValueError, match="got float"):
        grow(net, [Widen("stage1.block1", 2)], initializer=lambda shape, generator: 0.5)


def test_an_actions_own_initializer_comes_first():
    net = trained(architecture_of("basic"))
    common = {"block": "stage1.block1", "by": 2}
    own = grow(net, [Widen(**common, initializer="xavier")], initializer="he").network
    plain_xavier = grow(net, [Widen(**common)], initializer="xavier").network
    plain_he = grow(net, [Widen(**common)]).network
    assert not differences(dict(own.state_dict()), dict(plain_xavier.state_dict()))
    assert differences(dict(own.state_dict()), dict(plain_he.state_dict()))


def test_new_values_depend_on_seed_and_name_alone():
    net, later = trained(architecture_of("basic")), trained(architecture_of("basic"), steps=5)
    action = Widen("stage1.block1", 2)
    rows = [
        grow(old, actions, seed=seed).network.stage1.block1.conv1.weight[3:]
        for old, actions, seed in (
            (net, [action], 0),
            (later, [action], 0),
            (net, [Insert("stage1.block1", 2), action], 0),
            (net, [action], 1),
        )
    ]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[3])


def test_growing_a_block_twice_gives_different_rows():
    net = trained(architecture_of("basic"))
    for _ in range(2):
        net = grow(net, [Widen("stage1.block1", 2), Insert("stage1.block1", 4)]).network
    rows = [tuple(row.flatten().tolist()) for row in net.stage1.block1.conv1.weight[3:].detach()]
    assert len(set(rows)) == 4
    newborns = [net.get_submodule(f"stage1.block{number}.conv1").weight for number in (3, 4)]
    assert not torch.equal(*newborns)


def test_new_rows_have_the_size_of_their_siblings():
    shape = (64, 48, 3, 3)
    generator = torch.Generator().manual_seed(0)
    assert float(he(shape, generator).std()) == pytest.approx((2 / (48 * 9)) ** 0.5, rel=0.02)
    bound = (6 / ((64 + 48) * 9)) ** 0.5
    values = xavier(shape, generator)
    assert float(values.abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(values.std()) == pytest.approx(bound / 3**0.5, rel=0.02)


def test_loud_initialization_draws_outgoing_weights_too_and_moves_the_outputs():
    net = build(preset("mlp-5", image=(4,)))
    grown = grow(
        net, [Widen("stage1.block1", 3)], initializer="xavier-outgoing", probe=torch.randn(6, 4)
    )
    old, new = (n.head.linear.weight for n in (net, grown.network))
    assert torch.equal(new[:, :5], old)
    assert (new[:, 5:] != 0).all()
    assert grown.difference > 1e-3
