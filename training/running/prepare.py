"""What a run is prepared with: all that can be refused before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nets import Architecture
from nets.checks import check_count
from nets.modules.random_draws import generator_of
from training.computing import distributed
from training.computing.evaluation import LOSSES, Loss
from training.computing.optimizer import Precision, check_graph
from training.data.augmenting import augment_of
from training.data.batches import Batches, evaluation_batches
from training.data.identity import difference, identity_of
from training.data.splits import Splits, channel_statistics, load
from training.settings.train_settings import Train

PROBE = 128
"""Training images of the probe batch; growth is checked on the first CHECKED of them."""
CHECKED = 32


@dataclass(frozen=True)
class Prepared:
    """The data, limit and first network of a run, checked against its settings."""

    precision: Precision
    splits: Splits
    statistics: tuple[Tensor, Tensor]  # mean and std by channel
    batches: Batches
    limit: Architecture
    first: Architecture
    data: Mapping[str, Any]  # what makes the data the same, of `training.data.identity`

    @property
    def loss(self) -> Loss:
        """The loss of the data's task."""
        return LOSSES[self.splits.task]

    def probe(self) -> tuple[Tensor, Tensor]:
        """Give the fixed probe batch: training images, the same for every run on this data."""
        order = torch.randperm(len(self.splits.train), generator=generator_of("probe"))[:PROBE]
        chosen, device = self.splits.train.take(order), self.precision.device
        return next(evaluation_batches(chosen, *self.statistics, device, batch_size=PROBE))


def prepare(settings: Train) -> Prepared:
    """Load the data and check the settings against it.

    Raises:
        ValueError: the data or the settings cannot be used.
    """
    precision = Precision.of(settings)
    check_graph(settings, precision.device)
    least = 2 * settings.accumulate * distributed.size()  # BatchNorm needs two images
    check_count("batch_size", settings.batch_size, least)
    splits = load(settings.data, settings.data_dir)
    limit = settings.limit(splits.classes, splits.image)
    first = settings.first(limit)
    statistics = channel_statistics(splits.train)
    augment = augment_of(settings.data, settings.augment, splits.image)
    order = settings.batch_size, settings.seed, precision.device, augment
    ranks = distributed.rank(), distributed.size()
    batches = Batches(splits.train, *order, *statistics, *ranks)
    data = identity_of(splits, augment)
    return Prepared(precision, splits, statistics, batches, limit, first, data)


def check_processes(data: Mapping[str, Any]) -> None:
    """Raise a ValueError on every process if one of them, on another machine, say, sees others."""
    told = difference(distributed.from_first(lambda: data), data)
    if distributed.greatest(bool(told)):
        here = told or "other data on another process"
        raise ValueError(f"data must be the same on all processes, got {here}")
