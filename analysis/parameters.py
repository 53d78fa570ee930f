"""Norms of gradients, weights and updates by layer, without a read on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from analysis.hooks import Values
from analysis.layers import Layer, parameters_of
from analysis.record import STATISTICS

_GRADIENT, _WEIGHT, _UPDATE = (
    STATISTICS.index(name) for name in ("gradient_norm", "weight_norm", "update_ratio")
)

FEW = 2**16  # entries whose squares float32 sums to 3e-6 on a CPU, three times as fast as float64
NARROW = 64  # entries; room for fewer is as wide, so that all have their norms taken at once
SMALL = 2**22  # entries of a network up to which the room for them is kept from step to step


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which layers have parameters with a gradient, and where in a room's norms these are."""

    layers: list[int]
    member: Tensor  # (layers, most), filled up with the number of norms
    entries: Tensor  # (layers,): how many there are of such parameters


class ParameterForm(NamedTuple):
    """What the numbers of a step are: norms of gradients, weights and perhaps updates; a scale."""

    plan: _Plan
    lists: int  # of norms
    scaled: bool  # whether the scale of the gradients follows


ParameterNotes = tuple[ParameterForm, list[Tensor]]
"""What one step gave, numbers in 1-D parts."""


class ParameterNorms:
    """Reads one step's norms: before and after the optimizer's update, or of gradients alone.

    Parameters without a gradient do not count. `width` is the number of statistics of a layer.
    """

    def __init__(self, net: nn.Module, layers: list[Layer], width: int = len(STATISTICS)) -> None:
        self._width = width
        self._parameters: list[Tensor] = list(net.parameters())
        self.own(net, layers)
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}  # gradient and weight, by parameter
        self._watched: dict[int, Any] = {}  # hook handles, by parameter
        self._rooms: list[_Room] = []  # free ones
        self._kept: _Room | None = None  # the weights before an update
        self._notes: tuple[_Plan, list[Tensor], list[Tensor]] | None = None  # norms; scale, if any

    def own(self, net: nn.Module, layers: list[Layer]) -> None:
        """Say which layers the parameters belong to."""
        position = {id(parameter): index for index, parameter in enumerate(self._parameters)}
        owners: list[list[int]] = [[] for _ in self._parameters]
        for number, layer in enumerate(layers):
            for parameter in parameters_of(net, layer):
                owners[position[id(parameter)]].append(number)
        self._owners = list(map(tuple, owners))
        self._plans: dict[tuple[int, ...], _Plan] = {}

    def watch(self) -> None:
        """Hook the gradients of parameters not hooked yet, for loops without a known optimizer."""

        def hook(index: int) -> Callable[[Tensor], None]:
            def read(parameter: Tensor) -> None:
                if parameter.grad is not None:
                    self._seen[index] = parameter.grad.detach().clone(), parameter.detach().clone()

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

    @torch.no_grad()
    def before_update(self, grad_scale: Tensor | None) -> None:
        """Read gradients and weights as the optimizer finds them, and keep the weights."""
        self._notes = self._kept = None  # of a step that failed
        found = [parameter.grad for parameter in self._parameters]
        present = tuple(index for index, grad in enumerate(found) if grad is not None)
        if not present:
            return
        self._kept = room = self._room()
        found = [grad for grad in found if grad is not None]
        room.keep(present, _dense(found))
        norms = room.norms()
        room.keep(present, [self._parameters[index] for index in present])
        norms += room.norms()
        # a fused optimizer unscales inside its step, and the scale changes after it
        scale = [] if grad_scale is None else [grad_scale.clone().view(1)]
        self._notes = self._plan(present, room), norms, scale

    @torch.no_grad()
    def after_update(self) -> ParameterNotes | None:
        """Give what the step's statistics follow from; None if there was no gradient."""
        notes, self._notes = self._notes, None
        kept, self._kept = self._kept, None
        if notes is None or kept is None:
            return None
        plan, norms, scale = notes
        kept.subtract(self._parameters)
        norms += kept.norms()
        self._free(kept)
        return ParameterForm(plan, 3, bool(scale)), [torch.cat(norms), *scale]

    @torch.no_grad()
    def of_gradients(self) -> ParameterNotes | None:
        """Give the same of the gradients that the hooks saw, and of the weights then."""
        seen, self._seen = self._seen, {}
        if not seen:
            return None
        present, room, norms = tuple(sorted(seen)), self._room(), []
        for tensors in zip(*(seen[index] for index in present)):
            room.keep(present, _dense(tensors))
            norms += room.norms()
        self._free(room)
        return ParameterForm(self._plan(present, room), 2, False), [torch.cat(norms)]

    def values_of(self, form: ParameterForm, numbers: Tensor) -> Values:
        """Give gradient norms, weight norms and update ratios by layer.

        Args:
            form: of the numbers.
            numbers: of some steps, (steps, numbers) float64.
        """
        plan, lists, scaled = form
        squares = numbers[:, : numbers.shape[1] - scaled].view(len(numbers), lists, -1).square()
        filled = functional.pad(squares, (0, 1))  # a 0 fills up layers of few parameters
        gradients, weights, *updates = filled[..., plan.member].sum(-1).sqrt().unbind(1)
        if scaled:
            gradients = gradients / numbers[:, -1:]
        return [
            self._of(plan, _GRADIENT, gradients / plan.entries.sqrt()),
            self._of(plan, _WEIGHT, weights),
            *(self._of(plan, _UPDATE, update / weights) for update in updates),
        ]

    def _of(self, plan: _Plan, statistic: int, values: Tensor) -> tuple[tuple[int, ...], Tensor]:
        return tuple(layer * self._width + statistic for layer in plan.layers), values

    def _plan(self, present: tuple[int, ...], room: _Room) -> _Plan:
        if present not in self._plans:
            owned: dict[int, list[int]] = {}  # by layer
            for index in present:
                for layer in self._owners[index]:
                    owned.setdefault(layer, []).append(index)
            layers, none = sorted(owned), len(self._parameters)
            most = max(map(len, owned.values()), default=0)
            places = {index: place for place, index in enumerate(room.order)}
            member = [
                [*(places[index] for index in owned[layer]), *[none] * (most - len(owned[layer]))]
                for layer in layers
            ]
            entries = [sum(self._parameters[i].numel() for i in owned[layer]) for layer in layers]
            device = room.entries.device
            self._plans[present] = _Plan(
                layers,
                torch.tensor(member, dtype=torch.long, device=device).view(len(layers), most),
                torch.tensor(entries, dtype=torch.float64, device=device),
            )
        return self._plans[present]

    def _room(self) -> _Room:
        return self._rooms.pop() if self._rooms else _Room(self._parameters)

    def _free(self, room: _Room) -> None:
        if room.entries.numel() <= SMALL:
            self._rooms.append(room)


def _dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors]


class _Room:
    """Room for a number from every entry of the parameters, as a row for each.

    To copy all to here and take the norms of rows of one size at once is faster than a norm each.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        sizes: dict[int, list[int]] = {}
        for index, parameter in enumerate(parameters):
            sizes.setdefault(max(NARROW, parameter.numel()), []).append(index)
        self.order = [index for indices in sizes.values() for index in indices]  # of the norms
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
        self._views = [views[index] for index in range(len(parameters))]

    def keep(self, indices: Sequence[int], tensors: list[Tensor]) -> None:
        """Copy to here what belongs to the parameters of these indices."""
        every = len(indices) == len(self._views)
        views = self._views if every else [self._views[index] for index in indices]
        torch._foreach_copy_(views, tensors)

    def subtract(self, tensors: list[Tensor]) -> None:
        """Take from what is here what belongs to all parameters."""
        torch._foreach_sub_(self._views, tensors)

    def norms(self) -> list[Tensor]:
        """Give the L2 norms of what is here of each parameter, in parts; see `order`."""
        return [torch.linalg.vector_norm(rows, dim=1, dtype=dtype) for rows, dtype in self._rows]
