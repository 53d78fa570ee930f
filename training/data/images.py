"""Images in memory, with their targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """Inputs and targets of one split.

    `pixels` are uint8 (N, H, W, C), `targets` int64 (N,); for a regression both are float32 (N, 1).
    """

    pixels: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device) -> Images:
        """Give the images on a device, themselves if they are there."""
        return Images(self.pixels.to(device), self.targets.to(device))

    def take(self, chosen: Tensor) -> Images:
        """Give the images that a boolean mask or indices choose."""
        return Images(self.pixels[chosen], self.targets[chosen])


Parts = tuple[Images, Images | None, tuple[str, ...]]
"""Training part, test part (None where the source has none), class names (none: a regression)."""
