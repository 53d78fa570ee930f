"""What a step adds to sums by slot, where some are largest values, undefined or not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Values = list[tuple[tuple[int, ...], Tensor]]
"""Slots, layer * len(statistics) + statistic, and what belongs there, (slots,) float64."""
_LARGEST = "max_abs"  # over a window it is the largest, not the mean
_MAYBE = "kurtosis"  # of an output that does not vary it is not defined, and comes as NaN


class StepSums:
    """Makes sums of what steps gave.

    Args:
        statistics: names of all that a layer has.
        size: how many slots there are.
    """

    def __init__(self, statistics: Sequence[str], size: int) -> None:
        place, width = {name: at for at, name in enumerate(statistics)}, len(statistics)
        self._size, self._width, self._maybe = size, width, place.get(_MAYBE)
        # slots of largest values
        largest = place.get(_LARGEST)
        self.largest = None if largest is None else slice(largest, None, width)
        self._indices: dict[Any, Tensor] = {}

    def of_step(self, values: Values, undefined: Values, skipped: Tensor | None) -> Tensor:
        """Give what a step, or the end of one, adds to the totals, (2, size).

        Sums, and how many readings were undefined: with `skipped`, (), all that is not finite.
        """
        values, undefined = self._defined(values, undefined)
        if skipped is not None:
            values, broken = _finite_of(values)
            lost = [(slots, where * skipped) for slots, where in broken]
            values = [
                (slots, value.masked_fill((where > 0) & ~skipped, torch.nan))
                for (slots, value), (_, where) in zip(values, broken)
            ]
            undefined = [*undefined, *lost]
        return self._reading(values, undefined)

    def of_part(self, values: Values) -> Tensor:
        """Give a part of a step under way, (3, size).

        Sums, how many readings were undefined, and how many not finite, for which 0 stands.
        """
        values, undefined = self._defined(values, [])
        finite, broken = _finite_of(values)
        return torch.cat([self._reading(finite, undefined), self._reading(broken, [])[:1]])

    def join(self, sums: Tensor, more: Tensor) -> None:
        """Add to sums in place, of which the first row may have some that are largest values."""
        if self.largest is None:
            sums += more
            return
        largest = torch.maximum(sums[0, self.largest], more[0, self.largest])
        sums += more
        sums[0, self.largest] = largest

    def _defined(self, values: Values, undefined: Values) -> tuple[Values, Values]:
        """Give 0 for what may be undefined and is NaN, and say so."""
        if self._maybe is None:
            return values, undefined
        found, undefined = [], list(undefined)
        for slots, value in values:
            if slots[0] % self._width == self._maybe:
                none = value.isnan()
                undefined.append((slots, none.double()))
                value = value.masked_fill(none, 0)
            found.append((slots, value))
        return found, undefined

    def _reading(self, values: Values, undefined: Values) -> Tensor:
        """Give the sums of both, (2, size)."""
        both = [*values, *undefined]
        device = both[0][1].device if both else None
        reading = torch.zeros(2 * self._size, dtype=torch.float64, device=device)
        if both:
            key = tuple(slots for slots, _ in both), len(values), device
            if key not in self._indices:
                slots = [slot for slots, _ in values for slot in slots]
                slots += [self._size + slot for slots, _ in undefined for slot in slots]
                self._indices[key] = torch.tensor(slots, device=device)
            numbers = torch.cat([value.to(device) for _, value in both])
            reading.index_add_(0, self._indices[key], numbers)
        return reading.view(2, -1)


def _finite_of(values: Values) -> tuple[Values, Values]:
    """Give values with 0 for what is not finite, and 1 where that is so."""
    finite, broken = [], []
    for slots, value in values:
        where = ~value.isfinite()
        finite.append((slots, value.masked_fill(where, 0)))
        broken.append((slots, where.double()))
    return finite, broken


def told(aside: Tensor, skipped: Tensor | None) -> Tensor:
    """Give parts of a step as the totals take them: NaN where one was not finite, or undefined.

    Undefined it is in a step whose update was left out.
    """
    sums, undefined, broken = aside
    nan = torch.stack([sums.masked_fill(broken > 0, torch.nan), undefined])
    if skipped is None:
        return nan
    return torch.where(skipped, torch.stack([sums, undefined + broken]), nan)


def rearranged(totals: Tensor | None, slots: Sequence[int | None]) -> Tensor | None:
    """Give sums by other slots: of each, which of the old ones it was, if any."""
    if totals is None:
        return None
    found = totals.new_zeros(len(totals), len(slots))
    for place, slot in enumerate(slots):
        if slot is not None:
            found[:, place] = totals[:, slot]
    return found
