"""Block importance against networks in which the branch is cut by hand."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional

from analysis import Observer, block_importance
from nets import Architecture, Block, Stage, build

CLASSES = 4


def architecture_of(kind, order="post"):
    flat = kind == "dense"
    blocks = (Block("stage1.block1", 5, 0.7), Block("stage1.block2", 3, 0.6))
    stages = (
        Stage("stage1", 6, blocks, births=2),
        Stage("stage2", 8, (Block("stage2.block1", 4),), 1 if flat else 2, True, 1),
    )
    image = (7,) if flat else (2, 6, 6)
    return Architecture(stages, CLASSES, image, 6, order, "dense" if flat else "cifar", kind)


KINDS = [(kind, order) for kind in ("basic", "bottleneck", "dense") for order in ("post", "pre")]


def trained(architecture):
    """A net that has left its first values, one block of it in eval mode, and a batch."""
    torch.manual_seed(0)
    net = build(architecture)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    inputs = torch.randn(16, *architecture.image)
    targets = torch.randint(CLASSES, (16,))
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    net.get_submodule("stage1.block1").eval()
    return net, optimizer, inputs, targets


def cut(net, block):
    """The net with a zero at the end of the block's branch: its last norm, or its last layer."""
    net = copy.deepcopy(net).eval()
    module = net.get_submodule(block)
    last = len([name for name, _ in module.named_children() if name.startswith("bn")])
    with torch.no_grad():
        if net.architecture.order == "post":
            module.get_submodule(f"bn{last}").weight.zero_()
            module.get_submodule(f"bn{last}").bias.zero_()
        else:
            part = "linear" if net.architecture.block == "dense" else "conv"
            module.get_submodule(f"{part}{last}").weight.zero_()
    return net


@pytest.mark.parametrize(("kind", "order"), KINDS)
def test_importance_is_the_loss_without_the_branch_minus_the_loss_with_it(kind, order):
    net, _, inputs, targets = trained(architecture_of(kind, order))

    def loss_of(network):
        with torch.no_grad():
            return functional.cross_entropy(network(inputs), targets).item()

    whole = loss_of(copy.deepcopy(net).eval())
    expected = {name: loss_of(cut(net, name)) - whole for name in net.architecture.blocks}
    found = block_importance(net, inputs, targets, functional.cross_entropy)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-6)
    assert min(abs(value) for value in found.values()) > 1e-3


@pytest.mark.parametrize(("kind", "order"), KINDS)
def test_the_probe_leaves_everything_as_it_was(kind, order):
    net, optimizer, inputs, targets = trained(architecture_of(kind, order))
    values = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    generators = torch.get_rng_state(), random.getstate()
    with Observer(net, optimizer) as observer:
        hooks = [len(module._forward_hooks) for module in net.modules()]
        found = block_importance(net, inputs, targets, functional.cross_entropy)
        assert [len(module._forward_hooks) for module in net.modules()] == hooks
        assert all(r.response_std is None for r in observer.readings().values())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert [module.training for module in net.modules()] == modes
    assert [module.survival for module in net.modules() if hasattr(module, "survival")] == [
        0.7,
        0.6,
        1.0,
    ]
    for name, value in net.state_dict().items():
        assert torch.equal(value, values[name]), name
    assert all(torch.equal(p.grad, gradients[name]) for name, p in net.named_parameters())
    assert block_importance(net, inputs, targets, functional.cross_entropy) == found


def test_a_failing_loss_leaves_no_hook():
    net, _, inputs, targets = trained(architecture_of("basic"))
    calls = []

    def loss(outputs, targets):
        calls.append(outputs)
        if len(calls) == 3:
            raise RuntimeError("no loss")
        return outputs.mean()

    modes = [module.training for module in net.modules()]
    with pytest.raises(RuntimeError, match="no loss"):
        block_importance(net, inputs, targets, loss)
    assert not any(module._forward_hooks for module in net.modules())
    assert [module.training for module in net.modules()] == modes


def test_any_loss_will_do():
    net, _, inputs, _ = trained(architecture_of("basic"))
    targets = torch.randn(16, CLASSES)
    found = block_importance(net, inputs, targets, nn.MSELoss())
    with torch.no_grad():
        whole, without = (
            functional.mse_loss(network(inputs), targets).item()
            for network in (copy.deepcopy(net).eval(), cut(net, "stage1.block2"))
        )
    assert found["stage1.block2"] == pytest.approx(without - whole, abs=1e-6)


def test_plain_nets_have_no_branches():
    stage = Stage("stage1", 0, (Block("stage1.block1", 6), Block("stage1.block2", 5)), births=2)
    net = build(Architecture((stage,), CLASSES, (7,), 0, "post", "none", "plain"))
    inputs, targets = torch.randn(3, 7), torch.randint(CLASSES, (3,))
    assert block_importance(net, inputs, targets, functional.cross_entropy) == {}
