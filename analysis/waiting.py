"""Numbers of steps whose statistics are worked out later, together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

STEPS = 16
"""Steps whose statistics are worked out together: it takes little longer than for one."""
LARGE = 2**18
"""Numbers that wait, at most, unless a step has more."""


class Waiting:
    """Numbers of the last steps, all of one form, copied to a place that stays where it is.

    Kept as they came, small pieces between large ones, they would keep the memory of activations
    from being used again in the next step.
    """

    def __init__(self) -> None:
        self.form: Any = None
        self._table = torch.empty(0, 0)
        self._count = 0

    @property
    def full(self) -> bool:
        """Whether no other step has room."""
        return self._count == len(self._table)

    @torch.no_grad()
    def add(self, form: Any, parts: list[Tensor]) -> None:
        """Add a step: of another form only where none waits, and none where it is `full`.

        Args:
            form: what the numbers are.
            parts: the numbers, 1-D, on one device.
        """
        if form != self.form or self._table.device != parts[0].device:
            size = sum(map(len, parts))
            steps = max(1, min(STEPS, LARGE // max(1, size)))
            self._table = torch.empty(steps, size, dtype=torch.float64, device=parts[0].device)
            self.form = form
        torch.cat(parts, out=self._table[self._count])
        self._count += 1

    def take(self) -> Tensor:
        """Give what waits, (steps, numbers) float64, until the next `add`."""
        count, self._count = self._count, 0
        return self._table[:count]
