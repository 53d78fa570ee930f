"""Images in memory, with their targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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


class Parts(NamedTuple):
    """A data set as its source divides it.

    `test` and `validation` are None where the source has none; `names` are those of the classes,
    none for a regression; `few` is how many of `train` are trained on while all others are
    validated on, None where a share is.
    """

    train: Images
    test: Images | None
    names: tuple[str, ...] = ()
    validation: Images | None = None
    few: int | None = None
