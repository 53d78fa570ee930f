"""Which numbers stopped being finite first, counted where they are."""

from __future__ import annotations

import torch
from torch import Tensor


class Breaks:
    """Counts, for each total of a window, the readings that left it finite."""

    def __init__(self) -> None:
        self._sound: Tensor | None = None
        self._readings = 0

    def add(self, totals: Tensor) -> None:
        """Look at the totals after another reading; nothing is asked of the device."""
        if self._sound is None:
            self._sound = torch.zeros_like(totals)
        self._sound += totals.isfinite()
        self._readings += 1

    def first(self) -> list[int]:
        """Give the places of the totals that broke at the earliest reading; empty if none did."""
        sound = [] if self._sound is None else self._sound.tolist()
        least = min(sound, default=0)
        return [k for k, count in enumerate(sound) if count == least < self._readings]
