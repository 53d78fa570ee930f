"""gradmax: a block's new channels look where the loss falls fastest."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nets.initializing.edit import Edit
from nets.initializing.initializer import Initializer
from nets.modules.network import Network
from nets.modules.probe_batch import End, Loss, tap
from nets.modules.residual import PlainBlock
from nets.plan.actions import Widen
from nets.plan.layers import layer_specs

NORM = 2**0.5
"""Norm of a new row: the expected one of He et al.'s initialization."""
Seen = Mapping[End, tuple[Tensor, Tensor]]


class GradMax(Initializer):
    """New channels of a widened block look where the loss falls fastest; all else is as by he.

    After Evci et al. 2022, GradMax, arXiv 2201.05125; see `best_rows`.
    """

    def new_values(self, edit: Edit) -> Mapping[str, Tensor]:
        """Give the incoming weights of a widened block, with the best rows."""
        action = edit.action
        if not isinstance(action, Widen):
            return {}
        rows = edit.once("gradmax", lambda: self._rows(edit, action))
        values = {}
        for name, new in rows.items():
            start, columns = edit.old[name].shape[:2]
            values[name] = edit.value(name)
            values[name][start : start + len(new), :columns] = new.to(values[name])
        return values

    def _rows(self, edit: Edit, action: Widen) -> dict[str, Tensor]:
        net, paths = edit.network, _paths(edit.network, action.block)
        seen = edit.tap(_ends(net, action.block))
        for path, following in pairwise(paths):
            inputs = edit.old[f"{path}.weight"][0].numel()
            edit.charge(svd_flops(inputs, len(edit.old[f"{following}.weight"])))
        with edit.counted():
            return _best(net, action.block, action.by, seen)


def best_rows(
    net: Network, block: str, most: int, probe: Any, loss: Loss | None
) -> dict[str, Tensor]:
    """Give up to `most` new rows, (rows, inputs, *kernel), for the inner layers of a block.

    After Evci et al. 2022, GradMax, arXiv 2201.05125. As published, incoming weights are 0 and
    outgoing ones chosen; under BatchNorm such channels are dead for ever. Here the outgoing weights
    are 0, as for the other initializers, and the incoming rows are the directions in which the
    gradient of the outgoing weights is largest: right singular vectors of sum(g x^T), over all
    positions of a probe batch, with x the layer's input patch (less its mean where BatchNorm
    follows) and g the loss's gradient at the output of the next layer. An activation tells a
    direction from its opposite, so both stand for choice, and those go first whose gradient behind
    normalisation and activation is largest.

    Where the next layer is a 3x3 convolution, x stands where the centre tap of that kernel looks:
    the gradient that is made large is that of the centre taps of the outgoing weights. The other
    eight look at the same channel a pixel aside, and are left out; so that over a whole kernel a
    drawn row may do better now and then.

    Args:
        net: the network before the edit; it stays as it is.
        block: the block that is widened.
        most: new channels; where there are fewer directions, fewer rows are given.
        probe: (inputs, targets).
        loss: takes outputs and targets.

    Raises:
        ValueError: probe, targets or loss are missing.
    """
    seen = tap(net, _ends(net, block), probe, loss, True, "initializer gradmax")
    return _best(net, block, most, seen)


def _paths(net: Network, block: str) -> list[str]:
    """Name the layers of the block, and behind a plain one the layer that takes what it gives."""
    module = net.get_submodule(block)
    names: list[str] = getattr(module, "layers", ["linear"])
    paths = [f"{block}.{name}" for name in names]
    if isinstance(module, PlainBlock):
        specs = layer_specs(net.architecture)
        paths += [spec.name for spec in specs if spec.axes[1:] == (f"{block}:1",)]
    return paths


def _ends(net: Network, block: str) -> list[End]:
    paths = _paths(net, block)
    return [(path, "input") for path in paths[:-1]] + [(path, "output") for path in paths[1:]]


def _best(net: Network, block: str, most: int, seen: Seen) -> dict[str, Tensor]:
    rows = {}
    normed = not isinstance(net.get_submodule(block), PlainBlock)
    for path, following in pairwise(_paths(net, block)):
        layer, after = net.get_submodule(path), net.get_submodule(following)
        patches = _patches(seen[path, "input"][0], layer, after)  # (N, inputs * taps, positions)
        gradient = seen[following, "output"][1].double()
        gradient = gradient.reshape(*gradient.shape[:2], -1)  # (N, outputs, positions)
        patches = patches - patches.mean((0, 2), keepdim=True) if normed else patches
        best = _directions(patches, gradient, normed, net.architecture.activation)[:most]
        shape = torch.Size(layer.weight.shape[1:])  # pyright: ignore
        rows[f"{path}.weight"] = best.view(-1, *shape) * NORM
    return rows


def _directions(patches: Tensor, gradient: Tensor, normed: bool, activation: str) -> Tensor:
    """Give directions among the inputs, (directions, inputs * taps), the steepest first."""
    cross = torch.einsum("nop,nkp->ok", gradient, patches)
    directions = torch.linalg.svd(cross, full_matrices=False).Vh
    directions = torch.cat([directions, -directions])
    response = torch.einsum("nkp,vk->nvp", patches, directions)
    if normed:
        response /= response.std((0, 2), keepdim=True).clamp_min(1e-12)
    response = getattr(functional, activation)(response)
    gain = torch.einsum("nop,nvp->ov", gradient, response).norm(dim=0)
    return directions[gain.argsort(descending=True, stable=True)]


def _patches(x: Tensor, layer: nn.Module, after: nn.Module) -> Tensor:
    """Give what the layer sees where the centre taps of the layer after it look."""
    if not isinstance(layer, nn.Conv2d) or not isinstance(after, nn.Conv2d):
        return x.double()[..., None]
    stride = layer.stride[0] * after.stride[0]
    return functional.unfold(x.double(), layer.kernel_size[0], 1, int(layer.padding[0]), stride)


def svd_flops(rows: int, columns: int) -> int:
    """Count a thin singular value decomposition (Golub and Van Loan, R-SVD: 6mn^2 + 20n^3)."""
    m, n = max(rows, columns), min(rows, columns)
    return 6 * m * n**2 + 20 * n**3
