"""A network from an architecture and joined values, like the one it comes from: modes, hooks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _WrappedHook

from nets.modules.frozen_parts import give_values, parts_of, split_values, tensors_of
from nets.modules.network import Network, skeleton_of
from nets.modules.user_changes import HOOKS, Own, stays_behind
from nets.plan.architecture import Architecture


def assemble(old: Network, architecture: Architecture, values: Mapping[str, Tensor]) -> Network:
    """Build a network from joined values, with the layout, modes and flags of `old`.

    Raises:
        ValueError: the values are not its entries', or a SyncBatchNorm is to be held fixed.
    """
    network = skeleton_of(architecture, rank=old.rank)
    last = any(map(_is_channels_last, tensors_of(old).values()))
    own = {
        name: value.clone(memory_format=torch.channels_last if last and value.dim() == 4 else None)
        for name, value in split_values(network, values).items()
    }
    give_values(network, own)
    flags = {parameter.requires_grad for parameter in old.parameters()}
    if len(flags) == 1:
        network.requires_grad_(*flags)
    elif flags:
        _carry_flags(old, network)
    modes = {name: module.training for name, module in old.named_modules()}
    for name, module in network.named_modules():
        vars(module)["training"] = modes.get(name, old.training)
    _set_up_norms(old, network)
    return network


def _carry_flags(old: Network, new: Network) -> None:
    """Give requires_grad of each parameter to its namesake, or else that of its whole entry.

    Entries that had no parameter are to train.
    """
    before = parts_of(old)
    flags = {part.name: part.parameter.requires_grad for parts in before.values() for part in parts}
    trained = {entry: any(flags[part.name] for part in parts) for entry, parts in before.items()}
    for entry, parts in parts_of(new).items():
        for part in parts:
            part.parameter.requires_grad_(flags.get(part.name, trained.get(entry, True)))


def _is_channels_last(value: Tensor) -> bool:
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return last and not value.is_contiguous()


def _set_up_norms(old: Network, new: Network) -> None:
    """Give the BatchNorms of `new` the settings, the kind and the modes of those of `old`.

    One that is new takes them from the block before it; its mode, where those of all agree.

    Raises:
        ValueError: one is synchronised and is to be held fixed.
    """
    norms = {path: norm for path, norm in old.named_modules() if isinstance(norm, _BatchNorm)}
    modes = {norm.training for norm in norms.values()}
    for path, norm in new.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        model = norms[_older(path, new, norms)]
        norm.eps, norm.momentum = model.eps, model.momentum
        if path not in norms and len(modes) == 1:
            norm.training = model.training
        if isinstance(model, nn.SyncBatchNorm):
            if hasattr(norm, "held"):
                raise ValueError(f"{path} is a SyncBatchNorm, which cannot be held fixed")
            norm.__class__ = nn.SyncBatchNorm
            norm.process_group = model.process_group  # pyright: ignore


def _older(path: str, new: Network, known: dict[str, Any]) -> str:
    """Name the norm from which one takes its settings: itself, or that of a block before it."""
    blocks = list(new.architecture.blocks)
    while path not in known:
        stage, block, leaf = path.split(".", 2)
        before = blocks[blocks.index(f"{stage}.{block}") - 1]
        path = f"{before}.{leaf}"
    return path


def hand_over(old: Network, new: Network, own: Own) -> None:
    """Give the modules of `new` the hooks and the user's attributes of those of `old`."""
    before = dict(old.named_modules())
    for path, module in new.named_modules():
        if path not in before:
            continue
        known = vars(before[path])
        vars(module).update(deepcopy(own[path]) if own[path] else {})
        for kind in HOOKS:
            if known[kind]:
                vars(module)[kind] = carried_hooks(known[kind], module)
        module._is_full_backward_hook = known["_is_full_backward_hook"]
        for leaf, parameter in module._parameters.items():
            earlier = known["_parameters"].get(leaf)
            if earlier is not None and parameter is not None and vars(earlier):
                vars(parameter).update(deepcopy(vars(earlier)))


def carried_hooks(hooks: OrderedDict[int, Any], owner: Any = None) -> OrderedDict[int, Any]:
    """Give the hooks that go along, in a dict of their own."""
    found = OrderedDict()
    for number, hook in hooks.items():
        if isinstance(hook, _WrappedHook) and hook.with_module:
            hook = _WrappedHook(hook.hook, owner)
        if not stays_behind(hook):
            found[number] = hook
    return found
