"""How a learning-rate scheduler goes on with a grown optimizer."""

from __future__ import annotations

from typing import Any

import torch


def follow(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Let a scheduler, and all schedulers that it holds, step the optimizer that replaces its own.

    `scheduler.optimizer = optimizer` reaches a single scheduler only: those inside a SequentialLR
    or a ChainedScheduler would go on with the old optimizer. Rates, counts and `state_dict` go on.

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
