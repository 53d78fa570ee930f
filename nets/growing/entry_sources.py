"""Where the entries of an edited network come from: rows and columns of those before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nets.modules.network import Network
from nets.modules.probe_batch import Loss
from nets.plan.architecture import Architecture
from nets.plan.layers import axes_of, shapes_of

Sources = dict[str, tuple[Tensor, ...]]
"""By entry that has changed, for rows and columns: where each came from, (size,) int64; -1: new."""
Values = dict[str, Tensor]
"""By entry: its values, those that are held joined to the rest."""


@dataclass(frozen=True)
class Carried:
    """Where a sequence of edits stands.

    Args:
        origin: the network before all of them.
        architecture: what it has become.
        values: joined values, of the network and then of its EMA if there is one.
        sources: where the entries of `values` come from in `origin`.
        seed: new values depend on it and on names alone.
        probe: inputs, or (inputs, targets), or None.
        loss: takes outputs and targets, or None.
        born: blocks added so far.
        disturbed: blocks in front of which one was removed that had not faded.
        flops: what was measured for the edits so far.
    """

    origin: Network
    architecture: Architecture
    values: list[Values]
    sources: Sources
    seed: int
    probe: Any
    loss: Loss | None
    born: frozenset[str] = frozenset()
    disturbed: frozenset[str] = frozenset()
    flops: int = 0


def sources_of(
    old: Mapping[str, Tensor], architecture: Architecture, kept: Mapping[str, Tensor]
) -> Sources:
    """Say where the rows and columns of every entry come from that an edit changes.

    Args:
        old: the values before the edit.
        architecture: after the edit.
        kept: by axis that lost channels, the old positions of those left, in order.
    """
    axes, sources = axes_of(architecture), {}
    for name, shape in shapes_of(architecture).items():
        before = tuple(old[name].shape) if name in old else (0,) * len(shape)
        if name in old and before == shape:
            continue
        found = []
        for dimension, size in enumerate(shape[:2]):
            axis = axes.get(name, ())[dimension : dimension + 1]
            if axis and axis[0] in kept and name in old:
                found.append(kept[axis[0]])
                continue
            source = torch.arange(size, device="cpu")
            source[before[dimension] :] = -1
            found.append(source)
        sources[name] = tuple(found)
    return sources


def chain(earlier: Sources, later: Sources) -> Sources:
    """Chain two edits: where entries come from across both."""
    chained = {**earlier, **later}
    for name in earlier.keys() & later.keys():
        chained[name] = tuple(
            torch.where(index >= 0, before[index.clamp_min(0)], -1)
            for index, before in zip(later[name], earlier[name])
        )
    return chained


def place_old(value: Tensor, old: Tensor, source: tuple[Tensor, ...], silent: bool = False) -> None:
    """Write the old rows and columns where they now stand; `silent`: old rows get no new ones."""
    to = [torch.nonzero(index >= 0).flatten() for index in source]  # rows, columns that are not new
    of = [index[where] for index, where in zip(source, to)]
    if all(torch.equal(index, torch.arange(len(index), device="cpu")) for index in (*to, *of)):
        # they stay in front, as in most edits: nothing is sent to the device
        front = tuple(slice(len(index)) for index in to)
        if silent:
            value[front[:1]] = 0
        value[front] = old[front]
        return
    to, of = ([index.to(value.device) for index in indices] for indices in (to, of))
    if silent:
        value[to[0]] = 0
    if len(source) == 1:
        value[to[0]] = old[of[0]]
    else:
        value[to[0][:, None], to[1]] = old[of[0][:, None], of[1]]
