"""What the forward passes of one step give: responses, residual ratios and dead channels.

A BatchNorm has computed the variance v of its input already; by how much its running variance moved
tells it, and from it the moments of the norm's output follow without a look at the tensor: mean(b),
and the root of mean(w^2 v / (v + eps)) + var(b), over channels. All else is read from the tensors.
A running variance r is rounded, so v is known to 1e-7 r / (momentum v); eps / (v + eps) of that
error, usually next to nothing, reaches the response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from analysis.moments import RowSums, dead_fractions, moments_of, row_sums

_EXACT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # a subclass may normalise otherwise
_WIDE = (torch.float32, torch.float64)
MOMENTUM = 0.01
"""Below, the running variance moves too little to tell the batch's variance."""
TOGETHER = 32
"""Outputs that are kept to be read one after the other on a CPU: amid a forward pass the code that
reads one has left the caches, and fetching it takes longer than its arithmetic."""


class Response(NamedTuple):
    """Where in this step's responses one of them is."""

    tapped: bool
    index: int


class _Tap(NamedTuple):
    """One forward of a norm of C channels."""

    before: Tensor  # (C,): the running variance
    after: Tensor  # (C,)
    scales: Tensor  # (2, C): weight, bias
    settings: tuple[float, float, float]  # momentum, eps, (n - 1) / n for n entries of a channel


@dataclass(frozen=True)
class ForwardNotes:
    """What one step gave, from which `Responses.values_of` works out its statistics.

    A response's slot is the place of its mean in the list of statistics, that of its std follows.
    """

    taps: list[_Tap]
    read: list[RowSums]
    slots: dict[Response, int]
    ratios: list[tuple[int, Response, Response]]
    dead: list[tuple[int, Tensor]]

    @property
    def entries(self) -> int:
        """Numbers held for what was read."""
        return sum(sums.numel() for rows in self.read for sums in rows.sums)


def tells_variance(norm: nn.Module) -> bool:
    """Say whether the running variance will tell what the norm's next forward computes."""
    if not isinstance(norm, _BatchNorm) or type(norm) not in _EXACT or not norm.training:
        return False
    if norm.momentum is None or not MOMENTUM <= norm.momentum <= 1:
        return False
    if not (norm.affine and norm.track_running_stats):
        return False
    return norm.running_var is not None and norm.running_var.dtype in _WIDE


