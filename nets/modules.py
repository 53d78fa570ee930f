"""The torch modules that an architecture describes; their paths name statistics and weights."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from nets.architecture import KERNELS, Architecture, Block, Stage
from nets.initializers import hash_of

Draw = Tensor
"""(2,) int64: the seed and the number of training forwards so far; stochastic depth draws from it.
"""


def _layer(incoming: int, outgoing: int, kernel: int, stride: int = 1) -> nn.Module:
    if kernel == 0:
        return nn.Linear(incoming, outgoing, bias=False)
    return nn.Conv2d(incoming, outgoing, kernel, stride, kernel // 2, bias=False)


def _norm(channels: int, kernel: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kernel else nn.BatchNorm1d(channels)


def uniform(draw: Draw, salt: int) -> Tensor:
    """Give a number in [0, 1) that depends on (seed, step, salt) alone, without asking the host.

    The mixing steps are those of splitmix64 (Steele et al. 2014) in int64 arithmetic that wraps
    around.
    """
    bits = draw[0] * -7046029254386353131 + draw[1] * -4658895280553007687 + salt
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (bits & ((1 << 53) - 1)).double() / (1 << 53)


class ResidualBlock(nn.Module):
    """Layers with BatchNorm around a shortcut; `survival` is the chance to keep the branch.

    `layers` and `norms` name its children in the order of the forward pass (conv1, bn1, ...).
    """

    def __init__(self, block: Block, stage: Stage, incoming: int, kind: str, order: str) -> None:
        super().__init__()
        first = block.name == stage.blocks[0].name
        kernels = KERNELS[kind]
        widths = [incoming, *[block.width] * (len(kernels) - 1), stage.width]
        stride = stage.stride if first else 1
        strided = kernels.index(3) if 3 in kernels else 0
        prefix = "conv" if kernels[0] else "linear"
        self.post = order == "post"
        self.layers, self.norms = [], []
        for index, kernel in enumerate(kernels):
            self.layers.append(f"{prefix}{index + 1}")
            self.norms.append(f"bn{index + 1}")
            layer = _layer(
                widths[index], widths[index + 1], kernel, stride if index == strided else 1
            )
            self.add_module(self.layers[-1], layer)
            self.add_module(
                self.norms[-1], _norm(widths[index + 1] if self.post else widths[index], kernels[0])
            )
        self.projects = first and stage.projection
        self.shortcut: nn.Module = nn.Identity()
        if self.projects:
            parts = OrderedDict({prefix: _layer(incoming, stage.width, min(kernels[0], 1), stride)})
            if self.post:
                parts["bn"] = _norm(stage.width, kernels[0])
            self.shortcut = nn.Sequential(parts)
        self.survival = block.survival
        self.salt = hash_of(block.name)

    def forward(self, x: Tensor, draw: Draw) -> Tensor:
        pairs = [
            (getattr(self, layer), getattr(self, norm))
            for layer, norm in zip(self.layers, self.norms)
        ]
        if self.post:
            y = x
            for layer, norm in pairs[:-1]:
                y = functional.relu(norm(layer(y)), inplace=True)
            layer, norm = pairs[-1]
            return functional.relu(self.shortcut(x) + self._kept(norm(layer(y)), draw))
        y = active = functional.relu(pairs[0][1](x), inplace=True)
        y = pairs[0][0](y)
        for layer, norm in pairs[1:]:
            y = layer(functional.relu(norm(y), inplace=True))
        return self.shortcut(active if self.projects else x) + self._kept(y, draw)

    def _kept(self, branch: Tensor, draw: Draw) -> Tensor:
        if not self.training or self.survival == 1:
            return branch
        kept = (uniform(draw, self.salt) < self.survival).to(branch.dtype)
        return branch * (kept / self.survival)


class PlainBlock(nn.Module):
    """A hidden layer: linear, then relu."""

    def __init__(self, incoming: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(incoming, width)

    def forward(self, x: Tensor, draw: Draw) -> Tensor:
        return functional.relu(self.linear(x), inplace=True)


class Head(nn.Module):
    """Average pooling and a linear layer, after BatchNorm and relu in pre-activation order."""

    def __init__(self, incoming: int, classes: int, kernel: int, normed: bool) -> None:
        super().__init__()
        self.bn = _norm(incoming, kernel) if normed else None
        self.linear = nn.Linear(incoming, classes)

    def forward(self, x: Tensor) -> Tensor:
        if self.bn is not None:
            x = functional.relu(self.bn(x), inplace=True)
        if x.dim() == 4:
            x = x.mean((2, 3))  # (N, C, H, W) -> (N, C)
        return self.linear(x)


class Network(nn.Module):
    """The network that `architecture` describes: stem, stage1.block1, ..., head.

    The stem's output is its response before the non-linearity; relu and pooling follow it here.
    Takes (N, *architecture.image), gives (N, classes). The buffer `draw` holds the seed and the
    number of training forwards, from which stochastic depth draws.
    """

    draw: Tensor

    def __init__(self, architecture: Architecture, seed: int = 0) -> None:
        super().__init__()
        self.architecture = architecture
        kernel = KERNELS[architecture.block][0]
        self.post = architecture.order == "post"
        self.stem = _stem(architecture)
        incoming = architecture.stem_width or architecture.inputs
        for stage in architecture.stages:
            blocks = OrderedDict()
            for block in stage.blocks:
                name = block.name.split(".")[1]
                if architecture.block == "plain":
                    blocks[name], incoming = PlainBlock(incoming, block.width), block.width
                else:
                    blocks[name] = ResidualBlock(
                        block, stage, incoming, architecture.block, architecture.order
                    )
                    incoming = stage.width
            self.add_module(stage.name, nn.Sequential(blocks))
        normed = not self.post
        self.head = Head(incoming, architecture.classes, kernel, normed)
        self.register_buffer("draw", torch.tensor([seed, 0], dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.draw[1] += 1
        x = self.stem(x)
        if self.post and self.architecture.stem != "none":
            x = functional.relu(x, inplace=True)
        if self.architecture.stem == "imagenet":
            x = functional.max_pool2d(x, 3, 2, 1)
        for block in self.architecture.blocks:
            x = self.get_submodule(block)(x, self.draw)
        return self.head(x)


def _stem(architecture: Architecture) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    post, width = architecture.order == "post", architecture.stem_width
    if architecture.stem in ("none", "dense"):
        parts["flatten"] = nn.Flatten()
    if architecture.stem == "none":
        return nn.Sequential(parts)
    name, kernel, stride = {
        "cifar": ("conv", 3, 1),
        "imagenet": ("conv", 7, 2),
        "dense": ("linear", 0, 1),
    }[architecture.stem]
    parts[name] = _layer(architecture.inputs, width, kernel, stride)
    if post:
        parts["bn"] = _norm(width, kernel)
    return nn.Sequential(parts)


def build(architecture: Architecture, seed: int = 0) -> Network:
    """Build the network on torch's default device; values depend on (seed, entry name) alone.

    Convolutions and linear layers start from He et al.'s normal distribution, BatchNorm from weight
    1 and bias 0.
    """
    from nets.carry import carry_values

    with torch.device("meta"):
        network = Network(architecture)
    values = carry_values({}, network, born=frozenset(), initializer="he", seed=seed)
    values["draw"] = torch.tensor([seed, 0], dtype=torch.int64)
    network.load_state_dict(values, assign=True)
    return network
