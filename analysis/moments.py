"""Sums over a layer's output: its mean and standard deviation, and which channels are dead.

What runs inside a forward pass is kept to one or two operations a layer (`row_sums`,
`dead_fraction`), for each costs more in code that left the cache than in arithmetic; the rest
(`moments_of`) runs for all layers at once when the step is over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ROW = 1024  # entries that are summed in float32 before float64 takes over
PIECE = 2**19  # entries at work at a time on a CPU: what is made of them stays in its cache
FEW = 16  # a batch's part in which a channel's first look is for life
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class RowSums(NamedTuple):
    """Sums of the rows of a tensor's memory, and their L2 norms, about their means if `centred`."""

    row: int
    centred: bool
    sums: list[Tensor]
    norms: list[Tensor]


def row_sums(x: Tensor, near_zero: bool = False) -> RowSums:
    """Sum over rows; half precision is widened to float32 first, except bfloat16 near zero.

    Args:
        x: of any shape and memory format.
        near_zero: the mean is known to be within some 30 standard deviations of 0. Then squares are
            summed as they are (error 1e-5 at 30, 1e-7 at 3), and bfloat16 without widening: every
            row's float32 sum is rounded to 8 bits, which evens out over rows to 1e-4.
    """
    entries = in_memory_order(x.detach())
    rows = entries.view(-1, math.gcd(entries.numel(), ROW))
    narrow = x.dtype == torch.bfloat16 and near_zero
    half = x.dtype in (torch.bfloat16, torch.float16) and not narrow
    whole = x.device.type != "cpu" or narrow or (near_zero and not half)  # nothing large is made
    sums, norms = [], []
    for piece in (rows,) if whole else rows.split(max(1, PIECE // rows.shape[1])):
        wide = piece.float() if half else piece
        sums.append(wide.sum(1))
        if not near_zero:
            mean = sums[-1][:, None] / rows.shape[1]
            wide = wide.sub_(mean) if half else wide - mean  # a widened piece is ours
        norms.append(torch.linalg.vector_norm(wide, dim=1))
    return RowSums(rows.shape[1], not near_zero, sums, norms)


def moments_of(layers: Sequence[RowSums]) -> Tensor:
    """Give mean and standard deviation over all entries, (layers, 2) float64."""
    means, squares = [], []
    for layer in layers:
        sums, norms = torch.cat(layer.sums), torch.cat(layer.norms)
        entries = sums.numel() * layer.row
        means.append(sums.sum(dtype=torch.float64) / entries)
        square = torch.linalg.vector_norm(norms, dtype=torch.float64).square() / entries
        centre = (sums.double() / layer.row).square().mean() if layer.centred else 0
        squares.append(square + centre)
    mean, square = torch.stack(means), torch.stack(squares)
    return torch.stack([mean, (square - mean.square()).clamp_min(0).sqrt()], 1)


def dead_fraction(x: Tensor) -> Tensor:
    """Give the share of channels of x (N, channels, ...) with no entry above 0, 0-d float64.

    On a CPU, whose numbers can be looked at, a few samples are enough if no channel is dead there.
    """
    bits = x.detach().view(_BITS[x.element_size()])
    if x.device.type == "cpu" and len(x) >= FEW:
        peaks = _peaks(bits.narrow(0, 0, len(x) // FEW))
        if peaks.amin().item() > 0:
            return torch.zeros((), dtype=torch.float64)
    return (_peaks(bits) <= 0).double().mean()


def _peaks(bits: Tensor) -> Tensor:
    """Give every channel's largest entry, (channels,), of floating-point numbers read as integers.

    These keep sign and order of positive numbers, and compare several times faster.
    """
    channels = bits.shape[1]
    if bits.dim() > 2 and bits.stride(1) > 1:
        return bits.flatten(2).amax(2).amax(0)
    # channels last: rows of several positions, as wide as registers like them
    side = math.gcd(bits.numel() // channels, max(1, 128 // channels))
    return bits.movedim(1, -1).reshape(-1, side * channels).amax(0).view(-1, channels).amax(0)


def in_memory_order(x: Tensor) -> Tensor:
    """Give all entries as one row, a view wherever they lie side by side."""
    if x.is_contiguous():
        return x.flatten()
    strides = x.stride()
    return x.permute(sorted(range(x.dim()), key=strides.__getitem__, reverse=True)).flatten()
