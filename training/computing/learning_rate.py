"""The learning rate of a step, by the spent fraction of the budget, and the batch it is for."""

from __future__ import annotations

from math import cos, pi, sqrt

from torch.optim import Optimizer

from nets import Architecture, Cost, cost
from training.settings.train_settings import Common


def batch_factor(
    settings: Common, limit: Cost, architecture: Architecture, per_epoch: int | None = None
) -> int:
    """Give how many batches of `batch_size` a step of a network takes as one.

    That is the largest power of two which is at most `batch_growth`, the limit's FLOPs over the
    network's, and the batches of an epoch: no step of a smaller network costs more than the
    limit's, in forward FLOPs. It hangs on the architecture alone, so that a resumed run need not be
    told.
    """
    room = limit.flops // max(1, cost(architecture).flops)
    most = max(1, min(settings.batch_growth, room, per_epoch or room))
    return 1 << (most.bit_length() - 1)


def learning_rate(settings: Common, spent: float, factor: int = 1) -> float:
    """Give the learning rate at a fraction of the budget, for `factor` batches taken as one.

    `cosine` falls from the largest rate to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983,
    equation 5, without restarts); `hold` stays constant until `grow_until` and then falls the same
    way. Sgd's is multiplied by the factor (Goyal et al. 2017, arXiv 1706.02677), that of the others
    by its square root (Malladi et al. 2022, arXiv 2205.10229); there is no warm-up.
    """
    if settings.schedule == "hold":
        tail = 1 - settings.grow_until
        spent = max(0.0, spent - settings.grow_until) / tail if tail > 0 else 0.0
    largest = settings.learning_rate * (factor if settings.optimizer == "sgd" else sqrt(factor))
    return largest * (1 + cos(pi * min(spent, 1.0))) / 2


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
