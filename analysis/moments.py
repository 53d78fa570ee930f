"""Sums over a layer's output: mean and standard deviation, and the largest entry of each channel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROW = 1024  # entries that are summed in float32 before float64 takes over
PIECE = 2**19  # entries in work at a time on a CPU: what is made of them stays in its cache
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def moments(x: Tensor) -> Tensor:
    """Give mean and standard deviation over all entries, (2,) float64 on the device of `x`.

    Sums run over deviations from the mean of every row of memory (two passes), so a large mean
    cancels nothing; half precision is read in float32.
    """
    entries = in_memory_order(x.detach())
    rows = entries.view(-1, math.gcd(entries.numel(), ROW))
    half = x.dtype in (torch.bfloat16, torch.float16)
    means, norms = [], []
    for piece in rows.split(max(1, PIECE // rows.shape[1])) if x.device.type == "cpu" else (rows,):
        wide = piece.float() if half else piece
        mean = wide.mean(1, keepdim=True)
        deviations = wide.sub_(mean) if half else wide - mean  # `wide` is then a copy of ours
        norms.append(torch.linalg.vector_norm(deviations, dim=1))
        means.append(mean)
    within = torch.cat(norms).double().square().sum() / x.numel()
    between, mean = torch.var_mean(torch.cat(means).double(), correction=0)
    return torch.stack([mean, (within + between).sqrt()])


def channel_peaks(x: Tensor) -> Tensor:
    """Give a number per channel of (N, C, ...) that is above 0 where an entry of the channel is.

    Read as integers, floating-point numbers keep their sign and whether they are 0, and integers
    compare several times faster.
    """
    bits = x.detach().view(_BITS[x.element_size()])
    if x.dim() < 3:
        return bits.amax(0)
    if x.stride(1) > 1:
        return bits.flatten(2).amax(2).amax(0)
    bits = bits.movedim(1, -1).reshape(-1, x.shape[1])  # channels last: (N * positions, C)
    side = math.gcd(len(bits), max(1, 128 // x.shape[1]))  # columns enough for wide registers
    return bits.view(-1, side * x.shape[1]).amax(0).view(side, -1).amax(0)


def in_memory_order(x: Tensor) -> Tensor:
    """Give all entries as one row, a view wherever they lie side by side."""
    if x.is_contiguous():
        return x.view(-1)
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).reshape(-1)
