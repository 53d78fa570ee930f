"""What changes from step to step, as numbers on the device: a captured step reads them there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer


class Clock:
    """Holds the numbers of the next step; a Python number would be baked into a captured one.

    `rate` is the learning rate, `weight` that of the step in the running average, both () float32;
    `position` is the batch's in its epoch, `row` the step's in the table of losses, both (1,)
    int64.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.rate, self.weight = (torch.zeros((), device=device) for _ in range(2))
        self.position, self.row = (
            torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2)
        )
        self._now: dict[str, float] = {}

    def set(self, **numbers: float) -> None:
        """Set numbers by name; nothing waits for the device, and what stays is not sent again."""
        for name, value in numbers.items():
            if self._now.get(name) != value:
                self._now[name] = value
                tensor: Tensor = getattr(self, name)
                tensor.fill_(value)

    def lead(self, optimizer: Optimizer) -> None:
        """Let an optimizer read its learning rate here, in all groups."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate
