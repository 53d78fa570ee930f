"""What the forward passes of one step give: responses, residual ratios and dead channels.

The response of a BatchNorm is told by its running variance where it can (see `taps`); all else is
read from the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from analysis.dead import dead_fractions
from analysis.moments import RowSums, moments_of, row_sums
from analysis.taps import TapNotes, Taps, moments_of_taps

TOGETHER = 32
"""Outputs that are kept to be looked at one after the other on a CPU: amid a forward pass the code
that does it has left the caches, and fetching it takes longer than its arithmetic."""


class Response(NamedTuple):
    """Where in this step's responses one of them is."""

    tapped: bool
    index: int


@dataclass(frozen=True)
class ForwardNotes:
    """What one step gave, from which `values_of` works out its statistics.

    A response's slot is the place of its mean in the list of statistics, that of its std follows.
    """

    tapped: TapNotes
    read: list[RowSums]
    slots: dict[Response, int]
    ratios: list[tuple[int, Response, Response]]
    dead: list[tuple[tuple[int, ...], Tensor]]  # of several slots each

    @property
    def entries(self) -> int:
        """Numbers held for what was read."""
        return sum(rows.count for rows in self.read)

    @property
    def form(self) -> tuple:
        """What steps that are worked out together have in common."""
        dead = tuple(slots for slots, _ in self.dead)
        return self.tapped.taps, len(self.read), self.slots, self.ratios, dead


class Responses:
    """Notes one step's responses on the device; what follows from them can be worked out later."""

    def __init__(self) -> None:
        self._taps = Taps()
        self._read: list[RowSums] = []
        self._slots: dict[Response, int] = {}
        self._ratios: list[tuple[int, Response, Response]] = []
        self._dead: list[tuple[tuple[int, ...], Tensor]] = []
        self._doubtful: list[tuple[int, Tensor]] = []  # outputs that may have dead channels

    def __bool__(self) -> bool:
        return bool(self._taps or self._read)

    def hold(self, norms: Sequence[nn.Module]) -> None:
        """Look at the norms before the forward pass."""
        self._taps.hold(norms)

    def tap(self, norm: nn.Module, inputs: Sequence[Any], output: Tensor) -> Response | None:
        """Note a forward of a norm; None if its variance cannot be told."""
        place = self._taps.add(norm, inputs, output)
        return None if place is None else Response(True, place)

    def forget(self, norm: nn.Module, inputs: Sequence[Any]) -> None:
        """Say that a norm ran unseen."""
        self._taps.forget(norm, inputs)

    def read(self, output: Tensor, near_zero: bool = False) -> Response:
        """Read an output's moments; see `row_sums`."""
        self._read.append(row_sums(output.detach(), near_zero))
        return Response(False, len(self._read) - 1)

    def keep(self, slot: int, response: Response) -> None:
        """Say that a response is a layer's."""
        self._slots[response] = slot

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

    def end_forward(self) -> None:
        """Look at what waited for the forward pass to end."""
        self._taps.look()
        self._look_for_dead()

    def _look_for_dead(self) -> None:
        if self._doubtful:
            slots, outputs = zip(*self._doubtful)
            self._dead.append((slots, dead_fractions(outputs)))
            self._doubtful.clear()

    def take(self) -> ForwardNotes:
        """Give what was noted, and begin the next step."""
        self._look_for_dead()
        notes = ForwardNotes(self._taps.take(), self._read, self._slots, self._ratios, self._dead)
        self._read, self._slots, self._ratios, self._dead = [], {}, [], []
        return notes


def values_of(steps: Sequence[ForwardNotes]) -> list[tuple[tuple[int, ...], Tensor]]:
    """Give all statistics that follow from what was noted in steps of one form.

    As (slots, values), values (steps, slots).
    """
    one, count = steps[0], len(steps)
    parts = [moments_of_taps([notes.tapped for notes in steps])] if one.tapped.taps else []
    if one.read:
        read = moments_of([rows for notes in steps for rows in notes.read])
        parts.append(read.view(count, -1, 2))
    table = torch.cat(parts, 1)  # (steps, responses, 2)

    def of(responses: Sequence[Response]) -> Tensor:
        start = {True: 0, False: len(one.tapped.taps)}
        return _index(tuple(start[r.tapped] + r.index for r in responses), table.device)

    slots = tuple(place for slot in one.slots.values() for place in (slot, slot + 1))
    found = [(slots, table[:, of(list(one.slots))].flatten(1))]
    if one.ratios:
        slots, branches, shortcuts = zip(*one.ratios)
        above, below = table[:, of(branches + shortcuts), 1].view(count, 2, -1).unbind(1)
        found.append((slots, above / below))
    if one.dead:
        slots = tuple(slot for slots, _ in one.dead for slot in slots)
        shares = torch.cat([part for notes in steps for _, part in notes.dead])
        found.append((slots, shares.view(count, -1)))
    return found


@lru_cache(maxsize=256)
def _index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Send what stays the same from step to step to the device once."""
    return torch.tensor(rows, device=device)
