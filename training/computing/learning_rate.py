"""The learning rate of a step: a function of the fraction of the budget that is spent."""

from __future__ import annotations

from math import cos, pi

from torch.optim import Optimizer

from training.settings.train_settings import Common


def learning_rate(settings: Common, spent: float) -> float:
    """Give the learning rate at a fraction of the budget.

    `cosine` falls from the largest rate to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983,
    equation 5, without restarts); `hold` stays constant until `grow_until` and then falls the same
    way.
    """
    if settings.schedule == "hold":
        tail = 1 - settings.grow_until
        spent = max(0.0, spent - settings.grow_until) / tail if tail > 0 else 0.0
    return settings.learning_rate * (1 + cos(pi * min(spent, 1.0))) / 2


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
