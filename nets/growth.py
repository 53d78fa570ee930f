"""Growing as a pure function: a new network, optimizer and EMA; the old ones stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from nets.actions import Action
from nets.carry import carry_optimizer, carry_values
from nets.initializers import Initializer
from nets.modules import Network


@dataclass(frozen=True)
class Grown:
    """What `grow` gives. `difference` is None without a probe batch; see `grow`."""

    network: Network
    optimizer: torch.optim.Optimizer | None
    ema: Network | None
    difference: float | None


def grow(
    net: nn.Module,
    actions: Sequence[Action],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    ema: nn.Module | None = None,
    initializer: str | Initializer = "he",
    seed: int = 0,
    probe: Tensor | tuple[Tensor, Tensor] | None = None,
    loss: Any = None,
) -> Grown:
    """Apply the actions, in order, to a network and all that goes with it.

    Outputs stay the same in train and eval mode (equal drop masks) for every action that adds
    something: new channels reach the rest through zero columns (Wei et al. 2016, arXiv 1603.01670,
    in the form that stays alive under BatchNorm), newborn blocks start as the identity. Device,
    dtype, memory format, mode and requires_grad are kept.

    Args:
        net: a network from `build` or an earlier `grow`.
        actions: applied one after the other; nothing happens if any of them is refused.
        optimizer: SGD, Adam, AdamW or RMSprop over the network's parameters. Its state is carried
            by name; a live scheduler follows with `scheduler.optimizer = grown.optimizer`.
        ema: a second network of the same architecture, grown alongside.
        initializer: "he", "xavier", or a function of (shape, generator); an action's own
            initializer comes first.
        seed: new values depend on (seed, entry name) alone; no global generator is touched.
        probe: a batch (N, *image), or a pair of it and its targets. From it come the running
            statistics of new BatchNorm channels (0 and 1 without a probe) and `difference`: the
            largest |new - old| output over the largest |old| one, in eval mode and in train mode
            with no block dropped, whichever is larger.
        loss: for initializers that look at gradients; those in the box do not.

    Raises:
        ValueError: an action does not fit the architecture, or `net` is wrapped, compiled or not
            ours.
    """
    old, old_ema = _ours("net", net), None if ema is None else _ours("ema", ema)
    if old_ema is not None and old_ema.architecture != old.architecture:
        raise ValueError("ema must have the architecture of net")
    architecture, values = old.architecture, dict(old.state_dict())
    ema_values = None if old_ema is None else dict(old_ema.state_dict())
    steps, born = [], frozenset()
    for action in actions:
        before, architecture = architecture, architecture.apply(action)
        born |= frozenset(architecture.blocks) - frozenset(before.blocks)
        steps.append((action, architecture, born))
    network = old
    for action, after, newborn in steps:
        with torch.device("meta"):
            network = Network(after)
        rule = getattr(action, "initializer", None) or initializer
        values = carry_values(values, network, born=newborn, initializer=rule, seed=seed)
        if ema_values is not None:
            ema_values = carry_values(
                ema_values, network, born=newborn, initializer=rule, seed=seed
            )
    network = _assemble(old, architecture, values)
    grown_ema = None
    if old_ema is not None and ema_values is not None:
        grown_ema = _assemble(old_ema, architecture, ema_values)
    inputs = probe[0] if isinstance(probe, tuple | list) else probe
    difference = None
    if inputs is not None:
        for made, source in ((network, old), (grown_ema, old_ema)):
            if made is not None and source is not None:
                _estimate_statistics(made, source, inputs)
        difference = output_difference(old, network, inputs)
    carried = None if optimizer is None else carry_optimizer(optimizer, old, network)
    return Grown(network, carried, grown_ema, difference)


def _ours(name: str, net: nn.Module) -> Network:
    if not isinstance(net, Network):
        inner = next((part for part in ("module", "_orig_mod") if hasattr(net, part)), "")
        advice = (
            f"; pass {name}.{inner} and wrap or compile the grown network again" if inner else ""
        )
        raise ValueError(
            f"{name} must be a network from nets.build, got {type(net).__name__}{advice}"
        )
    return net


def _assemble(old: Network, architecture: Any, values: dict[str, Tensor]) -> Network:
    with torch.device("meta"):
        network = Network(architecture)
    network.load_state_dict({name: value.clone() for name, value in values.items()}, assign=True)
    if any(_is_channels_last(parameter) for parameter in old.parameters()):
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    trained = {name: parameter.requires_grad for name, parameter in old.named_parameters()}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trained.get(name, any(trained.values())))
    modes = {name: module.training for name, module in old.named_modules()}
    for name, module in network.named_modules():
        module.training = modes.get(name, old.training)
    return network


def _is_channels_last(parameter: Tensor) -> bool:
    last = parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return last and not parameter.is_contiguous()


@contextmanager
def mode(net: nn.Module, training: bool, survival: float | None = None) -> Iterator[None]:
    """Put every module into train or eval mode, blocks at `survival` if given, and back again."""
    before = {module: module.training for module in net.modules()}
    chances = {module: module.survival for module in net.modules() if hasattr(module, "survival")}
    net.train(training)
    try:
        for module in chances if survival is not None else ():
            module.survival = survival  # pyright: ignore[reportArgumentType]
        yield
    finally:
        for module, training_before in before.items():
            module.training = training_before
        for module, chance in chances.items():
            module.survival = chance


@torch.no_grad()
def probe_outputs(net: nn.Module, inputs: Tensor, training: bool = False) -> Tensor:
    """Run the network on a batch and leave it as it was; no block is dropped."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with mode(net, training, survival=1.0):
        return functional_call(net, buffers, (inputs,))


def output_difference(old: nn.Module, new: nn.Module, inputs: Tensor) -> float:
    """Give the largest |new - old| output over the largest |old|, of eval and train mode."""
    worst = 0.0
    for training in (False, True):
        before, after = (probe_outputs(net, inputs, training).double() for net in (old, new))
        scale = before.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        worst = max(worst, float((after - before).abs().max() / scale))
    return worst


@torch.no_grad()
def _estimate_statistics(network: Network, old: Network, inputs: Tensor) -> None:
    """Give new BatchNorm channels the statistics of the probe batch; old channels keep theirs."""
    known = {
        name: module.running_mean
        for name, module in old.named_modules()
        if isinstance(module, _BatchNorm)
    }
    norms = {
        name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)
    }
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.momentum = 1.0
    with mode(network, training=True, survival=1.0):
        functional_call(network, buffers, (inputs,))
    for name, norm in norms.items():
        norm.momentum = momenta[name]
        before = known.get(name)
        start = 0 if before is None else len(before)
        for buffer in ("running_mean", "running_var"):
            getattr(norm, buffer)[start:] = buffers[f"{name}.{buffer}"][start:]
