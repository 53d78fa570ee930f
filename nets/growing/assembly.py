"""A network from an architecture and joined values, like the one it comes from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from nets.growing.handover import set_up_norms
from nets.modules.held import split_entries, split_values
from nets.modules.network import Network
from nets.modules.passes import mode
from nets.plan.architecture import Architecture


def assemble(old: Network, architecture: Architecture, values: Mapping[str, Tensor]) -> Network:
    """Build a network from joined values, with the layout, modes and flags of `old`."""
    with torch.device("meta"):
        network = Network(architecture, rank=old.rank)
    own = {name: value.clone() for name, value in split_values(network, values).items()}
    network.load_state_dict(own, assign=True)
    if any(_is_channels_last(value) for value in old.state_dict().values()):
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    flags = {name: parameter.requires_grad for name, parameter in old.named_parameters()}
    trained = {
        entry: any(parameter.requires_grad for parameter in parameters.values())
        for entry, parameters in _parameters(old).items()
    }
    for entry, parameters in _parameters(network).items():
        for name, parameter in parameters.items():
            # where everything was frozen there is nothing that says otherwise
            flag = trained.get(entry, not trained or any(trained.values()))
            parameter.requires_grad_(flags.get(name, flag))
    modes = {name: module.training for name, module in old.named_modules()}
    for name, module in network.named_modules():
        module.training = modes.get(name, old.training)
    set_up_norms(old, network)
    return network


def _parameters(net: Network) -> dict[str, dict[str, nn.Parameter]]:
    """Give the parameters of every joined entry, by name."""
    entry_of = {piece.name: name for name, pieces in split_entries(net).items() for piece in pieces}
    found: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        found.setdefault(entry_of.get(name, name), {})[name] = parameter
    return found


def _is_channels_last(value: Tensor) -> bool:
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return last and not value.is_contiguous()


@torch.no_grad()
def estimate_statistics(network: Network, inputs: Tensor, unknown: Mapping[str, Tensor]) -> None:
    """Give BatchNorm channels the statistics of a batch.

    Args:
        network: all else of it stays as it is.
        inputs: (N, *image).
        unknown: by BatchNorm, which of its channels, (C,) of bool.
    """
    unknown = {name: channels for name, channels in unknown.items() if channels.any()}
    if not unknown:
        return
    norms = {
        name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)
    }
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.momentum = 1.0
    try:
        with mode(network, training=True, survival=1.0):
            functional_call(network, buffers, (inputs,))
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
    for name, channels in unknown.items():
        where = torch.nonzero(channels).flatten().to(inputs.device)
        for leaf in ("running_mean", "running_var"):
            getattr(norms[name], leaf)[where] = buffers[f"{name}.{leaf}"][where]
