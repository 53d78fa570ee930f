"""What the forward passes of one step give: responses, residual ratios and dead channels.

The response of a BatchNorm is told by what it keeps for the backward pass (see `batchnorm_std`);
all else is read from the outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from analysis.measuring.batchnorm_std import Told, batchnorm_moments, told_by
from analysis.measuring.dead_channels import dead_fractions
from analysis.measuring.mean_and_std import RowSums, moments_of, row_sums
from analysis.summing.side_stream import SideStream

TOGETHER = 32
"""Outputs that are kept to be looked at one after the other on a CPU: amid a forward pass the code
that does it has left the caches, and fetching it takes longer than its arithmetic."""
SHAPES = 256
"""Of what stays the same from step to step, how much is kept: a captured step needs some ten."""
Slots = tuple[int, ...]
"""Places in the list of all statistics of a network."""


class Response(NamedTuple):
    """Which of this step's responses one is, among those that BatchNorms told or the others."""

    told: bool
    index: int


class Responses:
    """Notes one step's responses on the device until they are taken.

    A response's slot is that of its mean in the list of statistics; that of its std follows.
    """

    def __init__(self) -> None:
        # kept as long as this: steps that are captured read them where they lie
        self.known: dict[Any, Any] = {}
        self.beside = SideStream()
        self._begin()

    def _begin(self) -> None:
        self._norms: list[Told] = []  # of BatchNorms that ran
        self._read: list[RowSums] = []  # of other outputs
        # of the forwards that are over, (norms, 2) and (others, 2)
        self._told: list[Tensor] = []
        self._found: list[Tensor] = []
        self._slots: list[tuple[Response, int]] = []
        self._ratios: list[tuple[int, Response, Response]] = []
        self._dead: list[tuple[Slots, Tensor]] = []
        self._doubtful: list[tuple[int, Tensor]] = []  # outputs that may have dead channels

    def __bool__(self) -> bool:
        return bool(self._norms or self._told or self._read or self._found)

    def __len__(self) -> int:
        return len(self._slots)

    def read(self, module: nn.Module, output: Tensor, small_mean: bool = False) -> Response:
        """Read the moments of what a module gave; see `row_sums`."""
        told = told_by(module, output)
        if told is None:
            self._read.append(row_sums(output.detach(), small_mean))
            return Response(False, sum(map(len, self._found)) + len(self._read) - 1)
        self._norms.append(told)
        return Response(True, sum(map(len, self._told)) + len(self._norms) - 1)

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
        if output.device.type == "cpu" and len(self._doubtful) == TOGETHER:
            self._look_for_dead()

    def share(self, slot: int, dead: Tensor) -> None:
        """Note the share of dead channels of an output, which has been looked at, (1,)."""
        self._dead.append(((slot,), dead))

    def end_forward(self) -> None:
        """Work out what the forward pass gave, and look at what waited for it to end.

        Now, before anything changes it; and of all layers together, for the code that one part of
        it fetches the next one finds there.
        """
        try:
            with self.beside.work(self._norms, self._read, self._doubtful):
                if self._norms:
                    self._told.append(batchnorm_moments(self._norms, self.known))
                    self._norms = []
                if self._read:
                    self._found.append(moments_of(self._read, self.known))
                    self._read = []
                self._look_for_dead()
        except Exception:
            self._begin()  # else the step would be read twice
            raise

    def look(self) -> None:
        """Be done with what an update would change."""
        self.end_forward()
        self.beside.join()

    def _look_for_dead(self) -> None:
        if self._doubtful:
            by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
            for slot, output in self._doubtful:
                by_device.setdefault(output.device, []).append((slot, output))
            for several in by_device.values():
                slots, outputs = zip(*several)
                self._dead.append((slots, dead_fractions(outputs, self.known)))
            self._doubtful = []

    def take(self) -> list[tuple[Slots, Tensor]]:
        """Give the statistics that follow, 1-D in float64, and begin the next step."""
        try:
            self.look()
            return self._statistics() if self._slots else []
        finally:
            self._begin()
            while len(self.known) > SHAPES:  # of inputs whose shapes change all the time
                del self.known[next(iter(self.known))]

    def _statistics(self) -> list[tuple[Slots, Tensor]]:
        parts = [*self._told, *self._found]
        table = torch.cat([part.to(parts[0].device) for part in parts])  # (responses, 2)
        start = {True: 0, False: sum(map(len, self._told))}

        def of(responses: Sequence[Response]) -> Tensor:
            return self._index(tuple(start[r.told] + r.index for r in responses), table.device)

        responses, firsts = zip(*self._slots)
        slots = tuple(place for slot in firsts for place in (slot, slot + 1))
        found = [(slots, table[of(responses)].flatten())]
        found += [(slots, shares.double()) for slots, shares in self._dead]
        if self._ratios:
            slots, branches, shortcuts = zip(*self._ratios)
            above, below = table[of(branches + shortcuts), 1].view(2, -1)
            found.append((slots, above / below))
        return found

    def _index(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        """Send what stays the same from step to step to the device once."""
        if (rows, device) not in self.known:
            self.known[rows, device] = torch.tensor(rows, device=device)
        return self.known[rows, device]
