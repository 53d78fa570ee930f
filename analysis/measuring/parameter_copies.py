"""Room for numbers of parameters, in which the norms of all are taken at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from analysis.examining import tensor_entries
from analysis.examining.entry_histograms import count_entries, places_of

ROW = 256  # entries


class ParameterCopies:
    """Room for a number from every entry of some parameters, its members.

    Each has rows of its own, the last filled up with 0: on a CPU to copy all to here and take the
    norms of all rows at once is faster than a norm each.
    """

    def __init__(self, members: tuple[int, ...], parameters: Sequence[Tensor]) -> None:
        self.members = members
        self._sizes = [parameter.numel() for parameter in parameters]
        rows, device = [-(-size // ROW) for size in self._sizes], parameters[0].device
        dtype = reduce(torch.promote_types, [p.dtype for p in parameters], torch.float32)
        self.entries = torch.zeros(sum(rows) * ROW, dtype=dtype, device=device)
        self._rooms = self.entries.split([count * ROW for count in rows])
        self._views = {
            member: room.as_strided(like.shape, torch.empty_like(like).stride())
            for member, room, like in zip(members, self._rooms, parameters)
        }
        self._owners: Tensor | None = None  # of every row, whose it is among the members
        self._places: Tensor | None = None

    def keep(self, indices: Sequence[int], tensors: list[Tensor]) -> None:
        """Copy to here what belongs to the parameters of these indices."""
        torch._foreach_copy_([self._views[index] for index in indices], tensors)

    def norms_of(self, indices: Sequence[int], tensors: list[Tensor], kept: bool) -> Tensor:
        """Give the norms of what belongs to the parameters of these indices; see `norms`.

        By way of a copy to here; where they lie if they can all be read so, unless the copy is to
        be `kept`.
        """
        beside = tensor_entries.on_host([self.entries]) or kept or tuple(indices) != self.members
        like = self.entries.dtype, self.entries.device
        if not beside and all((tensor.dtype, tensor.device) == like for tensor in tensors):
            return tensor_entries.norms_of(tensors)
        self.keep(indices, tensors)
        return self.norms()

    def subtract(self, tensors: list[Tensor]) -> None:
        """Take from what is here what belongs to all members."""
        torch._foreach_sub_(list(self._views.values()), tensors)

    def count(self, factor: Tensor | int = 1) -> Tensor:
        """Count the entries times a factor by parameter, (members and one more, BUCKETS)."""
        none = len(self.members)  # what fills a row up belongs to none
        if self._places is None:
            sizes, rows = [], []
            for place, (size, room) in enumerate(zip(self._sizes, self._rooms)):
                sizes += [size, len(room) - size]
                rows += [place, none]
            self._places = places_of(sizes, rows, self.entries.device)
        return count_entries(self.entries * factor, self._places, none + 1)

    def norms(self) -> Tensor:
        """Give the L2 norms of what is here of each parameter, (members,) float64."""
        if not tensor_entries.on_host([self.entries]):
            return tensor_entries.norms_of(list(self._views.values()))
        if self._owners is None:
            owners = [k for k, room in enumerate(self._rooms) for _ in range(len(room) // ROW)]
            self._owners = torch.tensor(owners, dtype=torch.long, device=self.entries.device)
        rows = tensor_entries.row_norms(self.entries.view(-1, ROW))
        squares = rows.new_zeros(len(self.members))
        return squares.index_add_(0, self._owners, rows.square_()).sqrt_()
