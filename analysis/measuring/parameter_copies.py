"""Room for numbers of parameters, in which the norms of all are taken at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from analysis.examining.entry_histograms import count_entries, places_of

FEW = 2**16  # entries whose squares float32 sums to 3e-6 on a CPU, three times as fast as float64
NARROW = 64  # entries; room for fewer is as wide, so that all have their norms taken at once


class ParameterCopies:
    """Room for a number from every entry of some parameters, its members, as a row for each.

    To copy all to here and take the norms of rows of one size at once is faster than a norm each.
    """

    def __init__(self, members: tuple[int, ...], parameters: Sequence[Tensor]) -> None:
        self.members = members
        sizes: dict[int, list[int]] = {}
        for index, parameter in enumerate(parameters):
            sizes.setdefault(max(NARROW, parameter.numel()), []).append(index)
        # of the norms
        self.order = tuple(members[k] for indices in sizes.values() for k in indices)
        if parameters[0].is_cuda:
            self.order = members
        dtype = reduce(torch.promote_types, [p.dtype for p in parameters], torch.float32)
        wide = torch.promote_types(dtype, torch.float64)
        total = sum(size * len(indices) for size, indices in sizes.items())
        self.entries = torch.zeros(total, dtype=dtype, device=parameters[0].device)
        self._rows: list[tuple[Tensor, torch.dtype]] = []  # (rows, size), what to sum in
        self._groups = [(size, [members[k] for k in indices]) for size, indices in sizes.items()]
        self._sizes = {member: parameters[k].numel() for k, member in enumerate(members)}
        self._places: Tensor | None = None
        views: dict[int, Tensor] = {}
        start = 0
        for size, indices in sizes.items():
            rows = self.entries[start : start + size * len(indices)].view(-1, size)
            self._rows.append((rows, dtype if size <= FEW else wide))
            for row, index in zip(rows, indices):
                like = parameters[index]
                views[index] = row.as_strided(like.shape, torch.empty_like(like).stride())
            start += rows.numel()
        self._views = {member: views[index] for index, member in enumerate(members)}

    def keep(self, indices: Sequence[int], tensors: list[Tensor]) -> None:
        """Copy to here what belongs to the parameters of these indices."""
        torch._foreach_copy_([self._views[index] for index in indices], tensors)

    def norms_of(self, indices: Sequence[int], tensors: list[Tensor], kept: bool) -> list[Tensor]:
        """Give the norms of what belongs to the parameters of these indices; see `norms`.

        By way of a copy to here; where they lie if they can all be read so, unless the copy is to
        be `kept`.
        """
        like = self.entries.dtype, self.entries.device
        alike = all((tensor.dtype, tensor.device) == like for tensor in tensors)
        if self.entries.is_cuda and tuple(indices) == self.members and alike and not kept:
            return [torch.stack(torch._foreach_norm(tensors))]
        self.keep(indices, tensors)
        return self.norms()

    def subtract(self, tensors: list[Tensor]) -> None:
        """Take from what is here what belongs to all members."""
        torch._foreach_sub_(list(self._views.values()), tensors)

    def count(self, factor: Tensor | int = 1) -> Tensor:
        """Count the entries times a factor by parameter, (order and one more, BUCKETS)."""
        if self._places is None:
            place = {member: row for row, member in enumerate(self.order)}
            parts = []  # sizes and rows: what fills a row up belongs to none
            for size, group in self._groups:
                for member in group:
                    own = self._sizes[member]
                    parts += [(own, place[member]), (size - own, len(place))]
            sizes, rows = zip(*parts)
            self._places = places_of(sizes, rows, self.entries.device)
        return count_entries(self.entries * factor, self._places, len(self.order) + 1)

    def norms(self) -> list[Tensor]:
        """Give the L2 norms of what is here of each parameter, in parts; see `order`."""
        if self.entries.is_cuda:  # where one operation for all costs less than one a size
            return [torch.stack(torch._foreach_norm(list(self._views.values())))]
        return [torch.linalg.vector_norm(rows, dim=1, dtype=dtype) for rows, dtype in self._rows]
