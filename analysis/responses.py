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
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from analysis.moments import RowSums, dead_fractions, moments_of, row_sums

_EXACT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # a subclass may normalise otherwise
_WIDE = (torch.float32, torch.float64)
MOMENTUM = 0.01
"""Below, the running variance moves too little to tell the batch's variance."""
TOGETHER = 8
"""Outputs that are kept to be read one after the other on a CPU: amid a forward pass the code that
reads one has left the caches, and fetching it takes longer than its arithmetic."""


class Response(NamedTuple):
    """Where in this step's responses one of them is."""

    tapped: bool
    index: int


@dataclass
class _Tap:
    """One forward of a norm: what it held before, its running variance after once it is known."""

    norm: _BatchNorm
    before: Tensor  # (3, C): running variance, weight, bias
    settings: tuple[float, float, float]  # momentum, eps, (n - 1) / n for n entries of a channel
    after: Tensor | None = None  # (C,)


def tells_variance(norm: nn.Module) -> bool:
    """Say whether the running variance will tell what the norm's next forward computes."""
    if not isinstance(norm, _BatchNorm) or type(norm) not in _EXACT or not norm.training:
        return False
    if norm.momentum is None or not MOMENTUM <= norm.momentum <= 1 or not norm.affine:
        return False
    return norm.running_var is not None and norm.running_var.dtype in _WIDE


class Responses:
    """Collects one step's responses on the device; `take` computes all that follows, at once.

    A response's slot is the place of its mean in the list of statistics, that of its std follows.
    """

    def __init__(self) -> None:
        self._held: dict[nn.Module, Tensor] = {}  # (3, C): running variance, weight, bias
        self._open: dict[nn.Module, _Tap] = {}
        self._taps: list[_Tap] = []
        self._read: dict[int, RowSums] = {}
        self._count = 0  # of what was read or waits to be
        self._waiting: list[tuple[int, Tensor]] = []  # near zero, with its place among the read
        self._slots: dict[Response, int] = {}
        self._ratios: list[tuple[int, Response, Response]] = []
        self._dead: list[tuple[int, Tensor]] = []
        self._doubtful: list[tuple[int, Tensor]] = []  # outputs that may have dead channels
        self._constants: dict[tuple, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._taps or self._count)

    def hold(self, norms: Sequence[nn.Module]) -> None:
        """Copy what the norms hold before they run; all at once is much faster than one by one."""
        ready = [norm for norm in norms if isinstance(norm, _BatchNorm) and tells_variance(norm)]
        if not ready:
            return
        rows = [(norm.running_var, norm.weight, norm.bias) for norm in ready]
        entries = torch.cat([part.detach() for parts in zip(*rows) for part in parts]).view(3, -1)
        for norm, held in zip(ready, entries.split([norm.num_features for norm in ready], 1)):
            self._close(norm, held[0])
            self._held[norm] = held

    def before(self, norm: nn.Module, wanted: bool) -> None:
        """Prepare for a forward of a norm that may be one of several since `hold`."""
        tap = self._open.get(norm)
        if tap is not None and tap.norm.running_var is not None:
            self._close(norm, tap.norm.running_var.clone())
        if wanted and norm not in self._held:
            self.hold([norm])

    def tap(self, norm: nn.Module, output: Tensor) -> Response | None:
        """Note a forward of a norm; None if its variance cannot be told."""
        held = self._held.pop(norm, None)
        if held is None or not isinstance(norm, _BatchNorm):
            return None
        biased = 1 - norm.num_features / output.numel()
        self._open[norm] = _Tap(norm, held, (norm.momentum or 0.0, norm.eps, biased))
        self._taps.append(self._open[norm])
        return Response(True, len(self._taps) - 1)

    def _close(self, norm: nn.Module, after: Tensor) -> None:
        if norm in self._open:
            self._open.pop(norm).after = after

    def read(self, output: Tensor, near_zero: bool = False) -> Response:
        """Read an output's moments; see `row_sums`. One near zero must not be changed in place."""
        index = self._count
        self._count += 1

        if near_zero and output.device.type == "cpu":
            self._waiting.append((index, output))
            if len(self._waiting) == TOGETHER:
                self._catch_up()
        else:
            self._read[index] = row_sums(output, near_zero)
        return Response(False, index)

    def _catch_up(self) -> None:
        for index, output in self._waiting:
            self._read[index] = row_sums(output, near_zero=True)
        self._waiting.clear()

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
            self._look()

    def _look(self) -> None:
        if self._doubtful:
            slots, outputs = zip(*self._doubtful)
            self._dead += zip(slots, dead_fractions(outputs))
            self._doubtful.clear()

    def take(self) -> list[tuple[tuple[int, ...], Tensor]]:
        """Give (slots, values) of all that was noted, and begin the next step."""
        self._catch_up()
        self._look()
        parts = [self._closed_form()] if self._taps else []
        parts += [moments_of([self._read[n] for n in range(self._count)])] if self._count else []
        table, start = torch.cat(parts), {True: 0, False: len(self._taps)}  # (responses, 2)
        rows = self._index(tuple(start[where.tapped] + where.index for where in self._slots), table)
        slots = tuple(place for slot in self._slots.values() for place in (slot, slot + 1))
        found = [(slots, table[rows].flatten())]
        if self._ratios:
            slots, branches, shortcuts = zip(*self._ratios)
            ends = tuple(start[where.tapped] + where.index for where in branches + shortcuts)
            above, below = table[:, 1][self._index(ends, table)].view(2, -1)
            found.append((slots, above / below))
        if self._dead:
            slots, shares = zip(*self._dead)
            found.append((slots, torch.stack(shares)))
        self._taps, self._read, self._slots, self._ratios, self._dead = [], {}, {}, [], []
        self._count = 0
        self._held, self._open = {}, {}
        return found

    def _closed_form(self) -> Tensor:
        """Give mean and std of every tapped response, (taps, 2)."""
        running, weight, bias = torch.cat([tap.before for tap in self._taps], 1).double()
        now = [tap.norm.running_var if tap.after is None else tap.after for tap in self._taps]
        after = torch.cat([variance for variance in now if variance is not None]).double()
        widths = tuple(tap.norm.num_features for tap in self._taps)
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
        """Take the mean over each layer's channels, (rows, channels) -> (rows, layers)."""

        def make() -> Tensor:
            return torch.block_diag(*[values.new_full((width, 1), 1 / width) for width in widths])

        means = self._once(("means", *widths), make)
        broken = (~values.isfinite()).double() @ means > 0  # 0 * nan would spoil every layer
        return (values.nan_to_num(0, 0, 0) @ means).masked_fill(broken, torch.nan)

    def _once(self, key: tuple, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._constants:
            self._constants[key] = make()
        return self._constants[key]
