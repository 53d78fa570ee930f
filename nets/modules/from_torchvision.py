"""Networks of others, taken over with their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nets.checks import check_count
from nets.modules.network import Network
from nets.modules.probe_batch import in_mode
from nets.modules.residual import ResidualBlock
from nets.modules.torchvision_parts import check_layers, check_parts, entries, pair
from nets.plan.architecture import Architecture
from nets.plan.blocks import Block, Stage

_STEMS = {((7, 7), (2, 2), "MaxPool2d"): "imagenet", ((3, 3), (1, 1), "Identity"): "cifar"}
_SIDE = 64  # of the images compared, at the most: the layers are the same at every size
_TOLERANCE = 1e-6  # rounding in float64 stays far below, also behind fifty BatchNorms


@torch.inference_mode(False)
@torch.no_grad()
def from_torchvision(model: nn.Module, image: Sequence[int] | None = None) -> Network:
    """Take over a torchvision ResNet with its weights: same outputs, ready to grow.

    Each part is compared with ours, and then the outputs of both networks for two seeded images, in
    eval and in train mode; what differs is refused. Modes (a BatchNorm in eval mode, say) and
    requires_grad come over, module by module and parameter by parameter; device, dtypes and memory
    format are kept. The model stays as it is, and nothing is shared with it.

    Args:
        model: of `torchvision.models`: resnet18/34/50/101/152, wide_resnet50_2, wide_resnet101_2 or
            another `ResNet`, with any number of classes and of input channels, also with the stem
            that CIFAR users give it (a 3x3 convolution of stride 1, `maxpool` an `nn.Identity`).
        image: shape of one input, (channels, height, width), on which costs are counted. By
            default height and width are 224 with torchvision's own stem; CIFAR's, which serves
            images of 28 to 96 pixels, has no default.

    Raises:
        ValueError: the model is no torchvision ResNet, or one with a part that ours lack (groups,
            dilation, another normalisation, head or pooling, hooks, shared weights), which the
            message names; or `image` does not fit.
    """
    check_parts(model)
    architecture = _architecture(model, image)
    with torch.device("meta"):
        net = Network(architecture)
    homes = _homes(net)
    check_layers(model, net, homes)
    _take_over(model, net, homes)
    _check_outputs(model, net)
    return net


def _take_over(model: nn.Module, net: Network, homes: Mapping[str, str]) -> None:
    """Give `net` copies of the model's values, its modes and its requires_grad."""
    values = {
        f"{ours}.{leaf}": value.detach().clone()
        for theirs, ours in homes.items()
        for leaf, value in entries(model.get_submodule(theirs)).items()
    }
    values["draw"] = torch.zeros(2, dtype=torch.int64, device=values["stem.conv.weight"].device)
    net.load_state_dict(values, assign=True)
    net.train(model.training)
    for theirs, ours in homes.items():
        module, twin = model.get_submodule(theirs), net.get_submodule(ours)
        twin.training = module.training
        for leaf, parameter in twin.named_parameters(recurse=False):
            parameter.requires_grad_(getattr(module, leaf).requires_grad)


def _architecture(model: Any, image: Any) -> Architecture:
    stem = (pair(model.conv1.kernel_size), pair(model.conv1.stride), type(model.maxpool).__name__)
    if stem not in _STEMS:
        raise ValueError(
            "stem of model must be a 7x7 convolution of stride 2 with MaxPool2d, or a 3x3 one of "
            f"stride 1 with Identity, got kernel {stem[0]}, stride {stem[1]}, {stem[2]}"
        )
    image = _image(image, model.conv1.in_channels, _STEMS[stem])
    basic = type(model.layer1[0]).__name__ == "BasicBlock"
    strided, last = ("conv1", "conv2") if basic else ("conv2", "conv3")
    stages = []
    for index in range(1, 5):
        members = getattr(model, f"layer{index}")
        blocks = tuple(
            Block(f"stage{index}.block{number}", block.conv1.out_channels)
            for number, block in enumerate(members, start=1)
        )
        first = members[0]
        stream = getattr(first, last).out_channels
        stride = pair(getattr(first, strided).stride)[0]
        incoming = stages[-1].width if stages else model.conv1.out_channels
        projection = first.downsample is not None
        if not projection and (stride > 1 or stream != incoming):
            raise ValueError(
                f"layer{index}.0.downsample of model must lead from {incoming} channels to "
                f"{stream} at stride {stride}, got None"
            )
        stages.append(Stage(f"stage{index}", stream, blocks, stride, projection, len(blocks)))
    return Architecture(
        tuple(stages),
        model.fc.out_features,
        image,
        model.conv1.out_channels,
        stem=_STEMS[stem],
        block="basic" if basic else "bottleneck",
    )


