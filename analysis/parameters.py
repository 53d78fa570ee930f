"""Norms of gradients, weights and updates by layer, without a read on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analysis.hooks import Values
from analysis.layers import Layer
from analysis.moments import in_memory_order
from analysis.record import STATISTICS

PIECE = 2**16
"""Entries that are summed in float32; float32 sums over a large layer would lose 4e-5."""
_GRADIENT, _WEIGHT, _UPDATE = (
    STATISTICS.index(name) for name in ("gradient_norm", "weight_norm", "update_ratio")
)


@dataclass(frozen=True)
class _Plan:
    """How the parameters with a gradient, laid end to end, are cut up, and which layers' each is.

    Those that belong to the same layers lie side by side: the fewer pieces, the faster.
    """

    chosen: list[nn.Parameter]
    pieces: list[int]  # sizes
    layers: list[int]
    member: Tensor  # (layers, pieces)
    entries: Tensor  # (layers,) number of entries


class ParameterNorms:
    """Reads one step's norms: before and after the optimizer's update, or of gradients alone.

    Parameters without a gradient do not count. `width` is the number of statistics of a layer.
    """

    def __init__(self, net: nn.Module, layers: list[Layer], width: int = len(STATISTICS)) -> None:
        self._width = width
        self._parameters = list(net.parameters())
        position = {id(parameter): index for index, parameter in enumerate(self._parameters)}
        owners: list[list[int]] = [[] for _ in self._parameters]
        for number, layer in enumerate(layers):
            modules = [net.get_submodule(path) for path in layer.modules]
            for index in {position[id(p)] for module in modules for p in module.parameters()}:
                owners[index].append(number)
        self._owners = list(map(tuple, owners))
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}  # gradient and weight, by parameter
        self._watched: dict[int, Any] = {}  # hook handles, by parameter
        self._before: Tensor | None = None
        self._norms: tuple[_Plan, Tensor, Tensor] | None = None

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
        plan = self._plan(tuple(i for i, p in enumerate(self._parameters) if p.grad is not None))
        if plan is None:
            return
        gradients = _norms(plan, _end_to_end([p.grad for p in plan.chosen if p.grad is not None]))
        if grad_scale is not None:  # a fused optimizer unscales inside its step
            gradients = gradients / grad_scale
        self._before = _end_to_end(plan.chosen)
        self._norms = plan, gradients / plan.entries.sqrt(), _norms(plan, self._before)

    @torch.no_grad()
    def after_update(self) -> Values:
        """Give (slots, values): gradient norms, weight norms and update ratios of the layers."""
        if self._norms is None or self._before is None:
            return []
        plan, gradients, weights = self._norms
        updates = _norms(plan, _end_to_end(plan.chosen).sub_(self._before))
        self._norms = self._before = None
        return [
            self._of(plan, _GRADIENT, gradients),
            self._of(plan, _WEIGHT, weights),
            self._of(plan, _UPDATE, updates / weights),
        ]

    @torch.no_grad()
    def of_gradients(self) -> Values:
        """Give (slots, values) of the gradients that the hooks saw, and of the weights then."""
        seen, self._seen = self._seen, {}
        plan = self._plan(tuple(sorted(seen)))
        if plan is None:
            return []
        order = [seen[index] for index in self._order(tuple(seen))]
        gradients, weights = (_norms(plan, _end_to_end(tensors)) for tensors in zip(*order))
        return [
            self._of(plan, _GRADIENT, gradients / plan.entries.sqrt()),
            self._of(plan, _WEIGHT, weights),
        ]

    def _of(self, plan: _Plan, statistic: int, values: Tensor) -> tuple[tuple[int, ...], Tensor]:
        return tuple(layer * self._width + statistic for layer in plan.layers), values

    def _order(self, present: tuple[int, ...]) -> list[int]:
        return sorted(present, key=lambda index: (self._owners[index], index))

    def _plan(self, present: tuple[int, ...]) -> _Plan | None:
        if present and present not in self._plans:
            order, groups = self._order(present), dict[tuple[int, ...], int]()
            for index in order:
                size = self._parameters[index].numel()
                groups[self._owners[index]] = groups.get(self._owners[index], 0) + size
            pieces = [
                (min(PIECE, size - start), owners)
                for owners, size in groups.items()
                for start in range(0, size, PIECE)
            ]
            layers = sorted({layer for owners in groups for layer in owners})
            rows = [[float(layer in owners) for _, owners in pieces] for layer in layers]
            sizes = [size for size, _ in pieces]
            chosen = [self._parameters[index] for index in order]
            member = torch.tensor(rows, dtype=torch.float64)
            entries = member @ torch.tensor(sizes, dtype=torch.float64)
            device = chosen[0].device
            self._plans[present] = _Plan(
                chosen, sizes, layers, member.to(device), entries.to(device)
            )
        return self._plans.get(present)


def _end_to_end(tensors: Sequence[Tensor]) -> Tensor:
    """Copy all entries into one tensor; of equal strides, equal entries get equal places."""
    return torch.cat([in_memory_order(tensor) for tensor in tensors])


def _norms(plan: _Plan, entries: Tensor) -> Tensor:
    """Give the L2 norm of each layer's entries, (layers,) float64."""
    if entries.dtype in (torch.float16, torch.bfloat16):
        entries = entries.float()
    pieces = torch._foreach_norm(entries.split(plan.pieces))
    return (plan.member @ torch.stack(pieces).double().square()).sqrt()
