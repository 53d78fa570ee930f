"""Norms of gradients, weights and updates by layer, without a read on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from analysis.observing.hooks import Values
from analysis.observing.layers import Layer, parameters_of
from analysis.observing.reading import STATISTICS

_GRADIENT, _WEIGHT, _UPDATE = (
    STATISTICS.index(name) for name in ("gradient_norm", "weight_norm", "update_ratio")
)

FEW = 2**16  # entries whose squares float32 sums to 3e-6 on a CPU, three times as fast as float64
NARROW = 64  # entries; room for fewer is as wide, so that all have their norms taken at once
SMALL = 2**22  # entries of a network up to which the room for them is kept from step to step


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which layers have parameters with a gradient, and where in the norms of rooms these are."""

    width: int  # statistics of a layer
    layers: list[int]
    member: Tensor  # (layers, most), filled up with the number of norms
    entries: Tensor  # (layers,): how many there are of such parameters
    updated: list[int]  # places in `layers` of those that an optimizer updates
    unheld: str | None  # a parameter with a gradient that no optimizer updates


class ParameterForm(NamedTuple):
    """What the numbers of a step are, for each of its updates.

    Norms of gradients, weights and perhaps updates; then the scale of the gradients and whether the
    update was left out, where a scaler is at work.
    """

    plan: _Plan
    lists: int  # of norms
    lengths: tuple[int, ...]  # of these lists, by update
    scaled: tuple[bool, ...]  # by update: whether scale and whether it was left out follow


_Key = tuple[tuple[tuple[int, ...], frozenset[int], tuple[int, ...]], ...]
"""Of each update: parameters with a gradient, those that are held, those of the norms in order."""
ParameterNotes = tuple[ParameterForm, list[Tensor]]
"""What one step gave, numbers in 1-D parts."""


@dataclass(eq=False)
class Update:
    """What is read of one optimizer's update."""

    optimizer: int  # its id
    held: frozenset[int]  # parameters that it holds
    complete: bool  # whether these are all
    room: _Room  # with the weights before, of all parameters or only of these
    kept: set[int]  # whose weights are there
    present: tuple[int, ...]  # parameters with a gradient
    gradients: list[Tensor]  # norms
    weights: list[Tensor]
    updates: list[Tensor]
    scaler: list[Tensor]  # scale, whether the update is left out


