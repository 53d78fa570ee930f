"""What users have changed on a network: `grow` carries some of it, and refuses the rest by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nets.modules.network import Network

HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Where a module keeps its hooks, by number."""
Own = dict[str, dict[str, Any]]
"""By module: attributes that a user has set on it, plain data."""
_CARRIED = ("eps", "momentum", "architecture", "rank", "process_group")
_INNER = ("_draws", "_faded_at", "_chance")
_OF_TORCH = {*vars(nn.Module()), *_INNER}
_EXPECTED = {*_OF_TORCH, *_CARRIED}
_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.Size)


def check_given(name: str, net: Network, built: Network) -> Own:
    """Give the attributes of plain data that a user has set on modules.

    Args:
        name: of the argument.
        net: these attributes, settings of BatchNorm, SyncBatchNorm instead of it, modes,
            requires_grad and modules' hooks are carried; all else must be as built.
        built: a new network of the same architecture, on the meta device.

    Raises:
        ValueError: there is more, which growing would lose; the message names the first of it.
    """
    if type(net) is not Network:
        raise _odd(name, f"its class {type(net).__name__} is not Network")
    new, modules = (dict(each.named_modules(remove_duplicate=False)) for each in (built, net))
    for path in [*new, *modules]:
        if path not in new or path not in modules:
            lacks = "lacks" if path in new else "has a module of its own,"
            raise _odd(name, f"it {lacks} {path}")
    seen: dict[int, str] = {}
    for path, module in modules.items():
        _check_kind(name, path, module, new[path])
        _check_tensors(name, path, module, new[path], seen)
    return {path: _attributes(name, path, each, new[path]) for path, each in modules.items()}


def _check_kind(name: str, path: str, module: nn.Module, built: nn.Module) -> None:
    synchronised = type(module) is nn.SyncBatchNorm
    if synchronised and type(built) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return
    if type(module) is not type(built):
        raise _odd(name, f"{path} is {type(module).__name__} instead of {type(built).__name__}")


def _check_tensors(
    name: str, path: str, module: nn.Module, built: nn.Module, seen: dict[int, str]
) -> None:
    for kind, plain in (("_parameters", nn.Parameter), ("_buffers", Tensor)):
        ours, theirs = vars(built)[kind], vars(module)[kind]
        for leaf in {**ours, **theirs}:
            full = f"{path}.{leaf}".strip(".")
            like, value = ours.get(leaf), theirs.get(leaf)
            if like is None and value is None:
                continue
            if like is None or value is None:
                lacks = "lacks" if value is None else "has a tensor of its own,"
                raise _odd(name, f"it {lacks} {full}")
            if value.shape != like.shape:
                shapes = tuple(value.shape), tuple(like.shape)
                raise _odd(name, f"{full} has shape {shapes[0]} instead of {shapes[1]}")
            if type(value) is not plain or type(value.detach()) is not Tensor:
                raise _odd(name, f"{full} is a {type(value.detach()).__name__}")
            other = seen.setdefault(value.data_ptr() or id(value), full)  # 0 on meta
            if other != full:
                raise _odd(name, f"{full} is shared with {other}")
            if any(not stays_behind(hook) for hook in tensor_hooks(value)):
                raise _odd(name, f"{full} has a hook of its own")
            for key, own in vars(value).items():
                if not is_plain(own):
                    raise _odd(name, f"{full} has an attribute of its own, {key}")


def _attributes(name: str, path: str, module: nn.Module, built: nn.Module) -> dict[str, Any]:
    own, expected = {}, vars(built)
    for key, value in vars(module).items():
        if key in _EXPECTED or getattr(value, "stays_behind", False):
            continue
        full = f"{path}.{key}".strip(".")
        if key not in expected:
            if hasattr(type(module), key) or not is_plain(value):
                raise _odd(name, f"it has an attribute of its own, {full}")
            own[key] = value
        elif not _is_same(value, expected[key]):
            raise _odd(name, f"{full} is {value!r} instead of {expected[key]!r}")
    return own


def is_plain(value: Any) -> bool:
    """Say whether a value is data that holds no part of a network."""
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, [*value, *value.values()]))
    return isinstance(value, _PLAIN)


def _is_same(value: Any, built: Any) -> bool:
    try:
        return bool(value == built)
    except (RuntimeError, TypeError, ValueError):  # a tensor or array instead of a number, say
        return False


def stays_behind(hook: Any) -> bool:
    """Say whether a hook marks itself, or the object of its method, as no concern of successors."""
    return getattr(getattr(hook, "__self__", hook), "stays_behind", False)


def tensor_hooks(value: Tensor) -> list[Any]:
    """Give the hooks on a tensor's gradient."""
    hooks = (value._backward_hooks, getattr(value, "_post_accumulate_grad_hooks", None))
    return [hook for some in hooks if some for hook in some.values()]


def _odd(name: str, what: str) -> ValueError:
    return ValueError(f"{name} must be as its architecture says, for growth carries that: {what}")
