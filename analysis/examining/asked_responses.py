"""What was asked for of layers' outputs, as one step's forward and backward passes give it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from analysis.examining.arriving_gradients import ArrivingGradients
from analysis.examining.outliers import Powers, extremes, kurtosis, max_abs, powers
from analysis.examining.requests import ALSO

_Values = list[tuple[tuple[int, ...], Tensor]]


class AskedResponses:
    """Reads outputs until what was read is taken; nothing if nothing was asked for.

    Args:
        also: what was asked for.
        statistics: names of all that a layer has; places are counted in their order.
    """

    def __init__(self, also: Sequence[str], statistics: Sequence[str]) -> None:
        self._places = {one: statistics.index(ALSO[one][0]) for one in also if ALSO[one]}
        self._arriving = ArrivingGradients()
        self._extremes: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._powers: list[tuple[int, Powers]] = []

    def read(self, first: int, output: Tensor) -> None:
        """Read an output of a layer whose statistics begin at a place."""
        place = {one: first + at for one, at in self._places.items()}
        if "max_abs" in place and output.numel():
            self._extremes.setdefault(place["max_abs"], []).append(extremes(output))
        if "kurtosis" in place and output.numel():
            self._powers.append((place["kurtosis"], powers(output)))
        if "activation_gradient" in place:
            self._arriving.listen(output, place["activation_gradient"])

    def take(self, ended: bool, scale: Tensor | None) -> _Values:
        """Give what was read by its places, 1-D in float64: of several outputs the largest.

        Args:
            ended: the step is over, and with it what arrives; it is given then.
            scale: by which the step's loss was multiplied, (1,); None for 1.
        """
        found: _Values = []
        if self._powers:
            places, several = zip(*self._powers)
            found.append((places, kurtosis(several)))
        if self._extremes:
            counts = list(map(len, self._extremes.values()))
            sizes = max_abs([one for own in self._extremes.values() for one in own])
            if len(sizes) > len(counts):
                sizes = torch.stack([own.amax() for own in sizes.split(counts)])
            found.append((tuple(self._extremes), sizes))
        self._powers, self._extremes = [], {}
        return [*found, *(self._arriving.take(scale) if ended else [])]
