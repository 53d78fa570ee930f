"""The optimizer that the settings name, with weight decay for weights alone."""

from __future__ import annotations

import torch
from torch import nn

from training.settings.common import Common


def make_optimizer(net: nn.Module, settings: Common) -> torch.optim.Optimizer:
    """Make the optimizer with two groups: weights decay, BatchNorm and biases do not."""
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in net.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    if settings.optimizer == "sgd":
        nesterov = settings.momentum > 0
        optimizer = torch.optim.SGD(
            groups, rate, momentum=settings.momentum, nesterov=nesterov, fused=True
        )
        if nesterov and settings.precision == "fp16":
            # torch 2.14 leaves them uninitialised when the scaler skips the first step
            for value in net.parameters():
                optimizer.state[value]["momentum_buffer"] = torch.zeros_like(value)
        return optimizer
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, rate, foreach=True)  # there is no fused one
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(groups, rate, fused=True)
