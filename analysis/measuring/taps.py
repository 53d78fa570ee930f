"""Responses of BatchNorms, told by what they keep for the backward pass, without a look at outputs.

A BatchNorm has computed s = 1 / sqrt(v + eps) for the variance v of its input already, and autograd
holds it. The moments of its output follow: mean(b), and the root of mean(w^2 v s^2) + var(b), over
channels, where v s^2 = 1 - eps s^2. That is exact to the rounding of s, 1e-7, times (v + eps) / v:
to 1e-5 where v is at least eps / 100. Running statistics and momentum play no part.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

_EXACT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # a subclass may normalise otherwise
_AUTOGRAD: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
_WIDE = (torch.float32, torch.float64)
_KERNELS = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")


class Tap(NamedTuple):
    """One forward of a norm: where in the step's numbers those of its channels begin."""

    inverse: int  # 1 / sqrt(v + eps)
    weight: int
    bias: int
    channels: int
    eps: float


def inverse_of(norm: Any, output: Tensor) -> Tensor | None:
    """Give 1 / sqrt(v + eps) of the forward that made this output; None if it cannot be told.

    Args:
        norm: any module.
        output: what it gave just now.
    """
    if type(norm) not in _EXACT or not norm.training or not norm.affine:
        return None
    node: Any = output.grad_fn
    if node is None or node.name() not in _KERNELS:  # none, or what a hook made of the output
        return None
    if _AUTOGRAD._top_saved_tensors_default_hooks(False) is not None:
        return None  # to ask for what is kept would have it computed anew, or moved
    inverse = node._saved_result2
    sound = inverse.dtype in _WIDE and len(inverse) == norm.num_features
    return inverse if sound and norm.weight.dtype in _WIDE else None


class Taps:
    """Notes what norms tell in the forwards of a step; it is copied when a forward is over."""

    def __init__(self) -> None:
        self._open: list[tuple[Any, Tensor]] = []  # norms that ran, and what they told
        self._taps: list[Tap] = []
        self._numbers: list[Tensor] = []
        self._length = 0  # of all numbers

    def __bool__(self) -> bool:
        return bool(self._taps or self._open)

    def add(self, norm: nn.Module, output: Tensor) -> int | None:
        """Note a forward of a norm, and give its place; None if its variance cannot be told."""
        inverse = inverse_of(norm, output)
        if inverse is None:
            return None
        self._open.append((norm, inverse))
        return len(self._taps) + len(self._open) - 1

    def look(self) -> None:
        """Copy what was told since the last look, before anything changes it."""
        if not self._open:
            return
        parts = [inverse for _, inverse in self._open]
        parts += [norm.weight for norm, _ in self._open]
        parts += [norm.bias for norm, _ in self._open]
        with torch.no_grad():
            device = parts[0].device
            self._numbers.append(torch.cat([part.to(device) for part in parts]))
        at, whole = self._length, sum(norm.num_features for norm, _ in self._open)
        for norm, _ in self._open:
            places = at, at + whole, at + 2 * whole
            self._taps.append(Tap(*places, norm.num_features, norm.eps))
            at += norm.num_features
        self._length += 3 * whole
        self._open.clear()

    def take(self) -> tuple[tuple[Tap, ...], list[Tensor]]:
        """Give the step's taps and the numbers they point into, and begin the next step."""
        self.look()
        taps, numbers = tuple(self._taps), self._numbers
        self._taps, self._numbers, self._length = [], [], 0
        return taps, numbers


def moments_of_taps(taps: tuple[Tap, ...], numbers: Tensor) -> Tensor:
    """Give mean and std of every tapped response, (steps, taps, 2).

    Args:
        taps: what `take` gave.
        numbers: what they point into in each of some steps, (steps, numbers) float64.
    """
    places, eps, spread, widths = _constants(taps, numbers.device)
    inverse, weight, bias = numbers[:, places].unbind(1)
    share = (1 - eps * inverse.square()).clamp_min(0)  # v / (v + eps)
    power = weight.square() * share
    filled = functional.pad(torch.stack([bias, power + bias.square()]), (0, 1))
    mean, square = filled[..., spread].sum(-1) / widths
    return torch.stack([mean, (square - mean.square()).clamp_min(0).sqrt()], -1)


@lru_cache(maxsize=64)
def _constants(taps: tuple[Tap, ...], device: torch.device) -> tuple[Tensor, ...]:
    """Send what stays the same from step to step to the device once.

    Where the numbers of all channels are, (3, channels), and their eps, (channels,); the channels
    of each tap, (taps, most), those of narrower ones filled up with the number of all; how many
    these are, (taps,).
    """
    channels = [(tap, channel) for tap in taps for channel in range(tap.channels)]
    places = [[start + channel for start in tap[:3]] for tap, channel in channels]
    eps = [tap.eps for tap, _ in channels]
    widths = [tap.channels for tap in taps]
    ends = [sum(widths[: n + 1]) for n in range(len(taps))]
    spread = [
        [*range(end - width, end), *[len(channels)] * (max(widths) - width)]
        for end, width in zip(ends, widths)
    ]
    return (
        torch.tensor(places, device=device).T,
        torch.tensor(eps, dtype=torch.float64, device=device),
        torch.tensor(spread, device=device),
        torch.tensor(widths, device=device),
    )
