"""Numbers of steps whose statistics are worked out later, together."""

from __future__ import annotations

from collections.abc import Callable
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

    Args:
        work_out: is given what waited, a form and (steps, numbers) float64, when a step of another
            form comes, when no other has room and by `flush`.
    """

    def __init__(self, work_out: Callable[[Any, Tensor], None]) -> None:
        self._work_out = work_out
        self._form: Any = None
        self._table = torch.empty(0, 0)
        self._count = 0

    @torch.no_grad()
    def add(self, form: Any, parts: list[Tensor]) -> None:
        """Add a step.

        Args:
            form: what the numbers are.
            parts: the numbers, 1-D; they are brought to the device of the first.
        """
        device = parts[0].device
        parts = [part if part.device == device else part.to(device) for part in parts]
        if form != self._form or self._table.device != device:
            self.flush()
            size = sum(map(len, parts))
            steps = max(1, min(STEPS, LARGE // max(1, size)))
            self._table = torch.empty(steps, size, dtype=torch.float64, device=device)
            self._form = form
        torch.cat(parts, out=self._table[self._count])
        self._count += 1
        if self._count == len(self._table):
            self.flush()

    def flush(self) -> None:
        """Have what waits worked out; should that fail, it is lost."""
        count, self._count = self._count, 0
        if count:
            self._work_out(self._form, self._table[:count])

    def __bool__(self) -> bool:
        return self._count > 0

    def drop(self) -> None:
        """Forget what waits."""
        self._count = 0
