"""Norms of gradients and weights and update ratios by layer, from norms by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analysis.examining.entry_histograms import BUCKETS, count_entries, places_of
from analysis.summing.whole_sums import NORMS, norms_of_step

FEW = 2**16  # entries whose squares float32 sums to 3e-6 on a CPU, three times as fast as float64
NARROW = 64  # entries; room for fewer is as wide, so that all have their norms taken at once


@dataclass(eq=False, kw_only=True)
class ParameterNorms:
    """L2 norms by parameter, around an optimizer's update or as the backward pass left them.

    Of gradients, weights and, around an update, its steps, each in 1-D parts.
    """

    held: frozenset[int]  # parameters that the optimizer holds
    order: tuple[int, ...]  # of the parameters in the norms
    present: tuple[int, ...] = ()  # parameters with a gradient
    gradients: Sequence[Tensor] = ()
    weights: Sequence[Tensor] = ()
    steps: Sequence[Tensor] = ()
    scaler: Sequence[Tensor] = ()  # of one at work: scale, whether the update is left out, (1,)
    # how many entries are in which bucket, by the histogram's name, (order and one more, BUCKETS)
    buckets: dict[str, Tensor] = field(default_factory=dict)
    made: MadeGradients | None = None


@dataclass(eq=False)
class MadeGradients:
    """L2 norms of gradients as the last backward pass has left them, before they are clipped."""

    order: tuple[int, ...]  # of the parameters in the norms
    present: frozenset[int]  # parameters with a gradient then
    norms: Sequence[Tensor]
    scale: Tensor | None = None  # by which the loss was multiplied, (1,)


class ParameterStatistics(NamedTuple):
    """What follows by layer; `undefined` is 1 where a value is not defined and 0 stands for it.

    That is so in front of weights that are all 0, and of updates that a scaler left out. `whole` is
    what `WholeSums` adds up.
    """

    values: list[tuple[tuple[int, ...], Tensor]]
    undefined: list[tuple[tuple[int, ...], Tensor]]
    unheld: str | None  # a parameter with a gradient that no optimizer updates
    whole: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which layers have parameters with a gradient, and where in the lists of norms these are.

    All is on the device from the first step on, for sending it there in a step would wait.
    """

    slots: dict[str, tuple[int, ...]]  # by statistic
    # (kinds of norms, layers, most): places behind a 0, filled up with that of the 0
    member: Tensor
    roots: Tensor  # (layers,): of how many entries there are of such parameters
    updated: Tensor | None  # places among the layers of those that an optimizer updates, if not all
    unheld: str | None
    rows: Tensor  # (layers,): which of all rows they are
    all_: Tensor | None  # places behind the 0 of parameters with a gradient, if not all
    made: list[Tensor] | None  # by update: of its parameters, places in `MadeGradients.order`
    bits: Tensor  # 0 and 1


