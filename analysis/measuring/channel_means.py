"""Means over the channels of each of several layers, of numbers that lie one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


def means_by_layer(values: Tensor, widths: Sequence[int], known: dict[Any, Any]) -> Tensor:
    """Give the means of numbers by channel, (..., channels of all layers and one) -> (..., layers).

    Args:
        values: numbers or truth values; the last one, behind those of all layers, is 0.
        widths: how many channels each layer has.
        known: keeps what stays the same from step to step, which is sent to the device once.
    """
    key = "widths", tuple(widths), values.device
    if key not in known:
        known[key] = _places(widths, values.device)
    channels, counts = known[key]
    return values[..., channels].sum(-1, dtype=torch.float64) / counts


def _places(widths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Give which channels are each layer's, (layers, most), and how many these are, (layers,).

    Those of narrower layers are filled up with the number of all.
    """
    none, most = sum(widths), max(widths)
    channels = [
        [*range(end - width, end), *[none] * (most - width)]
        for end, width in zip(accumulate(widths), widths)
    ]
    return torch.tensor(channels, device=device), torch.tensor(list(widths), device=device).double()
