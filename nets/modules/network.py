"""The torch modules that an architecture describes; their paths name statistics and weights."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional

from nets.growing.initializers import Initializer, initializer_of
from nets.modules.draws import Draws, hash_of, is_recomputing
from nets.modules.held import split_values
from nets.modules.layers import ACTIVATIONS, Axis, Draw, layer_of, norm_of, uniform
from nets.plan.architecture import Architecture
from nets.plan.blocks import KERNELS, Block, Stage


class ResidualBlock(nn.Module):
    """Layers with BatchNorm around a shortcut; `survival` is the chance to keep the branch.

    `layers` and `norms` name its children in the order of the forward pass (conv1, bn1, ...). A
    fading block counts its training forwards in the buffer `fade`.
    """

    fade: Tensor

    def __init__(
        self,
        block: Block,
        first: bool,
        stage: Stage,
        incoming: Axis,
        outgoing: Axis,
        architecture: Architecture,
    ) -> None:
        super().__init__()
        kernels = KERNELS[architecture.block]
        inner = [Axis(f"{block.name}:{i + 1}", block.width) for i in range(len(kernels) - 1)]
        axes = [incoming, *inner, outgoing]
        stride = stage.stride if first else 1
        strided = kernels.index(3) if 3 in kernels else 0
        prefix = "conv" if kernels[0] else "linear"
        self.post = architecture.order == "post"
        self.activation = architecture.activation
        self.layers, self.norms = [], []
        count = len(kernels)
        held = [block.held_on(axis, count) for axis in range(count + 1)]
        for index, kernel in enumerate(kernels):
            self.layers.append(f"{prefix}{index + 1}")
            self.norms.append(f"bn{index + 1}")
            layer = layer_of(
                axes[index],
                axes[index + 1],
                kernel,
                stride if index == strided else 1,
                block.bands(index, count),
            )
            self.add_module(self.layers[-1], layer)
            normed = index + self.post
            self.add_module(self.norms[-1], norm_of(axes[normed], kernels[0], held[normed]))
        self.projects = first and stage.projection
        self.shortcut: nn.Module = nn.Identity()
        if self.projects:
            kernel = min(kernels[0], 1)
            bands = ((held[-1], held[0]),)
            parts = OrderedDict({prefix: layer_of(incoming, outgoing, kernel, stride, bands)})
            if self.post:
                parts["bn"] = norm_of(outgoing, kernel, held[-1])
            self.shortcut = nn.Sequential(parts)
        self.dropout = nn.Dropout(architecture.dropout) if architecture.dropout else nn.Identity()
        self.survival, self.drop = block.survival, block.drop
        self.salt = hash_of(block.name)
        self.steps = block.fade
        if block.fade:
            self.register_buffer("fade", torch.tensor(0))
            self._faded_at: Tensor | None = None  # the draw of the latest training forward

    def forward(self, x: Tensor, draw: Draw | None = None) -> Tensor:
        """Take (N, C, H, W), or (N, C) in a dense net, and give it on the stage's stream.

        Without the network's draw, as when it is called by itself, nothing can be left to chance.
        """
        active = ACTIVATIONS[self.activation]
        pairs = [
            (getattr(self, layer), getattr(self, norm))
            for layer, norm in zip(self.layers, self.norms)
        ]
        layer, norm = pairs[-1]
        if self.post:
            y = x
            for earlier, following in pairs[:-1]:
                y = active(following(earlier(y)))
            return active(self.shortcut(x) + self._kept(norm(layer(self.dropout(y))), draw))
        y = entry = active(pairs[0][1](x))
        for (earlier, _), (_, following) in pairwise(pairs):
            y = active(following(earlier(y)))
        branch = self._kept(layer(self.dropout(y)), draw)
        return self.shortcut(entry if self.projects else x) + branch

    def _kept(self, branch: Tensor, draw: Draw | None) -> Tensor:
        if self.training and (self.steps or self.survival < 1) and isinstance(branch, Proxy):
            raise ValueError("net must be in eval mode for torch.fx: a block fades or is dropped")
        if self.steps:
            branch = branch * (1 - self._faded(draw) / self.steps).clamp_min(0).to(branch.dtype)
        if not self.training or self.survival == 1:
            return branch
        if draw is None:
            raise ValueError(
                f"survival must be 1 for a block that is called by itself in training, got "
                f"{self.survival}: call the network, or use eval mode"
            )
        samples = len(branch) if self.drop == "row" else None
        kept = (uniform(draw, self.salt, samples) < self.survival).to(branch.dtype)
        return branch * (kept.view(-1, *[1] * (branch.dim() - 1)) / self.survival)

    def _faded(self, draw: Draw | None) -> Tensor:
        """Give how often the branch has faded; a forward that is run again fades no further."""
        if not self.training or draw is None:
            return self.fade
        if is_recomputing():
            assert self._faded_at is not None
            return self.fade - (self._faded_at[1] - draw[1])
        self.fade += 1
        self._faded_at = draw
        return self.fade


class PlainBlock(nn.Module):
    """A hidden layer: linear, then the activation."""

    def __init__(self, block: Block, incoming: Axis, outgoing: Axis, architecture: Architecture):
        super().__init__()
        bands = architecture.plain_bands(block.name)
        self.linear = layer_of(incoming, outgoing, 0, held=bands, bias=True, held_bias=block.frozen)
        self.activation = architecture.activation
        self.dropout = nn.Dropout(architecture.dropout) if architecture.dropout else nn.Identity()

    def forward(self, x: Tensor, draw: Draw | None = None) -> Tensor:
        """Take (N, incoming) and give (N, width)."""
        return self.dropout(ACTIVATIONS[self.activation](self.linear(x)))


class Blocks(nn.Sequential):
    """The blocks of a stage, one after the other."""

    def forward(self, input: Tensor, draw: Draw | None = None) -> Tensor:
        """Take and give what a block does; `draw` as there."""
        for block in self:
            input = block(input, draw)
        return input


class Head(nn.Module):
    """Average pooling and a linear layer, after BatchNorm and activation in pre order."""

    def __init__(self, incoming: Axis, architecture: Architecture) -> None:
        super().__init__()
        frozen, self.activation = architecture.frozen_head, architecture.activation
        classes = Axis("classes", architecture.classes)
        self.pools = KERNELS[architecture.block][0] > 0
        normed = architecture.order == "pre"
        self.bn = norm_of(incoming, KERNELS[architecture.block][0], frozen) if normed else None
        bands = ((classes.size, frozen),)
        if architecture.block == "plain":
            bands = architecture.plain_bands("head")
        held_bias = classes.size if frozen else 0
        self.linear = layer_of(incoming, classes, 0, held=bands, bias=True, held_bias=held_bias)

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
    tells the processes of one run apart.
    """

    draw: Tensor

    def __init__(self, architecture: Architecture, seed: int = 0, rank: int = 0) -> None:
        super().__init__()
        self.architecture = architecture
        self.rank = rank
        self.post = architecture.order == "post"
        stream = Axis("stem", architecture.stem_width)
        if architecture.stem == "none":
            stream = Axis("image", architecture.inputs)
        self.stem = _stem(architecture, stream)
        for stage in architecture.stages:
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            incoming, outgoing = stream, stream
            if stage.projection:
                outgoing = Axis(stage.name, stage.width)
            for block in stage.blocks:
                name = block.name.split(".")[1]
                if architecture.block == "plain":
                    outgoing = Axis(f"{block.name}:1", block.width)
                    blocks[name] = PlainBlock(block, incoming, outgoing, architecture)
                else:
                    first = block == stage.blocks[0]
                    blocks[name] = ResidualBlock(
                        block, first, stage, incoming, outgoing, architecture
                    )
                incoming = outgoing
            stream = outgoing
            self.add_module(stage.name, Blocks(blocks))
        self.head = Head(stream, architecture)
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


