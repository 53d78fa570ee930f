"""Distributions of new weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Distribution = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""Takes a weight's shape, (outputs, inputs, *kernel), and a CPU generator; gives float32."""


def he(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from N(0, 2 / fan_in) (He et al. 2015, arXiv 1502.01852, equation 10)."""
    fan_in = torch.Size(shape[1:]).numel()
    return torch.randn(shape, generator=generator, dtype=torch.float32) * (2 / fan_in) ** 0.5


def xavier(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from U(-a, a), a = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""
    kernel = torch.Size(shape[2:]).numel()
    bound = (6 / ((shape[0] + shape[1]) * kernel)) ** 0.5
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float32) - 1) * bound
