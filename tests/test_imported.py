"""torchvision's ResNets under our names: the same outputs, the same costs, every edit."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from nets import (
    Freeze,
    Insert,
    Narrow,
    Remove,
    SetSurvival,
    Unfreeze,
    Widen,
    WidenStage,
    cost,
    from_torchvision,
    grow,
    preset,
)

IMAGE = (3, 64, 64)
NAMES = ("resnet18", "resnet50", "wide_resnet50_2")


def images(count=2, image=IMAGE):
    return torch.randn(count, *image, generator=torch.Generator().manual_seed(0))


def small(block=BasicBlock, **settings):
    """A torchvision ResNet that is quick to build, with statistics of its own."""
    torch.manual_seed(0)
    model = ResNet(block, [2, 1, 1, 1], num_classes=5, width_per_group=64, **settings)
    model.train()(images(4, (3, 32, 32)))
    return model


def outputs(net, inputs):
    with torch.no_grad():
        return net.eval()(inputs)


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_and_the_architecture_are_those_of_torchvision(name):
    torch.manual_seed(0)
    model = getattr(models, name)()
    net = from_torchvision(model, IMAGE)
    assert net.architecture == preset(name, classes=1000, image=IMAGE)
    expected, found = (outputs(each, images(1)) for each in (model, net))
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("training", [True, False])
def test_weights_mode_and_statistics_come_along_and_nothing_is_shared(block, training):
    model = small(block).train(training)
    net = from_torchvision(model, (3, 32, 32))
    assert net.training is training
    expected, found = (outputs(each, images(3, (3, 32, 32))) for each in (model, net))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    addresses = [{v.data_ptr() for v in each.state_dict().values()} for each in (model, net)]
    assert not addresses[0] & addresses[1]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_it_accepts_every_edit(block):
    net = from_torchvision(small(block), (3, 32, 32)).train()
    probe = images(4, (3, 32, 32)), torch.arange(4)
    settings = {"probe": probe, "loss": functional.cross_entropy}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    exact = [
        Widen("stage1.block1", 4),
        WidenStage("stage2", 4),
        Insert("stage1.block2", 8),
        Freeze("stem"),
        Freeze("stage1.block2", 8),
        SetSurvival("stage1.block1", 0.5),
        Unfreeze("stem"),
        Remove("stage1.block3", steps=1),
    ]
    grown = grow(net, exact, optimizer, **settings)
    before, after = (outputs(each, probe[0]) for each in (net, grown.network))
    assert float((after - before).abs().max() / before.abs().max()) <= 1e-5
    last = [Remove("stage1.block3"), Narrow("stage3.block1", 100, "obd")]
    grown = grow(grown.network, last, grown.optimizer, **settings)
    functional.cross_entropy(grown.network.train()(probe[0]), probe[1]).backward()
    grown.optimizer.step()


def test_the_stem_that_cifar_users_give_it():
    model = small()
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    net = from_torchvision(model, (3, 32, 32))
    assert net.architecture.stem == "cifar"
    expected, found = (outputs(each, images(2, (3, 32, 32))) for each in (model, net))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_is_kept(dtype):
    net = from_torchvision(small().to(dtype), (3, 32, 32))
    assert {value.dtype for value in net.parameters()} == {dtype}
    assert outputs(net, images(2, (3, 32, 32)).to(dtype)).dtype == dtype


class Odd(BasicBlock):
    """A block of the user's own."""


def changed(**parts):
    model = small()
    for name, part in parts.items():
        parent, _, leaf = name.rpartition("__")
        setattr(model.get_submodule(parent.replace("__", ".")), leaf, part)
    return model


REFUSED = {
    "linear": lambda: nn.Linear(3, 3),
    "another model": lambda: models.mobilenet_v3_small(),
    "wrapped": lambda: nn.DataParallel(small()),
    "groups": lambda: small(Bottleneck, groups=32),
    "dilation": lambda: small(Bottleneck, replace_stride_with_dilation=[False, True, True]),
    "group norm": lambda: small(norm_layer=partial(nn.GroupNorm, 4)),
    "own block": lambda: small(Odd),
    "eps": lambda: small(norm_layer=partial(nn.BatchNorm2d, eps=1e-3)),
    "momentum": lambda: small(norm_layer=partial(nn.BatchNorm2d, momentum=0.01)),
    "no statistics": lambda: small(norm_layer=partial(nn.BatchNorm2d, track_running_stats=False)),
    "not affine": lambda: changed(bn1=nn.BatchNorm2d(64, affine=False)),
    "no pooling": lambda: changed(maxpool=nn.Identity()),
    "other pooling": lambda: changed(maxpool=nn.MaxPool2d(2, 2)),
    "other padding": lambda: changed(conv1=nn.Conv2d(3, 64, 7, 2, 0, bias=False)),
    "no head": lambda: changed(fc=nn.Identity()),
    "deep head": lambda: changed(fc=nn.Sequential(nn.Linear(512, 9), nn.Linear(9, 5))),
    "head without bias": lambda: changed(fc=nn.Linear(512, 5, bias=False)),
    "gelu": lambda: changed(layer1__0__relu=nn.GELU()),
    "downsample": lambda: changed(
        layer2__0__downsample=nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(64, 128, 1, bias=False), nn.BatchNorm2d(128)
        )
    ),
    "grey": lambda: changed(conv1=nn.Conv2d(1, 64, 7, 2, 3, bias=False)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_our_blocks_cannot_express_is_refused_in_one_line(case):
    with pytest.raises(ValueError, match=r"model|image|head") as refused:
        from_torchvision(REFUSED[case](), (3, 32, 32))
    assert "\n" not in str(refused.value)
    assert "got" in str(refused.value)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "wide_resnet50_2"])
def test_costs_are_those_that_torch_counts_on_torchvision(name):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = getattr(models, name)().eval()
        with torch.no_grad():
            model(torch.empty(1, *IMAGE))
    found = cost(preset(name, classes=1000, image=IMAGE))
    assert found.parameters == sum(value.numel() for value in model.parameters())
    assert found.flops == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_689_512), ("resnet101", 44_549_160), ("resnet152", 60_192_808)],
)
def test_parameter_counts_are_the_published_ones(name, parameters):
    # torchvision.models.ResNet101_Weights.DEFAULT.meta["num_params"] and its kin
    assert cost(preset(name, classes=1000, image=(3, 224, 224))).parameters == parameters
