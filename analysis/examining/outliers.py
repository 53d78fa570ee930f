"""How far a response's largest entries lie out: the largest size, and the kurtosis.

Outliers decide whether a net survives half precision and quantisation (Bondarenko et al. 2023,
arXiv 2306.12929, which watches these two). What a forward pass pays is the look at an output; what
follows is worked out for all outputs at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.examining.tensor_entries import as_it_lies

PIECE = 2**18  # entries at work at a time on a CPU: what is made of them stays in its cache
ROUNDED = 16  # roundings of the mean that a constant's deviations from it may have


class Powers(NamedTuple):
    """Of an output its entries' count and mean, (), and by piece, () each, of their deviations.

    These are the sum of squares and the root of the sum of fourth powers, in the mean's dtype.
    """

    size: int
    mean: Tensor
    squares: list[Tensor]
    fourths: list[Tensor]


@torch.no_grad()
def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give the least and the largest entry of an output that has some, ()."""
    return torch.aminmax(x.detach())  # an infinity norm takes twenty times as long on a CPU


@torch.no_grad()
def max_abs(several: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Give the largest absolute value by output, (outputs,) float64, from `extremes`."""
    device = several[0][0].device
    least, largest = (torch.stack([one.to(device) for one in kind]) for kind in zip(*several))
    return torch.maximum(-least, largest).double()


@torch.no_grad()
def powers(x: Tensor) -> Powers:
    """Look at an output that has entries; half precision is widened to float32.

    Sums are about a mean that is right to its rounding.
    """
    entries = as_it_lies(x.detach())
    wide = entries.dtype if entries.dtype == torch.float64 else torch.float32
    mean = entries.mean(dtype=wide)
    squares, fourths = [], []
    for piece in entries.split(PIECE) if x.device.type == "cpu" else (entries,):
        square = (piece.to(wide) - mean).square_()
        squares.append(square.sum())
        fourths.append(torch.linalg.vector_norm(square))  # its square, without a copy
    return Powers(len(entries), mean, squares, fourths)


@torch.no_grad()
def kurtosis(several: Sequence[Powers]) -> Tensor:
    """Give E[(x - mean)^4] / variance^2 by output, (outputs,) float64: 3 for normal entries.

    NaN for an output that is constant or not finite, and where fourth powers leave the range of
    the dtype: in float32 outside of stds of some 1e-9 to 1e7.
    """
    device, wide = several[0].mean.device, several[0].mean.dtype
    if any(one.mean.dtype != wide for one in several):
        return torch.cat([kurtosis([one]).to(device) for one in several])
    pieces = [len(one.squares) for one in several]
    sizes = [one.size for one in several for _ in one.squares]
    squares = [part.to(device) for one in several for part in one.squares]
    fourths = [part.to(device) for one in several for part in one.fourths]
    second = torch.stack(torch._foreach_div(squares, sizes)).double()
    fourth = torch.stack(torch._foreach_div(fourths, [size**0.5 for size in sizes]))
    fourth = fourth.double().square()
    if len(sizes) > len(several):
        second, fourth = (
            torch.stack([parts.sum() for parts in kind.split(pieces)]) for kind in (second, fourth)
        )
    mean, range_ = torch.stack([one.mean.to(device) for one in several]), torch.finfo(wide)
    least = (ROUNDED * range_.eps * mean.double()).square()  # what rounding alone gives
    least = least.clamp_min(10 * range_.tiny**0.5)
    untold = (second <= least) | (second > 1e-5 * range_.max**0.5)
    return (fourth / second.square()).masked_fill(untold, torch.nan)
