"""Gradients that arrive at layers' outputs in the backward pass, by hooks on the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.examining import tensor_entries

MANY = 64  # arrivals at one place after which they are summed up, so that memory is bounded


class _Arrived(NamedTuple):
    """Of a gradient the sum of its entries, (), their L2 norm, () float64, and their number."""

    total: Tensor
    norm: Tensor
    size: int


class ArrivingGradients:
    """Notes the std and the L2 norm of what arrives, until it is taken at the end of a step."""

    def __init__(self) -> None:
        self._found: dict[int, list[_Arrived]] = {}  # by place
        self._sums: dict[int, Tensor] = {}  # of more that arrived there, what `_sums_of` gives
        self._counts: dict[int, int] = {}
        self._step = 0

    def listen(self, output: Tensor, place: int) -> None:
        """Note the gradient of an output of the step under way when it arrives.

        What works on the output in place later changes nothing of that.
        """
        if output.requires_grad:
            output.register_hook(partial(self._note, place, self._step))

    @torch.no_grad()
    def _note(self, place: int, step: int, gradient: Tensor) -> None:
        if step != self._step or not gradient.numel():  # of a graph that outlived its step
            return
        wide = torch.promote_types(gradient.dtype, torch.float32)
        entries = tensor_entries.as_it_lies(gradient)
        if tensor_entries.on_host([entries]):
            (norm,) = tensor_entries.row_norms(entries[None])
        else:
            (norm,) = tensor_entries.norms_of([entries])
        found = self._found.setdefault(place, [])
        found.append(_Arrived(entries.sum(dtype=wide), norm, len(entries)))
        self._counts[place] = self._counts.get(place, 0) + 1
        if len(found) > MANY:
            self._sum_up()

    def _sum_up(self) -> None:
        """Put what was found into sums by place, where other sums may be."""
        found, self._found = self._found, {}
        for place, sums in zip(found, _sums_of(list(found.values()))):
            more = self._sums.get(place)
            self._sums[place] = sums if more is None else sums + more.to(sums.device)

    @torch.no_grad()
    def take(self, scale: Tensor | None) -> list[tuple[tuple[int, ...], Tensor]]:
        """Give places and numbers, std and norm, of this step, and begin the next.

        Args:
            scale: by which the loss was multiplied, (1,); None for 1. Several arrivals at a place,
                of several forward or backward passes, give their mean.
        """
        if self._found:
            self._sum_up()
        sums, self._sums = self._sums, {}
        counts, self._counts = self._counts, {}
        self._step += 1
        if not sums:
            return []
        device = next(iter(sums.values())).device
        times = [counts[place] for place in sums]
        rows = torch._foreach_div([each.to(device) for each in sums.values()], times)
        numbers = torch.cat(rows)
        if scale is not None:
            numbers = numbers / scale.to(device).double()
        return [(tuple(slot for place in sums for slot in (place, place + 1)), numbers)]


def _sums_of(arrivals: Sequence[Sequence[_Arrived]]) -> list[Tensor]:
    """Give by place the sums of the stds and of the norms of what arrived there, (2,) float64."""
    device = arrivals[0][0].total.device
    several = [one for own in arrivals for one in own]
    totals = torch.stack([one.total.to(device) for one in several]).double()
    norms = torch.stack([one.norm.to(device) for one in several])
    moments = torch.stack([totals, norms.square()], 1).unbind()
    mean, square = torch.stack(torch._foreach_div(moments, [one.size for one in several]), 1)
    table = torch.stack([(square - mean.square()).clamp_min_(0).sqrt_(), norms], 1)
    counts = list(map(len, arrivals))
    if len(several) == len(counts):
        return list(table.unbind())
    return [part.sum(0) for part in table.split(counts)]
