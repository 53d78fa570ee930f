"""Norms of gradients and weights and update ratios by layer, from norms by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from analysis.summing.step_sums import Values
from analysis.summing.whole_sums import COLUMNS, NORMS, norms_of_step


@dataclass(eq=False, kw_only=True)
class ParameterNorms:
    """L2 norms by parameter, around an optimizer's update or as the backward pass left them.

    Of gradients, weights and, around an update, its steps, (members,) each.
    """

    held: frozenset[int]  # parameters that the optimizer holds
    members: tuple[int, ...]  # parameters that the norms are of
    present: tuple[int, ...] = ()  # parameters with a gradient
    gradients: Tensor | None = None
    weights: Tensor | None = None
    steps: Tensor | None = None
    scaler: Sequence[Tensor] = ()  # of one at work: scale, whether the update is left out, (1,)
    # how many entries are in which bucket, by the histogram's name, (members and one more, BUCKETS)
    buckets: dict[str, Tensor] = field(default_factory=dict)
    made: MadeGradients | None = None


@dataclass(eq=False)
class MadeGradients:
    """L2 norms of gradients as the last backward pass has left them, before they are clipped."""

    members: tuple[int, ...]  # parameters that the norms are of
    present: frozenset[int]  # parameters with a gradient then
    norms: Tensor  # (members,)
    scale: Tensor | None = None  # by which the loss was multiplied, (1,)


class ParameterStatistics(NamedTuple):
    """What follows by layer; `undefined` is 1 where a value is not defined and 0 stands for it.

    That is so in front of weights that are all 0, and of updates that a scaler left out. `whole` is
    what `WholeSums` adds up.
    """

    values: Values
    undefined: Values
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
    made: list[Tensor] | None  # by update: of its parameters, places in `MadeGradients.members`
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
        told = zip(*((one.gradients, one.weights, one.steps) for one in several))
        norms = [one for kind in told for one in kind if one is not None]
        device, count = norms[0].device, sum(len(one.members) for one in several)
        plan = self._plan(several, device)
        # a 0 and all norms, kind by kind
        numbers = torch.cat([plan.bits[:1], *(one.to(device) for one in norms)]).double()
        skips = _unscale(numbers[1:], several)
        squares = numbers.square_()
        kinds = (len(squares) - 1) // count
        gradient, weight, *update = squares[plan.member[:kinds]].sum(-1).sqrt_()
        found: list[tuple[str, Tensor, Tensor | None]] = [
            ("gradient_norm", gradient / plan.roots, skips),
            ("weight_norm", weight, skips),
        ]
        for step in update:
            ratio, none = step / weight, weight == 0
            none = none if skips is None else none | skips
            if plan.updated is not None:
                ratio, none = ratio[plan.updated], none[plan.updated]
            found.append(("update_ratio", ratio, none))
        made = _squares_made(several, plan.made, device) if plan.made else None
        seen = (squares[1 : 1 + count] if plan.all_ is None else squares[plan.all_]).sum()
        whole = {NORMS: norms_of_step(seen, made, bool(update), skips, plan.bits)}
        for name in several[0].buckets:
            whole[name] = _by_row([one.buckets[name] for one in several], plan, self._rows)
            if skips is not None:
                whole[name] = whole[name].masked_fill(skips, 0)
        return ParameterStatistics(*_defined(found, plan.slots), plan.unheld, whole)

    def _plan(self, several: Sequence[ParameterNorms], device: torch.device) -> _Plan:
        made = tuple(one.made and (one.made.members, one.made.present) for one in several)
        key = *((one.present, one.held, one.members) for one in several), made
        if key in self._plans:
            return self._plans[key]
        chosen: dict[int, int] = {}  # where a parameter's norms are
        updated: set[int] = set()
        none = 0  # the number of norms
        last: dict[int, int] = {}  # the update whose numbers a parameter has
        for number, one in enumerate(several):
            present, held, members = one.present, one.held, one.members
            found = {index: none + place for place, index in enumerate(members)}
            now = [k for k in present if k in held or k not in updated]
            chosen |= {k: found[k] for k in now}
            last |= dict.fromkeys(now, number)
            updated.update(held.intersection(present))
            none += len(members)
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
            torch.arange(2.0, dtype=torch.float64, device=device),
        )
        return plan


def _defined(
    found: Sequence[tuple[str, Tensor, Tensor | None]], slots: Mapping[str, tuple[int, ...]]
) -> tuple[Values, Values]:
    """Give values, 0 where there are none, and 1 there, by slots; see `ParameterStatistics`."""
    values, undefined = [], []
    for statistic, value, none in found:
        if none is not None:
            none = none.expand(value.shape)
            value = value.masked_fill(none, 0)
            undefined.append((slots[statistic], none.double()))
        values.append((slots[statistic], value))
    return values, undefined


def _unless_all(places: Sequence[int], count: int, device: torch.device) -> Tensor | None:
    if len(places) == count:
        return None
    return torch.tensor(places, dtype=torch.long, device=device)


def _unscale(norms: Tensor, several: Sequence[ParameterNorms]) -> Tensor | None:
    """Divide gradients' norms, which come first, by their scalers' scales, in place.

    Gives whether the update was left out, (1,), and None without a scaler.
    """
    skips, end = None, 0
    for one in several:
        start, end = end, end + len(one.members)
        if one.scaler:
            scale, skip = (value.to(norms.device).double() for value in one.scaler)
            norms[start:end] /= scale
            skips = skip != 0 if skips is None else skips | (skip != 0)
    return skips


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
        square = one.made.norms.to(device).double()[where].square()
        scale = one.made.scale
        found += square.sum() if scale is None else square.sum() / scale[0].double().square()
    return found


def _by_row(buckets: Sequence[Tensor], plan: _Plan, rows: int) -> Tensor:
    """Give a histogram's rows, (rows, COLUMNS), from counts by parameter of every update."""
    device = plan.member.device
    parts = [part[:-1].to(device) for part in buckets]
    counts = torch.cat([torch.zeros_like(parts[0][:1]), *parts])[plan.member[0]].sum(1)
    whole = torch.zeros(rows, COLUMNS, dtype=torch.float64, device=device)
    return whole.index_copy_(0, plan.rows, functional.pad(counts, (0, 1), value=1))