class NormsByLayer:
    """Gives norms by layer, and keeps which parameters are whose.

    Args:
        parameters: by name.
        owners: of each parameter the layers whose it is.
        statistics: names of all that a layer has, in the order of their slots.
        rows: how many layers there are.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        owners: Sequence[Sequence[int]],
        statistics: Sequence[str],
        rows: int,
    ) -> None:
        self._names, self._sizes = list(parameters), [p.numel() for p in parameters.values()]
        self._owners, self._statistics, self._rows = owners, statistics, rows
        self._plans: dict[Any, _Plan] = {}

    @torch.no_grad()
    def of(self, several: Sequence[ParameterNorms]) -> ParameterStatistics:
        """Give gradient norms, weight norms and, with updates, update ratios by layer.

        A parameter's numbers are those of the last update by an optimizer that holds it.
        """
        device = several[0].gradients[0].device
        plan, skips, end = self._plan(several, device), None, 1
        told = zip(*((one.gradients, one.weights, one.steps) for one in several))
        parts = [part.to(device) for kind in told for norms in kind for part in norms]
        numbers = torch.cat([plan.bits[:1], *parts]).double()  # a 0 and all norms, kind by kind
        for one in several:
            start, end = end, end + len(one.order)
            if one.scaler:
                scale, skip = (value.to(device).double() for value in one.scaler)
                numbers[start:end] /= scale
                skips = skip != 0 if skips is None else skips | (skip != 0)
        squares = numbers.square_()
        kinds = len(squares) // (end - 1)
        gradient, weight, *update = squares[plan.member[:kinds]].sum(-1).sqrt_()
        found = [("gradient_norm", gradient / plan.roots), ("weight_norm", weight)]
        found += [("update_ratio", step / weight) for step in update]
        values, undefined = [], []
        for statistic, value in found:
            slots, none = plan.slots[statistic], skips
            if statistic == "update_ratio":
                none = weight == 0 if none is None else none | (weight == 0)
                if plan.updated is not None:
                    value, none = value[plan.updated], none[plan.updated]
            if none is None:
                values.append((slots, value))
                continue
            none = none.expand(value.shape)
            values.append((slots, value.masked_fill(none, 0)))
            undefined.append((slots, none.double()))
        made = _squares_made(several, plan.made, device) if plan.made else None
        seen = (squares[1:end] if plan.all_ is None else squares[plan.all_]).sum()
        whole = {NORMS: norms_of_step(seen, made, bool(update), skips, plan.bits)}
        for name in several[0].buckets:
            whole[name] = _by_row([one.buckets[name] for one in several], plan, self._rows)
            if skips is not None:
                whole[name] = whole[name].masked_fill(skips, 0)
        return ParameterStatistics(values, undefined, plan.unheld, whole)

    def _plan(self, several: Sequence[ParameterNorms], device: torch.device) -> _Plan:
        made = tuple(one.made and (one.made.order, one.made.present) for one in several)
        key = *((one.present, one.held, one.order) for one in several), made
        if key in self._plans:
            return self._plans[key]
        chosen: dict[int, int] = {}  # where a parameter's norms are
        updated: set[int] = set()
        none = 0  # the number of norms
        last: dict[int, int] = {}  # the update whose numbers a parameter has
        for number, one in enumerate(several):
            present, held, order = one.present, one.held, one.order
            found = {index: none + place for place, index in enumerate(order)}
            now = [k for k in present if k in held or k not in updated]
            chosen |= {k: found[k] for k in now}
            last |= dict.fromkeys(now, number)
            updated.update(held.intersection(present))
            none += len(order)
        owned: dict[int, list[int]] = {}  # by layer
        for index in sorted(chosen):
            for layer in self._owners[index]:
                owned.setdefault(layer, []).append(index)
        layers = sorted(owned)
        most = max(map(len, owned.values()), default=0)
        member = [
            [
                [*(1 + kind * none + chosen[k] for k in own), *[0] * (most - len(own))]
                for own in map(owned.__getitem__, layers)
            ]
            for kind in range(3)
        ]
        roots = [sum(self._sizes[k] for k in owned[layer]) ** 0.5 for layer in layers]
        unheld = sorted(set(chosen) - updated)
        updates = [n for n, layer in enumerate(layers) if not updated.isdisjoint(owned[layer])]
        every = range(len(layers))
        places = {"gradient_norm": every, "weight_norm": every, "update_ratio": updates}
        seen = [1 + place for place in sorted(chosen.values())]
        width, at = len(self._statistics), self._statistics.index
        self._plans[key] = plan = _Plan(
            {name: tuple(layers[n] * width + at(name) for n in ns) for name, ns in places.items()},
            torch.tensor(member, dtype=torch.long, device=device).view(3, len(layers), most),
            torch.tensor(roots, dtype=torch.float64, device=device),
            _unless_all(updates, len(layers), device),
            self._names[unheld[0]] if unheld else None,
            torch.tensor(layers, dtype=torch.long, device=device),
            _unless_all(seen, none, device),
            _places_made(made, last, device),
            torch.arange(2.0, device=device),
        )
        return plan


def _unless_all(places: Sequence[int], count: int, device: torch.device) -> Tensor | None:
    if len(places) == count:
        return None
    return torch.tensor(places, dtype=torch.long, device=device)


def _places_made(
    made: Sequence[tuple[tuple[int, ...], frozenset[int]] | None],
    last: Mapping[int, int],
    device: torch.device,
) -> list[Tensor] | None:
    """Give, by update, where the norms of its parameters are; None if one of them is not known."""
    found = []
    for number, known in enumerate(made):
        chosen = sorted(k for k, update in last.items() if update == number)
        if known is None or not known[1].issuperset(chosen):
            return None
        place = {index: at for at, index in enumerate(known[0])}
        found.append(torch.tensor([place[k] for k in chosen], dtype=torch.long, device=device))
    return found


def _squares_made(
    several: Sequence[ParameterNorms], places: Sequence[Tensor], device: torch.device
) -> Tensor:
    """Give the sum of squares of all gradients as backward passes have left them, ()."""
    found = torch.zeros((), dtype=torch.float64, device=device)
    for one, where in zip(several, places):
        assert one.made is not None
        square = torch.cat([part.to(device) for part in one.made.norms]).double()[where].square()
        scale = one.made.scale
        found += square.sum() if scale is None else square.sum() / scale[0].double().square()
    return found


def _by_row(buckets: Sequence[Tensor], plan: _Plan, rows: int) -> Tensor:
    """Give counts by row of all, (rows, BUCKETS), from those by parameter of every update."""
    device = plan.member.device
    parts = [part[:-1].to(device) for part in buckets]
    counts = torch.cat([torch.zeros_like(parts[0][:1]), *parts])[plan.member[0]].sum(1)
    whole = torch.zeros(rows, BUCKETS, dtype=torch.float64, device=device)
    return whole.index_copy_(0, plan.rows, counts)


class ParameterCopies:
    """Room for a number from every entry of some parameters, its members, as a row for each.

    To copy all to here and take the norms of rows of one size at once is faster than a norm each.
    """

    def __init__(self, members: tuple[int, ...], parameters: Sequence[Tensor]) -> None:
        self.members = members
        sizes: dict[int, list[int]] = {}
        for index, parameter in enumerate(parameters):
            sizes.setdefault(max(NARROW, parameter.numel()), []).append(index)
        # of the norms
        self.order = tuple(members[k] for indices in sizes.values() for k in indices)
        if parameters[0].is_cuda:
            self.order = members
        dtype = reduce(torch.promote_types, [p.dtype for p in parameters], torch.float32)
        wide = torch.promote_types(dtype, torch.float64)
        total = sum(size * len(indices) for size, indices in sizes.items())
        self.entries = torch.zeros(total, dtype=dtype, device=parameters[0].device)
        self._rows: list[tuple[Tensor, torch.dtype]] = []  # (rows, size), what to sum in
        self._groups = [(size, [members[k] for k in indices]) for size, indices in sizes.items()]
        self._sizes = {member: parameters[k].numel() for k, member in enumerate(members)}
        self._places: Tensor | None = None
        views: dict[int, Tensor] = {}
        start = 0
        for size, indices in sizes.items():
            rows = self.entries[start : start + size * len(indices)].view(-1, size)
            self._rows.append((rows, dtype if size <= FEW else wide))
            for row, index in zip(rows, indices):
                like = parameters[index]
                views[index] = row.as_strided(like.shape, torch.empty_like(like).stride())
            start += rows.numel()
        self._views = {member: views[index] for index, member in enumerate(members)}

    def keep(self, indices: Sequence[int], tensors: list[Tensor]) -> None:
        """Copy to here what belongs to the parameters of these indices."""
        torch._foreach_copy_([self._views[index] for index in indices], tensors)

    def norms_of(self, indices: Sequence[int], tensors: list[Tensor]) -> list[Tensor]:
        """Give the norms of what belongs to the parameters of these indices; see `norms`.

        By way of a copy to here, unless all can be taken where they lie.
        """
        alike = all(tensor.dtype == self.entries.dtype for tensor in tensors)
        if self.entries.is_cuda and tuple(indices) == self.members and alike:
            return [torch.stack(torch._foreach_norm(tensors))]
        self.keep(indices, tensors)
        return self.norms()

    def subtract(self, tensors: list[Tensor]) -> None:
        """Take from what is here what belongs to all members."""
        torch._foreach_sub_(list(self._views.values()), tensors)

    def count(self, factor: Tensor | int = 1) -> Tensor:
        """Count the entries times a factor by parameter, (order and one more, BUCKETS)."""
        if self._places is None:
            place = {member: row for row, member in enumerate(self.order)}
            parts = []  # sizes and rows: what fills a row up belongs to none
            for size, group in self._groups:
                for member in group:
                    own = self._sizes[member]
                    parts += [(own, place[member]), (size - own, len(place))]
            sizes, rows = zip(*parts)
            self._places = places_of(sizes, rows, self.entries.device)
        return count_entries(self.entries * factor, self._places, len(self.order) + 1)

    def norms(self) -> list[Tensor]:
        """Give the L2 norms of what is here of each parameter, in parts; see `order`."""
        if self.entries.is_cuda:  # where one operation for all costs less than one a size
            return [torch.stack(torch._foreach_norm(list(self._views.values())))]
        return [torch.linalg.vector_norm(rows, dim=1, dtype=dtype) for rows, dtype in self._rows]
