"""Passes on a probe batch that leave the network as it was, and what they show of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nets.modules.frozen_parts import tensors_of

Loss = Callable[[Tensor, Tensor], Tensor]
End = tuple[str, str]


@contextmanager
def in_mode(net: nn.Module, training: bool, survival: float | None = None) -> Iterator[None]:
    """Put every module into train or eval mode, and back again.

    With `survival`, blocks survive with that chance and dropout is off.
    """
    before = [(module, module.training) for module in net.modules()]
    chances = [(module, module.survival) for module, _ in before if "survival" in vars(module)]
    try:
        if any(mode != training for _, mode in before):
            net.train(training)
        for module, _ in chances if survival is not None else ():
            module.survival = survival  # pyright: ignore
        for module, _ in before if survival is not None else ():
            if isinstance(module, nn.Dropout):
                module.eval()
        yield
    finally:
        for module, training_before in before:
            if module.training != training_before:
                module.training = training_before
        for module, chance in chances:
            module.survival = chance  # pyright: ignore


@contextmanager
def buffers_apart(net: nn.Module) -> Iterator[None]:
    """Let a network change copies of its buffers, and then have its own again."""
    kept = [(vars(module), module._buffers) for module in net.modules() if module._buffers]
    try:
        for attributes, buffers in kept:
            attributes["_buffers"] = {
                name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()
            }
        yield
    finally:
        for attributes, buffers in kept:
            attributes["_buffers"] = buffers


def run_apart(net: nn.Module, inputs: Tensor, training: bool) -> Tensor:
    """Run the network on a batch and leave it as it was; nothing is dropped."""
    # in eval mode it changes none
    apart = buffers_apart(net) if training else nullcontext()
    with in_mode(net, training, survival=1.0), apart:
        return net(inputs)


def checked_inputs(net: Any, probe: Any) -> Tensor | None:
    """Give the inputs of a probe batch that fits the network, None without one.

    Raises:
        ValueError: it is no tensor, or not of the network's shape, dtype and device.
    """
    if probe is None:
        return None
    inputs = probe[0] if isinstance(probe, tuple | list) and probe else probe
    if not isinstance(inputs, Tensor):
        raise ValueError(
            "probe must be a tensor of inputs, or a pair of it and its targets, got a "
            f"{type(inputs).__name__}"
        )
    shape, given = net.architecture.image, tuple(inputs.shape)
    if given[1:] != shape or given[0] < 1:
        want = ", ".join(map(str, shape))
        raise ValueError(f"probe must have shape (N, {want}) with N at least 1, got {given}")
    first = _first_of(net)
    if inputs.device.type != first.device.type:
        raise ValueError(f"probe must be on {first.device}, as net is, got {inputs.device}")
    casts = torch.is_autocast_enabled(first.device.type)
    if inputs.dtype != first.dtype and not (casts and inputs.is_floating_point()):
        raise ValueError(f"probe must be of {first.dtype}, as net is, got {inputs.dtype}")
    return inputs


def _first_of(net: nn.Module) -> Tensor:
    """Give a tensor of the dtype and on the device that inputs are to have."""
    return next(value for value in tensors_of(net).values() if value.is_floating_point())


def tap(
    net: nn.Module,
    ends: Iterable[End],
    probe: Any,
    loss: Loss | None,
    training: bool,
    wish: str,
) -> dict[End, tuple[Tensor, Tensor]]:
    """Give what passes layers on a probe batch, and the loss's gradient by it.

    Args:
        net: its buffers, gradients and modes stay as they are.
        ends: (path of a layer, "input" or "output").
        probe: (inputs, targets).
        loss: takes outputs and targets.
        training: whether BatchNorm uses the batch.
        wish: what needs this, for the error.

    Raises:
        ValueError: there is no pair of inputs and targets, or no loss, or it gives no one number.
    """
    inputs, targets, loss = judged(probe, loss, wish)
    seen: dict[End, Tensor] = {}

    def keep(path: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            seen[path, "input"], seen[path, "output"] = args[0], output
            return output.clone()  # an activation in place would overwrite it

        return hook

    ends = list(ends)
    paths = {path for path, _ in ends}
    handles = [net.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    try:
        with torch.enable_grad():
            # the images too, so that there is a gradient behind a frozen part
            outputs = run_apart(net, inputs.detach().clone().requires_grad_(), training)
            mean = loss(outputs, targets)
            if not isinstance(mean, Tensor) or mean.numel() != 1:
                got = tuple(mean.shape) if isinstance(mean, Tensor) else type(mean).__name__
                raise ValueError(f"loss must give its mean over the batch, a tensor (), got {got}")
            gradients = torch.autograd.grad(mean, [seen[end] for end in ends])
    finally:
        for handle in handles:
            handle.remove()
    return {end: (seen[end].detach(), gradient) for end, gradient in zip(ends, gradients)}


def judged(probe: Any, loss: Loss | None, wish: str) -> tuple[Tensor, Tensor, Loss]:
    """Give inputs, targets and the loss; `wish` is what needs them, for the error.

    Raises:
        ValueError: there is no pair of inputs and targets, or no loss.
    """
    if not (isinstance(probe, tuple | list) and len(probe) == 2 and callable(loss)):
        raise ValueError(f"probe must be (inputs, targets) and loss a function for {wish}")
    return probe[0], probe[1], loss


@contextmanager
def without_hooks(net: nn.Module) -> Iterator[None]:
    """Take the hooks on forward passes away for a while: what they see is the user's own."""
    kinds = ("_forward_pre_hooks", "_forward_hooks")
    kept = [(vars(module), kind, vars(module)[kind]) for module in net.modules() for kind in kinds]
    try:
        for values, kind, _ in kept:
            values[kind] = OrderedDict()
        yield
    finally:
        for values, kind, hooks in kept:
            values[kind] = hooks


@torch.no_grad()
def estimate_statistics(
    network: nn.Module, inputs: Tensor, unknown: Mapping[str, Tensor]
) -> Tensor:
    """Give BatchNorm channels the statistics of a batch; all else of the network stays as it is.

    Args:
        network: that of a growth, without hooks.
        inputs: (N, *image); a running average may be of another dtype, and elsewhere.
        unknown: by BatchNorm, which of its channels, (C,) of bool.

    Returns:
        What `run_apart` gives in train mode, in which running statistics change no output.
    """
    inputs = inputs.to(_first_of(network))
    norms = {
        name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)
    }
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.momentum = 1.0
    try:
        with in_mode(network, training=True, survival=1.0), buffers_apart(network):
            outputs = network(inputs)
            found: dict[str, dict[str, Any]] = {name: norms[name]._buffers for name in unknown}
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
    for name, channels in unknown.items():
        where = torch.nonzero(channels).flatten().to(inputs.device)
        for leaf in ("running_mean", "running_var"):
            getattr(norms[name], leaf)[where] = found[name][leaf][where]
    return outputs
