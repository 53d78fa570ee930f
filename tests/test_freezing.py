"""What is frozen stays bit for bit, whatever the optimizer; the rest trains as if nothing were."""

import copy
import json
import pickle

import pytest
import torch
from makers import CASES, batch_for, held_entries, sgd, take_step, three_blocks, train, trained
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from nets import (
    Architecture,
    Freeze,
    Insert,
    Network,
    Unfreeze,
    Widen,
    WidenStage,
    build,
    cost,
    grow,
    preset,
    train_flops,
)
from nets.growing.grow import probe_outputs
from nets.modules.frozen_batchnorm import HeldBatchNorm1d, HeldBatchNorm2d
from nets.modules.frozen_parts import join_values

CLASSES = 3
TARGETS = [
    Freeze("stage1.block1"),
    Freeze("stage1.block2", 2),
    Freeze("stage1"),
    Freeze("stem"),
    Freeze("head"),
]


SOME = [Freeze("stem"), Freeze("stage1.block1"), Freeze("stage1.block2", 2), Freeze("head")]


def suited(actions, kind):
    """Leave out what a plain net has no place for: a stem, a stream, a shortcut."""
    fits = [a for a in actions if getattr(a, "target", "") != "stem"]
    return [a for a in fits if isinstance(a, Freeze | Widen)] if kind == "plain" else actions


def optimizer_of(net, kind="sgd"):
    if kind == "sgd":
        return sgd(net, 0.05, 1e-2)
    return torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)


def frozen_net(*actions, kind="basic", order="post", dtype=torch.float32):
    """A net with some steps behind it, then the actions."""
    return grow(trained(three_blocks(kind, order), dtype), actions).network


def values_of(net):
    return {
        name: value.clone()
        for name, value in join_values(net, net.state_dict()).items()
        if name.rsplit(".", 1)[-1] in ("weight", "bias", "running_mean", "running_var")
    }


def expected_mask(action, architecture, name, shape):
    """Which entries the action freezes, written out layer by layer from DESIGN's sentence.

    A block's first channels: their rows in every inner layer, their BatchNorm entries, their
    outgoing columns. A whole block: all that bears its name. So for stage, stem and head.
    """
    mask = torch.zeros(shape, dtype=torch.bool)
    if action.target in ("stem", "head") or getattr(action, "channels", None) is None:
        mask[...] = name.startswith(f"{action.target}.")
        return mask
    if not name.startswith(f"{action.target}."):
        return mask
    layer, leaf = name.removeprefix(f"{action.target}.").rsplit(".", 1)
    last = 3 if architecture.block == "bottleneck" else 2
    number, count = int(layer[-1]) if layer[-1].isdecimal() else 1, action.channels
    inner = number < last if architecture.order == "post" else number > 1
    if layer.startswith("bn"):
        mask[:count] = inner
    elif architecture.block == "plain":
        mask[:count] = True
    else:
        mask[:count] |= number < last
        if leaf == "weight" and number > 1:
            mask[:, :count] = True
    return mask


@pytest.mark.parametrize(("kind", "order"), CASES)
@pytest.mark.parametrize("actions", [SOME, [Freeze("stage1")]], ids=["parts", "stage"])
@pytest.mark.parametrize("choice", ["sgd", "adamw"])
def test_a_hundred_steps_leave_what_is_frozen_bit_equal(kind, order, actions, choice):
    actions = suited(actions, kind)
    net = frozen_net(*actions, kind=kind, order=order)
    before = values_of(net)
    train(net, optimizer_of(net, choice), steps=100, first=50)
    for name, now in values_of(net).items():
        masks = [expected_mask(action, net.architecture, name, now.shape) for action in actions]
        frozen = torch.stack(masks).any(0)
        assert torch.equal(now[frozen], before[name][frozen]), name
        still = (now == before[name]) & ~frozen
        # a unit without BatchNorm may be silent on every batch, as in any relu net
        assert kind == "plain" or not still.any(), name
        assert frozen.all() or (now != before[name])[~frozen].any(), name


