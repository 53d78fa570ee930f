"""Mean and standard deviation of a layer's output, from sums over its entries.

What runs inside a forward pass is kept to one or two operations a layer (`row_sums`), for each
costs more in code that left the cache than in arithmetic; the rest (`moments_of`) runs for all
layers at once, at the end of the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analysis.examining.tensor_entries import as_it_lies

ROWS = 512  # of a layer where they suit: as many for every layer, so all are finished at once
ON_GPU = 2048  # the same on a GPU, which sums so many at a time: on an H200 in half the time of 512
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
            are summed as they are (error 1e-5 at 30, 1e-7 at 3), and on a CPU bfloat16 without
            widening: every row's float32 sum is rounded to 8 bits, which evens out over rows to
            1e-4.
    """
    rows = _rows_of(x)
    count, length = rows.shape
    if small_mean and (x.is_cuda or x.dtype != torch.float16):
        # a CPU would widen a copy of all rows, a GPU widens what it reads
        dtype = torch.promote_types(x.dtype, torch.float32) if x.is_cuda else None
        sums = [rows.sum(1, dtype=dtype)]
        norms = [torch.linalg.vector_norm(rows, dim=1, dtype=dtype)]
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
    device = layers[0].sums[0].device
    key = "rows", tuple(layer.rows for layer in layers), device
    if key not in known:
        known[key] = _finish_of(*key[1:])
    finish = known[key]
    alike = [layers[index] for index in finish.order]
    parts = [part for layer in alike for part in layer.sums]
    parts += [part for layer in alike for part in layer.norms]
    numbers = torch.cat([part.to(device) for part in parts]).double().view(2, -1)
    sums, norms = numbers.square().unbind()
    torch.addcmul(norms, sums, finish.lacking, out=numbers[1])  # sums of squares, row by row
    kinds = [
        part.unflatten(1, shape).sum(-1)
        for part, shape in zip(numbers.split(finish.sizes, 1), finish.shapes)
    ]
    found = deviations((kinds[0] if len(kinds) == 1 else torch.cat(kinds, 1)) / finish.entries)
    return found if finish.back is None else found[finish.back]


def deviations(moments: Tensor) -> Tensor:
    """Make means and mean squares, (2, layers), means and standard deviations, (layers, 2)."""
    mean, square = moments
    square.addcmul_(mean, mean, value=-1).clamp_min_(0).sqrt_()
    return moments.T


class _Finish(NamedTuple):
    """How rows become moments: layers of as many rows side by side."""

    order: list[int]  # of the layers
    back: Tensor | None  # where each layer is in this order; None if that is the one they came in
    shapes: list[tuple[int, int]]  # by kind: layers, rows of each
    sizes: list[int]  # by kind: rows in all
    entries: Tensor  # (layers,) float64, in this order
    lacking: Tensor  # (rows of all,): the part of a sum's square that norms about a mean lack


def _finish_of(layers: tuple[Rows, ...], device: torch.device) -> _Finish:
    kinds: dict[int, list[int]] = {}
    for index, rows in enumerate(layers):
        kinds.setdefault(rows.count, []).append(index)
    order = [index for kind in kinds.values() for index in kind]
    back = sorted(range(len(order)), key=order.__getitem__)
    alike = [layers[index] for index in order]
    lacking = [
        share for rows in alike for share in [rows.centred / max(1, rows.length)] * rows.count
    ]
    return _Finish(
        order,
        None if order == sorted(order) else torch.tensor(back, device=device),
        [(len(kind), count) for count, kind in kinds.items()],
        [len(kind) * count for count, kind in kinds.items()],
        torch.tensor([rows.count * rows.length for rows in alike], device=device).double(),
        torch.tensor(lacking, dtype=torch.float64, device=device),
    )


def _rows_of(x: Tensor) -> Tensor:
    """Give all entries in rows, (rows, entries), a view wherever they lie side by side."""
    row = _row(x.numel(), ON_GPU if x.is_cuda else ROWS)
    return as_it_lies(x).view(x.numel() // row, row)


@lru_cache(maxsize=256)
def _row(entries: int, least: int) -> int:
    """Give how long the rows are that so many entries are summed in.

    There are `least` of them, or the least power of two with which none is longer than LONG. Where
    the entries can't be divided so, rows are as long as the factors that they share with LONG.
    """
    wanted = max(least, 1 << (max(0, entries - 1) // LONG).bit_length())
    rows = math.gcd(entries, wanted)
    suits = 4 * rows >= least and 0 < entries // rows <= LONG
    return entries // rows if suits else math.gcd(entries, LONG)
