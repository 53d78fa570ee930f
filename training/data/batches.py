"""Batches in memory: those of training are a function of (seed, epoch, position) alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nets.checks import check_count
from nets.modules.random_draws import generator_of
from training.data.augmenting import Augment, draw_crops, table_of, views_of
from training.data.images import Images
from training.data.splits import normalised


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

    A batch is one `index_select`, and nothing in it waits for the host. What an epoch draws is a
    pure function of (seed, epoch), so that a run resumes at any position without a saved generator;
    it always lies in the same memory, so that a captured step can read it. Several successive
    batches can be taken as one (`join`): what an epoch draws, and positions in it, stay the same.

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
        self.joined = 1
        self.shape = tuple(images.pixels.shape[1:])
        # whole images of them, so that a batch need not make them
        self.mean, self.std = (x.to(device).expand(self.shape).contiguous() for x in (mean, std))
        self.targets = images.targets.to(device)
        self.size = self.shape[:-1] or (1, 1)
        self.table = table_of(images.pixels.to(device), augment)
        self.views = views_of(self.size, augment).to(device)
        self.drawn = -1  # the epoch whose draws these are
        part = self.part.stop - self.part.start
        self.draws = torch.zeros(self.per_epoch, 3, part, dtype=torch.int64, device=device)
        self.ahead = torch.zeros(1, dtype=torch.int64, device=device)

    def join(self, count: int) -> None:
        """Let `at` give so many successive batches as one, of which it is told the first.

        Raises:
            ValueError: `count` is not in 1 .. `per_epoch`.
        """
        if count == self.joined:
            return
        if not 1 <= count <= self.per_epoch:
            raise ValueError(f"count must be in 1 .. {self.per_epoch}, got {count}")
        self.joined, self.ahead = count, torch.arange(count, device=self.draws.device)

    def begin(self, epoch: int) -> None:
        """Draw an epoch, unless it was the last one drawn, into the memory that `at` reads.

        Of each image of a batch that is its number, the row of the table where its crop begins, and
        1 if it is mirrored, (steps, 3, B). It goes to the device in one piece, and nothing waits.
        """
        check_count("epoch", epoch, least=0)
        if self.drawn == epoch:
            return
        generator = generator_of(self.seed, "data", epoch)
        count = self.per_epoch * self.batch_size
        order = torch.randperm(len(self.targets), generator=generator)[:count]
        crops = draw_crops(order, self.size, self.augment, generator)
        draws = torch.stack([order, *crops]).view(3, self.per_epoch, self.batch_size)
        draws = draws[:, :, self.part].transpose(0, 1).contiguous()
        if self.draws.is_cuda:
            draws = draws.pin_memory()
        self.draws.copy_(draws, non_blocking=True)
        self.drawn = epoch

    def at(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Give a batch of the epoch that has begun, a function of what lies on the device alone.

        Args:
            position: (1,) int64, from 0 to `per_epoch` - `joined`.

        Returns:
            (inputs, targets): float32 (B, C, H, W) in channels_last, or (B, C). On several
            processes B is this one's part of the batch, or of each batch that is joined.
        """
        draws = self.draws.index_select(0, position + self.ahead)  # (joined, 3, B)
        order, corner, flip = draws.transpose(0, 1).flatten(1).unbind()
        index = corner[:, None] + self.views.index_select(0, flip)  # (B, H * W)
        pixels = self.table.index_select(0, index.flatten()).view(-1, *self.shape)
        return normalised(pixels, self.mean, self.std), self.targets.index_select(0, order)

    def batch(self, epoch: int, position: int) -> tuple[Tensor, Tensor]:
        """Give the batch at a position of an epoch; see `at`.

        Raises:
            ValueError: `position` is not in 0 .. `per_epoch` - `joined`.
        """
        last = self.per_epoch - self.joined
        if not 0 <= position <= last:
            raise ValueError(f"position must be in 0 .. {last}, got {position}")
        self.begin(epoch)
        return self.at(torch.full((1,), position, device=self.draws.device))

    def steps(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the batches of an epoch from position `start` on."""
        for position in range(start, self.per_epoch - self.joined + 1, self.joined):
            yield self.batch(epoch, position)