@pytest.mark.parametrize("order", ["post", "pre"])
def test_training_and_evaluation_agree_with_a_frozen_half(order):
    # batch statistics in training and held ones in evaluation would be two networks in one
    torch.manual_seed(0)
    centers = torch.randn(CLASSES, 2, 6, 6)

    def batch():
        targets = torch.randint(CLASSES, (64,))
        return 0.5 + centers[targets] + 1.5 * torch.randn(64, 2, 6, 6), targets

    net = build(three_blocks("basic", order))

    def learn(optimizer, steps):
        for _ in range(steps):
            inputs, targets = batch()
            optimizer.zero_grad()
            functional.cross_entropy(net.train()(inputs), targets).backward()
            optimizer.step()

    learn(optimizer_of(net), 3)
    halves = [Freeze(name, block.width // 2) for name, block in net.architecture.blocks.items()]
    net = grow(net, halves).network
    learn(optimizer_of(net), 150)  # what comes before the frozen channels moves on
    inputs, targets = (torch.cat(parts) for parts in zip(*[batch() for _ in range(8)]))
    losses = [
        float(functional.cross_entropy(probe_outputs(net, inputs, training), targets))
        for training in (False, True)
    ]
    assert max(losses) < 1.0
    assert abs(losses[0] - losses[1]) <= 0.2  # batch statistics in training alone: 0.43 and 1.36


# BatchNorm of which a part is held


def slow_norm(x, weight, bias, mean, variance, held, eps=1e-5):
    """The plain formula: given statistics for the first channels, the batch's for the rest."""
    axes = (0, *range(2, x.dim()))
    channels = [1, -1, *[1] * (x.dim() - 2)]
    batch_mean, batch_variance = x.mean(axes), x.var(axes, unbiased=False)
    used_mean = torch.cat([mean[:held], batch_mean[held:]])
    used_variance = torch.cat([variance[:held], batch_variance[held:]])
    y = (x - used_mean.view(channels)) / (used_variance.view(channels) + eps).sqrt()
    return y * weight.view(channels) + bias.view(channels)


def partly_held(kind, held, dtype=torch.float64):
    torch.manual_seed(held)
    norm = kind(4, held).to(dtype)
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5)
    return norm


@pytest.mark.parametrize("held", [1, 2, 3])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 4)])
def test_a_partly_held_batchnorm_is_the_plain_formula(held, shape):
    norm = partly_held(HeldBatchNorm2d if len(shape) == 4 else HeldBatchNorm1d, held)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    weight, bias = (value.detach().clone().requires_grad_() for value in (norm.weight, norm.bias))
    expected = slow_norm(x, weight, bias, mean, variance, held)
    direction = torch.randn(shape, dtype=torch.float64)
    by_x, by_weight, by_bias = torch.autograd.grad(expected, (x, weight, bias), direction)
    y = norm(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    found = torch.autograd.grad(y, (x, norm.weight_free, norm.bias_free), direction)
    for gradient, slow in zip(found, (by_x, by_weight[held:], by_bias[held:]), strict=True):
        torch.testing.assert_close(gradient, slow, rtol=1e-10, atol=1e-10)
    axes = (0, *range(2, x.dim()))
    for running, before, batch in (
        (norm.running_mean, mean, x.mean(axes)),
        (norm.running_var, variance, x.var(axes)),
    ):
        assert torch.equal(running[:held], before[:held])
        torch.testing.assert_close(running[held:], (0.9 * before + 0.1 * batch.detach())[held:])
    assert int(norm.num_batches_tracked) == 1


def test_the_gradient_of_a_partly_held_batchnorm_is_that_of_finite_differences():
    norm = partly_held(HeldBatchNorm2d, 2)
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: norm(x), x)


def test_a_partly_held_batchnorm_refuses_a_single_value_as_torch_does():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        partly_held(HeldBatchNorm2d, 2)(torch.randn(1, 4, 1, 1, dtype=torch.float64))


def test_a_held_channel_normalises_alike_in_both_modes():
    norm = partly_held(HeldBatchNorm2d, 2)
    x = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    training, evaluation = norm.train()(x), norm.eval()(x)
    torch.testing.assert_close(training[:, :2], evaluation[:, :2])
    assert not torch.allclose(training[:, 2:], evaluation[:, 2:])


