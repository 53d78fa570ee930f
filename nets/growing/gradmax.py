"""New channels that can lower the loss most (Evci et al. 2022, GradMax, arXiv 2201.05125).

As published, incoming weights are 0 and outgoing ones chosen; under BatchNorm such channels are
dead for ever. Here the outgoing weights are 0, as for the other initializers, and the incoming rows
are the directions in which the gradient of the outgoing weights is largest: right singular vectors
of sum(g x^T), over all positions of a probe batch, with x the layer's input patch (less its mean
where BatchNorm follows) and g the loss's gradient at the output of the next layer. An activation
tells a direction from its opposite, so both stand for choice, and those go first whose gradient
behind normalisation and activation is largest.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nets.modules.layers import axes_of
from nets.modules.network import Network, PlainBlock
from nets.modules.passes import Loss, tap

NORM = 2**0.5
"""Norm of a new row: the expected one of He et al.'s initialization."""


def best_rows(
    net: Network, block: str, most: int, probe: Any, loss: Loss | None
) -> dict[str, Tensor]:
    """Give up to `most` new rows, (rows, inputs, *kernel), for the inner layers of a block.

    Args:
        net: the network before the edit; it stays as it is.
        block: the block that is widened.
        most: new channels; where there are fewer directions, fewer rows are given.
        probe: (inputs, targets).
        loss: takes outputs and targets.

    Raises:
        ValueError: probe, targets or loss are missing.
    """
    module = net.get_submodule(block)
    names: list[str] = getattr(module, "layers", ["linear"])
    paths = [f"{block}.{name}" for name in names]
    if isinstance(module, PlainBlock):
        axes = axes_of(net)
        own = axes[f"{paths[0]}.weight"][0]
        paths += [name.removesuffix(".weight") for name, named in axes.items() if own in named[1:]]
    ends = [(path, "input") for path in paths[:-1]] + [(path, "output") for path in paths[1:]]
    seen = tap(net, ends, probe, loss, training=True, wish="initializer gradmax")
    rows = {}
    for path, following in pairwise(paths):
        layer, after = net.get_submodule(path), net.get_submodule(following)
        patches = _patches(seen[path, "input"][0], layer, after)  # (N, inputs * taps, positions)
        normed = not isinstance(module, PlainBlock)
        patches = patches - patches.mean((0, 2), keepdim=True) if normed else patches
        gradient = seen[following, "output"][1].double()
        gradient = gradient.reshape(*gradient.shape[:2], -1)  # (N, outputs, positions)
        cross = torch.einsum("nop,nkp->ok", gradient, patches)
        directions = torch.linalg.svd(cross, full_matrices=False).Vh
        directions = torch.cat([directions, -directions])
        response = torch.einsum("nkp,vk->nvp", patches, directions)
        if normed:
            response /= response.std((0, 2), keepdim=True).clamp_min(1e-12)
        response = getattr(functional, net.architecture.activation)(response)
        gain = torch.einsum("nop,nvp->ov", gradient, response).norm(dim=0)
        best = directions[gain.argsort(descending=True, stable=True)[:most]]
        shape = torch.Size(layer.weight.shape[1:])  # pyright: ignore
        rows[f"{path}.weight"] = best.view(-1, *shape) * NORM
    return rows


def _patches(x: Tensor, layer: nn.Module, after: nn.Module) -> Tensor:
    """Give what the layer sees at the places that reach the outputs of the layer after it."""
    if not isinstance(layer, nn.Conv2d) or not isinstance(after, nn.Conv2d):
        return x.double()[..., None]
    stride = layer.stride[0] * after.stride[0]
    return functional.unfold(x.double(), layer.kernel_size[0], 1, int(layer.padding[0]), stride)
