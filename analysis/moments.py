"""Sums over a layer's output: its mean and standard deviation, and which channels are dead.

What runs inside a forward pass is kept to one or two operations a layer (`row_sums`,
`dead_fractions`), for each costs more in code that left the cache than in arithmetic; the rest
(`moments_of`) runs for all layers at once when the step is over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROW = 1024  # entries that are summed in float32 before float64 takes over
PIECE = 2**19  # entries at work at a time on a CPU: what is made of them stays in its cache
LOOK = 512  # entries of a channel; one above 0 among them settles that the channel lives
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
    sums = [torch.cat(layer.sums) for layer in layers]
    norms = [torch.cat(layer.norms) for layer in layers]
    entries = [total.numel() * layer.row for total, layer in zip(sums, layers)]
    means = torch._foreach_div([total.sum(dtype=torch.float64) for total in sums], entries)
    lengths = torch._foreach_norm(norms, 2, dtype=torch.float64)
    roots = torch._foreach_div(lengths, [math.sqrt(count) for count in entries])
    mean, square = torch.stack(means), torch.stack(roots).square()
    if any(layer.centred for layer in layers):
        square = square + torch.stack([_between(*pair) for pair in zip(layers, sums)])
    return torch.stack([mean, (square - mean.square()).clamp_min(0).sqrt()], 1)


def _between(layer: RowSums, sums: Tensor) -> Tensor:
    """Give what was left out of the norms of centred rows: the mean square of the rows' means."""
    if not layer.centred:
        return sums.new_zeros((), dtype=torch.float64)
    return (sums.double() / layer.row).square().mean()


def dead_fractions(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Give the share of channels with no entry above 0, of each (N, channels, ...), 0-d float64.

    On a CPU, whose numbers can be looked at, a few samples are enough where all channels live.
    """
    alike: dict[Any, list[int]] = {}
    for index, x in enumerate(outputs):
        if x.device.type == "cpu":
            alike.setdefault((x.shape, x.stride(), x.dtype), []).append(index)
    living = set()
    for indices in alike.values():
        living |= {indices[n] for n in _without_dead([outputs[index] for index in indices])}
    return [
        torch.zeros((), dtype=torch.float64)
        if index in living
        else (_peaks(_bits(x)) <= 0).double().mean()
        for index, x in enumerate(outputs)
    ]


def _without_dead(outputs: Sequence[Tensor]) -> list[int]:
    """Give the indices of those, all of one shape and layout, whose first samples show none."""
    samples, positions = len(outputs[0]), math.prod(outputs[0].shape[2:])
    few = min(samples, -(-LOOK // max(1, positions)))
    first = torch.cat([_bits(x).narrow(0, 0, few) for x in outputs])
    least = _peaks(first, len(outputs)).amin(1).tolist()
    return [index for index, peak in enumerate(least) if peak > 0]


def _bits(x: Tensor) -> Tensor:
    """Give floating-point numbers as integers, which keep the sign, and the order above 0.

    They compare several times faster.
    """
    return x.detach().view(_BITS[x.element_size()])


def _peaks(bits: Tensor, parts: int = 1) -> Tensor:
    """Give every channel's largest entry in each part of the samples, (parts, channels)."""
    channels = bits.shape[1]
    if bits.dim() > 2 and bits.stride(1) > 1:
        return bits.flatten(2).amax(2).view(parts, -1, channels).amax(1)
    # channels last: rows of several positions, as wide as registers like them
    side = math.gcd(bits.numel() // channels // parts, max(1, 128 // channels))
    rows = bits.movedim(1, -1).reshape(parts, -1, side * channels)
    return rows.amax(1).view(parts, side, channels).amax(1)


def in_memory_order(x: Tensor) -> Tensor:
    """Give all entries as one row, a view wherever they lie side by side."""
    if x.is_contiguous():
        return x.flatten()
    strides = x.stride()
    return x.permute(sorted(range(x.dim()), key=strides.__getitem__, reverse=True)).flatten()
