"""Sums over a layer's output: its mean and standard deviation, and which channels are dead.

What runs inside a forward pass is kept to one or two operations a layer (`row_sums`,
`dead_fractions`), for each costs more in code that left the cache than in arithmetic; the rest
(`moments_of`) runs for all layers at once, some steps later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS = 2048  # of a layer where they suit: as many for every layer, so all are finished at once
LONG = 1024  # entries of a row, at most: they are summed in float32, the rows in float64
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
    rows = _in_memory_order(x.detach()).view(-1, _row(x.numel()))
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
    alike: dict[Any, list[int]] = {}  # layers of one size are finished together
    for index, layer in enumerate(layers):
        count = sum(sums.numel() for sums in layer.sums)
        alike.setdefault((layer.centred, layer.sums[0].dtype, count), []).append(index)
    found = {}
    for (centred, _, count), indices in alike.items():
        sums = _stacked([layers[index].sums for index in indices])  # (layers, rows)
        norms = _stacked([layers[index].norms for index in indices])
        row = _on_device(tuple(layers[index].row for index in indices), sums.device)
        mean, square = sums.sum(1) / (row * count), norms.square().sum(1) / (row * count)
        if centred:  # what the norms lack: the mean square of the rows' means, sums / row
            square += (sums / row[:, None]).square().mean(1)
        std = (square - mean.square()).clamp_min(0).sqrt()
        found |= zip(indices, torch.stack([mean, std], 1))
    return torch.stack([found[index] for index in range(len(layers))])


def _stacked(pieces: Sequence[Sequence[Tensor]]) -> Tensor:
    """Join each layer's pieces, all layers of one size, (layers, rows) float64."""
    whole = [parts[0] if len(parts) == 1 else torch.cat(list(parts)) for parts in pieces]
    return torch.stack(whole).double()


@lru_cache(maxsize=256)
def _on_device(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Send what stays the same from step to step to the device once."""
    return torch.tensor(values, dtype=torch.float64, device=device)


def dead_fractions(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Give the share of channels with no entry above 0, of each (N, channels, ...), 0-d float64.

    On a CPU, whose numbers can be looked at, a few samples are enough where all channels live.
    """
    alike: dict[Any, list[int]] = {}
    for index, x in enumerate(outputs):
        if x.device.type == "cpu" and (_by_channel(x) or x.movedim(1, -1).is_contiguous()):
            alike.setdefault((x.shape, x.stride(), x.dtype), []).append(index)
    living = set()
    for indices in alike.values():
        living |= {indices[n] for n in _without_dead([outputs[index] for index in indices])}
    return [
        torch.zeros((), dtype=torch.float64)
        if index in living
        else (_whole_peaks(x) <= 0).double().mean()
        for index, x in enumerate(outputs)
    ]


@torch.no_grad()
def _without_dead(outputs: Sequence[Tensor]) -> list[int]:
    """Give the indices of those whose first samples show none.

    All are of one shape and layout, one sample after the other.
    """
    one = outputs[0]
    few = min(len(one), -(-LOOK // max(1, math.prod(one.shape[2:]))))
    size = (few * (one.numel() // len(one)),)
    first = torch.stack([x.as_strided(size, (1,)) for x in outputs])
    least = _peaks(first.view(_BITS[one.element_size()]), one).amin(1).tolist()
    return [index for index, peak in enumerate(least) if peak > 0]


def _whole_peaks(x: Tensor) -> Tensor:
    """Give every channel's largest entry, (1, channels), as `_peaks` does."""
    bits = x.detach().view(_BITS[x.element_size()])
    rows = bits if _by_channel(x) else bits.movedim(1, -1)
    return _peaks(rows.reshape(1, -1), x)


def _by_channel(x: Tensor) -> bool:
    """Say whether all positions of a channel lie side by side in each sample, not all channels."""
    return x.dim() > 2 and x.is_contiguous()


def _peaks(rows: Tensor, like: Tensor) -> Tensor:
    """Give every channel's largest entry in each row of samples of outputs like one.

    (rows, samples * entries of a sample) -> (rows, channels). The entries come as integers, which
    have the sign of the numbers and, above 0, their order, and compare several times faster.
    """
    count, channels = len(rows), like.shape[1]
    if _by_channel(like):
        return rows.view(count, -1, channels, math.prod(like.shape[2:])).amax(3).amax(1)
    # few channels are joined with those of the next positions, as wide as registers like them
    side = math.gcd(rows.shape[1] // channels, max(1, 128 // channels))
    return rows.view(count, -1, side * channels).amax(1).view(count, side, channels).amax(1)


def _row(entries: int) -> int:
    """Give how long the rows are that so many entries are summed in.

    There are ROWS of them, or the least power of two with which none is longer than LONG. Where
    the entries can't be divided so, rows are as long as the factors that they share with LONG.
    """
    wanted = max(ROWS, 1 << (max(0, entries - 1) // LONG).bit_length())
    rows = math.gcd(entries, wanted)
    suits = 4 * rows >= ROWS and 0 < entries // rows <= LONG
    return entries // rows if suits else math.gcd(entries, LONG)


def _in_memory_order(x: Tensor) -> Tensor:
    """Give all entries as one row, a view wherever they lie side by side."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x.as_strided((x.numel(),), (1,))
    strides = x.stride()
    return x.permute(sorted(range(x.dim()), key=strides.__getitem__, reverse=True)).flatten()
