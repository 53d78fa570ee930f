"""By what a gradient scaler has multiplied the loss of the step under way."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor

CALLERS = 16
"""How far up a scaler is looked for: its own `step` calls the optimizer's, or a loop that has had
it unscale the gradients."""


def loss_scale(optimizer: Any) -> Tensor | None:
    """Give the scale, (1,), while an optimizer steps; None where no scaler is at work.

    The optimizer may be told gradients that are unscaled by now; what was read of them before, as
    the backward pass made them, is not. Nothing says so but the scaler, which is among the callers.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if isinstance(scale, Tensor):
        return scale.detach().clone().view(1)
    caller: FrameType | None = sys._getframe(1)
    for _ in range(CALLERS):
        if caller is None:
            break
        values = caller.f_locals
        for value in values.values():
            if not (isinstance(value, torch.amp.GradScaler) and value.is_enabled()):
                continue
            steps = caller.f_code.co_name == "step" and values.get("self") is value
            if steps or id(optimizer) in value._per_optimizer_states:
                scale = value._scale
                return None if scale is None else scale.detach().clone().view(1)
        caller = caller.f_back
    return None
