"""A network made anew, or grown from another as a pure function: the old one stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from nets.growing.assembly import assemble, hand_over
from nets.growing.carry import carry, unknown_channels
from nets.growing.entry_sources import Carried, Sources
from nets.growing.optimizers import carry_optimizer
from nets.initializing.by_name import initializer_of
from nets.initializing.distributions import Distribution
from nets.initializing.fresh_values import fresh_values
from nets.initializing.initializer import Initializer
from nets.modules.frozen_parts import give_values, join_values, split_values, tensors_of
from nets.modules.network import Network, skeleton_of
from nets.modules.probe_batch import (
    Loss,
    checked_inputs,
    estimate_statistics,
    run_apart,
    without_hooks,
)
from nets.modules.user_changes import check_given
from nets.plan.actions import Action
from nets.plan.architecture import Architecture


def build(
    architecture: Architecture,
    seed: int = 0,
    *,
    initializer: str | Distribution | Initializer = "he",
) -> Network:
    """Build the network on torch's default device; values depend on (seed, entry name) alone.

    Args:
        architecture: what to build.
        seed: of its values.
        initializer: of convolutions and linear layers: he (He et al.'s normal distribution),
            xavier, variance-transfer, a function of (shape, generator), or an Initializer; net2net
            and gradmax, which say how to grow, begin like he. BatchNorm starts from weight 1 and
            bias 0.

    Raises:
        ValueError: no architecture, or an unknown name of an initializer.
    """
    if not isinstance(architecture, Architecture):
        raise ValueError(
            f"architecture must be an Architecture, as preset gives one, got {architecture!r}"
        )
    network = skeleton_of(architecture)
    values = fresh_values(architecture, seed, initializer_of(initializer))
    values["draw"] = torch.tensor([seed, 0], dtype=torch.int64)
    give_values(network, split_values(network, values))
    return network


@dataclass(frozen=True)
class Grown:
    """What `grow` gives. `difference` is None without a probe batch; see `grow`.

    `flops` is what initializers and saliencies measured on the probe batch; the forwards behind
    `difference` and new running statistics are not in it. `sources` says, by entry whose shape has
    changed, where its rows and columns came from, (size,) int64 on the CPU; -1: new.
    """

    network: Network
    optimizer: torch.optim.Optimizer | None
    ema: Network | None
    difference: float | None
    flops: int = 0
    sources: Sources = field(default_factory=dict)


def grow(
    net: nn.Module,
    actions: Action | Iterable[Action],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    ema: nn.Module | None = None,
    initializer: str | Distribution | Initializer = "he",
    seed: int = 0,
    probe: Tensor | tuple[Tensor, Tensor] | None = None,
    loss: Loss | None = None,
) -> Grown:
    """Apply the actions, in order, to a network and all that goes with it.

    Outputs stay the same in train and eval mode (equal drop masks) for every action that adds
    something: new channels reach the rest through zero columns (Wei et al. 2016, arXiv 1603.01670,
    in the form that stays alive under BatchNorm), newborn blocks start as the identity. Freezing
    and thawing keep eval outputs. Device, dtype, memory format, modes, requires_grad, settings and
    kind of BatchNorm, and modules' hooks are kept; gradients are not.

    Args:
        net: a network from `build` or an earlier `grow`.
        actions: one, or several, applied one after the other; nothing happens if any is refused.
        optimizer: SGD, Adam, AdamW or RMSprop over the network's parameters. Its state is carried
            by name, its hooks go along; a live scheduler follows by `nets.follow`.
        ema: a second network of the same architecture, grown alongside.
        initializer: of new weights. "he" (He et al. 2015), "xavier" (Glorot and Bengio 2010),
            "net2net" (new channels copy old ones, Chen et al. 2016; new blocks are drawn as by he),
            "gradmax" (a block's new channels look where the loss falls fastest, after Evci et al.
            2022; all else is drawn as by he), "variance-transfer" (pairs that cancel, Yuan et al.
            2023; outputs move by the rescaling of old weights: see VarianceTransfer),
            "xavier-outgoing" (outgoing weights of new channels are drawn too: outputs move, as in
            the 2017 thesis), a function of (shape, generator), or an object of your own: see
            Initializer. An action's own initializer comes first.
        seed: new values depend on (seed, entry name) alone; no global generator is touched.
        probe: a batch (N, *image), or a pair of it and its targets. From it come the running
            statistics of new BatchNorm channels (0 and 1 without a probe), those behind a block
            that was removed before it had faded, and `difference`: the largest |new - old| output
            over the largest |old| one, in eval mode and in train mode with nothing dropped,
            whichever is larger; NaN or infinite where an output is not finite. The modules' hooks
            do not see it.
        loss: takes outputs and targets, gives their mean; for "gradmax", initializers of your own
            that measure gradients, and the saliency "obd".

    Raises:
        ValueError: an action does not fit the architecture, something that it needs is missing, or
            `net` is wrapped, compiled, not ours, or no longer what its architecture says.
    """
    actions = _listed(actions)
    old, old_ema = _ours("net", net), None if ema is None else _ours("ema", ema)
    if old_ema is not None and old_ema.architecture != old.architecture:
        raise ValueError("ema must have the architecture of net")
    # all fit before anything is done
    _, *architectures = accumulate(actions, Architecture.apply, initial=old.architecture)
    olds = [old] if old_ema is None else [old, old_ema]
    built = skeleton_of(old.architecture)
    own = [check_given(name, each, built) for name, each in zip(("net", "ema"), olds)]
    inputs = checked_inputs(old, probe)
    tensors = [{n: value.detach() for n, value in tensors_of(each).items()} for each in olds]
    values = [join_values(each, own_values) for each, own_values in zip(olds, tensors)]
    carried = Carried(old, old.architecture, values, {}, seed, probe, loss)
    for action, after in zip(actions, architectures):
        choice = getattr(action, "initializer", None) or initializer
        carried = carry(carried, action, after, initializer_of(choice))
    news = [assemble(each, carried.architecture, new) for each, new in zip(olds, carried.values)]
    difference = None
    if inputs is not None:
        unknown = unknown_channels(carried)
        trained = [estimate_statistics(made, inputs, unknown) for made in news if unknown]
        with without_hooks(old):
            difference = output_difference(old, news[0], inputs, *trained[:1])
    for each, made, attributes in zip(olds, news, own):
        hand_over(each, made, attributes)
    if optimizer is not None:
        optimizer = carry_optimizer(optimizer, old, news[0], carried.sources)
    average = news[-1] if old_ema else None
    return Grown(news[0], optimizer, average, difference, carried.flops, carried.sources)


def _ours(name: str, net: nn.Module) -> Network:
    if not isinstance(net, Network):
        inner = next((part for part in ("module", "_orig_mod") if hasattr(net, part)), "")
        advice = (
            f"; pass {name}.{inner} and wrap or compile the grown network again" if inner else ""
        )
        raise ValueError(
            f"{name} must be a network from nets.build, got {type(net).__name__}{advice}"
        )
    if net._compiled_call_impl is not None:
        raise ValueError(
            f"{name} must not be compiled in place, got one after {name}.compile(); use "
            f"torch.compile({name}), pass {name} itself and compile the grown network again"
        )
    return net


def _listed(actions: Any) -> list[Action]:
    """Give the actions of a call as a list."""
    if hasattr(actions, "edit"):
        return [actions]
    if isinstance(actions, str | bytes | Mapping | Set) or not isinstance(actions, Iterable):
        kind = type(actions).__name__
        raise ValueError(f"actions must be an Action or a sequence of them, got a {kind}")
    return list(actions)


@torch.no_grad()
def probe_outputs(net: nn.Module, inputs: Tensor, training: bool = False) -> Tensor:
    """Run the network on a batch and leave it as it was; nothing is dropped."""
    return run_apart(net, inputs, training)


def output_difference(
    old: nn.Module, new: nn.Module, inputs: Tensor, trained: Tensor | None = None
) -> float:
    """Give the largest |new - old| output over the largest |old|, of eval and train mode.

    NaN or infinite where an output is not finite. `trained` are the outputs of `new` in train mode,
    where they are known.
    """
    differences = []
    for training in (False, True):
        before = probe_outputs(old, inputs, training).double()
        known = trained if training else None
        after = (probe_outputs(new, inputs, training) if known is None else known).double()
        scale = before.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        differences.append((after - before).abs().max() / scale)
    return float(torch.stack(differences).max())  # torch's max of NaN and a number is NaN
