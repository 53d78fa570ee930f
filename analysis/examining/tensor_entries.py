"""Entries of tensors: as they lie in memory, whether the host can look, and norms of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

SMALL, LARGE = 1e-15, 1e15  # norms whose squares float32 holds


@torch.no_grad()
def norms_of(tensors: Sequence[Tensor]) -> Tensor:
    """Give the norms of tensors where they lie, (tensors,) float64, with squares of float64.

    On a GPU a few kernels for all of them, which widen what they read; a norm of each, or of rows,
    would widen a copy of it.
    """
    wide = torch.promote_types(tensors[0].dtype, torch.float64)  # complex stays complex
    return torch.stack(torch._foreach_norm(list(tensors), 2, wide))


@torch.no_grad()
def row_norms(rows: Tensor) -> Tensor:
    """Give the norms of rows of numbers on a CPU, (rows, entries) -> (rows,) float64.

    Squares are of float64, which takes several times as long, where float32 would lose them: in
    rows whose norms say so, of gradients that vanish or explode.
    """
    single, wide = (torch.promote_types(rows.dtype, to) for to in (torch.float32, torch.float64))
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=single).double()
    odd = ~((norms > SMALL) & (norms < LARGE))
    if odd.any():
        norms[odd] = torch.linalg.vector_norm(rows[odd], dim=1, dtype=wide)
    return norms


def on_host(tensors: Iterable[Tensor]) -> bool:
    """Say whether these are numbers that the host can read without waiting."""
    return all(x.device.type == "cpu" for x in tensors)


def as_it_lies(x: Tensor) -> Tensor:
    """Give all entries in one row, a view wherever they lie side by side."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x.as_strided((x.numel(),), (1,))
    strides = x.stride()
    order = sorted(range(x.dim()), key=strides.__getitem__, reverse=True)
    return x.permute(order).reshape(-1)
