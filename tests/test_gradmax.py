"""gradmax against a slow computation, and against he on the batch that it was measured on."""

import itertools
import statistics

import pytest
import torch
from makers import CASES, batch_for, three_blocks, train, trained
from torch.nn import functional

from nets import Widen, build, grow
from nets.growing.grow import output_difference
from nets.initializing.gradmax import NORM, best_rows


def last_layer(net, block):
    """The path of the layer that takes what the widened layer gives."""
    if net.architecture.block != "plain":
        return f"{block}.{net.get_submodule(block).layers[-1]}"
    return "head.linear" if block == "stage2.block1" else "stage1.block2.linear"


def outgoing_gradient(net, grown, block, probe):
    """The norm of the loss's gradient by the columns of the new channels."""
    functional.cross_entropy(grown(probe[0]), probe[1]).backward()
    gradient = grown.get_submodule(last_layer(grown, block)).weight.grad
    old = net.get_submodule(last_layer(net, block)).weight.shape[1]
    return float(gradient[:, old:].norm())


@pytest.mark.parametrize(("kind", "order"), CASES)
def test_new_columns_have_a_larger_gradient_than_those_of_he(kind, order):
    ratios = []
    for seed, block in itertools.product(range(4), ("stage1.block1", "stage2.block1")):
        net = trained(three_blocks(kind, order), torch.float64, seed, steps=5, first=10 * seed)
        probe = batch_for(net.architecture, 99 + seed, 64, torch.float64)
        settings = {"seed": seed, "probe": probe, "loss": functional.cross_entropy}
        he, gradmax = (
            grow(net, [Widen(block, 2)], initializer=name, **settings).network
            for name in ("he", "gradmax")
        )
        ratios.append(
            outgoing_gradient(net, gradmax, block, probe) / outgoing_gradient(net, he, block, probe)
        )
    # what is chosen by the middle of the kernel need not win every time
    assert sum(ratio > 1 for ratio in ratios) >= 7, ratios
    assert statistics.geometric_mean(ratios) > 1.3, ratios


@pytest.mark.parametrize("block", ["stage1.block1", "stage2.block1"])  # strides 1 and 2
def test_rows_are_the_directions_of_the_largest_gradient_behind_the_activation(block):
    net = trained(three_blocks(), torch.float64, steps=5)
    probe = batch_for(net.architecture, 99, 8, torch.float64)
    module, seen = net.get_submodule(block), {}

    def keep(module, args, output):
        output.retain_grad()
        seen.update(x=args[0].detach(), y=output)

    handles = [module.conv1.register_forward_hook(lambda m, args, out: seen.update(entry=args[0]))]
    handles.append(module.conv2.register_forward_hook(keep))
    functional.cross_entropy(net(probe[0]), probe[1]).backward()
    for handle in handles:
        handle.remove()
    entry, gradient = functional.pad(seen["entry"].detach(), (1,) * 4), seen["y"].grad
    stride, pairs = module.conv1.stride[0], []
    for image, row, column in itertools.product(*map(range, (8, *gradient.shape[2:]))):
        top, left = row * stride, column * stride
        patch = entry[image, :, top : top + 3, left : left + 3].flatten()
        pairs.append((patch, gradient[image, :, row, column]))
    mean = sum(patch for patch, _ in pairs) / len(pairs)
    cross = sum(torch.outer(g, patch - mean) for patch, g in pairs)
    found = []
    for direction in torch.linalg.svd(cross, full_matrices=False).Vh:
        for sign in (1, -1):
            responses = torch.stack([sign * direction @ (patch - mean) for patch, _ in pairs])
            active = (responses / responses.std()).relu()
            gain = sum(value * g for value, (_, g) in zip(active, pairs, strict=True)).norm()
            found.append((float(gain), sign * direction))
    expected = torch.stack([row for _, row in sorted(found, key=lambda pair: -pair[0])[:3]])
    rows = best_rows(net, block, 3, probe, functional.cross_entropy)[f"{block}.conv1.weight"]
    # the sign of a singular vector is arbitrary, that of a row is not
    torch.testing.assert_close(rows.flatten(1), expected * NORM)


def test_rows_of_a_plain_net_see_the_gradient_before_the_next_activation():
    # relu works in place: what the hook has kept must not become what relu made of it
    net = trained(three_blocks("plain"), torch.float64, steps=5)
    inputs, targets = batch_for(net.architecture, 99, 32, torch.float64)
    first, second, third = (
        net.get_submodule(name).linear
        for name in ("stage1.block1", "stage1.block2", "stage2.block1")
    )
    z = second(functional.relu(first(inputs))).detach().requires_grad_()
    outputs = net.head.linear(functional.relu(third(functional.relu(z))))
    (gradient,) = torch.autograd.grad(functional.cross_entropy(outputs, targets), z)
    directions = torch.linalg.svd(gradient.T @ inputs, full_matrices=False).Vh
    directions = torch.cat([directions, -directions])
    gain = (gradient.T @ (inputs @ directions.T).relu()).norm(dim=0)
    expected = directions[gain.argsort(descending=True)[:2]]
    rows = best_rows(net, "stage1.block1", 2, (inputs, targets), functional.cross_entropy)
    torch.testing.assert_close(rows["stage1.block1.linear.weight"], expected * NORM)


@pytest.mark.parametrize(("kind", "order"), [case for case in CASES if case[0] != "plain"])
def test_new_channels_are_exact_and_alive_within_two_steps(kind, order):
    net = trained(three_blocks(kind, order), torch.float64, steps=5)
    probe = batch_for(net.architecture, 99, 64, torch.float64)
    grown = grow(
        net,
        [Widen("stage1.block1", 9)],  # more than there are directions
        initializer="gradmax",
        probe=probe,
        loss=functional.cross_entropy,
    )
    assert output_difference(net, grown.network, probe[0]) <= 1e-10
    assert grown.difference <= 1e-10
    layers = {name: net.get_parameter(name).shape for name, _ in net.named_parameters()}
    moved = dict.fromkeys(layers, False)
    optimizer = torch.optim.SGD(grown.network.parameters(), lr=0.05)
    for step in range(2):
        train(grown.network, optimizer, steps=1, first=step, count=128)
        for name, parameter in grown.network.named_parameters():
            moved[name] = moved[name] | (parameter.grad != 0)
    for name, shape in layers.items():
        new = torch.ones_like(grown.network.get_parameter(name), dtype=torch.bool)
        new[tuple(map(slice, shape))] = False
        assert moved[name][new].all(), name


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"probe": torch.zeros(2, 2, 6, 6)},
        {"probe": (torch.zeros(2, 2, 6, 6), torch.zeros(2, dtype=torch.int64))},
        {"loss": functional.cross_entropy},
        {"probe": torch.zeros(2, 2, 6, 6), "loss": functional.cross_entropy},
    ],
    ids=["nothing", "inputs", "no loss", "loss", "no targets"],
)
def test_what_is_missing_is_said_in_one_line(given):
    with pytest.raises(ValueError, match=r"^probe must be \(inputs, targets\) and loss a function"):
        grow(build(three_blocks()), [Widen("stage1.block1", 1, initializer="gradmax")], **given)
