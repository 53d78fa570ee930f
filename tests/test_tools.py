"""Networks under torch's tools: checkpointing, fx, update_bn, hooks on stages, default dtypes."""

import copy

import pytest
import torch
from makers import architecture_of, normal
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint

from nets import (
    Freeze,
    Remove,
    SetSurvival,
    Widen,
    build,
    grow,
    preset,
)

BLOCKS = ("stage1.block1", "stage1.block2", "stage2.block1")
NET = architecture_of(classes=5, image=(2, 8, 8))
IMAGES = normal(3, 6, 2, 8, 8)


def dropping(mode="batch"):
    actions = [SetSurvival(block, 0.5, mode) for block in BLOCKS]
    return grow(build(NET, seed=1), [*actions, Remove(BLOCKS[1], steps=20)]).network


def blockwise(net, x, reentrant):
    """The network's forward with every block checkpointed, as wrappers of blocks do it."""
    for block in BLOCKS:
        module = net.get_submodule(block)
        forward = type(module).forward
        module.forward = lambda *args, m=module, f=forward: checkpoint(
            lambda *given: f(m, *given), *args, use_reentrant=reentrant
        )
    try:
        return net(x)
    finally:
        for block in BLOCKS:
            del net.get_submodule(block).forward


def whole(net, x, reentrant):
    return checkpoint(net, x, use_reentrant=reentrant)


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("way", [whole, blockwise])
@pytest.mark.parametrize("mode", ["batch", "row"])
def test_checkpointed_forwards_draw_and_fade_once(way, mode, reentrant, together):
    plain = dropping(mode)
    stored = copy.deepcopy(plain)
    for step in range(4):
        # the same images twice, as in training on two draws
        batches = [IMAGES[min(k, 1)].clone().requires_grad_() for k in range(together)]
        batches = [*batches, batches[-1]] if together > 1 else batches
        for net, run in ((plain, None), (stored, way)):
            net.zero_grad()
            outputs = [run(net, x, reentrant) if run else net(x) for x in batches]
            sum(output[:, step].square().sum() for output in outputs).backward()
        for (name, ours), theirs in zip(plain.named_parameters(), stored.parameters()):
            assert (ours.grad is None) == (theirs.grad is None) or not (ours.grad.any()), name
            if theirs.grad is not None and ours.grad is not None:
                torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-6)
        assert torch.equal(plain.draw, stored.draw)
        assert torch.equal(plain.stage1.block2.fade, stored.stage1.block2.fade)


def test_a_second_backward_through_a_checkpoint_draws_the_same():
    net = dropping()
    for _ in range(4):
        net.zero_grad()
        output = whole(net, IMAGES[0], False).square().sum()
        output.backward(retain_graph=True)
        once = [p.grad.clone() for p in net.parameters()]
        output.backward()
        for value, parameter in zip(once, net.parameters()):
            torch.testing.assert_close(parameter.grad, 2 * value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["basic", "dense"])
def test_networks_are_traced_by_fx(kind):
    net = build(NET if kind == "basic" else preset("mlp-6", image=(5,)), seed=1)
    inputs = IMAGES[0] if kind == "basic" else torch.randn(4, 5)
    if kind == "basic":
        net = grow(net, [Freeze(BLOCKS[0], 2), Remove(BLOCKS[1], steps=4)]).network
    net.eval()
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(inputs), net(inputs))
    whole = build(NET) if kind == "basic" else net.train()
    torch.fx.symbolic_trace(whole)


def test_what_chance_decides_is_not_traced_or_run_alone():
    net = dropping()
    draw = net.draw.clone()
    with pytest.raises(ValueError, match=r"^survival must be 1 for a block that is called by itse"):
        net.stage1(torch.randn(2, 4, 8, 8))
    fading = grow(build(NET), [Remove(BLOCKS[1], steps=4)]).network
    held = grow(build(NET), [Freeze(BLOCKS[0], 2)]).network
    for other in (net, fading, held):
        with pytest.raises(ValueError, match=r"^net must be in eval mode for torch.fx: a "):
            torch.fx.symbolic_trace(other)
    assert torch.equal(net.draw, draw)
    assert not fading.stage1.block2.fade
    net.eval().stage1(torch.randn(2, 4, 8, 8))


def test_stages_are_called_as_modules():
    net, seen = build(NET), []
    for stage in ("stage1", "stage2"):
        net.get_submodule(stage).register_forward_hook(lambda m, x, y: seen.append(y.shape[1]))
    net(IMAGES[0])
    assert seen == [4, 6]
    torch.nn.Sequential(net.stem, torch.nn.ReLU(), net.stage1, net.stage2, net.head)(IMAGES[0])


@pytest.mark.parametrize("averaged", [False, True])
def test_update_bn_leaves_held_statistics_alone(averaged):
    net = build(NET, seed=1)
    for images in IMAGES:
        net(images)
    net = grow(net, [Freeze("stem"), Freeze(BLOCKS[0]), Freeze(BLOCKS[2], 2)]).network
    plain = grow(net, []).network
    model = AveragedModel(net) if averaged else net
    update_bn(list(IMAGES), model)
    net = model.module if averaged else model
    for path, held in (("stem.bn", 4), (f"{BLOCKS[0]}.bn1", 3), (f"{BLOCKS[2]}.bn1", 2)):
        before, after = (each.get_submodule(path) for each in (plain, net))
        for leaf in ("running_mean", "running_var"):
            ours, theirs = getattr(after, leaf), getattr(before, leaf)
            assert torch.equal(ours[:held], theirs[:held])
            assert not (ours[held:] == theirs[held:]).any()
        assert after.momentum == 0.1
    # what is not held has the mean over the batches, as in torch
    norm, means = net.get_submodule(f"{BLOCKS[2]}.bn1"), []
    conv = net.get_submodule(f"{BLOCKS[2]}.conv1")
    handle = conv.register_forward_hook(lambda m, x, y: means.append(y.mean((0, 2, 3))[2:]))
    net.train()
    for images in IMAGES:
        net(images)
    handle.remove()
    expected = torch.stack(means).mean(0)
    update_bn(list(IMAGES), net)
    torch.testing.assert_close(norm.running_mean[2:], expected.detach(), rtol=1e-4, atol=1e-6)
    assert int(norm.num_batches_tracked) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_is_obeyed(dtype):
    usual = build(NET, seed=3)
    try:
        torch.set_default_dtype(dtype)
        net = build(NET, seed=3)
        grown = grow(net, [Widen(BLOCKS[0], 2)], probe=IMAGES[0].to(dtype))
        other = grow(usual, [Widen(BLOCKS[0], 2)]).network
    finally:
        torch.set_default_dtype(torch.float32)
    for network, kind in ((net, dtype), (grown.network, dtype), (other, torch.float32)):
        values = network.state_dict().values()
        assert {value.dtype for value in values if value.is_floating_point()} == {kind}
    for name, value in usual.state_dict().items():
        assert torch.equal(net.state_dict()[name], value.to(net.state_dict()[name].dtype))
    assert functional.cross_entropy(net(IMAGES[0].to(dtype)), torch.zeros(6, dtype=torch.int64))
