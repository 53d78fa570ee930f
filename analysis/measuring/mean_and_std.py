"""Mean and standard deviation of a layer's output, from sums over its entries.

What runs inside a forward pass is kept to one or two operations a layer (`row_sums`), for each
costs more in code that left the cache than in arithmetic; the rest (`moments_of`) runs for all
layers at once, at the end of the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROWS = 512  # of a layer where they suit: as many for every layer, so all are finished at once
LONG = 4096  # entries of a row, at most: they are summed in float32, the rows in float64
PIECE = 2**19  # entries at work at a time on a CPU: what is made of them stays in its cache


class Rows(NamedTuple):
    """How a tensor's memory was summed in rows, and whether about their means."""

    count: int
    length: int  # entries of one
    centred: bool


class RowSums(NamedTuple):
    """Sums of rows, and their L2 norms, about their means if these are `centred`; in pieces."""

    rows: Rows
    sums: list[Tensor]
    norms: list[Tensor]


def row_sums(x: Tensor, small_mean: bool = False) -> RowSums:
    """Sum over rows; half precision is widened to float32 first, except bfloat16 of a small mean.

    Args:
        x: of any shape and memory format, detached.
        small_mean: the mean is known to be within some 30 standard deviations of 0. Then squares
            are summed as they are (error 1e-5 at 30, 1e-7 at 3), and bfloat16 without widening:
            every row's float32 sum is rounded to 8 bits, which evens out over rows to 1e-4.
    """
    rows = _rows_of(x)
    count, length = rows.shape
    if small_mean and x.dtype != torch.float16:
        sums, norms = [rows.sum(1)], [torch.linalg.vector_norm(rows, dim=1)]
        return RowSums(Rows(count, length, False), sums, norms)
    half = x.dtype in (torch.bfloat16, torch.float16)
    sums, norms = [], []
    for piece in rows.split(max(1, PIECE // length)) if x.device.type == "cpu" else (rows,):
        wide = piece.float() if half else piece
        sums.append(wide.sum(1))
        if not small_mean:
            mean = sums[-1][:, None] / length
            wide = wide.sub_(mean) if half else wide - mean  # a widened piece is ours
        norms.append(torch.linalg.vector_norm(wide, dim=1))
    return RowSums(Rows(count, length, not small_mean), sums, norms)


@torch.no_grad()
def moments_of(layers: Sequence[RowSums], known: dict[Any, Any]) -> Tensor:
    """Give mean and standard deviation over all entries of layers, (layers, 2) float64.

    `known` keeps what stays the same from step to step, which is sent to the device once.
    """
    parts = [part for _, sums, norms in layers for part in (*sums, *norms)]
    device = parts[0].device
    numbers = torch.cat([part.to(device) for part in parts]).double()
    found = []
    key = "rows", tuple(layer.rows for layer in layers), device
    if key not in known:
        known[key] = _constants(*key[1:])
    kinds, order = known[key]
    for rows, places, lengths in kinds:
        sums, norms = numbers[places].unbind(1)  # (layers, rows)
        entries = lengths * rows.count
        mean, square = sums.sum(-1) / entries, norms.square().sum(-1) / entries
        if rows.centred:  # what the norms lack: the mean square of the rows' means, sums / length
            square += (sums / lengths[:, None]).square().mean(-1)
        std = (square - mean.square()).clamp_min(0).sqrt()
        found.append(torch.stack([mean, std], -1))
    return torch.cat(found)[order]


def _constants(
    layers: tuple[Rows, ...], device: torch.device
) -> tuple[list[tuple[Rows, Tensor, Tensor]], Tensor]:
    """Say how layers are finished together.

    For each kind of layers, which are finished together: one of it, where its numbers are among
    all, a layer's sums and then its norms, (alike, 2, rows), and how long the rows are; then where
    each layer is in the order of kinds.
    """
    kinds: dict[Any, list[int]] = {}
    for index, rows in enumerate(layers):
        kinds.setdefault((rows.count, rows.centred), []).append(index)
    ends = list(accumulate(2 * rows.count for rows in layers))
    found = []
    for kind in kinds.values():
        one = layers[kind[0]]
        size = 2 * one.count
        places = [list(range(ends[index] - size, ends[index])) for index in kind]
        lengths = torch.tensor([layers[index].length for index in kind], device=device)
        places = torch.tensor(places, dtype=torch.long, device=device)
        found.append((one, places.view(len(kind), 2, one.count), lengths))
    order = [index for kind in kinds.values() for index in kind]
    back = sorted(range(len(order)), key=order.__getitem__)
    return found, torch.tensor(back, device=device)


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
