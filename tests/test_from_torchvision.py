"""torchvision's ResNets under our names: the same outputs, the same costs, every edit."""

from copy import deepcopy
from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype):
    net = from_torchvision(small().to(dtype), (3, 32, 32))
    assert {value.dtype for value in net.parameters()} == {dtype}
    assert outputs(net, images(2, (3, 32, 32)).to(dtype)).dtype == dtype


@cache
def _plain(block, layers=(2, 1, 1, 1)):
    model = ResNet(block, list(layers), num_classes=5)
    for norm in model.modules():  # so that a norm left out or misplaced shows
        if isinstance(norm, nn.BatchNorm2d):
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
    return model


def plain(block=BasicBlock):
    """A torchvision ResNet with values of its own at every entry."""
    torch.manual_seed(0)
    return deepcopy(_plain(block))


def changed(block=BasicBlock, **parts):
    """One with other parts; layer1__0__relu is the path of one."""
    model = plain(block)
    for name, part in parts.items():
        parent, _, leaf = name.rpartition("__")
        setattr(model.get_submodule(parent.replace("__", ".")), leaf, part)
    return model


def done(change, block=BasicBlock):
    model = plain(block)
    change(model)
    return model


def strides(model, **by_path):
    for path, stride in by_path.items():
        model.get_submodule(path.replace("__", ".")).stride = stride


def share_relu(model):
    relu = nn.ReLU()
    for module in model.modules():
        if hasattr(module, "relu"):
            module.relu = relu


def prune_channels(model, settings=True):
    block = model.layer1[0]
    block.conv1.weight = nn.Parameter(block.conv1.weight[:32].detach().clone())
    block.conv2.weight = nn.Parameter(block.conv2.weight[:, :32].detach().clone())
    block.bn1 = nn.BatchNorm2d(32)
    if settings:
        block.conv1.out_channels = block.conv2.in_channels = 32


