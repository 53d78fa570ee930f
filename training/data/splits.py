"""The training, validation and test split of a data set: drawn once, the same for every run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from analysis.recording.atomic_files import path_of
from nets.modules.random_draws import generator_of
from training.data.datasets import read
from training.data.images import Images

TEST_SHARE = 0.2
"""Of a data set without an official test split."""


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set, divided once and for all runs.

    `classes` is 1 for a regression; `image` is the shape of one input, (channels, height, width) or
    (1,); `names` are those of the classes, none for a regression. `test` is for the one reading at
    the end of a run: nothing here looks into it, but that its content is told by a hash.
    """

    train: Images
    validation: Images
    test: Images
    classes: int
    image: tuple[int, ...]
    task: Literal["classification", "regression"]
    name: str
    names: tuple[str, ...] = ()


def load(name: str, data_dir: str | Path = "data", validation: float = 0.1) -> Splits:
    """Load a data set into memory.

    The validation split is stratified and the same for every run: with it, runs are compared.

    Args:
        name: `digits`, `digits:SETTINGS` (`training.data.datasets.HardDigits`), `mnist`,
            `fashion-mnist`, `cifar10`, `cifar100`, `folder:PATH` (which holds train/CLASS/* and
            test/CLASS/*), `npz:FILE` (`training.data.npz_files`) or `sine` (the regression of sin
            on [-2 pi, 2 pi]).
        data_dir: where torchvision's files are, or are downloaded to.
        validation: the share of the training part that is held out, above 0 and below 1; data that
            bring their own validation split keep it.

    Raises:
        ValueError: an unknown name, files that are missing or cannot be used, or a share out of
            its range.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation must be above 0 and below 1, got {validation!r}")
    train, test, names, held, few = read(name, path_of("data_dir", data_dir))
    if test is None:
        train, test = divide(train, TEST_SHARE, "test")
    if few is not None:
        chosen = torch.zeros(len(train), dtype=torch.bool)
        chosen[_spread(train, few)] = True
        train, held = train.take(chosen), train.take(~chosen)
    if held is None:
        train, held = divide(train, validation, "validation")
    shape = tuple(train.pixels.shape[1:])
    image = (shape[-1], *shape[:-1])  # (H, W, C) -> (C, H, W)
    task = "regression" if train.targets.is_floating_point() else "classification"
    return Splits(train, held, test, len(names) or 1, image, task, name, names)


def divide(images: Images, share: float, purpose: str) -> tuple[Images, Images]:
    """Divide into those that stay and a fixed stratified `share` that is held out for `purpose`.

    Both keep their order. Of every class at least one image stays and, where it has two, at least
    one is held out. A regression counts as one class.

    Raises:
        ValueError: no class has two images.
    """
    generator = generator_of("split", purpose)
    strata = _strata(images)
    held = torch.zeros(len(images), dtype=torch.bool)
    for stratum in strata.unique():
        members = (strata == stratum).nonzero().flatten()
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not held.any():
        raise ValueError(f"{purpose} needs a class of at least 2 images, got none")
    return images.take(~held), images.take(held)


def part_of(images: Images, most: int) -> Images:
    """Give a fixed stratified part of `most` images, in their order; all, if there are no more."""
    return images if len(images) <= most else images.take(_spread(images, most))


def _spread(images: Images, most: int) -> Tensor:
    """Choose `most` images by class, (most,) int64, in their order."""
    order = torch.randperm(len(images), generator=generator_of("split", "part"))
    strata = _strata(images)[order]
    place = torch.empty(len(images), dtype=torch.float64)  # within the class, from 0 to 1
    for stratum in strata.unique():
        members = strata == stratum
        count = int(members.sum())
        place[members] = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return order[place.argsort(stable=True)[:most]].sort().values


def _strata(images: Images) -> Tensor:
    """Give the classes, (N,) int64; a regression counts as one."""
    strata = images.targets.flatten()
    return torch.zeros(len(images), dtype=torch.int64) if strata.is_floating_point() else strata


def channel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Give mean and std of every channel, (C,) each, in pixel units; a std of 0 becomes 1."""
    if images.pixels.dtype == torch.uint8:  # counted by level: exact, and without a copy in floats
        channels = images.pixels.flatten(0, -2).unbind(-1)  # (N, H, W, C) -> C times (N * H * W,)
        levels = torch.arange(256, dtype=torch.float64)
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
        shares = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
        mean = shares @ levels
        std = (shares * (levels - mean[:, None]).square()).sum(1).sqrt()
    else:
        mean, std = images.pixels.double().mean(0), images.pixels.double().std(0, correction=0)
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Give (pixels - mean) / std in float32: (B, H, W, C) -> (B, C, H, W) in channels_last.

    Inputs that are no images, (B, C), keep their shape.
    """
    # Whole images of means and stds: the CPU broadcasts over three channels many times slower.
    shift, scale = (value.expand(pixels.shape[1:]).contiguous() for value in (mean, std))
    values = pixels.to(torch.float32, copy=True).sub_(shift).div_(scale)
    return values.permute(0, 3, 1, 2) if values.ndim == 4 else values
