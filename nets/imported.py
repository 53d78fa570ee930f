"""Networks of others, taken over with their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nets.architecture import Architecture, Block, Stage
from nets.modules import Network

_CONVOLUTIONS = {"BasicBlock": 2, "Bottleneck": 3}


def from_torchvision(model: nn.Module, image: tuple[int, ...] = (3, 224, 224)) -> Network:
    """Take over a torchvision ResNet with its weights: same outputs, ready to grow.

    Args:
        model: of `torchvision.models`: resnet18/34/50/101/152, wide_resnet50_2, wide_resnet101_2 or
            another `ResNet`, also with the stem that CIFAR users give it (a 3x3 convolution of
            stride 1 and no pooling). It stays as it is; nothing is shared with it.
        image: shape of one input.

    Raises:
        ValueError: it is no ResNet, or one that our blocks cannot express (groups, dilation,
            another normalisation).
    """
    kind = type(model).__name__
    if kind != "ResNet" or not hasattr(model, "layer1"):
        raise ValueError(f"model must be a torchvision ResNet, got {kind}")
    parts: Any = model
    blocks = [list(getattr(parts, f"layer{number}")) for number in range(1, 5)]
    _check(parts, [block for stage in blocks for block in stage])
    architecture = _architecture(parts, blocks, image)
    values = _values(parts, blocks)
    with torch.device("meta"):
        net = Network(architecture)
    values["draw"] = torch.zeros(2, dtype=torch.int64, device=values["stem.conv.weight"].device)
    net.load_state_dict({name: value.clone() for name, value in values.items()}, assign=True)
    return net.train(model.training)


def _check(model: Any, blocks: list[Any]) -> None:
    kinds = {type(block).__name__ for block in blocks}
    norms = {type(module) for module in model.modules() if "Norm" in type(module).__name__}
    plain = norms == {nn.BatchNorm2d} and len(kinds) == 1 and kinds <= set(_CONVOLUTIONS)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if not plain or any(
        c.groups > 1 or c.dilation != (1, 1) or c.bias is not None for c in convolutions
    ):
        raise ValueError(
            "model must be made of BasicBlock or Bottleneck with BatchNorm2d, without groups and "
            f"dilation, got {type(model).__name__} of {', '.join(sorted(kinds))}"
        )


def _architecture(model: Any, blocks: list[list[Any]], image: tuple[int, ...]) -> Architecture:
    stem = (model.conv1.kernel_size[0], model.conv1.stride[0], type(model.maxpool).__name__)
    stems = {(7, 2, "MaxPool2d"): "imagenet", (3, 1, "Identity"): "cifar"}
    if stem not in stems:
        raise ValueError(
            "stem of model must be a 7x7 convolution of stride 2 with pooling, or a 3x3 one of "
            f"stride 1 without, got kernel {stem[0]}, stride {stem[1]}, {stem[2]}"
        )
    stages = []
    for index, members in enumerate(blocks, start=1):
        first = members[0]
        convolutions = _CONVOLUTIONS[type(first).__name__]
        stream = getattr(first, f"conv{convolutions}").out_channels
        ours = tuple(
            Block(f"stage{index}.block{number}", block.conv1.out_channels)
            for number, block in enumerate(members, start=1)
        )
        projection = first.downsample is not None
        stages.append(
            Stage(f"stage{index}", stream, ours, int(first.stride), projection, len(ours))
        )
    kind = "basic" if type(blocks[0][0]).__name__ == "BasicBlock" else "bottleneck"
    return Architecture(
        tuple(stages),
        model.fc.out_features,
        tuple(image),
        model.conv1.out_channels,
        "post",
        stems[stem],
        kind,
    )


def _values(model: Any, blocks: list[list[Any]]) -> dict[str, Tensor]:
    """Give the model's values under our names."""
    homes = {"conv1": "stem.conv", "bn1": "stem.bn", "fc": "head.linear"}
    for index, members in enumerate(blocks, start=1):
        for number in range(len(members)):
            ours, theirs = f"stage{index}.block{number + 1}", f"layer{index}.{number}"
            homes[f"{theirs}.downsample.0"] = f"{ours}.shortcut.conv"
            homes[f"{theirs}.downsample.1"] = f"{ours}.shortcut.bn"
            for layer in range(1, 4):
                homes[f"{theirs}.conv{layer}"] = f"{ours}.conv{layer}"
                homes[f"{theirs}.bn{layer}"] = f"{ours}.bn{layer}"
    values = {}
    for name, value in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        values[f"{homes[path]}.{leaf}"] = value
    return values
