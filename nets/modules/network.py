"""The torch modules that an architecture describes; their paths name statistics and weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nets.modules.frozen_batchnorm import HeldBatchNorm1d, HeldBatchNorm2d
from nets.modules.frozen_parts import StridedConv2d, hold
from nets.modules.random_draws import Draws
from nets.modules.residual import ACTIVATIONS, Blocks, Layers, PlainBlock, ResidualBlock
from nets.plan.actions import SetSurvival
from nets.plan.architecture import Architecture
from nets.plan.blocks import KERNELS, Block
from nets.plan.layers import LayerSpec, layer_specs


def layer_of(spec: LayerSpec) -> nn.Module:
    """Make a convolution, a linear layer or a BatchNorm, of which a part may be held fixed."""
    if spec.kind == "norm":
        if spec.held_channels:
            held = HeldBatchNorm2d if spec.size else HeldBatchNorm1d
            return held(spec.shape[0], spec.held_channels)
        return (nn.BatchNorm2d if spec.size else nn.BatchNorm1d)(spec.shape[0])
    outgoing, incoming, *kernel = spec.shape
    if kernel:
        convolution = StridedConv2d if spec.stride > 1 else nn.Conv2d
        padding = kernel[0] // 2
        layer = convolution(incoming, outgoing, kernel[0], spec.stride, padding, bias=spec.bias)
    else:
        layer = nn.Linear(incoming, outgoing, bias=spec.bias)
    hold(layer, "weight", spec.held)
    if spec.bias:
        hold(layer, "bias", ((spec.held_channels, 1),))
    return layer


def _empty_layer(spec: LayerSpec) -> nn.Module:
    """Copy a layer of its kind, made once: torch draws values in making one, which takes long."""
    kind = spec.stride, spec.size, spec.bias, spec.held, spec.held_channels
    known = _known_layer(spec.kind, spec.shape, *kind)
    layer, own = object.__new__(type(known)), (dict, set)
    vars(layer).update(
        (key, value.copy() if isinstance(value, own) else value)
        for key, value in vars(known).items()
    )
    return layer


@lru_cache(maxsize=1024)
def _known_layer(kind: str, shape: tuple[int, ...], *rest: Any) -> nn.Module:
    with torch.device("meta"):
        return layer_of(LayerSpec("", kind, shape, (), *rest))


def _block(block: Block, architecture: Architecture, layers: Layers) -> nn.Module:
    if architecture.block == "plain":
        return PlainBlock(architecture, layers)
    return ResidualBlock(block, architecture, layers)


class Head(nn.Module):
    """Average pooling and a linear layer, after BatchNorm and activation in pre order."""

    def __init__(self, architecture: Architecture, layers: Layers) -> None:
        super().__init__()
        self.activation = architecture.activation
        self.pools = KERNELS[architecture.block][0] > 0
        self.bn = layers.get("bn")
        self.linear = layers["linear"]

    def forward(self, x: Tensor) -> Tensor:
        """Take (N, C, H, W) or (N, C) and give (N, classes)."""
        if self.bn is not None:
            x = ACTIVATIONS[self.activation](self.bn(x))
        if self.pools:
            x = x.mean((2, 3))  # (N, C, H, W) -> (N, C)
        return self.linear(x)


class Network(nn.Module):
    """The network that `architecture` describes: stem, stage1.block1, ..., head.

    The stem's output is its response before the non-linearity; activation and pooling follow it
    here. Takes (N, *architecture.image), gives (N, classes). The buffer `draw` holds the seed and
    the number of training forwards, from which stochastic depth draws, together with `rank`, which
    tells the processes of one run apart. `make` makes its layers.
    """

    draw: Tensor

    def __init__(
        self,
        architecture: Architecture,
        seed: int = 0,
        rank: int = 0,
        make: Callable[[LayerSpec], nn.Module] = layer_of,
    ) -> None:
        super().__init__()
        layers: dict[str, dict[str, nn.Module]] = {"stem": {}}
        for spec in layer_specs(architecture):
            layers.setdefault(spec.home, {})[spec.leaf] = make(spec)
        self.architecture = architecture
        self.rank = rank
        self.post = architecture.order == "post"
        flattens = architecture.stem in ("none", "dense")
        stem = {"flatten": nn.Flatten(), **layers["stem"]} if flattens else layers["stem"]
        self.stem = nn.Sequential(OrderedDict(stem))
        for stage in architecture.stages:
            blocks = {
                block.name.split(".")[1]: _block(block, architecture, layers[block.name])
                for block in stage.blocks
            }
            self.add_module(stage.name, Blocks(OrderedDict(blocks)))
        self.head = Head(architecture, layers["head"])
        self.register_buffer("draw", torch.tensor([seed, 0], dtype=torch.int64))
        self._draws = Draws()

    def forward(self, x: Tensor) -> Tensor:
        """Take (N, *architecture.image) and give (N, classes)."""
        draw = self._draws.of(x, self.draw, self.rank) if self.training else self.draw
        x = self.stem(x)
        if self.post and self.architecture.stem != "none":
            x = ACTIVATIONS[self.architecture.activation](x)
        if self.architecture.stem == "imagenet":
            x = functional.max_pool2d(x, 3, 2, 1)
        for stage in self.architecture.stages:
            x = self.get_submodule(stage.name)(x, draw)
        return self.head(x)

    def survive(self, architecture: Architecture) -> bool:
        """Take over the survivals of an architecture that differs in nothing else, in place.

        What reads them where they lie, a captured step, goes on with the new ones. Gives false, and
        changes nothing, if more differs, or a block begins or ceases to be left to chance.
        """
        mine, blocks = self.architecture.blocks, architecture.blocks
        changed = [name for name in mine if name in blocks and mine[name] != blocks[name]]
        actions = [SetSurvival(name, mine[name].survival, blocks[name].drop) for name in changed]
        back = reduce(Architecture.apply, actions, architecture)
        begins = any((mine[n].survival < 1) != (blocks[n].survival < 1) for n in changed)
        if back != self.architecture or begins:
            return False
        self.architecture = architecture
        for name in changed:
            module = self.get_submodule(name)
            assert isinstance(module, ResidualBlock)
            module.survive(blocks[name].survival)
        return True


def skeleton_of(architecture: Architecture, rank: int = 0) -> Network:
    """Give a network without values: what stands in their place is shared, and only to be read."""
    return Network(architecture, rank=rank, make=_empty_layer)
