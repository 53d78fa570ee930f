"""Blocks as torch modules: residual ones with BatchNorm and a shortcut, and plain ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional

from nets.modules.random_draws import Draw, hash_of, is_recomputing, uniform
from nets.plan.architecture import Architecture
from nets.plan.blocks import Block

Layers = Mapping[str, nn.Module]
"""The layers of a block, of the stem or of the head, by their paths in it, in forward order."""
ACTIVATIONS = {
    "relu": partial(functional.relu, inplace=True),
    "gelu": functional.gelu,
    "tanh": torch.tanh,
}


class ResidualBlock(nn.Module):
    """Layers with BatchNorm around a shortcut; `survival` is the chance to keep the branch.

    `layers` and `norms` name its children in the order of the forward pass (conv1, bn1, ...). A
    fading block counts its training forwards in the buffer `fade`.
    """

    fade: Tensor

    def __init__(self, block: Block, architecture: Architecture, layers: Layers) -> None:
        super().__init__()
        self.post = architecture.order == "post"
        self.activation = architecture.activation
        self.layers = [name for name in layers if name.startswith(("conv", "linear"))]
        self.norms = [name for name in layers if name.startswith("bn")]
        for pair in zip(self.layers, self.norms):
            for name in pair:
                self.add_module(name, layers[name])
        start = "shortcut."
        parts = {name.removeprefix(start): layers[name] for name in layers if start in name}
        self.projects = bool(parts)
        self.shortcut = nn.Sequential(OrderedDict(parts)) if parts else nn.Identity()
        self.dropout = nn.Dropout(architecture.dropout) if architecture.dropout else nn.Identity()
        self.survival, self.drop = block.survival, block.drop
        self._chance: tuple[float, Tensor] | None = None
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
        chance = self.chance(branch.device)
        kept = (uniform(draw, self.salt, samples) < chance).double() / chance
        return branch * kept.to(branch.dtype).view(-1, *[1] * (branch.dim() - 1))

    def survive(self, survival: float) -> None:
        """Set the chance to keep the branch, also where a captured step reads it."""
        self.survival = survival
        if self._chance is not None:
            self.chance(self._chance[1].device)

    def chance(self, device: torch.device) -> Tensor | float:
        """Give `survival` in memory of its own, () float64, so that a captured step follows it."""
        if torch.compiler.is_compiling():
            return self.survival
        known = self._chance
        if known is not None and known[1].device == device:
            if known[0] != self.survival:
                self._chance = self.survival, known[1].fill_(self.survival)
            return known[1]
        with torch.inference_mode(False):
            made = torch.full((), self.survival, dtype=torch.float64, device=device)
        if type(made) is Tensor:  # a fake one is of its mode alone
            self._chance = self.survival, made
        return made

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

    def __init__(self, architecture: Architecture, layers: Layers) -> None:
        super().__init__()
        self.linear = layers["linear"]
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
