"""What the forward passes of one step give: responses, residual ratios and dead channels.

The response of a BatchNorm is told by what it keeps for the backward pass (see `taps`); all else is
read from the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from analysis.measuring.dead import dead_fractions
from analysis.measuring.moments import Rows, RowSums, moments_of, numbers_of, row_sums
from analysis.measuring.taps import Tap, Taps, moments_of_taps

TOGETHER = 32
"""Outputs that are kept to be looked at one after the other on a CPU: amid a forward pass the code
that does it has left the caches, and fetching it takes longer than its arithmetic."""


class Response(NamedTuple):
    """Where in this step's responses one of them is."""

    tapped: bool
    index: int


class ForwardForm(NamedTuple):
    """What the numbers of a step are: of taps, of what was read, and of dead channels.

    A response's slot is the place of its mean in the list of statistics, that of its std follows.
    """

    taps: tuple[Tap, ...]
    read: tuple[Rows, ...]
    slots: tuple[tuple[Response, int], ...]
    ratios: tuple[tuple[int, Response, Response], ...]
    dead: tuple[int, ...]  # slots


class Responses:
    """Notes one step's responses on the device; what follows from them can be worked out later."""

    def __init__(self) -> None:
        self._taps = Taps()
        self._read: list[RowSums] = []
        self._slots: list[tuple[Response, int]] = []
        self._ratios: list[tuple[int, Response, Response]] = []
        self._dead: list[tuple[tuple[int, ...], Tensor]] = []  # of several slots each
        self._doubtful: list[tuple[int, Tensor]] = []  # outputs that may have dead channels

    def __bool__(self) -> bool:
        return bool(self._taps or self._read)

    def __len__(self) -> int:
        return len(self._slots)

    def tap(self, norm: nn.Module, output: Tensor) -> Response | None:
        """Note a forward of a norm; None if its variance cannot be told."""
        place = self._taps.add(norm, output)
        return None if place is None else Response(True, place)

    def read(self, output: Tensor, near_zero: bool = False) -> Response:
        """Read an output's moments; see `row_sums`."""
        self._read.append(row_sums(output.detach(), near_zero))
        return Response(False, len(self._read) - 1)

    def keep(self, slot: int, response: Response) -> None:
        """Say that a response is a layer's."""
        self._slots.append((response, slot))

    def ratio(self, slot: int, branch: Response, shortcut: Response) -> None:
        """Note a residual ratio: the std of one response over that of another."""
        self._ratios.append((slot, branch, shortcut))

    def dead(self, slot: int, output: Tensor) -> None:
        """Note the share of channels that a relu will give 0 for the whole batch.

        The output must not be changed in place, unless by that relu.
        """
        self._doubtful.append((slot, output))
        if output.device.type != "cpu" or len(self._doubtful) == TOGETHER:
            self._look_for_dead()

    def share(self, slot: int, dead: Tensor) -> None:
        """Note the share of dead channels of an output, which has been looked at, (1,)."""
        self._dead.append(((slot,), dead))

    def end_forward(self) -> None:
        """Look at what waited for the forward pass to end."""
        self._taps.look()
        self._look_for_dead()

    def _look_for_dead(self) -> None:
        if self._doubtful:
            slots, outputs = zip(*self._doubtful)
            self._dead.append((slots, dead_fractions(outputs)))
            self._doubtful.clear()

    def take(self) -> tuple[ForwardForm, list[Tensor]]:
        """Give what was noted, numbers in 1-D parts, and begin the next step."""
        self._look_for_dead()
        taps, numbers = self._taps.take()
        numbers += numbers_of(self._read)
        numbers += [shares for _, shares in self._dead]
        form = ForwardForm(
            taps,
            tuple(sums.rows for sums in self._read),
            tuple(self._slots),
            tuple(self._ratios),
            tuple(slot for slots, _ in self._dead for slot in slots),
        )
        self._read, self._slots, self._ratios, self._dead = [], [], [], []
        return form, numbers


def values_of(form: ForwardForm, numbers: Tensor) -> list[tuple[tuple[int, ...], Tensor]]:
    """Give all statistics that follow from the numbers of some steps, (steps, numbers) float64.

    As (slots, values), values (steps, slots).
    """
    steps, dead = len(numbers), len(form.dead)
    read = sum(2 * rows.count for rows in form.read)
    tapped, summed, shares = numbers.split([numbers.shape[1] - read - dead, read, dead], 1)
    parts = [moments_of_taps(form.taps, tapped)] if form.taps else []
    parts += [moments_of(form.read, summed)] if form.read else []
    table = torch.cat(parts, 1)  # (steps, responses, 2)

    def of(responses: Sequence[Response]) -> Tensor:
        start = {True: 0, False: len(form.taps)}
        return _index(tuple(start[r.tapped] + r.index for r in responses), table.device)

    responses, firsts = zip(*form.slots)
    slots = tuple(place for slot in firsts for place in (slot, slot + 1))
    found = [(slots, table[:, of(responses)].flatten(1)), (form.dead, shares)]
    if form.ratios:
        slots, branches, shortcuts = zip(*form.ratios)
        above, below = table[:, of(branches + shortcuts), 1].view(steps, 2, -1).unbind(1)
        found.append((slots, above / below))
    return found


@lru_cache(maxsize=256)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Send what stays the same from step to step to the device once."""
    return torch.tensor(rows, device=device)
