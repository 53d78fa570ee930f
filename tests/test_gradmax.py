"""gradmax against a slow computation, and against he on the batch that it was measured on."""

import pytest
import torch
from torch.nn import functional

from nets import Widen, build, grow
from nets.gradmax import NORM, best_rows
from nets.growth import output_difference
from tests.test_freezing import CASES, architecture_of, batch_of, train


def trained(kind="basic", order="post", seed=0):
    net = build(architecture_of(kind, order), seed).double()
    train(net, steps=5, first=10 * seed)
    return net


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
    for seed in range(4):
        net = trained(kind, order, seed)
        probe = batch_of(net.architecture, 99 + seed, 64, torch.float64)
        for block in ("stage1.block1", "stage2.block1"):
            found = [
                outgoing_gradient(net, grown.network, block, probe)
                for grown in (
                    grow(net, [Widen(block, 2)], seed=seed, probe=probe),
                    grow(
                        net,
                        [Widen(block, 2, initializer="gradmax")],
                        seed=seed,
                        probe=probe,
                        loss=functional.cross_entropy,
                    ),
                )
            ]
            assert found[1] > found[0], (seed, block, found)


def slow_cross(x, gradient, stride, padding):
    """sum(g x^T) over all images and positions, one after the other: (outputs, inputs, k, k)."""
    x = functional.pad(x, (padding,) * 4)
    total = 0.0
    for image in range(len(x)):
        for row in range(gradient.shape[2]):
            for column in range(gradient.shape[3]):
                top, left = row * stride, column * stride
                patch = x[image, :, top : top + 3, left : left + 3]
                g = gradient[image, :, row, column]
                total = total + g[:, None, None, None] * patch[None]
    return total


@pytest.mark.parametrize("block", ["stage1.block1", "stage2.block1"])  # strides 1 and 2
def test_rows_are_the_top_directions_of_the_cross_correlation(block):
    net = trained()
    probe = batch_of(net.architecture, 99, 4, torch.float64)
    seen = {}
    module = net.get_submodule(block)
    module.conv1.register_forward_hook(lambda m, args, out: seen.update(x=args[0].detach()))

    def keep(m, args, out):
        out.retain_grad()
        seen["y"] = out

    module.conv2.register_forward_hook(keep)
    functional.cross_entropy(net(probe[0]), probe[1]).backward()
    cross = slow_cross(seen["x"], seen["y"].grad, module.conv1.stride[0], 1)
    rows = best_rows(net, block, 2, probe, functional.cross_entropy)[f"{block}.conv1.weight"]
    largest = torch.linalg.svdvals(cross.flatten(1))[:2]
    for row, value in zip(rows, largest, strict=True):
        assert float(row.norm()) == pytest.approx(NORM)
        reached = (cross.flatten(1) @ row.flatten()).norm() / NORM
        assert float(reached) == pytest.approx(float(value), rel=1e-8)


def test_rows_of_a_plain_net_see_the_gradient_before_the_next_activation():
    # relu works in place: what the hook has kept must not become what relu made of it
    net = trained("plain")
    inputs, targets = batch_of(net.architecture, 99, 32, torch.float64)
    first, second, third = (
        net.get_submodule(name).linear
        for name in ("stage1.block1", "stage1.block2", "stage2.block1")
    )
    z = second(functional.relu(first(inputs))).detach().requires_grad_()
    outputs = net.head.linear(functional.relu(third(functional.relu(z))))
    (gradient,) = torch.autograd.grad(functional.cross_entropy(outputs, targets), z)
    expected = torch.linalg.svd(gradient.T @ inputs).Vh[:2]
    rows = best_rows(net, "stage1.block1", 2, (inputs, targets), functional.cross_entropy)
    found = rows["stage1.block1.linear.weight"] / NORM
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(2).double())


@pytest.mark.parametrize(("kind", "order"), [case for case in CASES if case[0] != "plain"])
def test_new_channels_are_exact_and_alive_within_two_steps(kind, order):
    net = trained(kind, order)
    probe = batch_of(net.architecture, 99, 64, torch.float64)
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
    moved = {name: False for name in layers}
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
        grow(build(architecture_of()), [Widen("stage1.block1", 1, initializer="gradmax")], **given)