class ParameterNorms:
    """Reads one step's norms: before and after updates of optimizers, or of gradients alone.

    Parameters without a gradient do not count. `width` is the number of statistics of a layer.
    """

    def __init__(self, net: nn.Module, layers: list[Layer], width: int = len(STATISTICS)) -> None:
        self._width = width
        named = {name: p for name, p in net.named_parameters() if not is_lazy(p)}
        self._names, self._parameters = list(named), list(named.values())
        self._position = {id(parameter): k for k, parameter in enumerate(self._parameters)}
        self.own(net, layers)
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}  # gradient and weight, by parameter
        self._watched: dict[int, Any] = {}  # hook handles, by parameter
        self.gone: str | None = None  # a parameter whose gradient was gone before it was seen
        self._all = tuple(range(len(self._parameters)))
        self._rooms: dict[tuple[int, ...], list[_Room]] = {}  # free ones, by what they are for
        self._update: Update | None = None  # under way

    def own(self, net: nn.Module, layers: list[Layer]) -> None:
        """Say which layers the parameters belong to."""
        owners: list[list[int]] = [[] for _ in self._parameters]
        for number, layer in enumerate(layers):
            for parameter in parameters_of(net, layer):
                if id(parameter) in self._position:
                    owners[self._position[id(parameter)]].append(number)
        self._owners = list(map(tuple, owners))
        self._plans: dict[Any, _Plan] = {}

    def held_by(self, optimizer: Any) -> frozenset[int]:
        """Say which of the parameters an optimizer holds."""
        groups = getattr(optimizer, "param_groups", None) or ()
        held = {self._position.get(id(p), -1) for group in groups for p in group["params"]}
        return frozenset(held - {-1})

    def watch(self) -> None:
        """Hook the gradients of parameters not hooked yet, for loops without a known optimizer."""

        def hook(index: int) -> Callable[[Tensor], None]:
            def read(parameter: Tensor) -> None:
                if parameter.grad is None:  # an optimizer in the backward pass took it
                    self.gone = self._names[index]
                    return
                self._seen[index] = parameter.grad.detach().clone(), parameter.detach().clone()

            read.stays_behind = True  # pyright: ignore[reportFunctionMemberAccess]
            return read

        for index, parameter in enumerate(self._parameters):
            if parameter.requires_grad and index not in self._watched:
                handle = parameter.register_post_accumulate_grad_hook(hook(index))
                self._watched[index] = handle

    def unwatch(self) -> None:
        """Remove the hooks that `watch` set."""
        for handle in self._watched.values():
            handle.remove()
        self._watched.clear()

    def drop(self) -> None:
        """Forget an update under way."""
        self._update = None

    @torch.no_grad()
    def before_update(self, optimizer: Any, alone: bool, closure: bool) -> None:
        """Read gradients and weights as the optimizer finds them, and keep the weights.

        Args:
            optimizer: whose update it is.
            alone: read only what it holds, or all that has a gradient.
            closure: the gradients come later; `look` reads them.
        """
        self._update = None  # of a step that failed
        if not self._parameters:
            return
        held = self.held_by(optimizer)
        room = self._room(tuple(sorted(held)) if alone else self._all)
        scaler = _scaler_of(optimizer)
        complete = len(held) == len(self._all)
        self._update = Update(id(optimizer), held, complete, room, set(), (), [], [], [], scaler)
        if closure:
            self._keep(self._update, room.members)
        else:
            self._look(self._update, room)

    @torch.no_grad()
    def look(self) -> None:
        """Read the gradients of the update under way, which are there by now."""
        if self._update is not None:
            room = self._room(self._update.room.members)
            self._look(self._update, room)
            self._free(room)

    def _look(self, update: Update, room: _Room) -> None:
        """Read gradients, by way of a room, and keep weights that are not kept yet."""
        found = {k: grad for k in room.members if (grad := self._parameters[k].grad) is not None}
        update.present = tuple(found)
        if found:
            room.keep(update.present, _dense(list(found.values())))
            update.gradients = room.norms()
        self._keep(update, [index for index in found if index not in update.kept])

    def _keep(self, update: Update, indices: Sequence[int]) -> None:
        if indices:
            update.room.keep(indices, [self._parameters[index] for index in indices])
            update.kept.update(indices)
            update.weights = update.room.norms()

    @torch.no_grad()
    def after_update(self) -> Update | None:
        """End the update under way, and give it; None if there was no gradient."""
        update = self._update
        if update is not None and not update.gradients:
            self.look()  # no closure was called
        self._update = None
        if update is None or not update.present:
            return None
        update.room.subtract([self._parameters[index] for index in update.room.members])
        update.updates = update.room.norms()
        self._free(update.room)
        return update

    def of_updates(self, updates: Sequence[Update]) -> ParameterNotes | None:
        """Give what the step's statistics follow from; None if there was no update.

        A parameter's numbers are those of the last update by an optimizer that holds it.
        """
        updates = [update for update in updates if update.present]
        if not updates:
            return None
        numbers = []
        for update in updates:
            numbers += [*update.gradients, *update.weights, *update.updates, *update.scaler]
        key = tuple((update.present, update.held, update.room.order) for update in updates)
        lengths = tuple(len(update.room.order) for update in updates)
        scaled = tuple(bool(update.scaler) for update in updates)
        plan = self._plan(key, updates[0].room.entries.device)
        return ParameterForm(plan, 3, lengths, scaled), numbers

    @torch.no_grad()
    def of_gradients(self) -> ParameterNotes | None:
        """Give the same of the gradients that the hooks saw, and of the weights then."""
        seen, self._seen = self._seen, {}
        if not seen:
            return None
        present, room, norms = tuple(sorted(seen)), self._room(self._all), []
        for tensors in zip(*(seen[index] for index in present)):
            room.keep(present, _dense(tensors))
            norms += room.norms()
        self._free(room)
        key = ((present, frozenset(present), room.order),)
        plan = self._plan(key, room.entries.device)
        return ParameterForm(plan, 2, (len(room.order),), (False,)), norms

    def _plan(self, key: _Key, device: torch.device) -> _Plan:
        """Give the plan for updates of which each found some gradients, and holds some."""
        if key in self._plans:
            return self._plans[key]
        chosen: dict[int, int] = {}  # where a parameter's norms are
        updated: set[int] = set()
        none = 0  # the number of norms
        for present, held, order in key:
            places = {index: none + place for place, index in enumerate(order)}
            chosen |= {k: places[k] for k in present if k in held or k not in updated}
            updated.update(held.intersection(present))
            none += len(order)
        owned: dict[int, list[int]] = {}  # by layer
        for index in sorted(chosen):
            for layer in self._owners[index]:
                owned.setdefault(layer, []).append(index)
        layers = sorted(owned)
        most = max(map(len, owned.values()), default=0)
        member = [
            [*(chosen[index] for index in owned[layer]), *[none] * (most - len(owned[layer]))]
            for layer in layers
        ]
        entries = [sum(self._parameters[i].numel() for i in owned[layer]) for layer in layers]
        unheld = sorted(set(chosen) - updated)
        self._plans[key] = plan = _Plan(
            self._width,
            layers,
            torch.tensor(member, dtype=torch.long, device=device).view(len(layers), most),
            torch.tensor(entries, dtype=torch.float64, device=device),
            [n for n, layer in enumerate(layers) if not updated.isdisjoint(owned[layer])],
            self._names[unheld[0]] if unheld else None,
        )
        return plan

    def _room(self, members: tuple[int, ...]) -> _Room:
        free = self._rooms.get(members)
        return free.pop() if free else _Room(members, [self._parameters[k] for k in members])

    def _free(self, room: _Room) -> None:
        if room.entries.numel() <= SMALL:
            self._rooms.setdefault(room.members, []).append(room)


