"""How much the loss depends on a block's channels, measured on a fixed batch at every record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from nets.modules.network import Network
from nets.modules.probe_batch import in_mode
from nets.modules.residual import PlainBlock

Loss = Callable[[Tensor, Tensor], Tensor]


def block_sensitivity(
    net: Network, inputs: Tensor, targets: Tensor, loss: Loss
) -> dict[str, float]:
    """Give, by block, how much an image's loss depends on an inner channel, to first order.

    The mean over images and channels of |dL/dz|, where z = 1 scales what the channel hands to the
    block's last layer: Molchanov et al.'s criterion (2017, arXiv 1611.06440, equation 8: the
    absolute value is taken of the sum over positions, and then the mean over images). In eval mode,
    in the units of the loss. Blocks that fade are left out, and what is not finite.

    It costs one forward pass and the backward pass to activations alone, about 2.4 forward
    passes on a CPU. Weights, buffers, gradients, modes and the global generator stay as they are.

    Args:
        net: a network from `nets.build`.
        inputs: of a fixed batch, (N, *image).
        targets: of that batch, (N, ...).
        loss: takes outputs and targets, gives the mean over the batch.
    """
    return finite_means(*mean_sensitivities(net, inputs, targets, loss))


def finite_means(names: Sequence[str], means: Tensor) -> dict[str, float]:
    """Give what `mean_sensitivities` gave as numbers: one copy from the device."""
    return {name: mean for name, mean in zip(names, means.tolist()) if isfinite(mean)}


def mean_sensitivities(
    net: Network, inputs: Tensor, targets: Tensor, loss: Loss
) -> tuple[Sequence[str], Tensor]:
    """Give the blocks, and of each what `block_sensitivity` gives, (blocks,) on the device."""
    blocks = net.architecture.blocks
    scales: dict[str, Tensor] = {}
    handles = []
    for name in [name for name, block in blocks.items() if not block.fade]:
        handles.append(_scaled(net, name, scales))
    state = {name: value.detach() for name, value in net.named_parameters()}
    state |= {name: value.clone() for name, value in net.named_buffers()}
    try:
        with in_mode(net, training=False), torch.enable_grad():
            value = loss(functional_call(net, state, (inputs,)), targets)
            gradients = torch.autograd.grad(value, list(scales.values()))
    finally:
        for handle in handles:
            handle.remove()
    # the mean's gradient is an N-th of an image's own; in eval mode no image sees another
    means = [each.abs().mean() * len(inputs) for each in gradients]
    return tuple(scales), torch.stack(means) if means else inputs.new_empty(0)


def _scaled(net: Network, name: str, scales: dict[str, Tensor]) -> RemovableHandle:
    """Scale a block's inner channels by ones, (N, C, 1, 1) or (N, C), which go into `scales`."""

    def scaled(value: Tensor) -> Tensor:
        shape = (*value.shape[:2], *[1] * (value.dim() - 2))
        scales[name] = torch.ones(shape, dtype=value.dtype, device=value.device).requires_grad_()
        return value * scales[name]

    def after(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        return scaled(output)

    def before(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return scaled(args[0]), *args[1:]

    module = net.get_submodule(name)
    if isinstance(module, PlainBlock):
        return module.register_forward_hook(after)
    last = module.get_submodule(module.layers[-1])  # pyright: ignore
    return last.register_forward_pre_hook(before)
