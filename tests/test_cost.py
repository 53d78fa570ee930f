"""Costs against the built networks and torch's own FLOP counter, and against published sizes."""

from dataclasses import replace

import pytest
import torch
from makers import architecture_of, plain
from torch.utils.flop_counter import FlopCounterMode

from nets import (
    Insert,
    Network,
    Widen,
    cost,
    preset,
    seed_of,
    train_flops,
)

BATCH = 2


def on_meta(architecture):
    with torch.device("meta"):
        return Network(architecture)


def counted(net, architecture, backward):
    with FlopCounterMode(display=False) as counter:
        outputs = net(torch.empty(BATCH, *architecture.image, device="meta"))
        if backward:
            outputs.sum().backward()
    return counter.get_total_flops()


def check(architecture):
    net = on_meta(architecture)
    assert cost(architecture).parameters == sum(parameter.numel() for parameter in net.parameters())
    assert BATCH * cost(architecture).flops == counted(net, architecture, backward=False)
    assert BATCH * train_flops(architecture) == counted(net, architecture, backward=True)
    assert isinstance(cost(architecture).flops, int)
    assert isinstance(train_flops(architecture), int)


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("image", [(3, 8, 8), (1, 28, 28), (1, 7, 5), (4, 33, 32)])
def test_every_kind_of_residual_net_costs_what_torch_counts(order, stem, block, image):
    check(preset("resnet14", order=order, stem=stem, block=block, image=image, classes=3))


@pytest.mark.parametrize("name", ["resnet14", "wrn-16-2", "resnet18", "resnet50"])
def test_every_family_of_presets_costs_what_torch_counts(name):
    check(preset(name))
    check(seed_of(preset(name, image=(1, 9, 9)), width=0.3))


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("image", [(7,), (1, 3, 2)])
def test_dense_nets_cost_what_torch_counts(order, image):
    check(architecture_of("dense", order, "", ((5, 3), (4,)), (6, 8), 3, image))


@pytest.mark.parametrize("widths", [(5,), (5, 4), (6, 6, 3)])
@pytest.mark.parametrize("image", [(7,), (1, 3, 2)])
def test_plain_nets_cost_what_torch_counts(widths, image):
    check(plain(*widths, image=image))


def test_a_grown_net_costs_what_torch_counts():
    architecture = preset("resnet8", image=(2, 9, 6), block="bottleneck", order="pre")
    for action in (
        Widen("stage2.block1", 3),
        Insert("stage2.block1", 5),
        Insert("stage1.block1", 2, 0.5),
    ):
        larger = architecture.apply(action)
        assert cost(larger).parameters > cost(architecture).parameters
        assert cost(larger).flops > cost(architecture).flops
        architecture = larger
    check(architecture)


def test_survival_costs_nothing():
    architecture = preset("resnet8")
    stages = tuple(
        replace(stage, blocks=tuple(replace(block, survival=0.5) for block in stage.blocks))
        for stage in architecture.stages
    )
    assert cost(replace(architecture, stages=stages)) == cost(architecture)


@pytest.mark.parametrize(
    ("name", "settings", "parameters"),
    [
        # torchvision's numbers for resnet18, resnet34 and resnet50
        ("resnet18", {"classes": 1000, "image": (3, 224, 224)}, 11_689_512),
        ("resnet34", {"classes": 1000, "image": (3, 224, 224)}, 21_797_672),
        ("resnet50", {"classes": 1000, "image": (3, 224, 224)}, 25_557_032),
        # Zagoruyko and Komodakis 2016, table 4: 36.5M
        ("wrn-28-10", {}, 36_479_194),
        ("mlp-500", {"image": (1, 28, 28)}, 784 * 500 + 500 + 500 * 10 + 10),
    ],
)
def test_known_sizes(name, settings, parameters):
    assert cost(preset(name, **settings)).parameters == parameters


def test_resnet18_takes_the_published_flops():
    # He et al. 2015, table 1: 1.8e9 multiply-adds
    assert cost(preset("resnet18", classes=1000, image=(3, 224, 224))).flops / 2 == pytest.approx(
        1.8e9, rel=0.02
    )


def test_a_linear_layer_by_hand():
    architecture = plain(5, image=(7,))
    assert cost(architecture).flops == 2 * (7 * 5 + 5 * 3)
    assert train_flops(architecture) == 2 * (2 * 7 * 5 + 3 * 5 * 3)
