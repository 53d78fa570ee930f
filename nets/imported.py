"""Networks of others, taken over with their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nets.architecture import Architecture
from nets.blocks import Block, Stage
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
    _check(parts, [block for stage in blocks for block in stage], image)
    architecture = _architecture(parts, blocks, image)
    values = _values(parts, blocks)
    with torch.device("meta"):
        net = Network(architecture)
    values["draw"] = torch.zeros(2, dtype=torch.int64, device=values["stem.conv.weight"].device)
    net.load_state_dict({name: value.clone() for name, value in values.items()}, assign=True)
    return net.train(model.training)


def _check(model: Any, blocks: list[Any], image: tuple[int, ...]) -> None:
    if len({type(block) for block in blocks}) > 1:
        raise ValueError("model must have blocks of one kind, got BasicBlock and Bottleneck")
    odd = [name for name, module in model.named_modules() if not _fits(name, module)]
    odd += [] if isinstance(model.fc, nn.Linear) else ["fc"]
    if odd:
        got = str(model.get_submodule(odd[0])).splitlines()[0].removesuffix("(")
        raise ValueError(
            f"{odd[0]} of model must be as torchvision makes it, in BasicBlock or Bottleneck with "
            f"relu and BatchNorm2d of torch's settings, without groups and dilation; got {got}"
        )
    if image[0] != model.conv1.in_channels:
        raise ValueError(
            f"image must have {model.conv1.in_channels} channels, as model takes, got {image}"
        )


def _fits(name: str, module: Any) -> bool:
    """Say whether our networks have such a module at that place."""
    kind = type(module)
    if kind is nn.Conv2d:
        usual = module.groups == 1 and module.dilation == (1, 1) and module.bias is None
        return usual and module.padding == tuple(size // 2 for size in module.kernel_size)
    if kind is nn.BatchNorm2d:
        usual = module.affine and module.track_running_stats
        return usual and (module.eps, module.momentum) == (1e-5, 0.1)
    if kind in (nn.MaxPool2d, nn.Identity):
        shape = kind is nn.Identity or (module.kernel_size, module.stride, module.padding)
        return name == "maxpool" and shape in (True, (3, 2, 1))
    if kind is nn.AdaptiveAvgPool2d:
        return module.output_size in (1, (1, 1))
    if kind is nn.Linear:
        return module.bias is not None
    return kind in (nn.ReLU, nn.Sequential) or kind.__name__ in ("ResNet", *_CONVOLUTIONS)


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
