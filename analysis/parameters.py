"""Norms of gradients, weights and updates by layer, without a read on the host."""

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
    """Which layers hold the parameters with a gradient: a matrix (layers, parameters)."""

    chosen: list[nn.Parameter]
    layers: list[int]
    member: Tensor
    entries: Tensor  # (layers,) number of entries


class ParameterNorms:
    """Reads one step's norms: before and after the optimizer's update, or of gradients alone.

    All norms are taken in float64. Parameters without a gradient do not count.
    """

    def __init__(self, net: nn.Module, layers: list[Layer]) -> None:
        self._parameters = list(net.parameters())
        position = {id(parameter): index for index, parameter in enumerate(self._parameters)}
        self._owned = [
            {
                position[id(p)]
                for path in layer.modules
                for p in net.get_submodule(path).parameters()
            }
            for layer in layers
        ]
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._seen: dict[int, Tensor] = {}  # (2,) norms of gradient and weight, by parameter
        self._watched: dict[int, Any] = {}  # hook handles, by parameter
        self._before: list[Tensor] = []
        self._norms: tuple[_Plan, Tensor, Tensor] | None = None

    def watch(self, wanted: Callable[[], bool]) -> None:
        """Hook the gradients of parameters not hooked yet, for loops without a known optimizer."""

        def hook(index: int) -> Callable[[Tensor], None]:
            def read(parameter: Tensor) -> None:
                if wanted() and parameter.grad is not None:
                    self._seen[index] = _norms([parameter.grad, parameter])

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

    def before_update(self, grad_scale: Tensor | None) -> None:
        """Read gradients and weights as the optimizer finds them, and keep the weights."""
        present = tuple(
            i for i, parameter in enumerate(self._parameters) if parameter.grad is not None
        )
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
        now = [parameter.detach() for parameter in plan.chosen]
        updates = _by_layer(plan, _norms(list(torch._foreach_sub(now, self._before))))
        self._norms, self._before = None, []
        pairs = _slots(plan, _GRADIENT, gradients) + _slots(plan, _WEIGHT, weights)
        return pairs + _slots(plan, _UPDATE, updates / weights)

    def of_gradients(self) -> list[tuple[int, Tensor]]:
        """Give (slot, value) pairs of the gradients that the hooks saw, and of the weights then."""
        present = tuple(sorted(self._seen))
        if not present:
            return []
        plan = self._plan(present)
        gradients, weights = torch.stack([self._seen[index] for index in present]).unbind(1)
        self._seen = {}
        values = _by_layer(plan, gradients) / plan.entries.sqrt()
        return _slots(plan, _GRADIENT, values) + _slots(plan, _WEIGHT, _by_layer(plan, weights))

    def _plan(self, present: tuple[int, ...]) -> _Plan:
        if present not in self._plans:
            layers = [
                index for index, owned in enumerate(self._owned) if owned.intersection(present)
            ]
            chosen = [self._parameters[index] for index in present]
            rows = [[float(index in self._owned[layer]) for index in present] for layer in layers]
            sizes = torch.tensor([parameter.numel() for parameter in chosen], dtype=torch.float64)
            member = torch.tensor(rows, dtype=torch.float64)
            device = chosen[0].device
            self._plans[present] = _Plan(
                chosen, layers, member.to(device), (member @ sizes).to(device)
            )
        return self._plans[present]


def _norms(tensors: list[Any]) -> Tensor:
    """Stack the L2 norms of the tensors in float64; float32 sums lose 4e-5 on a large layer."""
    detached = [tensor.detach() for tensor in tensors]
    return torch.stack(list(torch._foreach_norm(detached, 2, dtype=torch.float64)))


def _by_layer(plan: _Plan, norms: Tensor) -> Tensor:
    return (plan.member @ norms.square()).sqrt()


def _slots(plan: _Plan, statistic: int, values: Tensor) -> list[tuple[int, Tensor]]:
    slots = [layer * len(STATISTICS) + statistic for layer in plan.layers]
    return list(zip(slots, values.unbind(), strict=True))