def _image(image: Any, channels: int, stem: str) -> tuple[int, ...]:
    if image is None and stem == "cifar":
        raise ValueError(
            "image must be given for a model with CIFAR's stem, whose images may have any size: "
            f"image=({channels}, 32, 32), say; got None"
        )
    if image is None:
        return (channels, 224, 224)
    if not isinstance(image, tuple | list) or len(image) != 3 or image[0] != channels:
        plain = isinstance(image, tuple | list | int | float | str)
        got = repr(image) if plain else type(image).__name__
        raise ValueError(
            f"image must be (channels, height, width) with {channels} channels, as model takes, "
            f"got {got}"
        )
    for size in image:
        check_count("image", size)
    return tuple(image)


def _homes(net: Network) -> dict[str, str]:
    """Say by module of torchvision's where it is in our network."""
    homes = {"": "", "conv1": "stem.conv", "bn1": "stem.bn", "fc": "head.linear"}
    for index, stage in enumerate(net.architecture.stages, start=1):
        homes[f"layer{index}"] = stage.name
        for number, block in enumerate(stage.blocks):
            theirs, module = f"layer{index}.{number}", net.get_submodule(block.name)
            assert isinstance(module, ResidualBlock)
            homes[theirs] = block.name
            for leaf in (*module.layers, *module.norms):
                homes[f"{theirs}.{leaf}"] = f"{block.name}.{leaf}"
            if module.projects:
                homes[f"{theirs}.downsample"] = f"{block.name}.shortcut"
                homes[f"{theirs}.downsample.0"] = f"{block.name}.shortcut.conv"
                homes[f"{theirs}.downsample.1"] = f"{block.name}.shortcut.bn"
    return homes


def _check_outputs(model: nn.Module, net: Network) -> None:
    """Raise a ValueError unless both give the same for a batch; both stay as they are."""
    channels, *sides = net.architecture.image
    shape = (2, channels, *(min(side, _SIDE) for side in sides))
    generator = torch.Generator("cpu").manual_seed(0)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    try:
        theirs = _outputs(model, inputs)
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model must take a batch of shape {shape}, got {type(error).__name__}: {line}"
        ) from error
    for name, old, new in zip(("eval", "train"), theirs, _outputs(net, inputs)):
        difference = _difference(old, new)
        if not difference <= _TOLERANCE:
            raise ValueError(
                "outputs of model must be those of its parts under torchvision's forward, but "
                f"differ by {difference:.1e} of the largest in {name} mode"
            )


def _outputs(net: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Give the outputs in eval and in train mode, worked out in float64 on copies of all values."""
    values = {
        name: value.to("cpu", torch.float64 if value.is_floating_point() else None, copy=True)
        for name, value in (*net.named_parameters(), *net.named_buffers())
    }
    outputs = []
    for training in (False, True):
        with in_mode(net, training), torch.random.fork_rng([]):
            outputs.append(functional_call(net, values, (inputs,)))
    return outputs


def _difference(old: Any, new: Tensor) -> float:
    """Give the largest |new - old| over the largest |old|; NaN twice is no difference."""
    if not isinstance(old, Tensor) or old.shape != new.shape:
        return float("nan")
    same = (old == new) | (old.isnan() & new.isnan())
    largest = old.nan_to_num(0.0, 0.0, 0.0).abs().max()
    return 0.0 if same.all() else float((new - old)[~same].abs().max() / largest)