# frozen networks go wherever others go


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_channels_last_gives_the_same_steps(kind):
    net = frozen_net(*SOME, kind=kind, dtype=torch.float64)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for each in (net, last):
        train(each, steps=2)
    for value, other in zip(net.state_dict().values(), last.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-9)
    grown = grow(last, [Freeze("stage2")]).network
    for value in grown.state_dict().values():
        assert value.dim() < 4 or value.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_autocast_trains_and_keeps_what_is_frozen():
    net = frozen_net(*SOME)
    before, optimizer = values_of(net), optimizer_of(net)
    for step in range(3):
        inputs, targets = batch_for(net.architecture, step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    now = values_of(net)
    held = held_entries(net)
    for name, mask in held.items():
        if name in now and not name.endswith(("mean", "var")):
            assert torch.equal(now[name][mask], before[name][mask])
            assert mask.all() or not torch.equal(now[name], before[name])
    exact = probe_outputs(net, inputs, training=True)
    with torch.autocast("cpu", torch.bfloat16):
        rough = probe_outputs(net, inputs, training=True)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_a_step_of_a_frozen_net_never_asks_the_host(kind, order):
    net = frozen_net(*suited(SOME, kind), kind=kind, order=order).to("meta")
    optimizer = optimizer_of(net)
    x = torch.empty(4, *net.architecture.image, device="meta")
    for _ in range(2):
        take_step(net, optimizer, x, torch.empty(4, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_goes_on_as_the_original(copied):
    net = frozen_net(*SOME, Widen("stage1.block2", 2))
    other = copied(net)
    for each in (net, other):
        train(each)
    assert all(map(torch.equal, net.state_dict().values(), other.state_dict().values()))
    first, second = ({v.data_ptr() for v in each.state_dict().values()} for each in (net, other))
    assert not first & second


# torch 2.9's own, of what traces a function of autograd
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_frozen_net_gives_the_same_step():
    net = frozen_net(*SOME, Widen("stage1.block2", 2), dtype=torch.float64)
    other = copy.deepcopy(net)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    inputs, targets = batch_for(net.architecture, dtype=torch.float64)
    for each in (net, compiled):
        functional.cross_entropy(each(inputs), targets).backward()
    torch._dynamo.reset()
    for value, twin in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value.grad, twin.grad)
    for value, twin in zip(net.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(value, twin)


def test_a_frozen_net_goes_through_export():
    net = frozen_net(*SOME, Widen("stage1.block2", 2)).eval()
    inputs, _ = batch_for(net.architecture)
    exported = torch.export.export(net, (inputs,)).module()
    torch.testing.assert_close(exported(inputs), net(inputs))


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_architecture_and_weights_are_enough_to_load_it_elsewhere(kind, order):
    actions = [*suited(SOME, kind), Widen("stage1.block2", 2)]
    net = frozen_net(*actions, kind=kind, order=order)
    text = json.dumps(net.architecture.to_dict())
    architecture = Architecture.from_dict(json.loads(text))
    assert architecture == net.architecture
    other = build(architecture, seed=9)
    other.load_state_dict(net.state_dict())
    inputs, _ = batch_for(net.architecture)
    assert torch.equal(other.eval()(inputs), net.eval()(inputs))
    assert [name for name, _ in other.named_parameters()] == [n for n, _ in net.named_parameters()]


# what it saves

PLANS = [
    [Freeze("stem")],
    [Freeze("stage1.block1"), Freeze("stem")],
    [Freeze("stem"), Freeze("stage1"), Freeze("stage2")],
    [Freeze("stage2"), Freeze("head")],
    [Freeze("stem"), Freeze("stage1.block1", 3), Freeze("stage1.block2", 2)],
    [Freeze("stem"), Freeze("stage1"), WidenStage("stage1", 2)],
    [Freeze("stage1"), Freeze("stem"), Insert("stage1.block1", 3)],
    [Freeze("stage1"), Widen("stage1.block1", 2), Freeze("stem")],
    [Freeze("stem"), Freeze("stage1"), Freeze("stage2"), Freeze("head"), Widen("stage2.block1", 1)],
    [Freeze("stem"), Freeze("stage1"), Freeze("stage2"), Freeze("head")],
    [Freeze("stem"), Freeze("stage1"), Freeze("stage2"), WidenStage("stage2", 1)],
]


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_a_frozen_net_costs_what_torch_counts(kind, order):
    for plan in PLANS:
        architecture = three_blocks(kind, order)
        for action in suited(plan, kind):
            architecture = architecture.apply(action)
        with torch.device("meta"):
            net = Network(architecture)
        with FlopCounterMode(display=False) as counter:
            outputs = net(torch.empty(2, *architecture.image, device="meta"))
            if outputs.requires_grad:
                outputs.sum().backward()
        assert 2 * train_flops(architecture) == counter.get_total_flops(), plan
        assert cost(architecture) == cost(architecture.thawed())
        assert train_flops(architecture) <= train_flops(architecture.thawed())


def test_a_frozen_prefix_costs_less_and_keeps_no_gradient():
    net = frozen_net(Freeze("stem"), Freeze("stage1"))
    seen = []
    net.stage1.block2.register_forward_hook(lambda m, args, output: seen.append(output))
    net(batch_for(net.architecture)[0])
    assert not seen[0].requires_grad
    assert train_flops(net.architecture) < 0.6 * train_flops(net.architecture.thawed())


# the optimizer


def decayed(net):
    """Two groups, as people build them: no weight decay for BatchNorm and biases."""
    parameters = list(net.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("action", TARGETS, ids=repr)
def test_thawed_it_returns_to_its_own_group_as_newborn(kind, action):
    settings = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    net = build(three_blocks())
    optimizer = kind(decayed(net), lr=0.01, **settings)
    train(net, optimizer)
    frozen = grow(net, [action], optimizer)
    train(frozen.network, frozen.optimizer, steps=2, first=3)
    mask = held_entries(frozen.network)
    before = {name: frozen.optimizer.state[p] for name, p in frozen.network.named_parameters()}
    thawed = grow(frozen.network, [Unfreeze(action.target)], frozen.optimizer)
    assert thawed.network.architecture == net.architecture
    names = {id(p): name for name, p in thawed.network.named_parameters()}
    for group, dimensions in zip(thawed.optimizer.param_groups, ((2, 4), (1,)), strict=True):
        expected = {n for n, p in thawed.network.named_parameters() if p.dim() in dimensions}
        assert {names[id(p)] for p in group["params"]} == expected
        assert group["weight_decay"] == (0.1 if 4 in dimensions else 0.0)
    first = "momentum_buffer" if kind is torch.optim.SGD else "exp_avg"
    for name, parameter in thawed.network.named_parameters():
        state = thawed.optimizer.state.get(parameter)
        if mask[name].all():
            assert state is None or not (state["step"] or state[first].any()), name
        elif not mask[name].any():
            assert torch.equal(state[first], before[name][first])
        else:
            assert not state[first][mask[name]].any()
            assert (state[first][~mask[name]] != 0).any()
            if kind is torch.optim.AdamW:
                assert int(state["step"]) == 5
                assert (state["exp_avg_sq"][mask[name]] > 0).all()
    train(thawed.network, thawed.optimizer, steps=2, first=5)


def test_a_round_of_freezing_and_thawing_keeps_the_groups():
    net = build(three_blocks())
    optimizer = torch.optim.AdamW(decayed(net), lr=0.01)
    train(net, optimizer)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    everything = [Freeze("stem"), Freeze("stage1"), Freeze("stage2"), Freeze("head")]
    grown = grow(net, everything, optimizer)
    assert [len(group["params"]) for group in grown.optimizer.param_groups] == [0, 0]
    thaw = [Unfreeze(action.target) for action in everything]
    grown = grow(grown.network, thaw, grown.optimizer)
    assert [len(group["params"]) for group in grown.optimizer.param_groups] == sizes
    assert [sorted(group) for group in grown.optimizer.param_groups] == [
        sorted(group) for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("saved", [False, True])
def test_what_the_optimizer_never_held_stays_out_when_it_is_thawed(saved):
    net = build(three_blocks())
    held = [*net.head.parameters(), *net.stage1.block2.parameters()]
    optimizer = torch.optim.AdamW(held, lr=0.01)
    train(net, optimizer)
    freeze = [Freeze("stem"), Freeze("stage1.block1", 2), Freeze("stage1.block2"), Freeze("stage2")]
    thaw = [Unfreeze(action.target) for action in freeze]
    expected = {id(p): name for name, p in net.named_parameters()}
    expected = {expected[id(p)] for p in held}
    for _ in range(2):
        for actions in (freeze[:2], freeze[2:], [Widen("stage2.block1", 1)], thaw[2:], thaw[:2]):
            grown = grow(net, actions, optimizer)
            net, optimizer = grown.network, grown.optimizer
            if saved:
                (group,) = optimizer.param_groups
                state, optimizer = optimizer.state_dict(), torch.optim.AdamW(group["params"])
                optimizer.load_state_dict(copy.deepcopy(state))
            train(net, optimizer, steps=1)
        names = {id(p): name for name, p in net.named_parameters()}
        assert {names[id(p)] for p in optimizer.param_groups[0]["params"]} == expected
    assert not {"held", "unheld"} & optimizer.param_groups[0].keys()


# growing what is frozen

GROWTHS = [
    [Freeze("stage1.block1"), Widen("stage1.block1", 2)],
    [Freeze("stem"), Freeze("stage1"), WidenStage("stage1", 2)],
    [Freeze("stage1.block2", 2), WidenStage("stage1", 2), Widen("stage1.block2", 2)],
    [Freeze("stage1"), Insert("stage1.block1", 3)],
    [
        Freeze("stem"),
        Freeze("stage1"),
        Freeze("stage2"),
        Freeze("head"),
        Widen("stage2.block1", 2),
        Widen("stage1.block1", 2),
        Insert("stage1.block2", 3),
    ],
    [Freeze("stem"), Freeze("stage1"), Freeze("stage2"), Freeze("head"), WidenStage("stage2", 2)],
]


def free_entries(old, new):
    """By joined entry of the grown net: what is new in it."""
    before = join_values(old, old.state_dict())
    masks = {}
    for name, value in join_values(new, new.state_dict()).items():
        if name.rsplit(".", 1)[-1] in ("weight", "bias"):
            masks[name] = torch.ones(value.shape, dtype=torch.bool)
            if name in before:
                masks[name][tuple(map(slice, before[name].shape))] = False
    return masks


@pytest.mark.parametrize(("kind", "order"), [case for case in CASES if case[0] != "plain"])
@pytest.mark.parametrize("plan", GROWTHS, ids=range(len(GROWTHS)))
@pytest.mark.parametrize("initializer", ["he", "net2net"])
def test_what_grows_in_a_frozen_net_is_exact_and_alive(kind, order, plan, initializer):
    freezes = [action for action in plan if isinstance(action, Freeze)]
    growths = plan[len(freezes) :]
    net = frozen_net(*freezes, kind=kind, order=order, dtype=torch.float64)
    probe = batch_for(net.architecture, 9, dtype=torch.float64)
    grown = grow(net, growths, initializer=initializer, probe=probe).network
    for training in (False, True):
        before, after = (probe_outputs(each, probe[0], training) for each in (net, grown))
        assert float((after - before).abs().max()) <= 1e-10
    masks = free_entries(net, grown)
    start = values_of(grown)
    optimizer = torch.optim.SGD(grown.parameters(), lr=0.1)
    moved = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    for step in range(2):
        last = values_of(grown)
        train(grown, optimizer, steps=1, first=step, count=128)
        for name, now in values_of(grown).items():
            if name in moved:
                moved[name] |= now != last[name]
    for name, mask in masks.items():
        assert moved[name][mask].all(), name
    held = held_entries(net)
    for name, now in values_of(grown).items():
        if name in masks and held.get(name) is not None and held[name].any():
            corner = tuple(map(slice, held[name].shape))
            assert torch.equal(now[corner][held[name]], start[name][corner][held[name]]), name


def test_frozen_channels_of_a_plain_layer_hold_their_outgoing_columns_too():
    net = grow(build(preset("mlp-6", image=(4,))), [Freeze("stage1.block1", 2)]).network
    free = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert free == {
        **{"stage1.block1.linear.weight_free": (4, 4), "stage1.block1.linear.bias_free": (4,)},
        **{"head.linear.weight_free1": (10, 4), "head.linear.bias": (10,)},
    }
