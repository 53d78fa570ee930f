"""How far a response's largest entries lie out: the largest size, and the kurtosis.

Outliers decide whether a net survives half precision and quantisation (Bondarenko et al. 2023,
arXiv 2306.12929, which watches these two).
"""

from __future__ import annotations

import torch
from torch import Tensor

from analysis.examining.tensor_entries import as_it_lies

PIECE = 2**18  # entries at work at a time on a CPU: what is made of them stays in its cache
ROUNDED = 16  # roundings of the mean that a constant's deviations from it may have


@torch.no_grad()
def max_abs(x: Tensor) -> Tensor:
    """Give the largest absolute value of an output that has entries, (1,) float64."""
    least, largest = x.detach().aminmax()  # an infinity norm takes twenty times as long on a CPU
    return torch.maximum(-least, largest).double().view(1)


@torch.no_grad()
def kurtosis(x: Tensor) -> Tensor:
    """Give E[(x - mean)^4] / variance^2 over all entries, (1,) float64: 3 for normal ones.

    NaN for an output that is constant or not finite, and where fourth powers leave the range of
    float32, to which half precision is widened: outside of stds of some 1e-9 to 1e7. Sums are about
    a mean that is right to its rounding.
    """
    entries = as_it_lies(x.detach())
    wide = entries.dtype if entries.dtype == torch.float64 else torch.float32
    mean = entries.sum(dtype=wide) / entries.numel()
    squares, fourths = [], []
    for piece in entries.split(PIECE) if x.device.type == "cpu" else (entries,):
        square = (piece.to(wide) - mean).square_()
        squares.append(square.sum())
        fourths.append(torch.linalg.vector_norm(square))  # its square, without a copy
    second = torch.stack(squares).double().sum() / entries.numel()
    fourth = torch.stack(fourths).double().square().sum() / entries.numel()
    least = (ROUNDED * torch.finfo(wide).eps * mean.double()).square()  # what rounding alone gives
    range_ = torch.finfo(wide)
    least = least.clamp_min(10 * range_.tiny**0.5)
    untold = (second <= least) | (second > 1e-5 * range_.max**0.5)
    return (fourth / second.square()).masked_fill(untold, torch.nan).view(1)
