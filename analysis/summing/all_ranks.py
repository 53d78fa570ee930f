"""Sums over the processes that train one network together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist


def together() -> bool:
    """Say whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def sum_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Give every process the sums of theirs, in place and by one reduction: all must call it.

    Args:
        tensors: in float64 on one device, of the same shapes in every process.
    """
    flat = torch.cat([value.flatten() for value in tensors])
    dist.all_reduce(flat)
    for value, total in zip(tensors, flat.split([value.numel() for value in tensors])):
        value.copy_(total.view_as(value))


@torch.no_grad()
def largest_over_ranks(values: Tensor) -> Tensor:
    """Give the largest of all processes' values, entry by entry: all must call it."""
    values = values.clone()
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return values
