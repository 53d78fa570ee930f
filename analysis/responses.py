"""What the forward passes of one step give: responses, residual ratios and dead channels.

A BatchNorm has computed the variance v of its input already; by how much its running variance moved
tells it, and from it the moments of the norm's output follow without a look at the tensor: mean(b),
and the root of mean(w^2 v / (v + eps)) + var(b), over channels. All else is read from the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from analysis.moments import channel_peaks, moments

_EXACT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # a subclass may normalise otherwise
_WIDE = (torch.float32, torch.float64)
MOMENTUM = 0.01
"""Below, the running variance moves too little to tell the batch's variance."""


class Response(NamedTuple):
    """Where in this step's responses one of them is."""

    tapped: bool
    index: int


class _Tap(NamedTuple):
    """One forward of a norm: what it held before, its running variance after."""

    before: Tensor  # (3, C): running variance, weight, bias
    after: Tensor  # (C,)
    settings: tuple[float, float, float]  # momentum, eps, (n - 1) / n for n entries of a channel


def tells_variance(norm: nn.Module) -> bool:
    """Say whether the running variance will tell what the norm's next forward computes."""
    if not isinstance(norm, _BatchNorm) or type(norm) not in _EXACT or not norm.training:
        return False
    if norm.momentum is None or not MOMENTUM <= norm.momentum <= 1 or not norm.affine:
        return False
    return norm.running_var is not None and norm.running_var.dtype in _WIDE


def held_by(norm: nn.Module) -> Tensor:
    """Copy a norm's running variance, weight and bias, (3, C)."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_var is not None
    return torch.cat([norm.running_var, norm.weight.detach(), norm.bias.detach()]).view(3, -1)


class Responses:
    """Collects one step's responses on the device; `take` computes all that follows, at once.

    A response's slot is the place of its mean in the list of statistics, that of its std follows.
    """

    def __init__(self) -> None:
        self._taps: list[_Tap] = []
        self._read: list[Tensor] = []
        self._slots: dict[Response, int] = {}
        self._ratios: list[tuple[int, Response, Response]] = []
        self._peaks: list[tuple[int, Tensor]] = []
        self._constants: dict[tuple, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._taps or self._read)

    def tap(self, norm: nn.Module, before: Tensor, output: Tensor) -> Response:
        """Note a forward of a norm for which `tells_variance`; `before` is what it held."""
        assert isinstance(norm, _BatchNorm)
        assert norm.running_var is not None
        assert norm.momentum is not None
        entries = output.numel() // norm.num_features
        settings = (norm.momentum, norm.eps, 1 - 1 / entries)
        self._taps.append(_Tap(before, norm.running_var.clone(), settings))
        return Response(True, len(self._taps) - 1)

    def read(self, output: Tensor) -> Response:
        """Read an output's moments."""
        self._read.append(moments(output))
        return Response(False, len(self._read) - 1)

    def keep(self, slot: int, response: Response) -> None:
        """Say that a response is a layer's."""
        self._slots[response] = slot

    def ratio(self, slot: int, branch: Response, shortcut: Response) -> None:
        """Note a residual ratio: the std of one response over that of another."""
        self._ratios.append((slot, branch, shortcut))

    def dead(self, slot: int, output: Tensor) -> None:
        """Note the share of channels that a relu will give 0 for the whole batch."""
        self._peaks.append((slot, channel_peaks(output)))

    def take(self) -> list[tuple[tuple[int, ...], Tensor]]:
        """Give (slots, values) of all that was noted, and begin the next step."""
        parts = [self._closed_form()] if self._taps else []
        parts += [torch.stack(self._read)] if self._read else []
        table, start = torch.cat(parts), {True: 0, False: len(self._taps)}  # (responses, 2)
        rows = self._index(tuple(start[where.tapped] + where.index for where in self._slots), table)
        slots = tuple(place for slot in self._slots.values() for place in (slot, slot + 1))
        found = [(slots, table[rows].flatten())]
        if self._ratios:
            slots, branches, shortcuts = zip(*self._ratios)
            ends = tuple(start[where.tapped] + where.index for where in branches + shortcuts)
            above, below = table[:, 1][self._index(ends, table)].view(2, -1)
            found.append((slots, above / below))
        if self._peaks:
            slots, peaks = zip(*self._peaks)
            dead = (torch.cat(peaks) <= 0).double()
            found.append((slots, self._means(tuple(map(len, peaks)), dead)))
        self._taps, self._read, self._slots, self._ratios, self._peaks = [], [], {}, [], []
        return found

    def _closed_form(self) -> Tensor:
        """Give mean and std of every tapped response, (taps, 2)."""
        running, weight, bias = torch.cat([tap.before for tap in self._taps], 1).double()
        after = torch.cat([tap.after for tap in self._taps]).double()
        widths = tuple(len(tap.after) for tap in self._taps)
        momentum, eps, biased = self._settings(widths, tuple(t.settings for t in self._taps), after)
        moved = (after - (1 - momentum) * running) / momentum
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
        """Take the mean over each layer's channels, (..., channels) -> (..., layers)."""

        def make() -> Tensor:
            return torch.block_diag(*[values.new_ones(width, 1) for width in widths])

        member = self._once(("member", *widths), make)
        return values @ member / self._once(("widths", *widths), lambda: member.sum(0))

    def _once(self, key: tuple, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._constants:
            self._constants[key] = make()
        return self._constants[key]
