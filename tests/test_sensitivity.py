"""Sensitivities agree with a slow computation in float64, and leave the network as it was."""

import pytest
import torch
from torch.nn import functional

from analysis import Record, block_sensitivity
from nets import Remove, build, preset
from training.computing.evaluation import LOSSES

IMAGE = (1, 8, 8)


def batch_of(net, number=5):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(number, *net.architecture.image, generator=generator)
    return inputs.double(), torch.randint(10, (number,), generator=generator)


def by_hand(net, inputs, targets, name, inner):
    """Each image by itself, each channel scaled up and down by hand."""
    module, step, sums = net.get_submodule(name), 1e-5, []
    last = module.get_submodule(module.layers[-1]) if hasattr(module, "layers") else None
    for image, target in zip(inputs, targets):
        for channel in range(inner):
            values = []
            for scale in (1 + step, 1 - step):

                def scaled(x, scale=scale, channel=channel):
                    x = x.clone()
                    x[:, channel] *= scale
                    return x

                if last is None:
                    handle = module.register_forward_hook(lambda m, a, out, f=scaled: f(out))
                else:
                    handle = last.register_forward_pre_hook(lambda m, a, f=scaled: (f(a[0]),))
                with torch.no_grad():
                    loss = functional.cross_entropy(net(image[None]), target[None])
                values.append(float(loss))
                handle.remove()
            sums.append(abs(values[0] - values[1]) / (2 * step))
    return sum(sums) / len(sums)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resnet8", {}),
        ("resnet8", {"order": "pre"}),
        ("resnet8", {"block": "bottleneck"}),
        ("resnet8", {"activation": "gelu", "dropout": 0.5}),
        ("mlp-7", {}),
    ],
)
def test_it_agrees_with_every_channel_scaled_by_hand(name, changes):
    net = build(preset(name, image=IMAGE, **changes), seed=3).double()
    inputs, targets = batch_of(net)
    net.eval()
    found = block_sensitivity(net, inputs, targets, functional.cross_entropy)
    assert found.keys() == net.architecture.blocks.keys()
    block = list(found)[-1]
    inner = net.architecture.blocks[block].width
    assert found[block] == pytest.approx(by_hand(net, inputs, targets, block, inner), rel=1e-5)


def test_the_network_stays_as_it_was():
    net = build(preset("resnet8", image=IMAGE), seed=3).train()
    inputs, targets = batch_of(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    first = block_sensitivity(net, inputs.float(), targets, functional.cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    for module in net.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    with torch.no_grad():
        again = block_sensitivity(net, inputs.float(), targets, functional.cross_entropy)
    assert again == first


def test_blocks_that_fade_and_numbers_that_are_not_finite_are_left_out():
    net = build(preset("resnet14", image=IMAGE).apply(Remove("stage1.block2", steps=3)), seed=3)
    inputs, targets = batch_of(net)
    found = block_sensitivity(net, inputs.float(), targets, functional.cross_entropy)
    assert found.keys() == net.architecture.blocks.keys() - {"stage1.block2"}
    with torch.no_grad():
        net.get_submodule("stage3.block2.conv2").weight.fill_(float("nan"))  # pyright: ignore
    assert block_sensitivity(net, inputs.float(), targets, functional.cross_entropy) == {}


def test_a_regression_has_them_too():
    net = build(preset("mlp-7", image=(1,), classes=1), seed=3)
    inputs = torch.linspace(-1, 1, 9)[:, None]
    found = block_sensitivity(net, inputs, inputs.sin(), LOSSES["regression"])
    assert found["stage1.block1"] > 0


def test_a_record_keeps_them_and_older_ones_load():
    from histories import record_of

    record = record_of(1, sensitivity={"stage1.block1": 0.5})
    data = record.to_dict()
    assert data["sensitivity"] == {"stage1.block1": 0.5}
    assert Record.from_dict(data).sensitivity == {"stage1.block1": 0.5}
    older = record_of(1).to_dict()
    assert "sensitivity" not in older
    assert Record.from_dict(older).sensitivity == {}
    data["sensitivity"] = {"stage1.block1": "much"}
    with pytest.raises(ValueError, match=r"sensitivity of 'stage1.block1' must be a number"):
        Record.from_dict(data)
