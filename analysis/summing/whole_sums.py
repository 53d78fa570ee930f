"""Sums over a window of what is no single number of a layer: norms of all gradients, histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from analysis.examining.entry_histograms import BUCKETS, EntryHistogram, histogram_of

COLUMNS = BUCKETS + 1
"""Of a layer's histogram: its counts, and of how many steps they are."""
NORMS = "gradient_norms"
"""(5,): the norm at the update, of how many steps; the norm when the backward pass had ended, of
how many; how many steps there were."""


def norms_of_step(
    seen: Tensor, made: Tensor | None, updated: bool, left_out: Tensor | None, bits: Tensor
) -> Tensor:
    """Give what a step adds to the norms, (5,) float64.

    Args:
        seen: sum of squares of all gradients as the optimizer sees them, (); without one, as the
            backward pass leaves them.
        made: the same as the backward pass has left them, before they were clipped, if known.
        updated: whether an optimizer has seen them.
        left_out: whether the update was left out, (1,): the step counts for nothing then.
        bits: 0 and 1, on the device of the others.
    """
    zero, one = bits.split(1)
    after = [seen.sqrt().view(1), one] if updated else [zero, zero]
    made = made if updated else seen
    before = [zero, zero] if made is None else [made.sqrt().view(1), one]
    found = torch.cat([*after, *before, one])
    return found if left_out is None else found.masked_fill(left_out, 0)


class WholeSums:
    """Adds up tensors by name, in the same memory as long as it lives.

    Args:
        rows: of a histogram's counts, (rows, COLUMNS).
        histograms: their names.
    """

    def __init__(self, rows: int, histograms: Sequence[str]) -> None:
        self._shapes = {NORMS: (5,), **dict.fromkeys(histograms, (rows, COLUMNS))}
        self._sums: dict[str, Tensor] = {}

    def tensors(self) -> list[Tensor]:
        """Give the sums, none before the first addition."""
        return list(self._sums.values())

    def add(self, found: Mapping[str, Tensor]) -> None:
        """Add to the sums in place."""
        for name, value in found.items():
            self._on(value.device)
            self._sums[name] += value.to(self._sums[name].device)

    def _on(self, device: torch.device) -> None:
        if not self._sums:
            self._sums = {
                name: torch.zeros(shape, dtype=torch.float64, device=device)
                for name, shape in self._shapes.items()
            }

    def all_on(self, device: torch.device) -> list[Tensor]:
        """Give the sums of every name, which are 0 where nothing was added."""
        self._on(device)
        return self.tensors()

    def norms(self) -> tuple[float | None, float | None]:
        """Give the mean gradient norm of the steps, at the update and after the backward pass."""
        if NORMS not in self._sums:
            return None, None
        after, times, before, seen, _ = self._sums[NORMS].tolist()
        return after / times if times else None, before / seen if seen else None

    def histograms(self, paths: Sequence[str | None]) -> dict[str, dict[str, EntryHistogram]]:
        """Give histograms, in the mean of a row's steps, by name and by path; None is left out.

        Rows without entries are left out too.
        """
        found: dict[str, dict[str, EntryHistogram]] = {}
        for name, sums in self._sums.items():
            if name == NORMS:
                continue
            means = (sums[:, :-1] / sums[:, -1:].clamp_min(1)).tolist()
            rows = {path: row for path, row in zip(paths, means) if path is not None and any(row)}
            found[name] = {path: histogram_of(row) for path, row in rows.items()}
        return found

    def rearrange(self, rows: Sequence[int | None]) -> None:
        """Go on with other rows: of each, which of the old ones it was, if any."""
        self._shapes = {
            name: shape if name == NORMS else (len(rows), COLUMNS)
            for name, shape in self._shapes.items()
        }
        for name, old in self._sums.items():
            if name != NORMS:
                self._sums[name] = torch.stack(
                    [old.new_zeros(COLUMNS) if row is None else old[row] for row in rows]
                )

    def state(self) -> dict[str, Any]:
        """Give the sums as numbers."""
        return {name: value.tolist() for name, value in self._sums.items()}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from what `state` gave."""
        for value in self._sums.values():
            value.zero_()
        with torch.inference_mode(False):
            for name in self._shapes:
                if name in state:
                    value = torch.tensor(state[name], dtype=torch.float64, device=device)
                    if name != NORMS and value.shape[1] == BUCKETS:  # of an earlier version
                        steps = value.any(1, keepdim=True) * state[NORMS][4]
                        value = torch.cat([value, steps], 1)
                    self.add({name: value})