def _stem(architecture: Architecture, outgoing: Axis) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if architecture.stem in ("none", "dense"):
        parts["flatten"] = nn.Flatten()
    if architecture.stem == "none":
        return nn.Sequential(parts)
    name, kernel, stride = {
        "cifar": ("conv", 3, 1),
        "imagenet": ("conv", 7, 2),
        "dense": ("linear", 0, 1),
    }[architecture.stem]
    incoming, frozen = Axis("image", architecture.inputs), architecture.frozen_stem
    bands = ((frozen, incoming.size),) if frozen else ()
    parts[name] = layer_of(incoming, outgoing, kernel, stride, bands)
    if architecture.order == "post":
        parts["bn"] = norm_of(outgoing, kernel, frozen)
    return nn.Sequential(parts)


def build(
    architecture: Architecture, seed: int = 0, *, initializer: str | Initializer = "he"
) -> Network:
    """Build the network on torch's default device; values depend on (seed, entry name) alone.

    Args:
        architecture: what to build.
        seed: of its values.
        initializer: of convolutions and linear layers: he (He et al.'s normal distribution) or
            xavier, or a function of (shape, generator); net2net and gradmax, which say how to grow,
            begin like he. BatchNorm starts from weight 1 and bias 0.

    Raises:
        ValueError: an unknown name of an initializer.
    """
    from nets.growing.carry import fresh_values

    draw = initializer_of(initializer)
    with torch.device("meta"):
        network, whole = Network(architecture), Network(architecture.thawed())
    values = fresh_values(whole, seed, draw)
    values["draw"] = torch.tensor([seed, 0], dtype=torch.int64)
    network.load_state_dict(split_values(network, values), assign=True)
    return network
