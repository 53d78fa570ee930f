"""Sums over a layer's output: its mean and standard deviation.

What runs inside a forward pass is kept to one or two operations a layer (`row_sums`), for each
costs more in code that left the cache than in arithmetic; the rest (`moments_of`) runs for all
layers at once, some steps later.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS = 512  # of a layer where they suit: as many for every layer, so all are finished at once
LONG = 4096  # entries of a row, at most: they are summed in float32, the rows in float64
PIECE = 2**19  # entries at work at a time on a CPU: what is made of them stays in its cache


class RowSums(NamedTuple):
    """Sums of the rows of a tensor's memory, and their L2 norms, about their means if `centred`."""

    count: int  # of rows
    row: int  # entries of one
    centred: bool
    sums: list[Tensor]  # in pieces
    norms: list[Tensor]


def row_sums(x: Tensor, near_zero: bool = False) -> RowSums:
    """Sum over rows; half precision is widened to float32 first, except bfloat16 near zero.

    Args:
        x: of any shape and memory format, detached.
        near_zero: the mean is known to be within some 30 standard deviations of 0. Then squares are
            summed as they are (error 1e-5 at 30, 1e-7 at 3), and bfloat16 without widening: every
            row's float32 sum is rounded to 8 bits, which evens out over rows to 1e-4.
    """
    rows = _rows_of(x)
    count, row = rows.shape
    if near_zero and x.dtype != torch.float16:
        sums, norms = [rows.sum(1)], [torch.linalg.vector_norm(rows, dim=1)]
        return RowSums(count, row, False, sums, norms)
    half = x.dtype in (torch.bfloat16, torch.float16)
    sums, norms = [], []
    for piece in rows.split(max(1, PIECE // row)) if x.device.type == "cpu" else (rows,):
        wide = piece.float() if half else piece
        sums.append(wide.sum(1))
        if not near_zero:
            mean = sums[-1][:, None] / row
            wide = wide.sub_(mean) if half else wide - mean  # a widened piece is ours
        norms.append(torch.linalg.vector_norm(wide, dim=1))
    return RowSums(count, row, not near_zero, sums, norms)


def moments_of(layers: Sequence[RowSums]) -> Tensor:
    """Give mean and standard deviation over all entries, (layers, 2) float64."""
    alike: dict[Any, list[int]] = {}  # layers of one size are finished together
    for index, layer in enumerate(layers):
        kind = layer.centred, layer.sums[0].dtype, layer.count
        alike.setdefault(kind, []).append(index)
    found = []
    for (centred, _, count), indices in alike.items():
        chosen = [layers[index] for index in indices]
        sums = _joined([layer.sums for layer in chosen], count)
        norms = _joined([layer.norms for layer in chosen], count)
        row = _on_device(tuple(layer.row for layer in chosen), sums.device)
        mean, square = sums.sum(1) / (row * count), norms.square().sum(1) / (row * count)
        if centred:  # what the norms lack: the mean square of the rows' means, sums / row
            square += (sums / row[:, None]).square().mean(1)
        std = (square - mean.square()).clamp_min(0).sqrt()
        found.append(torch.stack([mean, std], 1))
    order = [index for indices in alike.values() for index in indices]
    places = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat(found)[_on_device(tuple(places), found[0].device)]


def _joined(layers: Sequence[list[Tensor]], rows: int) -> Tensor:
    """Join the pieces of layers of one size, (layers, rows) float64."""
    pieces = [piece for layer in layers for piece in layer]
    return torch.cat(pieces).double().view(len(layers), rows)


@lru_cache(maxsize=256)
def _on_device(values: tuple[int, ...], device: torch.device) -> Tensor:
    """Send what stays the same from step to step to the device once."""
    return torch.tensor(values, device=device)


def _rows_of(x: Tensor) -> Tensor:
    """Give all entries in rows, (rows, entries), a view wherever they lie side by side."""
    row = _row(x.numel())
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x.as_strided((x.numel() // row, row), (row, 1))
    strides = x.stride()
    order = sorted(range(x.dim()), key=strides.__getitem__, reverse=True)
    return x.permute(order).reshape(-1, row)


@lru_cache(maxsize=256)
def _row(entries: int) -> int:
    """Give how long the rows are that so many entries are summed in.

    There are ROWS of them, or the least power of two with which none is longer than LONG. Where
    the entries can't be divided so, rows are as long as the factors that they share with LONG.
    """
    wanted = max(ROWS, 1 << (max(0, entries - 1) // LONG).bit_length())
    rows = math.gcd(entries, wanted)
    suits = 4 * rows >= ROWS and 0 < entries // rows <= LONG
    return entries // rows if suits else math.gcd(entries, LONG)
