"""Norms of gradients, weights and updates by layer, without a read on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from analysis.hooks import Values
from analysis.layers import Layer
from analysis.record import STATISTICS

_GRADIENT, _WEIGHT, _UPDATE = (
    STATISTICS.index(name) for name in ("gradient_norm", "weight_norm", "update_ratio")
)

FEW = 2**16  # entries whose squares float32 sums to 3e-6 on a CPU, three times as fast as float64


@dataclass(frozen=True)
class _Plan:
    """Which layers' the parameters with a gradient are; those of few entries come first."""

    indices: list[int]  # among all parameters
    chosen: list[Tensor]
    few: int
    layers: list[int]
    member: Tensor  # (layers, parameters)
    entries: Tensor  # (layers,) number of entries


Norms = list[tuple[Tensor, ...]]
"""The L2 norm of what there is for each parameter of a plan, 0-d, in parts by dtype."""


class ParameterNotes(NamedTuple):
    """What one step gave: norms by parameter, of gradients, weights and, if known, updates."""

    plan: _Plan
    norms: list[Norms]
    scale: Tensor | None = None  # of the gradients


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
        self._before: list[Tensor] = []
        self._notes: ParameterNotes | None = None

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
        found = [parameter.grad for parameter in self._parameters]
        plan = self._plan(tuple(index for index, grad in enumerate(found) if grad is not None))
        if plan is None:
            return
        self._before = [torch.empty_like(parameter) for parameter in plan.chosen]
        torch._foreach_copy_(self._before, plan.chosen)
        gradients = [grad for index in plan.indices if (grad := found[index]) is not None]
        # a fused optimizer unscales inside its step, and the scale changes after it
        scale = None if grad_scale is None else grad_scale.clone()
        self._notes = ParameterNotes(
            plan, [_norms(plan, gradients), _norms(plan, self._before)], scale
        )

    @torch.no_grad()
    def after_update(self) -> ParameterNotes | None:
        """Give what the step's statistics follow from; None if there was no gradient."""
        notes, self._notes = self._notes, None
        if notes is not None:
            torch._foreach_sub_(self._before, notes.plan.chosen)
            notes.norms.append(_norms(notes.plan, self._before))
            self._before = []
        return notes

    @torch.no_grad()
    def of_gradients(self) -> ParameterNotes | None:
        """Give the same of the gradients that the hooks saw, and of the weights then."""
        seen, self._seen = self._seen, {}
        plan = self._plan(tuple(sorted(seen)))
        if plan is None:
            return None
        lists = zip(*(seen[index] for index in plan.indices))
        return ParameterNotes(plan, [_norms(plan, list(tensors)) for tensors in lists])

    def values_of(self, notes: ParameterNotes | None) -> Values:
        """Give (slots, values): gradient norms, weight norms and update ratios of the layers."""
        if notes is None:
            return []
        plan = notes.plan
        lists = [torch.cat([torch.stack(part).double() for part in parts]) for parts in notes.norms]
        norms = (torch.stack(lists).square() @ plan.member.T).sqrt()  # (lists, layers)
        gradients, weights, *updates = norms
        if notes.scale is not None:
            gradients = gradients / notes.scale
        return [
            self._of(plan, _GRADIENT, gradients / plan.entries.sqrt()),
            self._of(plan, _WEIGHT, weights),
            *(self._of(plan, _UPDATE, update / weights) for update in updates),
        ]

    def _of(self, plan: _Plan, statistic: int, values: Tensor) -> tuple[tuple[int, ...], Tensor]:
        return tuple(layer * self._width + statistic for layer in plan.layers), values

    def _plan(self, present: tuple[int, ...]) -> _Plan | None:
        if present and present not in self._plans:
            layers = sorted({layer for index in present for layer in self._owners[index]})
            indices = sorted(present, key=lambda index: not _has_few(self._parameters[index]))
            rows = [[float(layer in self._owners[i]) for i in indices] for layer in layers]
            chosen: list[Tensor] = [self._parameters[index] for index in indices]
            sizes = torch.tensor([parameter.numel() for parameter in chosen], dtype=torch.float64)
            member = torch.tensor(rows, dtype=torch.float64).view(len(layers), -1)
            device = chosen[0].device
            self._plans[present] = _Plan(
                indices,
                chosen,
                sum(map(_has_few, chosen)),
                layers,
                member.to(device),
                (member @ sizes).to(device),
            )
        return self._plans.get(present)


def _norms(plan: _Plan, tensors: list[Tensor]) -> Norms:
    parts = (torch.float32, tensors[: plan.few]), (torch.float64, tensors[plan.few :])
    return [torch._foreach_norm(part, 2, dtype=dtype) for dtype, part in parts if part]


def _has_few(parameter: Tensor) -> bool:
    return parameter.numel() <= FEW and parameter.dtype != torch.float64
