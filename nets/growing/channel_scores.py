"""Which channels of a block are the least useful: by their weights, or by a probe batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nets.modules.network import Network
from nets.modules.probe_batch import Loss, run_apart, tap
from nets.plan.layers import axes_of, layer_specs
from nets.plan.removal import Narrow


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
        first = torch.arange(frozen, device="cpu")
        kept[axis] = torch.cat([first, order[action.by :].sort().values])
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
