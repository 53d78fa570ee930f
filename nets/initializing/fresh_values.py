"""How entries begin before anybody is asked: weights are drawn, BatchNorm is the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from nets.initializing.given_values import asked
from nets.initializing.initializer import Initializer
from nets.modules.random_draws import generator_of
from nets.plan.action_dicts import name_of
from nets.plan.architecture import Architecture
from nets.plan.layers import shapes_of

_COUNTS = ("num_batches_tracked", "fade", "draw")
"""Leaves of entries that are integers."""


def fresh_values(
    architecture: Architecture, seed: int, initializer: Initializer
) -> dict[str, Tensor]:
    """Give new values for every entry."""
    with torch.device("cpu"):  # the generators', whatever the default device is
        values = {
            name: fresh_value(name, shape, 0, initializer, seed)
            for name, shape in shapes_of(architecture).items()
        }
    device = torch.get_default_device()
    return {name: value.to(device) for name, value in values.items()}


def fresh_value(
    name: str, shape: tuple[int, ...], start: int, initializer: Initializer, seed: int
) -> Tensor:
    """Give new values for one entry, which depend on the seed, its name and its first new row.

    Raises:
        ValueError: the initializer failed, or drew something else than a tensor of that shape.
    """
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "weight" and len(shape) > 1:
        who = f"initializer {name_of(initializer)}"
        value = asked(who, initializer.draw, name, shape, generator_of(seed, name, start))
        if not isinstance(value, Tensor) or value.shape != shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"initializer must give a tensor of shape {shape} for {name}, got {got}"
            )
        return value.detach().to(torch.get_default_dtype(), copy=True)
    if leaf in _COUNTS:
        return torch.zeros(shape, dtype=torch.int64)
    return torch.ones(shape) if leaf in ("weight", "running_var") else torch.zeros(shape)
