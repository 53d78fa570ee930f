"""What needs the network itself, measured on a fixed batch for policies that ask for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nets.growth import mode
from nets.modules import Network, ResidualBlock


@torch.no_grad()
def block_importance(
    net: Network, inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """Give, by block, the loss without its branch minus the loss with it, in eval mode.

    A block's branch is cut and its shortcut kept (Veit et al. 2016, arXiv 1605.06431, section 4.1).
    Buffers, modes and the global generator stay as they are. It costs `1 + blocks` forward passes.

    Args:
        net: a network from `nets.build`; blocks of plain nets have no branch and are left out.
        inputs: of a fixed batch, (N, *image).
        targets: of that batch, (N,).
        loss: takes outputs and targets, gives a scalar.
    """
    branches = {}
    for name in net.architecture.blocks:
        module = net.get_submodule(name)
        if isinstance(module, ResidualBlock):
            end = module.norms[-1] if module.post else module.layers[-1]
            branches[name] = module.get_submodule(end)
    with mode(net, training=False):
        losses = [loss(net(inputs), targets)]
        for branch in branches.values():
            handle = branch.register_forward_hook(
                lambda module, args, output: torch.zeros_like(output)
            )
            try:
                losses.append(loss(net(inputs), targets))
            finally:
                handle.remove()
    whole, *without = torch.stack(losses).tolist()
    return {name: value - whole for name, value in zip(branches, without, strict=True)}