def values_of(form: ParameterForm, numbers: Tensor) -> tuple[Values, Values]:
    """Give gradient norms, weight norms and update ratios by layer; and where there are none.

    The latter are 1 where a value is not defined, and 0 stands for it: in front of weights that
    are all 0, and of updates that a scaler left out.

    Args:
        form: of the numbers.
        numbers: of some steps, (steps, numbers) float64.
    """
    plan, lists, lengths, scaled = form
    parts, skips, at = [], numbers.new_zeros(len(numbers), 1), 0
    for length, scaler in zip(lengths, scaled):
        norms = numbers[:, at : at + lists * length].view(len(numbers), lists, -1)
        at += lists * length
        if scaler:
            scale, skip = numbers[:, at : at + 2].split(1, 1)
            norms = torch.cat([norms[:, :1] / scale[:, None], norms[:, 1:]], 1)
            skips = skips.maximum((skip != 0).double())
            at += 2
        parts.append(norms.square())
    filled = functional.pad(torch.cat(parts, 2), (0, 1))  # a 0 fills up layers of few
    gradients, weights, *updates = filled[..., plan.member].sum(-1).sqrt().unbind(1)
    found = [(_GRADIENT, gradients / plan.entries.sqrt()), (_WEIGHT, weights)]
    found += [(_UPDATE, update / weights) for update in updates]
    values, undefined = [], []
    for statistic, value in found:
        none = skips.expand_as(value) != 0
        places = range(len(plan.layers))
        if statistic == _UPDATE:
            none, places = none | (weights == 0), plan.updated
            value, none = value[:, places], none[:, places]
        slots = tuple(plan.layers[place] * plan.width + statistic for place in places)
        values.append((slots, value.masked_fill(none, 0)))
        undefined.append((slots, none.double()))
    return values, undefined


def _scaler_of(optimizer: Any) -> list[Tensor]:
    """Give what a scaler told a fused optimizer, which unscales inside its step.

    The scale, and 1 where the update is left out; both will have changed after the step. Nothing
    without a scaler.
    """
    scale, skips = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
    if isinstance(scale, Tensor):
        none = torch.zeros_like(scale) if skips is None else skips
        return [value.detach().clone().view(1) for value in (scale, none)]
    if isinstance(skips, Tensor):  # unscaled before the step
        return [torch.ones_like(skips).view(1), skips.detach().clone().view(1)]
    return []


def _dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors]


class _Room:
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
        dtype = reduce(torch.promote_types, [p.dtype for p in parameters], torch.float32)
        wide = torch.promote_types(dtype, torch.float64)
        total = sum(size * len(indices) for size, indices in sizes.items())
        self.entries = torch.zeros(total, dtype=dtype, device=parameters[0].device)
        self._rows: list[tuple[Tensor, torch.dtype]] = []  # (rows, size), what to sum in
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

    def subtract(self, tensors: list[Tensor]) -> None:
        """Take from what is here what belongs to all members."""
        torch._foreach_sub_(list(self._views.values()), tensors)

    def norms(self) -> list[Tensor]:
        """Give the L2 norms of what is here of each parameter, in parts; see `order`."""
        return [torch.linalg.vector_norm(rows, dim=1, dtype=dtype) for rows, dtype in self._rows]
