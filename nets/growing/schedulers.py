"""How a learning-rate scheduler goes on with a grown optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any
from weakref import ref

import torch
from torch import Tensor

_DRIVEN = ("lr", "momentum", "betas")
"""What schedulers set in a group."""


def follow(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Let a scheduler, and all schedulers that it holds, step the optimizer that replaces its own.

    Rates, counts and `state_dict` go on. `scheduler.optimizer = optimizer` does the same as long as
    the old optimizer takes no more steps: see `FollowingGroup`.

    Args:
        scheduler: of `torch.optim.lr_scheduler`, SWALR, or another object with an `optimizer`;
            those that it holds are found in its attributes, lists and dicts of them included.
        optimizer: `grown.optimizer`.

    Raises:
        ValueError: the scheduler has no optimizer, or one of another number of groups.
    """
    old = getattr(scheduler, "optimizer", None)
    if not isinstance(old, torch.optim.Optimizer):
        kind = type(scheduler).__name__
        raise ValueError(f"scheduler must be one of an optimizer, got a {kind}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise ValueError(f"optimizer must be the grown one, got a {kind}")
    counts = [len(each.param_groups) for each in (old, optimizer)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"optimizer must have the scheduler's {counts[0]} parameter groups, got {counts[1]}"
        )
    for each in _schedulers(scheduler, old, {}).values():
        each.optimizer = optimizer


def _schedulers(
    value: Any, optimizer: torch.optim.Optimizer, found: dict[int, Any]
) -> dict[int, Any]:
    """Find the schedulers of an optimizer in a value, by identity."""
    if isinstance(value, list | tuple):
        for each in value:
            _schedulers(each, optimizer, found)
    elif isinstance(value, dict):
        _schedulers(list(value.values()), optimizer, found)
    elif id(value) not in found and getattr(value, "optimizer", None) is optimizer:
        found[id(value)] = value
        _schedulers(vars(value), optimizer, found)
    return found


def follow_groups(optimizer: torch.optim.Optimizer, old: torch.optim.Optimizer) -> None:
    """Let each group of an optimizer follow the one that it was grown from, also groups loaded."""
    known = [_sources_of(old, at) for at in range(len(optimizer.param_groups))]

    def follow_now(grown: torch.optim.Optimizer) -> None:
        groups, count = grown.param_groups, len(known)  # a user may have added more since
        following = [FollowingGroup(*pair) for pair in zip(groups, known)]
        grown.param_groups = [*following, *groups[count:]]

    follow_now.stays_behind = True  # pyright: ignore[reportFunctionMemberAccess]
    follow_now(optimizer)
    optimizer.register_load_state_dict_post_hook(follow_now)


def _sources_of(old: torch.optim.Optimizer, index: int) -> list[_Source]:
    """Give what a group grown from one of `old` follows: that one, and those that it follows."""
    above = old.param_groups[index]
    earlier = above._sources if isinstance(above, FollowingGroup) else []
    optimizers = [source.optimizer() for source in earlier] + [old]
    return [_Source(each, index) for each in optimizers if each is not None]


class FollowingGroup(dict[str, Any]):
    """A parameter group that takes over what a scheduler sets in the group it was grown from.

    The schedulers inside a SequentialLR or a ChainedScheduler go on with the optimizer that they
    were made with, whatever is assigned to the outer one. What they set there is read here too,
    until that optimizer takes a step again, with which it has a life of its own. Copies, pickles
    and `state_dict` are plain.
    """

    def __init__(self, group: Mapping[str, Any], sources: list[_Source]) -> None:
        super().__init__(group)
        self._sources = sources
        for source in sources:
            for key in _DRIVEN:
                source.has_new(key)  # what was set before does not count

    def __getitem__(self, key: str) -> Any:
        self._take(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Give a value as a dict does."""
        self._take(key)
        return super().get(key, default)

    def __reduce__(self) -> Any:
        return dict, (dict(self.items()),)

    def _take(self, key: str) -> None:
        if key not in _DRIVEN:
            return
        for source in self._sources:
            if source.has_new(key):
                value, own = source.group[key], super().get(key)
                if isinstance(value, Tensor) and isinstance(own, Tensor):
                    own.copy_(value)
                else:
                    super().__setitem__(key, value)


def _of_now(name: str) -> Callable[..., Any]:
    """Give a method of dict that takes over first what a scheduler has set."""
    method = getattr(dict, name)

    @wraps(method)
    def of_now(group: FollowingGroup, *args: Any, **kwargs: Any) -> Any:
        for key in _DRIVEN:
            group._take(key)
        return method(group, *args, **kwargs)

    return of_now


# dict(group), {**group} and group | {} go by __iter__; what is written comes after what was set
for _name in (
    *("__iter__", "items", "values", "copy", "pop", "popitem", "setdefault", "update"),
    *("__setitem__", "__delitem__", "__ior__", "__eq__", "__ne__", "__repr__"),
):
    setattr(FollowingGroup, _name, _of_now(_name))
del _name


class _Source:
    """What was seen last of a group that another one follows; it does not keep it alive."""

    def __init__(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        self.optimizer: Callable[[], torch.optim.Optimizer | None] = ref(optimizer)
        self._index = index
        self._seen = {key: _mark(self.group.get(key)) for key in _DRIVEN}
        self._steps = _changes(self.group["params"])

    @property
    def group(self) -> Mapping[str, Any]:
        """The group as it is; empty where it is gone."""
        optimizer = self.optimizer()
        groups = optimizer.param_groups if optimizer is not None else []
        return groups[self._index] if self._index < len(groups) else {}

    def has_new(self, key: str) -> bool:
        """Say whether a value was set since the last look, and no step was taken."""
        group = self.group
        mark = _mark(group.get(key))
        if not group or mark == self._seen[key]:
            return False
        self._seen[key] = mark
        if _changes(group["params"]) != self._steps:
            self.optimizer = lambda: None
            return False
        return True


def _mark(value: Any) -> Any:
    """Tell a value from others without a read on the host: schedulers change tensors in place."""
    return (id(value), value._version) if isinstance(value, Tensor) else value


def _changes(parameters: Iterable[Tensor]) -> list[int]:
    """Give how often each was changed in place, as an optimizer's step does."""
    return [parameter._version for parameter in parameters]