class Responses:
    """Notes one step's responses on the device; what follows from them can be worked out later."""

    def __init__(self) -> None:
        self._held: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # `before` and `scales` of a tap
        self._taps: list[_Tap] = []
        self._read: dict[int, RowSums] = {}
        self._count = 0  # of what was read or waits to be
        self._waiting: list[tuple[int, Tensor]] = []  # near zero, with its place among the read
        self._slots: dict[Response, int] = {}
        self._ratios: list[tuple[int, Response, Response]] = []
        self._dead: list[tuple[int, Tensor]] = []
        self._doubtful: list[tuple[int, Tensor]] = []  # outputs that may have dead channels
        self._constants: dict[tuple, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._taps or self._count)

    def hold(self, norms: Sequence[nn.Module]) -> None:
        """Copy what the norms hold before they run; all at once is much faster than one by one."""
        self._held.clear()
        ready = [norm for norm in norms if isinstance(norm, _BatchNorm) and tells_variance(norm)]
        if not ready:
            return
        rows = [(norm.running_var, norm.weight, norm.bias) for norm in ready]
        entries = torch.cat([part.detach() for parts in zip(*rows) for part in parts]).view(3, -1)
        widths = [norm.num_features for norm in ready]
        self._held.update(zip(ready, zip(entries[0].split(widths), entries[1:].split(widths, 1))))

    def tap(self, norm: nn.Module, output: Tensor) -> Response | None:
        """Note a forward of a norm; None if its variance cannot be told."""
        held = self._held.get(norm)
        if held is None or not isinstance(norm, _BatchNorm) or norm.running_var is None:
            return None
        if not (norm.training and norm.track_running_stats):  # it may have changed since `hold`
            return None
        after, (before, scales) = norm.running_var.clone(), held
        biased = 1 - norm.num_features / output.numel()
        self._taps.append(_Tap(before, after, scales, (norm.momentum or 0.0, norm.eps, biased)))
        self._held[norm] = after, scales
        return Response(True, len(self._taps) - 1)

    def forget(self, norm: nn.Module) -> None:
        """Say that the norm's running variance may have moved unseen."""
        self._held.pop(norm, None)

    def read(self, output: Tensor, near_zero: bool = False) -> Response:
        """Read an output's moments; see `row_sums`. One near zero must not be changed in place."""
        index = self._count
        self._count += 1
        if near_zero and output.device.type == "cpu":
            self._waiting.append((index, output))
            if len(self._waiting) == TOGETHER:
                self.catch_up()
        else:
            self._read[index] = row_sums(output, near_zero)
        return Response(False, index)

    def catch_up(self) -> None:
        """Read what waits to be."""
        for index, output in self._waiting:
            self._read[index] = row_sums(output, near_zero=True)
        self._waiting.clear()
        if self._doubtful:
            slots, outputs = zip(*self._doubtful)
            self._dead += zip(slots, dead_fractions(outputs))
            self._doubtful.clear()

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
            self.catch_up()

    def take(self) -> ForwardNotes:
        """Give what was noted, and begin the next step."""
        self.catch_up()
        read = [self._read[index] for index in range(self._count)]
        notes = ForwardNotes(self._taps, read, self._slots, self._ratios, self._dead)
        self._taps, self._read, self._slots, self._ratios, self._dead = [], {}, {}, [], []
        self._count, self._held = 0, {}
        return notes

    def values_of(self, notes: ForwardNotes) -> list[tuple[tuple[int, ...], Tensor]]:
        """Give (slots, values) of all statistics that follow from what was noted in a step."""
        parts = [self._closed_form(notes.taps)] if notes.taps else []
        parts += [moments_of(notes.read)] if notes.read else []
        table, start = torch.cat(parts), {True: 0, False: len(notes.taps)}  # (responses, 2)
        rows = self._index(tuple(start[r.tapped] + r.index for r in notes.slots), table)
        slots = tuple(place for slot in notes.slots.values() for place in (slot, slot + 1))
        found = [(slots, table[rows].flatten())]
        if notes.ratios:
            slots, branches, shortcuts = zip(*notes.ratios)
            ends = tuple(start[where.tapped] + where.index for where in branches + shortcuts)
            above, below = table[:, 1][self._index(ends, table)].view(2, -1)
            found.append((slots, above / below))
        if notes.dead:
            slots, shares = zip(*notes.dead)
            found.append((slots, torch.stack(shares)))
        return found

    def _closed_form(self, taps: list[_Tap]) -> Tensor:
        """Give mean and std of every tapped response, (taps, 2)."""
        widths = tuple(len(tap.after) for tap in taps)
        before, after = (
            torch.cat(ends).double() for ends in zip(*((tap.before, tap.after) for tap in taps))
        )
        weight, bias = torch.cat([tap.scales for tap in taps], 1).double()
        momentum, eps, biased = self._settings(widths, tuple(tap.settings for tap in taps), after)
        moved = (after - (1 - momentum) * before) / momentum
        variance = (moved * biased).clamp_min(0)
        power = weight.square() * variance / (variance + eps)
        mean, square = self._means(widths, torch.stack([bias, power + bias.square()]))
        return torch.stack([mean, (square - mean.square()).clamp_min(0).sqrt()], 1)

    # What stays the same from step to step is sent to the device once.

    def _index(self, rows: tuple[int, ...], like: Tensor) -> Tensor:
        return self._once(("index", *rows), lambda: torch.tensor(rows, device=like.device))

    def _settings(self, widths: tuple[int, ...], settings: tuple, like: Tensor) -> Tensor:
        def make() -> Tensor:
            columns = [column for column, width in zip(settings, widths) for _ in range(width)]
            return torch.tensor(columns, dtype=torch.float64, device=like.device).T

        return self._once(("settings", *widths, *settings), make)

    def _means(self, widths: tuple[int, ...], values: Tensor) -> Tensor:
        """Take the mean over each layer's channels, (rows, channels) -> (rows, layers)."""
        most, total = max(widths), sum(widths)

        def make() -> tuple[Tensor, Tensor]:
            ends = [sum(widths[: n + 1]) for n in range(len(widths))]
            places = [
                [*range(end - width, end), *[total] * (most - width)]
                for end, width in zip(ends, widths)
            ]
            return values.new_tensor(widths), torch.tensor(places, device=values.device)

        counts, places = self._once(("means", *widths), make)
        padded = functional.pad(values, (0, 1))  # a 0 at `total` fills up what is narrower
        return padded[:, places].sum(2) / counts

    def _once(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._constants:
            self._constants[key] = make()
        return self._constants[key]
