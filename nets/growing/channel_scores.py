"""What a probe batch says of channels: new ones that lower the loss most, least useful old ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nets.modules.network import Network
from nets.modules.probe_batch import Loss, run_apart, tap
from nets.modules.residual import PlainBlock
from nets.plan.layers import axes_of, layer_specs
from nets.plan.removal import Narrow

NORM = 2**0.5
"""Norm of a new row: the expected one of He et al.'s initialization."""


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
        paths += [
            spec.name for spec in layer_specs(net.architecture) if spec.axes[1:] == (f"{block}:1",)
        ]
    ends = [(path, "input") for path in paths[:-1]] + [(path, "output") for path in paths[1:]]
    seen = tap(net, ends, probe, loss, training=True, wish="initializer gradmax")
    rows = {}
    for path, following in pairwise(paths):
        layer, after = net.get_submodule(path), net.get_submodule(following)
        patches = _patches(seen[path, "input"][0], layer, after)  # (N, inputs * taps, positions)
        gradient = seen[following, "output"][1].double()
        gradient = gradient.reshape(*gradient.shape[:2], -1)  # (N, outputs, positions)
        normed = not isinstance(module, PlainBlock)
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
    """Give what the layer sees at the places that reach the outputs of the layer after it."""
    if not isinstance(layer, nn.Conv2d) or not isinstance(after, nn.Conv2d):
        return x.double()[..., None]
    stride = layer.stride[0] * after.stride[0]
    return functional.unfold(x.double(), layer.kernel_size[0], 1, int(layer.padding[0]), stride)


def kept_channels(
    net: Network, values: Mapping[str, Tensor], action: Narrow, probe: Any, loss: Loss | None
) -> dict[str, Tensor]:
    """Give, by inner axis of the block, the positions of the channels that stay, in order.

    Args:
        net: the network before the edit.
        values: its joined values.
        action: how many go, and by which saliency; frozen channels stay.
        probe: for "activation" inputs or (inputs, targets), for "obd" (inputs, targets).
        loss: for "obd": takes outputs and targets, gives their mean over the batch.

    Raises:
        ValueError: what the saliency needs is missing.
    """
    frozen = net.architecture.blocks[action.block].frozen
    kept = {}
    for axis, score in _scores(net, values, action, probe, loss).items():
        order = torch.argsort(score[frozen:].cpu(), stable=True) + frozen
        kept[axis] = torch.cat([torch.arange(frozen), order[action.by :].sort().values])
    return kept


def _scores(
    net: Network, values: Mapping[str, Tensor], action: Narrow, probe: Any, loss: Loss | None
) -> dict[str, Tensor]:
    """Give the usefulness of every channel, (C,), by inner axis."""
    consumers = {
        spec.axes[1]: spec.name
        for spec in layer_specs(net.architecture)
        if len(spec.axes) == 2 and spec.axes[1].startswith(f"{action.block}:")
    }
    if action.saliency == "magnitude":
        return {axis: _magnitude(net, values, axis, path) for axis, path in consumers.items()}
    if action.saliency == "obd":
        ends = [(path, "input") for path in consumers.values()]
        seen = tap(net, ends, probe, loss, training=False, wish="saliency obd")
        return {axis: _curvature(*seen[path, "input"]) for axis, path in consumers.items()}
    return _activity(net, consumers, probe)


def _magnitude(net: Network, values: Mapping[str, Tensor], axis: str, consumer: str) -> Tensor:
    """Give the norm of the outgoing weights times that of BatchNorm's weight and bias.

    Behind BatchNorm the size of incoming weights says nothing; in a plain net they take its place.
    """
    outgoing = values[f"{consumer}.weight"].double().transpose(0, 1).flatten(1).norm(dim=1)
    own = [
        values[name].double().reshape(len(outgoing), -1).square().sum(1)
        for name, axes in axes_of(net.architecture).items()
        if axes[0] == axis and name.endswith((".weight", ".bias")) and name in values
        if values[name].dim() == 1 or net.architecture.block == "plain"
    ]
    return outgoing * torch.stack(own).sum(0).sqrt()


@torch.no_grad()
def _activity(net: Network, consumers: Mapping[str, str], probe: Any) -> dict[str, Tensor]:
    """Give how often each channel is above 0, in eval mode."""
    if net.architecture.activation != "relu":
        raise ValueError(
            f"saliency activation counts zeros of relu, got a {net.architecture.activation} network"
        )
    inputs = probe[0] if isinstance(probe, tuple | list) else probe
    if inputs is None:
        raise ValueError("probe must be given for saliency activation, got None")
    found: dict[str, Tensor] = {}

    def keep(axis: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            x = args[0]  # (N, C, ...)
            found[axis] = (x > 0).double().transpose(0, 1).flatten(1).mean(1)  # (C,)

        return hook

    handles = [
        net.get_submodule(path).register_forward_pre_hook(keep(axis))
        for axis, path in consumers.items()
    ]
    try:
        run_apart(net, inputs, training=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _curvature(x: Tensor, gradient: Tensor) -> Tensor:
    """Give half the mean over samples of the squared derivative by a gate on each channel."""
    by_gate = (x * gradient).double().flatten(2).sum(2) if x.dim() > 2 else (x * gradient).double()
    return (by_gate * len(x)).square().mean(0) / 2  # the loss is a mean: its gradient has 1/N
