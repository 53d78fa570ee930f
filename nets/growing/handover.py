"""What goes along with a network's modules when it grows, beside their values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _WrappedHook

from nets.modules.given import HOOKS, Own, stays_behind
from nets.modules.network import Network


def set_up_norms(old: Network, new: Network) -> None:
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


def hand_over(old: Network, new: Network, own: Own) -> None:
    """Give the modules of `new` the hooks and the user's attributes of those of `old`."""
    before = dict(old.named_modules())
    for path, module in new.named_modules():
        if path not in before:
            continue
        vars(module).update(deepcopy(own[path]))
        for kind in HOOKS:
            vars(module)[kind] = carried_hooks(vars(before[path])[kind], module)
        module._is_full_backward_hook = before[path]._is_full_backward_hook
        tensors = [dict(each.named_parameters(recurse=False)) for each in (before[path], module)]
        for leaf, parameter in tensors[1].items():
            vars(parameter).update(deepcopy(vars(tensors[0].get(leaf, parameter))))


def carried_hooks(hooks: OrderedDict[int, Any], owner: Any = None) -> OrderedDict[int, Any]:
    """Give the hooks that go along, in a dict of their own."""
    found = OrderedDict()
    for number, hook in hooks.items():
        if isinstance(hook, _WrappedHook) and hook.with_module:
            hook = _WrappedHook(hook.hook, owner)
        if not stays_behind(hook):
            found[number] = hook
    return found


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


def _older(path: str, new: Network, known: dict[str, Any]) -> str:
    """Name the norm from which one takes its settings: itself, or that of a block before it."""
    blocks = list(new.architecture.blocks)
    while path not in known:
        stage, block, leaf = path.split(".", 2)
        before = blocks[blocks.index(f"{stage}.{block}") - 1]
        path = f"{before}.{leaf}"
    return path
