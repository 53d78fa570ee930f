"""All classification models of torchvision, and some of timm, for two steps under an Observer."""

import gc
import weakref

import pytest
import torch
from makers import hooks_of
from torchvision import models

from analysis import Observer
from analysis.measuring.norm_layers import FEEDERS, is_norm
from analysis.observing.watched_layers import parameters_of

SMALL = [  # what always runs, and the side of its images: one of each way to build
    ("torchvision", "resnet18", 32),
    ("torchvision", "densenet121", 32),
    ("torchvision", "mobilenet_v3_small", 32),
    ("torchvision", "squeezenet1_0", 32),
]
SIDES = {"alexnet": 64, "inception_v3": 299, "maxvit_t": 224, "googlenet": 48}
DEEP = dict.fromkeys(["vit_h_14", "vit_l_16", "vit_l_32", "vit_b_16", "vit_b_32"], 4)  # blocks
TIMM = [
    "resnet26d", "resnetv2_50", "seresnet50", "regnety_002", "efficientnet_b0",
    "mobilenetv3_small_100", "densenet121", "convnext_atto", "convnextv2_atto",
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224",
    "resmlp_12_224", "ghostnet_050", "hrnet_w18_small", "mixer_s32_224", "dpn68", "nf_regnet_b0",
    "mobilevit_xxs", "poolformer_s12", "cait_xxs24_224", "xcit_nano_12_p8_224", "res2net50_14w_8s",
    "inception_v4", "edgenext_xx_small", "eva02_tiny_patch14_224",
]  # fmt: skip


def model_of(zoo, name):
    torch.manual_seed(0)
    if zoo == "timm":
        timm = pytest.importorskip("timm")
        return timm.create_model(name, pretrained=False, num_classes=7)
    net = models.get_model(name, num_classes=7, **SIZES.get(name, {}))
    if name in DEEP:
        net.encoder.layers = net.encoder.layers[: DEEP[name]]
    return net


SIZES = {name: {"image_size": 64} for name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32")}
SIZES["vit_h_14"] = {"image_size": 56}


def side_of(zoo, name, net):
    if zoo == "timm":
        fixed = name.endswith("_224") or net.default_cfg.get("fixed_input_size")
        return net.default_cfg["input_size"][-1] if fixed else 96
    return SIZES.get(name, {}).get("image_size") or SIDES.get(name, 64)


class Slow:
    """Hooks of its own: what every module gave, and who made what norms took."""

    def __init__(self, net):
        self.std, self.fed, self.ran, self.gave = {}, {}, set(), []
        self.handles = []
        for path, module in net.named_modules():
            self.handles.append(module.register_forward_hook(self.keep(path), with_kwargs=True))

    def keep(self, path):
        def hook(module, args, kwargs, output):
            inputs = (*args, *kwargs.values())
            while isinstance(output, tuple):
                output = output[0]
            if not isinstance(output, torch.Tensor) or not output.is_floating_point():
                return
            self.ran.add(path)
            self.std.setdefault(path, []).append(output.detach().double().std(correction=0).item())
            if is_norm(module):
                made = [
                    p
                    for p, tensor, at in self.gave
                    if tensor is inputs[0] and at == tensor._version
                ]
                self.fed.setdefault(path, set()).update(made or {""})
            if isinstance(module, FEEDERS):
                self.gave.append((path, output, output._version))

        return hook

    def end(self):
        for handle in self.handles:
            handle.remove()


def check(net, side, relative=2e-4):
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9)
    before = set(hooks_of(net, optimizer))
    names = [set(vars(module)) for module in net.modules()]
    slow = Slow(net)
    with Observer(net, optimizer) as observer:
        for _ in range(2):
            optimizer.zero_grad()
            outputs = net(torch.randn(2, 3, side, side))
            if not isinstance(outputs, torch.Tensor):
                outputs = sum(part for part in outputs if part is not None)
            outputs.square().mean().backward()
            optimizer.step()
            slow.gave.clear()
        found = observer.readings()
    slow.end()
    assert [name for name in hooks_of(net, optimizer) if name not in before] == []
    assert [set(vars(module)) for module in net.modules()] == names
    owners = {}
    for layer in observer.layers:
        for parameter in parameters_of(net, layer):
            owners.setdefault(id(parameter), []).append(layer.path)
    for name, parameter in net.named_parameters():
        assert len(owners.get(id(parameter), [])) == 1, (name, owners.get(id(parameter)))
    silent = compare(net, observer, found, slow, relative)
    kept = weakref.ref(observer)
    del observer, layer
    gc.collect()
    assert kept() is None
    return found, silent


def compare(net, observer, found, slow, relative):
    """Hold every reading against the slow one; gives the layers without a response."""
    silent = []
    for layer in observer.layers:
        reading = found[layer.path]
        feeders = slow.fed.get(layer.path, {""})
        taken = [p for p, fed in slow.fed.items() if feeders & fed and feeders != {""}]
        alone = len(feeders) > 1 or "" in feeders or taken != [layer.path]
        if len(layer.modules) > 1 and is_norm(net.get_submodule(layer.path)):
            assert not alone, layer
            assert layer.modules == (*feeders, layer.path)
        elif layer.path in slow.fed:
            assert alone or layer.modules[0] in feeders, (layer, feeders)
        if layer.path not in slow.ran:
            assert reading.response_std is None, layer.path
            silent.append(layer.path)
            continue
        carries = any(True for _ in net.get_submodule(layer.path).children())
        if not (carries and is_norm(net.get_submodule(layer.path))):
            want = sum(slow.std[layer.path]) / len(slow.std[layer.path])
            assert reading.response_std == pytest.approx(want, rel=relative, abs=1e-7), layer.path
    return silent


@pytest.mark.parametrize(("zoo", "name", "side"), SMALL)
def test_models_of_torchvision(zoo, name, side):
    found, silent = check(model_of(zoo, name), side)
    assert silent == []
    assert any(reading.dead_fraction is not None for reading in found.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_model_of_torchvision(name):
    net = model_of("torchvision", name)
    check(net, side_of("torchvision", name, net))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm(name):
    net = model_of("timm", name)
    check(net, side_of("timm", name, net))
