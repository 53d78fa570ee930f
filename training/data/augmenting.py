"""What training images go through: crops and mirroring, by a data set's recipe or as asked for.

All images lie as one table of their pixels, with what is padded; a crop is a choice of its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nets.checks import check_choice, check_count
from training.settings.checks import AUGMENTATIONS

_PAD = 4
"""Pixels a side of a crop where there is no recipe, an eighth of CIFAR's 32; so of smaller ones."""


@dataclass(frozen=True)
class Augment:
    """Crops from an image padded with `pad` black pixels a side; one image of two is mirrored."""

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        check_count("pad", self.pad, least=0)

    def __str__(self) -> str:
        crop = [f"crop (pad {self.pad})"] if self.pad else []
        return ", ".join([*crop, *["mirroring"] * self.flip]) or "none"


AUGMENTS = {
    "digits": Augment(pad=1),
    "mnist": Augment(pad=2),
    "fashion-mnist": Augment(pad=2, flip=True),
    "cifar10": Augment(pad=4, flip=True),
    "cifar100": Augment(pad=4, flip=True),
    "folder": Augment(),
    "npz": Augment(),
    "sine": Augment(),
}
"""The recipe of each data set: He et al. 2015 (1512.03385), section 4.2, for CIFAR; crops and
mirroring for Fashion-MNIST, as Zhong et al. 2017 (1708.04896), here with smaller crops. Digits have
a side that is left; a user's own images may, and nothing says where in the image they lie."""


def augment_of(name: str, how: str = "auto", image: tuple[int, ...] = (3, 32, 32)) -> Augment:
    """Give the augmentation of a data set: its recipe, or what `how` asks for instead.

    Args:
        name: of the data set, as `training.data.splits.load` takes it.
        how: `auto` is the recipe; `none`, `crop`, `crop-flip` and `flip` are what they say.
        image: (channels, height, width). Crops are padded as in the recipe; where it has none by 4
            pixels a side, of images below 32 by an eighth of the shorter side.

    Raises:
        ValueError: an unknown name or `how`, or images are asked for where there are none.
    """
    kind = name.partition(":")[0]
    check_choice("data", kind, tuple(AUGMENTS))
    check_choice("augment", how, AUGMENTATIONS)
    recipe = AUGMENTS[kind]
    if how == "auto":
        return recipe
    if kind == "sine" and how != "none":
        raise ValueError(f"augment must be auto or none for sine, which has no images, got {how!r}")
    pad = recipe.pad or min(_PAD, max(1, min(image[1:], default=0) // 8))
    return Augment(pad if "crop" in how else 0, "flip" in how)


def table_of(pixels: Tensor, augment: Augment) -> Tensor:
    """Give all pixels with the padding as rows: (N, H, W, C) -> (N * padded H * padded W, C)."""
    if augment.pad:
        pixels = functional.pad(pixels, (0, 0, *[augment.pad] * 4))
    return pixels.flatten(0, -2)


def views_of(size: tuple[int, ...], augment: Augment) -> Tensor:
    """Give the rows of a crop counted from its first, straight and mirrored, (2, H * W)."""
    height, width = size
    rows, columns = torch.arange(height)[:, None] * (width + 2 * augment.pad), torch.arange(width)
    return torch.stack([(rows + columns).flatten(), (rows + columns.flip(0)).flatten()])


def draw_crops(
    order: Tensor, size: tuple[int, ...], augment: Augment, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw for images, (N,), the row where each one's crop begins, and 1 if it is mirrored."""
    height, width = (side + 2 * augment.pad for side in size)
    top, left = torch.randint(2 * augment.pad + 1, (2, len(order)), generator=generator)
    flip = torch.randint(1 + augment.flip, (len(order),), generator=generator)
    return (order * height + top) * width + left, flip