def downsampled(kernel=1, pool=None):
    convolution = nn.Conv2d(64, 128, kernel, 1 if pool else 2, kernel // 2, bias=False)
    return nn.Sequential(*([pool] if pool else []), convolution, nn.BatchNorm2d(128))


def conv(channels=64, kernel=3, **settings):
    return nn.Conv2d(64, channels, kernel, **{"padding": kernel // 2, "bias": False, **settings})


def stem(kernel=7, stride=2, channels=3, **settings):
    settings = {"padding": kernel // 2, "bias": False, **settings}
    return nn.Conv2d(channels, 64, kernel, stride, **settings)


def cifar():
    return changed(conv1=stem(3, 1), maxpool=nn.Identity())


ONE = {"layer4__0__conv1": (1, 1), "layer4__0__downsample__0": (1, 1)}
THREE = {"layer4__0__conv1": 3, "layer4__0__downsample__0": [3, 3]}
ACCEPTED = {
    "last stage at stride 1": lambda: done(partial(strides, **ONE)),
    "the same, bottleneck": lambda: done(
        partial(strides, layer4__0__conv2=(1, 1), layer4__0__downsample__0=(1, 1)), Bottleneck
    ),
    "other strides, as a number and a list": lambda: done(partial(strides, **THREE)),
    "stem of CIFAR": cifar,
    "one channel": lambda: changed(conv1=stem(channels=1)),
    "projection without a change of width": lambda: changed(
        layer1__0__downsample=nn.Sequential(conv(kernel=1), nn.BatchNorm2d(64))
    ),
    "pools said otherwise": lambda: changed(
        maxpool=nn.MaxPool2d((3, 3), [2, 2], 1), avgpool=nn.AdaptiveAvgPool2d(1)
    ),
    "relu not in place": lambda: changed(relu=nn.ReLU(), layer1__0__relu=nn.ReLU()),
    "one relu": lambda: done(share_relu),
    "narrow": lambda: ResNet(Bottleneck, [2, 1, 1, 1], width_per_group=32),
    "zero at first": lambda: small(Bottleneck, zero_init_residual=True),
    "a block more": lambda: done(lambda model: model.layer3.append(BasicBlock(256, 256))),
    "a block less": lambda: done(lambda model: model.layer1.__delitem__(0)),
    "pruned channels": lambda: done(prune_channels),
    "pruned for good": lambda: done(
        lambda model: prune.remove(prune.l1_unstructured(model.fc, "weight", 0.5), "weight")
    ),
    "channels last": lambda: plain().to(memory_format=torch.channels_last),  # pyright: ignore
    "broken": lambda: done(lambda model: model.layer2[0].bn1.weight.data.fill_(float("nan"))),
    "expanded": lambda: changed(bn1__bias=nn.Parameter(torch.zeros(1).expand(64))),
    "some in eval mode": lambda: done(
        lambda model: [model.eval().layer2.train(), model.layer3[0].bn1.train()]
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_our_blocks_express_gives_the_same_in_every_mode(case):
    model = ACCEPTED[case]()
    image = (model.conv1.in_channels, 40, 33)
    net = from_torchvision(model, image)
    inputs = images(3, image)
    with torch.no_grad():
        pairs = [(each(inputs), own(inputs)) for each, own in [(model, net)]]
        pairs += [(model.train()(inputs), net.train()(inputs))]
        pairs += [(model.eval()(inputs), net.eval()(inputs))]
    for expected, found in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


class Odd(BasicBlock):
    """A block of the user's own."""


class OddResNet(ResNet):
    """A network of the user's own."""


class OddConv(nn.Conv2d):
    """A convolution of the user's own."""


def own_resnet():
    """A network called ResNet, with a head of another name."""
    made = type("ResNet", (nn.Module,), {})()
    made.conv1, made.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
    for number in range(1, 5):
        made.add_module(f"layer{number}", nn.Sequential(BasicBlock(8, 8)))
    return made


def on_meta():
    with torch.device("meta"):
        return ResNet(BasicBlock, [1, 1, 1, 1])


def tie(model):
    model.layer1[1].conv1.weight = model.layer1[0].conv1.weight


def tie_memory(model):
    model.layer1[1].conv1.weight.data = model.layer1[0].conv1.weight.data


def tie_blocks(model):
    model.layer1[1] = model.layer1[0]


def hooked(name):
    return lambda: done(lambda model: getattr(model.layer1[0], name)(lambda *_: None))


def patched(path, name):
    def patch(model):
        module = model.get_submodule(path)
        setattr(module, name, partial(getattr(type(module), name), module))

    return lambda: done(patch)


def own_buffer(model):
    model.layer1[0].register_buffer("mean", torch.zeros(3), persistent=False)


def plain_weight(model):
    weight = model.fc.weight.detach()
    del model.fc.weight
    model.fc.weight = weight


REFUSED = {
    "linear": (lambda: nn.Linear(3, 3), "torchvision.models, got torch.nn.modules.linear.Linear"),
    "another model": (models.mobilenet_v3_small, "got torchvision.models.mobilenetv3.MobileNetV3"),
    "wrapped": (lambda: nn.DataParallel(plain()), "DataParallel; pass model.module"),
    "averaged": (lambda: AveragedModel(plain()), "AveragedModel; pass model.module"),
    "compiled": (lambda: torch.compile(plain()), "OptimizedModule; pass model._orig_mod"),
    "compiled in place": (
        lambda: done(lambda model: model.compile()),
        "model must be not compiled",
    ),
    "compiled part": (lambda: done(lambda model: model.layer1.compile()), "layer1 of model"),
    "traced": (lambda: torch.fx.symbolic_trace(plain()), "got torch.fx.graph_module.ResNet"),
    "own class": (own_resnet, r"test_from_torchvision.ResNet"),
    "own subclass": (lambda: OddResNet(BasicBlock, [1] * 4), "OddResNet; a subclass may do"),
    "its parts": (lambda: nn.Sequential(*plain().children()), "got .*Sequential"),
    "a name": (lambda: "resnet18", "got 'resnet18'"),
    "nothing": (lambda: None, "got None"),
    "a class": (lambda: ResNet, "got the class ResNet; pass an object of it"),
    "a function": (lambda: models.resnet18, "got function"),
    "weights alone": (lambda: plain().state_dict(), "got OrderedDict"),
    "no values": (on_meta, r"conv1.weight of model must be on a device that holds its values"),
    "groups": (
        lambda: ResNet(Bottleneck, [1] * 4, groups=32, width_per_group=4),
        r"groups of layer1.0.conv2 .* got 32",
    ),
    "dilation": (
        lambda: ResNet(Bottleneck, [1, 2, 1, 1], replace_stride_with_dilation=[True, False, False]),
        r"(padding|dilation) of layer2.1.conv2 .* got \(2, 2\)",
    ),
    "group norm": (lambda: small(norm_layer=partial(nn.GroupNorm, 4)), "bn1 of .* got GroupNorm"),
    "frozen norm": (
        lambda: small(norm_layer=FrozenBatchNorm2d),
        "bn1 of .* got .*FrozenBatchNorm2d",
    ),
    "synchronised": (
        lambda: nn.SyncBatchNorm.convert_sync_batchnorm(plain()),
        "bn1 of model must be BatchNorm2d, .* got SyncBatchNorm",
    ),
    "own block": (lambda: small(Odd), "layer1.0 of model .* got .*Odd"),
    "eps": (lambda: small(norm_layer=partial(nn.BatchNorm2d, eps=1e-3)), "eps of bn1 .* got 0.001"),
    "eps of one": (
        lambda: done(lambda model: setattr(model.layer2[0].bn2, "eps", 1e-4)),
        "eps of layer2.0.bn2 of model must be 1e-05, got 0.0001",
    ),
    "momentum": (lambda: changed(bn1=nn.BatchNorm2d(64, momentum=None)), "momentum of bn1 .* None"),
    "no statistics": (
        lambda: changed(bn1=nn.BatchNorm2d(64, track_running_stats=False)),
        "track_running_stats of bn1",
    ),
    "statistics thrown away": (
        lambda: changed(bn1__running_mean=None),
        "buffers of bn1 of model must be .*running_mean.* got weight, bias, running_var",
    ),
    "not affine": (lambda: changed(bn1=nn.BatchNorm2d(64, affine=False)), "affine of bn1"),
    "no pooling": (lambda: changed(maxpool=nn.Identity()), r"stem of .* got kernel \(7, 7\)"),
    "pooling after CIFAR's stem": (lambda: changed(conv1=stem(3, 1)), r"stem of .* MaxPool2d"),
    "stem of stride (2, 1)": (lambda: changed(conv1=stem(7, (2, 1))), r"stem of .*stride \(2, 1\)"),
    "stem of stride (1, 2)": (
        lambda: changed(conv1=stem(3, (1, 2)), maxpool=nn.Identity()),
        r"stem of .*stride \(1, 2\)",
    ),
    "deep stem": (
        lambda: changed(conv1=nn.Sequential(stem(3, 2), conv())),
        "conv1 of .* Sequential",
    ),
    "other pooling": (lambda: changed(maxpool=nn.MaxPool2d(2, 2)), "kernel_size of maxpool"),
    "ceil_mode": (
        lambda: changed(maxpool=nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
        "ceil_mode of max",
    ),
    "average pooling": (lambda: changed(maxpool=nn.AvgPool2d(3, 2, 1)), "maxpool of .* AvgPool2d"),
    "larger average": (
        lambda: changed(avgpool=nn.AdaptiveAvgPool2d(2)),
        r"avgpool .* got \(2, 2\)",
    ),
    "maximum": (
        lambda: changed(avgpool=nn.AdaptiveMaxPool2d(1)),
        "avgpool of .* AdaptiveMaxPool2d",
    ),
    "other padding": (lambda: changed(conv1=stem(padding=0)), r"padding of conv1 .* got \(0, 0\)"),
    "padding in a word": (
        lambda: changed(layer1__0__conv1=conv(padding="same")),
        "padding of layer1.0.conv1 of model must be .* got 'same'",
    ),
    "reflecting": (lambda: changed(conv1=stem(padding_mode="reflect")), "padding_mode of conv1"),
    "circular, set later": (
        lambda: changed(layer1__0__conv2__padding_mode="circular"),
        "padding_mode of layer1.0.conv2 of model must be 'zeros', got 'circular'",
    ),
    "kernel of 5": (
        lambda: changed(layer1__0__conv1=conv(kernel=5)),
        "kernel_size of layer1.0.conv1",
    ),
    "bias": (
        lambda: changed(layer1__0__conv1=conv(bias=True)),
        "layer1.0.conv1 .* got weight, bias",
    ),
    "own convolution": (
        lambda: changed(layer1__0__conv1=OddConv(64, 64, 3, 1, 1, bias=False)),
        "layer1.0.conv1 of model must be Conv2d, .* got test_from_torchvision.OddConv",
    ),
    "stride of one path": (
        lambda: changed(layer4__0__conv1__stride=(1, 1)),
        r"stride of layer4.0.downsample.0 of model must be \(1, 1\), got \(2, 2\)",
    ),
    "stride (2, 1)": (
        lambda: changed(layer4__0__conv1__stride=(2, 1), layer4__0__downsample__0__stride=(2, 1)),
        r"stride of layer4.0.conv1 .* got \(2, 1\)",
    ),
    "stride in the 1x1": (
        lambda: done(
            partial(strides, layer2__0__conv1=(2, 2), layer2__0__conv2=(1, 1)), Bottleneck
        ),
        "stride of layer2.0.conv1",
    ),
    "stride of a second block": (lambda: changed(layer1__1__conv1__stride=2), "layer1.1.conv1"),
    "no head": (lambda: changed(fc=nn.Identity()), "fc of model must be Linear, .* got Identity"),
    "head deleted": (lambda: done(lambda model: delattr(model, "fc")), "fc of .* got None"),
    "deep head": (lambda: changed(fc=nn.Sequential(nn.Linear(512, 5))), "fc of .* got Sequential"),
    "head without bias": (lambda: changed(fc=nn.Linear(512, 5, bias=False)), "fc of .* got weight"),
    "wrong head": (lambda: changed(fc=nn.Linear(500, 5)), "in_features of fc .* 512, got 500"),
    "gelu": (lambda: changed(layer1__0__relu=nn.GELU()), "layer1.0.relu of .* got GELU"),
    "leaky": (lambda: changed(relu=nn.LeakyReLU()), "relu of model must be ReLU, .* got LeakyReLU"),
    "averaged shortcut": (
        lambda: changed(layer2__0__downsample=downsampled(pool=nn.AvgPool2d(2))),
        "layer2.0.downsample.0 of model must be Conv2d, .* got AvgPool2d",
    ),
    "wide shortcut": (
        lambda: changed(layer2__0__downsample=downsampled(3)),
        "layer2.0.downsample.0",
    ),
    "no shortcut": (lambda: changed(layer2__0__downsample=None), "layer2.0.downsample .* got None"),
    "second shortcut": (
        lambda: changed(layer1__1__downsample=nn.Sequential(conv(kernel=1), nn.BatchNorm2d(64))),
        "layer1.1.downsample of model must be None",
    ),
    "stage left out": (lambda: changed(layer4=nn.Identity()), "layer4 of .* got Identity"),
    "stage empty": (lambda: changed(layer4=nn.Sequential()), "layer4 of .* got none"),
    "dropout between blocks": (
        lambda: done(lambda model: model.layer1.append(nn.Dropout(0.5))),
        "layer1.2 of model must be BasicBlock or Bottleneck of torchvision, got Dropout",
    ),
    "two kinds of blocks": (
        lambda: changed(
            layer1=nn.Sequential(Bottleneck(64, 16)), layer2=nn.Sequential(BasicBlock(64, 64))
        ),
        "blocks of one kind",
    ),
    "other inner widths": (
        lambda: changed(
            Bottleneck,
            layer1__0__conv2=conv(32),
            layer1__0__bn2=nn.BatchNorm2d(32),
            layer1__0__conv3=nn.Conv2d(32, 256, 1, bias=False),
        ),
        "out_channels of layer1.0.conv2 of model must be 64, got 32",
    ),
    "pruned without saying so": (
        lambda: done(partial(prune_channels, settings=False)),
        r"layer1.0.conv1.weight of .* \(32, 64, 3, 3\)",
    ),
    "more parts": (lambda: changed(layer1__0__se=nn.Identity()), "layer1.0.se of .* left out"),
    "more values": (
        lambda: done(own_buffer),
        "buffers of layer1.0 of model must be none, got mean",
    ),
    "shared weight": (lambda: done(tie), r"layer1.1.conv1.weight .* that of layer1.0.conv1.weight"),
    "shared memory": (lambda: done(tie_memory), r"layer1.1.conv1.weight of model"),
    "shared block": (lambda: done(tie_blocks), r"layer1.1.conv1.weight of model"),
    "shared norm": (
        lambda: done(lambda model: setattr(model.layer1[0], "bn2", model.layer1[0].bn1)),
        r"layer1.0.bn2.weight of .* that of layer1.0.bn1.weight",
    ),
    "pruned": (
        lambda: done(lambda model: prune.l1_unstructured(model.fc, "weight", 0.3)),
        "fc of model must be without hooks, .* got L1Unstructured",
    ),
    "normalised weight": (
        lambda: done(lambda model: nn.utils.parametrizations.weight_norm(model.fc)),
        "fc of model must be Linear, .* got .*ParametrizedLinear",
    ),
    "spectral norm": (
        lambda: done(lambda model: nn.utils.spectral_norm(model.layer1[0].conv1)),
        "layer1.0.conv1 of .* got SpectralNorm",
    ),
    "plain weight": (lambda: done(plain_weight), "buffers of fc of .* weight, bias, got bias"),
    "integers": (
        lambda: changed(fc__weight=nn.Parameter(torch.ones(5, 512).int(), False)),
        "fc.weight of model must be floating",
    ),
    "forward hook": (hooked("register_forward_hook"), "layer1.0 of model must be without hooks"),
    "pre-hook": (hooked("register_forward_pre_hook"), "layer1.0 of model must be without hooks"),
    "backward hook": (hooked("register_full_backward_hook"), "layer1.0 of .* without hooks"),
    "gradient hook": (
        lambda: done(lambda model: model.fc.weight.register_hook(torch.neg)),
        "fc.weight of model must be without hooks, .* got .*neg",
    ),
    "own forward": (patched("", "forward"), "^forward of model must be the method of its class"),
    "own forward of a block": (patched("layer1.0", "forward"), "^forward of layer1.0 of model"),
    "own train": (patched("", "train"), "^train of model must be the method of its class"),
    "grey": (lambda: changed(conv1=stem(channels=1)), "image must be .* with 1 channels"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_our_blocks_cannot_express_is_refused_in_one_line(case):
    make, said = REFUSED[case]
    with pytest.raises(ValueError, match=said) as refused:
        from_torchvision(make(), (3, 32, 32))
    assert "\n" not in str(refused.value)
    assert "got" in str(refused.value)


def half(model, inputs):
    return model._forward_impl(inputs) / 2


def dropped(model, inputs):
    return functional.dropout(model._forward_impl(inputs), 0.5, model.training)


def two(model, inputs):
    return (model._forward_impl(inputs),)


def few(model, inputs):
    return model._forward_impl(inputs)[:, :2]


def fallen(model, inputs):
    raise RuntimeError("no\nimages")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (half, "outputs of model must be .* differ by 1.0e[+]00 of the largest in eval mode"),
        (dropped, "outputs of model must be .* in train mode"),
        (two, "outputs of model must be .* differ by nan"),
        (few, "outputs of model must be .* differ by nan"),
        (fallen, r"model must take a batch of shape \(2, 3, 32, 32\), got RuntimeError: no images"),
    ],
)
def test_a_network_that_only_looks_like_one_is_refused(monkeypatch, forward, said, dtype):
    monkeypatch.setattr(ResNet, "forward", forward)
    model, state = plain().to(dtype), torch.get_rng_state()
    with pytest.raises(ValueError, match=said) as refused:
        from_torchvision(model, (3, 32, 32))
    assert "\n" not in str(refused.value)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_and_the_generator_stay_as_they_are():
    model = plain().eval()
    model.layer2.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    net = from_torchvision(model, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(value.grad is not None for value in (*model.parameters(), *net.parameters()))
    assert net.draw.tolist() == [0, 0]


def test_what_was_frozen_stays_frozen_through_growth_too():
    model = plain()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ("fc.weight", "layer2.0.downsample.1.bias"))
    net = from_torchvision(model, (3, 32, 32))
    trained = [name for name, value in net.named_parameters() if value.requires_grad]
    assert trained == ["stage2.block1.shortcut.bn.bias", "head.linear.weight"]
    grown = grow(net, [Widen("stage1.block1", 4)]).network
    assert [name for name, value in grown.named_parameters() if value.requires_grad] == trained


def test_modules_keep_their_modes_through_growth_too():
    model = plain().train()
    for norm in (model.bn1, model.layer1[0].bn2, model.layer2[0].downsample[1], model.layer3):
        norm.eval()
    net = from_torchvision(model, (3, 32, 32))
    expected = {"stem.bn", "stage1.block1.bn2", "stage2.block1.shortcut.bn"}
    expected |= {name for name, _ in net.named_modules() if name.startswith("stage3")}
    norms = (nn.BatchNorm2d, nn.Conv2d, nn.Sequential)
    for each in (net, grow(net, [Widen("stage1.block1", 4)]).network):
        modules = [(name, part) for name, part in each.named_modules() if isinstance(part, norms)]
        resting = {name for name, part in modules if not part.training}
        assert resting == {name for name in expected if name in dict(modules)}
    inputs = images(3, (3, 32, 32))
    torch.testing.assert_close(net(inputs), model(inputs), rtol=1e-5, atol=1e-5)


def test_the_image_is_224_for_the_usual_stem_and_asked_for_with_that_of_cifar():
    assert from_torchvision(plain()).architecture.image == (3, 224, 224)
    grey = changed(conv1=stem(channels=1))
    assert from_torchvision(grey).architecture.image == (1, 224, 224)
    with pytest.raises(ValueError, match=r"image must be given .*\(3, 32, 32\), say; got None"):
        from_torchvision(cifar())
    assert from_torchvision(cifar(), [3, 32, 48]).architecture.image == (3, 32, 48)


@pytest.mark.parametrize(
    "image",
    [
        *[64, "64", (64, 64), (64, 64, 3), (1, 3, 64, 64), (1, 64, 64), (3, 0, 64), (3, 64.0, 64)],
        *[(), (3, -1, 64), (3, True, 64), {"height": 64}, torch.zeros(3, 64, 64)],
    ],
)
def test_an_image_of_another_kind_is_refused_in_one_line(image):
    with pytest.raises(ValueError, match=r"^image must be .* got ") as refused:
        from_torchvision(plain(), image)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("image", [(3, 1, 1), (3, 5, 200)])
def test_the_smallest_images_do(image):
    assert from_torchvision(plain(), image).architecture.image == image


def test_it_works_wherever_it_is_called():
    with torch.inference_mode():
        model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
        nets = [from_torchvision(model, (3, 32, 32))]
    with torch.device("meta"):
        nets += [from_torchvision(model, (3, 32, 32))]
    with torch.autocast("cpu", torch.bfloat16):
        nets += [from_torchvision(model, (3, 32, 32))]
    expected = outputs(model, images(2, (3, 32, 32)))
    for net in nets:
        assert torch.equal(outputs(net, images(2, (3, 32, 32))), expected)
        net.train()(images(2, (3, 32, 32))).sum().backward()


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
