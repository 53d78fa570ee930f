"""Which channels of an output are dead: no entry is above 0, so a relu gives 0 everywhere.

On a CPU, whose numbers can be looked at, the first entries settle it for outputs whose channels all
live; what could be one operation for each is one for all, for they cost more in code that left the
cache than in arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analysis.examining import tensor_entries
from analysis.measuring.channel_means import means_by_layer

LOOK = 2**13  # entries of an output that are looked at first, at least
EACH = 64  # of them for each channel, at least
WIDE = 128  # entries that are compared side by side: as many as registers like
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Look(NamedTuple):
    """A look at the first entries: a view of them and its axis along which channels don't differ.

    What is left has one channel after the other, once or several times.
    """

    shape: tuple[int, int]
    axis: int


def by_channel(x: Tensor, axis: int) -> Tensor:
    """Give a view, (N, channels, ...), of an output that has its channels along another axis."""
    return x[None] if axis == 0 else x.movedim(axis, 1)


@torch.no_grad()
def dead_fractions(outputs: Sequence[Tensor], known: dict[Any, Any]) -> Tensor:
    """Give the share of dead channels of each (N, channels, ...), as (outputs,) float64.

    All lie on one device; `known` keeps what stays the same from step to step there.
    """
    if not tensor_entries.on_host(outputs):
        key = "one", outputs[0].dtype, outputs[0].device
        if key not in known:
            known[key] = torch.ones(1, dtype=key[1], device=key[2])
        tops = [x.amax([0, *range(2, x.dim())]) for x in outputs]
        dead = torch.cat([*tops, known[key]]) <= 0
        return means_by_layer(dead, [x.shape[1] for x in outputs], known)
    living = _seen_to_live(outputs)
    none = torch.zeros(len(outputs), dtype=torch.float64, device="cpu")
    if len(living) == len(outputs):
        return none
    return torch.stack(
        [none[index] if index in living else _share(x) for index, x in enumerate(outputs)]
    )


def _seen_to_live(outputs: Sequence[Tensor]) -> set[int]:
    """Say which outputs have no dead channel by a look at their first entries alone."""
    kinds: dict[Any, list[int]] = {}
    for index, x in enumerate(outputs):
        kinds.setdefault((x.dtype, x.shape, x.stride()), []).append(index)
    looks: dict[Any, list[list[int]]] = {}
    for (dtype, shape, _), indices in kinds.items():
        look = _look(outputs[indices[0]], max(LOOK, EACH * shape[1]))
        if look is not None:
            looks.setdefault((dtype, look), []).append(indices)
    living: set[int] = set()
    for (_, look), several in looks.items():
        tops = _tops([outputs[index] for indices in several for index in indices], look)
        for indices, part in zip(several, tops.split(list(map(len, several)))):
            least = _tops_by_channel(part, outputs[indices[0]].shape[1]).amin(1).tolist()
            living.update(index for index, top in zip(indices, least) if top > 0)
    return living


def _share(x: Tensor) -> Tensor:
    """Give the share of dead channels after a look at every entry."""
    look = _look(x, x.numel())
    if look is None:
        return _share(x.movedim(1, -1).contiguous().movedim(-1, 1))
    return (_tops_by_channel(_tops([x], look), x.shape[1]) <= 0).double().mean()


def _look(x: Tensor, entries: int) -> _Look | None:
    """Say how to look at so many entries, or some more; None if their order is another."""
    channels, positions = x.shape[1], math.prod(x.shape[2:])
    if positions > 1 and x.is_contiguous():
        samples = min(len(x), math.ceil(entries / (channels * positions)))
        return _Look((samples * channels, positions), 1)
    if x.is_contiguous(memory_format=torch.channels_last) or x.movedim(1, -1).is_contiguous():
        # few channels are joined with those of the next positions
        width = channels * math.gcd(x.numel() // channels, max(1, WIDE // channels))
        return _Look((math.ceil(min(entries, x.numel()) / width), width), 0)
    return None


def _tops(outputs: Sequence[Tensor], look: _Look) -> Tensor:
    """Give the largest entries along a look's axis, (outputs, entries).

    They come as integers, which have the sign of the numbers and, above 0, their order, and compare
    several times faster.
    """
    size = (math.prod(look.shape),)
    first = torch.stack([x.as_strided(size, (1,)) for x in outputs])
    bits = first.view(_BITS[first.element_size()])
    return bits.view(len(outputs), *look.shape).amax(1 + look.axis)


def _tops_by_channel(tops: Tensor, channels: int) -> Tensor:
    """Give every channel's largest entry, (outputs, entries) -> (outputs, channels)."""
    return tops.view(len(tops), -1, channels).amax(1)
