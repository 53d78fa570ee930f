"""An optimizer's update that is left out where gradients are not finite, decided on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.computing.optimizer import UNSCALED


def update(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler = UNSCALED,
    skipped: Tensor | None = None,
) -> None:
    """Take an optimizer's step, unless `skipped` is 1 or the scaler meets an infinite gradient.

    The same as the scaler's own `step` and `update`, which ask the host where the optimizer is not
    fused.

    Args:
        optimizer: with gradients, scaled by `scaler`.
        scaler: of float16.
        skipped: () float32, 1 or 0.
    """
    if skipped is None and not scaler.is_enabled():
        optimizer.step()
        return
    found = skipped
    if scaler.is_enabled():
        scaler.unscale_(optimizer)
        infinite = not_finite(_gradients_of(optimizer))
        found = infinite if skipped is None else torch.maximum(skipped, infinite)
    assert found is not None
    step_unless(found, optimizer)
    scaler.update()


def step_unless(found: Tensor, optimizer: Any) -> None:
    """Take a step that changes nothing where `found` is 1, () float32.

    Who watches the optimizer sees it too, as its `found_inf`, by which fused optimizers decide.
    """
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    before = {} if fused else {id(v): v.detach().clone() for v in _values_of(optimizer)}
    optimizer.grad_scale, optimizer.found_inf = None, found
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale, optimizer.found_inf
    if not fused:
        with torch.no_grad():
            for value in _values_of(optimizer):  # what the first step has made began with 0
                old = before.get(id(value), torch.zeros_like(value))
                value.copy_(torch.where(found > 0, old, value))


def not_finite(tensors: Sequence[Tensor | None]) -> Tensor:
    """Say whether any entry is NaN or infinite, () float32: 1 or 0."""
    present = [value for value in tensors if value is not None]
    found = torch.zeros((), device=present[0].device)
    one = torch.ones((), device=found.device)
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for value in present:
        by_dtype.setdefault(value.dtype, []).append(value.detach())
    for dtype, several in by_dtype.items():
        if dtype == torch.float64:
            sound = torch.stack([value.isfinite().all() for value in several]).all()
            found = torch.maximum(found, (~sound).float())
        else:  # what a gradient scaler calls: one operation for all, here with a scale of 1
            torch._amp_foreach_non_finite_check_and_unscale_(several, found, one)
    return found


def tensors_of(scaler: torch.amp.GradScaler) -> list[Tensor]:
    """Give a scaler's state on the device."""
    return [value for value in vars(scaler).values() if isinstance(value, Tensor)]


def _gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor | None]:
    return [value.grad for group in optimizer.param_groups for value in group["params"]]


def _values_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Give all tensors that a step changes."""
    weights = [value for group in optimizer.param_groups for value in group["params"]]
    state = [v for own in optimizer.state.values() for v in own.values()]
    return weights + [value for value in state if isinstance(value, Tensor)]
