"""Responses of BatchNorms, told by their running variances without a look at the outputs.

A BatchNorm has computed the variance v of its input already; by how much its running variance moved
tells it, and from it the moments of the norm's output follow: mean(b), and the root of
mean(w^2 v / (v + eps)) + var(b), over channels. A running variance r is rounded, so v is known to
1e-7 r / (momentum v); eps / (v + eps) of that error, usually next to nothing, reaches the response.
It is much where a layer's variance has fallen a millionfold in a few steps, and a running variance
that is not finite tells nothing any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

_EXACT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # a subclass may normalise otherwise
_WIDE = (torch.float32, torch.float64)
MOMENTUM = 0.01
"""Below, the running variance moves too little to tell the batch's variance."""
FORGETFUL = 0.5
"""Momentum above which a running variance does not tell well what it was before."""


class Tap(NamedTuple):
    """One forward of a norm: where in the step's numbers those of its channels begin."""

    before: int  # the running variance
    after: int
    weight: int
    bias: int
    channels: int
    settings: tuple[float, float, float]  # momentum, eps, (n - 1) / n for n entries of a channel


def tells_variance(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    """Say whether the running variance will tell what the norm's next forward computes."""
    if type(norm) not in _EXACT or not norm.training or not norm.affine:
        return False
    momentum: float | None = norm.momentum  # pyright: ignore
    variance = norm.running_var
    if momentum is None or not MOMENTUM <= momentum <= 1 or not norm.track_running_stats:
        return False
    return variance is not None and variance.dtype in _WIDE


class Taps:
    """Notes how running variances move in the forwards of a step.

    They are looked at before the forward pass and when it is over, all at once; at a norm that runs
    more than once also in between.
    """

    def __init__(self) -> None:
        self._held: dict[Any, tuple[int, int, int]] = {}  # by norm: before, weight, bias of a tap
        self._open: dict[Any, tuple[int, int]] = {}  # by norm that ran: its place, entries of it
        self._taps: list[Tap | None] = []  # None while open
        self._numbers: list[Tensor] = []
        self._length = 0  # of all numbers
        self._repeated: set[nn.Module] = set()  # to be looked at each time they run

    def __bool__(self) -> bool:
        return bool(self._taps)

    def hold(self, norms: Sequence[nn.Module]) -> None:
        """Copy what the norms hold before the forward pass."""
        self.look()
        self._held.clear()
        ready = list(filter(tells_variance, norms))
        if not ready:
            return
        widths = [norm.num_features for norm in ready]
        parts: list[Any] = [norm.running_var for norm in ready]
        parts += [norm.weight for norm in ready]
        parts += [norm.bias for norm in ready]
        whole = sum(widths)
        at = self._note(parts, 3 * whole)
        for norm, width in zip(ready, widths):
            self._held[norm] = at, at + whole, at + 2 * whole
            at += width

    def add(self, norm: Any, inputs: Sequence[Any], output: Tensor) -> int | None:
        """Note a forward of a norm, and give its place; None if its variance cannot be told."""
        if norm not in self._held or not (norm.training and norm.track_running_stats):
            return None
        if norm in self._open:
            self._look_back(norm, inputs)
            self._repeated.add(norm)
        place = len(self._taps)
        self._open[norm] = place, output.numel()
        self._taps.append(None)
        if norm in self._repeated or norm.momentum > FORGETFUL:
            self.look([norm])
        return place

    def forget(self, norm: Any, inputs: Sequence[Any]) -> None:
        """Say that the norm ran unseen, and its running variance may have moved."""
        if norm in self._open:
            self._look_back(norm, inputs)
        self._held.pop(norm, None)

    def look(self, norms: Sequence[Any] | None = None) -> None:
        """Look at these norms, or at all that ran since the last look."""
        norms = list(self._open) if norms is None else norms
        if not norms:
            return
        widths = [norm.num_features for norm in norms]
        at = self._note([norm.running_var for norm in norms], sum(widths))
        for norm, width in zip(norms, widths):
            self._close(norm, at, width)
            at += width

    def take(self) -> tuple[tuple[Tap, ...], list[Tensor]]:
        """Give the step's taps and the numbers they point into, and begin the next step."""
        self.look()
        taps, numbers = tuple(tap for tap in self._taps if tap is not None), self._numbers
        self._held, self._taps, self._numbers, self._length = {}, [], [], 0
        return taps, numbers

    def _look_back(self, norm: Any, inputs: Sequence[Any]) -> None:
        """Note the running variance as it was before the norm ran once more, on these inputs."""
        variance, momentum = norm.running_var, norm.momentum
        if norm.training:
            batch = inputs[0].detach().to(variance.dtype).movedim(1, 0).flatten(1).var(1)
            variance = (variance - momentum * batch) / (1 - momentum)
        self._close(norm, self._note([variance], norm.num_features), norm.num_features)

    def _close(self, norm: Any, after: int, channels: int) -> None:
        """Complete the tap of a norm's last forward."""
        (place, size), (before, weight, bias) = self._open.pop(norm), self._held[norm]
        settings = norm.momentum, norm.eps, 1 - channels / size
        self._taps[place] = Tap(before, after, weight, bias, channels, settings)
        self._held[norm] = after, weight, bias

    def _note(self, parts: Sequence[Tensor], length: int) -> int:
        """Copy them to the step's numbers, and give their place there."""
        with torch.no_grad():
            self._numbers.append(torch.cat(list(parts)))
        self._length += length
        return self._length - length


def moments_of_taps(taps: tuple[Tap, ...], numbers: Tensor) -> Tensor:
    """Give mean and std of every tapped response, (steps, taps, 2).

    Args:
        taps: what `take` gave.
        numbers: what they point into in each of some steps, (steps, numbers) float64.
    """
    places, settings, spread, widths = _constants(taps, numbers.device)
    before, after, weight, bias = numbers[:, places].unbind(1)
    momentum, eps, biased = settings
    moved = (after - (1 - momentum) * before) / momentum
    variance = (moved * biased).clamp_min(0)
    power = weight.square() * variance / (variance + eps)
    filled = functional.pad(torch.stack([bias, power + bias.square()]), (0, 1))
    mean, square = filled[..., spread].sum(-1) / widths
    return torch.stack([mean, (square - mean.square()).clamp_min(0).sqrt()], -1)


@lru_cache(maxsize=64)
def _constants(taps: tuple[Tap, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Send what stays the same from step to step to the device once.

    Where the numbers of all channels are, (4, channels), and their settings, (3, channels); the
    channels of each tap, (taps, most), those of narrower ones filled up with the number of all; how
    many these are, (taps,).
    """
    channels = [(tap, channel) for tap in taps for channel in range(tap.channels)]
    places = [[start + channel for start in tap[:4]] for tap, channel in channels]
    settings = [tap.settings for tap, _ in channels]
    widths = [tap.channels for tap in taps]
    ends = [sum(widths[: n + 1]) for n in range(len(taps))]
    spread = [
        [*range(end - width, end), *[len(channels)] * (max(widths) - width)]
        for end, width in zip(ends, widths)
    ]
    return (
        torch.tensor(places, device=device).T,
        torch.tensor(settings, dtype=torch.float64, device=device).T,
        torch.tensor(spread, device=device),
        torch.tensor(widths, device=device),
    )
