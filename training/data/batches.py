"""Fixed splits in memory, and batches that are a function of (seed, epoch, position) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad as padded

from analysis.recording.atomic_files import path_of
from nets.checks import check_count
from nets.modules.draws import generator_of
from training.data.augmenting import AUGMENTS as AUGMENTS
from training.data.augmenting import Augment
from training.data.augmenting import augment_of as augment_of
from training.data.images import Images
from training.data.sources import read

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
        name: `digits`, `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `folder:PATH` (which holds
            train/CLASS/* and test/CLASS/*) or `sine` (the regression of sin on [-2 pi, 2 pi]).
        data_dir: where torchvision's files are, or are downloaded to.
        validation: the share of the training part that is held out, above 0 and below 1.

    Raises:
        ValueError: an unknown name, files that are missing or cannot be used, or a share out of
            its range.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation must be above 0 and below 1, got {validation!r}")
    train, test, names = read(name, path_of("data_dir", data_dir))
    if test is None:
        train, test = divide(train, TEST_SHARE, "test")
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
    if len(images) <= most:
        return images
    order = torch.randperm(len(images), generator=generator_of("split", "part"))
    strata = _strata(images)[order]
    place = torch.empty(len(images), dtype=torch.float64)  # within the class, from 0 to 1
    for stratum in strata.unique():
        members = strata == stratum
        count = int(members.sum())
        place[members] = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    chosen = order[place.argsort(stable=True)[:most]]
    return images.take(chosen.sort().values)


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


def evaluation_batches(
    images: Images, mean: Tensor, std: Tensor, device: torch.device | str, batch_size: int = 500
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give (inputs, targets) of all images in their order; the last batch may be smaller."""
    check_count("batch_size", batch_size)
    mean, std = mean.to(device), std.to(device)
    for pixels, targets in zip(
        images.pixels.split(batch_size), images.targets.split(batch_size), strict=True
    ):
        yield normalised(pixels.to(device), mean, std), targets.to(device)


class Batches:
    """The training images, resident on a device, as shuffled, cropped and mirrored batches.

    Padded images lie as one table of pixels, (N * padded height * padded width, C): a batch is one
    `index_select`, and nothing in it waits for the host. What an epoch draws is a pure function of
    (seed, epoch), so that a run resumes at any position without a saved generator.

    Args:
        images: of the training split.
        batch_size: at least 2, of all processes together; the incomplete last batch of an epoch is
            left out.
        seed: of the run.
        device: where the images live and the batches are made.
        augment: none is `Augment()`.
        mean, std: of `channel_statistics`, (C,).
        rank, ranks: of each batch this process gets the rank-th of `ranks` equal parts, so that the
            batches of all processes together are those of a single one.

    Raises:
        ValueError: `batch_size` is out of its range or no multiple of `ranks`, or `augment` changes
            flat inputs.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        augment: Augment,
        mean: Tensor,
        std: Tensor,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        check_count("batch_size", batch_size, least=2)
        if batch_size > len(images):
            raise ValueError(
                f"batch_size must be at most {len(images)} (the training images), got {batch_size}"
            )
        if batch_size % ranks:
            raise ValueError(
                f"batch_size must be a multiple of {ranks} (the processes), got {batch_size}"
            )
        if images.pixels.ndim == 2 and augment != Augment():
            raise ValueError(f"augment must be Augment() for flat inputs, got {augment}")
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.part = slice(rank * batch_size // ranks, (rank + 1) * batch_size // ranks)
        self.per_epoch = len(images) // batch_size
        self.shape = tuple(images.pixels.shape[1:])
        self.mean, self.std = mean.to(device), std.to(device)
        self.targets = images.targets.to(device)
        height, width = self.shape[:-1] or (1, 1)
        self.padded_height, self.padded_width = height + 2 * augment.pad, width + 2 * augment.pad
        pixels = images.pixels.to(device)
        if augment.pad:
            pixels = padded(pixels, (0, 0, *[augment.pad] * 4))
        self.table = pixels.flatten(0, -2)  # (N, padded height, padded width, C) -> (..., C)
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        straight = (rows * self.padded_width + columns).flatten()
        mirrored = (rows * self.padded_width + columns.flip(0)).flatten()
        self.views = torch.stack([straight, mirrored]).to(device)  # (2, H * W)
        self.drawn = (-1, torch.empty(0))

    def epoch(self, number: int) -> Tensor:
        """Draw an epoch and move it to the device in one piece; the last one drawn is kept.

        Gives (3, steps, batch): the image, the row of the table where its crop begins, and 1 if it
        is mirrored.
        """
        check_count("epoch", number, least=0)
        if self.drawn[0] != number:
            generator = generator_of(self.seed, "data", number)
            count, offsets = self.per_epoch * self.batch_size, 2 * self.augment.pad + 1
            order = torch.randperm(len(self.targets), generator=generator)[:count]
            top, left = torch.randint(offsets, (2, count), generator=generator)
            flip = torch.randint(1 + self.augment.flip, (count,), generator=generator)
            corner = (order * self.padded_height + top) * self.padded_width + left
            draws = torch.stack([order, corner, flip]).view(3, self.per_epoch, self.batch_size)
            self.drawn = (number, draws.to(self.table.device))
        return self.drawn[1]

    def batch(self, epoch: int, position: int) -> tuple[Tensor, Tensor]:
        """Give (inputs, targets) of one step: float32 (B, C, H, W) in channels_last, or (B, C).

        On several processes B is this one's part of the batch.

        Raises:
            ValueError: `position` is not in 0 .. `per_epoch` - 1.
        """
        if not 0 <= position < self.per_epoch:
            raise ValueError(f"position must be in 0 .. {self.per_epoch - 1}, got {position}")
        order, corner, flip = self.epoch(epoch)[:, position, self.part].unbind()
        index = corner[:, None] + self.views.index_select(0, flip)  # (B, H * W)
        pixels = self.table.index_select(0, index.flatten()).view(-1, *self.shape)
        return normalised(pixels, self.mean, self.std), self.targets.index_select(0, order)

    def steps(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the batches of an epoch from position `start` on."""
        for position in range(start, self.per_epoch):
            yield self.batch(epoch, position)
