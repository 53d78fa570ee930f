"""Saliencies against slow computations, channel by channel."""

import copy
from dataclasses import replace

import pytest
import torch
from makers import CASES, batch_for, three_blocks, trained
from torch import nn
from torch.nn import functional

from nets import Freeze, Narrow, build, grow
from nets.growing.channel_scores import _scores
from nets.growing.grow import probe_outputs
from nets.modules.frozen_parts import join_values

CHANNELS = 6


def wide_net(kind="basic", order="post"):
    architecture = three_blocks(kind, order)
    block = replace(architecture.blocks["stage1.block2"], width=CHANNELS)
    return trained(architecture.with_block(block), torch.float64, steps=5)


def inner_of(net):
    """By inner axis of stage1.block2: its BatchNorm (or layer), and the layer that takes it."""
    block = net.stage1.block2
    if net.architecture.block == "plain":
        return {"stage1.block2:1": (block.linear, net.stage2.block1.linear)}
    norms = block.norms[:-1] if net.post else block.norms[1:]
    pairs = zip(norms, block.layers[1:], strict=True)
    return {
        f"stage1.block2:{number}": (getattr(block, norm), getattr(block, layer))
        for number, (norm, layer) in enumerate(pairs, start=1)
    }


def scores_of(net, saliency, probe=None, loss=None):
    action = Narrow("stage1.block2", 1, saliency)
    return _scores(net, join_values(net, net.state_dict()), action, probe, loss)


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_magnitude_is_the_outgoing_norm_times_that_of_what_feeds_it(kind, order):
    net = wide_net(kind, order)
    found = scores_of(net, "magnitude")
    assert set(found) == set(inner_of(net))
    for axis, (source, consumer) in inner_of(net).items():
        for channel in range(CHANNELS):
            outgoing = consumer.weight[:, channel].detach().norm()
            weight, bias = source.weight[channel].detach(), source.bias[channel].detach()
            own = weight.square().sum() + bias.square()
            assert float(found[axis][channel]) == pytest.approx(float(outgoing * own.sqrt()))


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_activation_is_one_minus_the_average_percentage_of_zeros(kind, order):
    net = wide_net(kind, order)
    probe = batch_for(net.architecture, 9, dtype=torch.float64)
    found = scores_of(net, "activation", probe[0])
    for axis, (_, consumer) in inner_of(net).items():
        seen = []
        hook = consumer.register_forward_pre_hook(lambda m, args, seen=seen: seen.append(args[0]))
        probe_outputs(net, probe[0])
        hook.remove()
        for channel in range(CHANNELS):
            zeros = float((seen[0][:, channel] == 0).double().mean())
            assert float(found[axis][channel]) == pytest.approx(1 - zeros)
    assert torch.equal(found[axis], scores_of(net, "activation", probe)[axis])


class Gate(nn.Module):
    """A layer whose input's channels are multiplied by gates of 1."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.gate = layer, nn.Parameter(torch.ones(CHANNELS, dtype=torch.float64))

    def forward(self, x):
        return self.layer(x * self.gate.view(1, -1, *[1] * (x.dim() - 2)))


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_obd_is_half_the_mean_squared_derivative_by_a_gate(kind, order):
    net = wide_net(kind, order)
    inputs, targets = batch_for(net.architecture, 9, 5, dtype=torch.float64)
    found = scores_of(net, "obd", (inputs, targets), functional.cross_entropy)
    for axis, (_, consumer) in inner_of(net).items():
        other = copy.deepcopy(net).eval()
        (path,) = [name for name, module in net.named_modules() if module is consumer]
        parent, _, name = path.rpartition(".")
        gate = Gate(other.get_submodule(path))
        other.get_submodule(parent).add_module(name, gate)
        total = torch.zeros(CHANNELS, dtype=torch.float64)
        for image, target in zip(inputs, targets, strict=True):
            loss = functional.cross_entropy(other(image[None]), target[None])
            total += torch.autograd.grad(loss, gate.gate)[0].square()
        torch.testing.assert_close(found[axis], total / len(inputs) / 2)


@pytest.mark.parametrize("saliency", ["magnitude", "activation", "obd"])
@pytest.mark.parametrize("kind", ["basic", "bottleneck", "plain"])
def test_the_least_useful_channels_go_and_the_rest_keeps_its_order(saliency, kind):
    net = wide_net(kind)
    probe = batch_for(net.architecture, 9, dtype=torch.float64)
    scores = scores_of(net, saliency, probe, functional.cross_entropy)
    action = Narrow("stage1.block2", 2, saliency)
    narrow = grow(net, [action], probe=probe, loss=functional.cross_entropy).network
    for axis, (source, _) in inner_of(net).items():
        kept = torch.argsort(scores[axis], stable=True)[2:].sort().values
        assert torch.equal(inner_of(narrow)[axis][0].bias, source.bias[kept])


def test_frozen_channels_stay_however_little_they_do():
    net = wide_net()
    with torch.no_grad():
        net.stage1.block2.conv2.weight[:, :3] = 0
    frozen = grow(net, [Freeze("stage1.block2", 3)]).network
    narrow = grow(frozen, [Narrow("stage1.block2", 2)]).network
    assert torch.equal(narrow.stage1.block2.conv1.weight[:3], net.stage1.block2.conv1.weight[:3])


def test_what_is_missing_is_said_in_one_line():
    net = wide_net()
    with pytest.raises(ValueError, match=r"^probe must be given for saliency activation, got None"):
        grow(net, [Narrow("stage1.block2", 1, "activation")])
    inputs, targets = batch_for(net.architecture, dtype=torch.float64)
    for given in (
        {},
        {"probe": inputs, "loss": functional.cross_entropy},
        {"probe": (inputs, targets)},
    ):
        with pytest.raises(ValueError, match=r"^probe must be \(inputs, targets\) and loss a func"):
            grow(net, [Narrow("stage1.block2", 1, "obd")], **given)
    with pytest.raises(ValueError, match=r"^loss must give its mean .* got \(\d+, 3\)$"):
        grow(net, Narrow("stage1.block2", 1, "obd"), probe=(inputs, targets), loss=lambda a, b: a)
    with pytest.raises(ValueError, match="saliency must be one of magnitude, activation, obd"):
        grow(net, [Narrow("stage1.block2", 1, "luck")])


def test_activation_counts_zeros_of_relu_only():
    net = build(replace(three_blocks(), activation="gelu"))
    with pytest.raises(ValueError, match="saliency activation counts zeros of relu, got a gelu"):
        grow(net, [Narrow("stage1.block2", 1, "activation")], probe=batch_for(net.architecture)[0])
