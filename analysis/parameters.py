"""Norms of gradients, weights and updates by layer: one foreach call for all parameters, no host reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analysis.layers import Layer
from analysis.record import STATISTICS

_GRADIENT, _WEIGHT, _UPDATE = (
    STATISTICS.index(name) for name in ("gradient_norm", "weight_norm", "update_ratio")
)


@dataclass(frozen=True)
class _Plan:
    """For the parameters that have a gradient: which layers hold them, as a matrix (layers, parameters)."""

    chosen: list[nn.Parameter]
    layers: list[int]
    member: Tensor
    entries: Tensor  # (layers,) number of entries


class ParameterNorms:
    """Reads one step's norms: before and after the optimizer's update, or of gradients alone.

    All norms are taken in float32 at least. Parameters without a gradient do not count.
    """

    def __init__(self, net: nn.Module, layers: list[Layer]) -> None:
        self._parameters = list(net.parameters())
        position = {id(parameter): index for index, parameter in enumerate(self._parameters)}
        self._owned = [
            {position[id(p)] for path in layer.modules for p in net.get_submodule(path).parameters()}
            for layer in layers
        ]
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._gradients: dict[int, Tensor] = {}
        self._before: list[Tensor] = []
        self._norms: tuple[_Plan, Tensor, Tensor] | None = None

    def watch_gradients(self, wanted: Callable[[], bool]) -> list[Any]:
        """Hook the gradients' accumulation, for loops without a known optimizer; give the handles."""

        def hook(index: int) -> Callable[[Tensor], None]:
            def read(parameter: Tensor) -> None:
                if wanted() and parameter.grad is not None:
                    self._gradients[index] = _norms([parameter.grad])[0]

            return read

        return [
            parameter.register_post_accumulate_grad_hook(hook(index))
            for index, parameter in enumerate(self._parameters)
            if parameter.requires_grad
        ]

    def before_update(self, grad_scale: Tensor | None) -> None:
        """Read gradients and weights as the optimizer finds them, and keep the weights."""
        present = tuple(i for i, parameter in enumerate(self._parameters) if parameter.grad is not None)
        if not present:
            return
        plan = self._plan(present)
        gradients = _norms([p.grad for p in plan.chosen if p.grad is not None])
        if grad_scale is not None:  # a fused optimizer unscales inside its step
            gradients = gradients / grad_scale
        weights = _by_layer(plan, _norms(plan.chosen))
        self._before = [parameter.detach().clone() for parameter in plan.chosen]
        self._norms = plan, _by_layer(plan, gradients) / plan.entries.sqrt(), weights

    def after_update(self) -> list[tuple[int, Tensor]]:
        """Give (slot, value) pairs: gradient norm, weight norm and update ratio of every layer."""
        if self._norms is None:
            return []
        plan, gradients, weights = self._norms
        with torch.no_grad():
            updates = _by_layer(plan, _norms(torch._foreach_sub(plan.chosen, self._before)))
        self._norms, self._before = None, []
        pairs = _slots(plan, _GRADIENT, gradients) + _slots(plan, _WEIGHT, weights)
        return pairs + _slots(plan, _UPDATE, updates / weights)

    def of_gradients(self) -> list[tuple[int, Tensor]]:
        """Give (slot, value) pairs of the gradients that the hooks saw, and the weights' norms."""
        present = tuple(sorted(self._gradients))
        if not present:
            return []
        plan = self._plan(present)
        gradients = torch.stack([self._gradients[index] for index in present])
        self._gradients = {}
        values = _by_layer(plan, gradients) / plan.entries.sqrt()
        weights = _by_layer(plan, _norms(plan.chosen))
        return _slots(plan, _GRADIENT, values) + _slots(plan, _WEIGHT, weights)

    def _plan(self, present: tuple[int, ...]) -> _Plan:
        if present not in self._plans:
            layers = [index for index, owned in enumerate(self._owned) if owned.intersection(present)]
            chosen = [self._parameters[index] for index in present]
            rows = [[float(index in self._owned[layer]) for index in present] for layer in layers]
            sizes = torch.tensor([parameter.numel() for parameter in chosen], dtype=torch.float64)
            member = torch.tensor(rows, dtype=torch.float64)
            device = chosen[0].device
            self._plans[present] = _Plan(chosen, layers, member.to(device), (member @ sizes).to(device))
        return self._plans[present]


def _norms(tensors: list[Any]) -> Tensor:
    """Stack the L2 norms of the tensors, read in float32 at least, as float64."""
    wide = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    detached = [tensor.detach() for tensor in tensors]
    return torch.stack(list(torch._foreach_norm(detached, 2, dtype=wide))).double()


def _by_layer(plan: _Plan, norms: Tensor) -> Tensor:
    return (plan.member @ norms.square()).sqrt()


def _slots(plan: _Plan, statistic: int, values: Tensor) -> list[tuple[int, Tensor]]:
    slots = [layer * len(STATISTICS) + statistic for layer in plan.layers]
    return list(zip(slots, values.unbind(), strict=True))
