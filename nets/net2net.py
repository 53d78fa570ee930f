"""New channels as copies of old ones (Chen et al. 2016, Net2Net, arXiv 1511.05641, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from nets.carry import Sources, Values
from nets.held import held_entries
from nets.initializers import generator_of
from nets.modules import Network, axes_of

SHARE = 0.3
"""What a copy takes of its original's outgoing weights. Equal halves would stay alike for ever."""


def copy_channels(
    values: Values, old: Mapping[str, Tensor], sources: Sources, before: Network, seed: int
) -> None:
    """Turn the new channels of every axis that has grown into copies, in place.

    A copy has the rows of its original, BatchNorm's entries with them, and takes a share of its
    outgoing columns. Of columns that are held fixed it takes nothing and starts with zeros; so it
    does if the original's BatchNorm entries are held, because its own follow the batch. Channels
    that are not held are copied where there are any.

    Args:
        values: the joined values after an edit that adds channels.
        old: the joined values before it.
        sources: where the values come from; running statistics are marked as coming from the
            original.
        before: the network before the edit.
        seed: with the axis it determines which channels are copied.
    """
    axes, sizes, held = axes_of(before), _sizes(before, old), held_entries(before)
    new, fixed = _sizes(before, values), _held_channels(before)
    originals = {}
    for axis, size in sizes.items():
        first = fixed.get(axis, 0) if fixed.get(axis, 0) < size else 0
        draw = generator_of(seed, "net2net", axis, size)
        if new[axis] > size:
            originals[axis] = torch.randint(first, size, (new[axis] - size,), generator=draw)
    for name, (axis, *_) in axes.items():
        if axis in originals and name in values:
            values[name][sizes[axis] :] = values[name][originals[axis]]
            if name.endswith(("running_mean", "running_var")):
                sources[name][0][sizes[axis] :] = originals[axis]
    for name, named in axes.items():
        if len(named) == 2 and named[1] in originals:
            start = sizes[named[1]]
            for copy, original in enumerate(originals[named[1]].tolist(), start):
                share = 0.0 if original < fixed.get(named[1], 0) else SHARE
                _share_column(values[name], copy, original, held[name], share)


def _share_column(value: Tensor, copy: int, original: int, held: Tensor, part: float) -> None:
    share = torch.full((len(value),), part, dtype=value.dtype, device=value.device)
    share[: len(held)][held[:, original].to(share.device)] = 0
    taken = value[:, original] * share.view(-1, *[1] * (value.dim() - 2))
    value[:, copy] = taken
    value[:, original] -= taken


def _held_channels(net: Network) -> dict[str, int]:
    """Give, by axis, how many channels have BatchNorm entries that are held fixed."""
    found: dict[str, int] = {}
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            (axis,) = module.axes  # pyright: ignore[reportGeneralTypeIssues]
            found[axis] = max(found.get(axis, 0), getattr(module, "held", 0))
    return found


def _sizes(net: Network, values: Mapping[str, Tensor]) -> dict[str, int]:
    """Give the size of every axis."""
    return {
        axis: size
        for name, named in axes_of(net).items()
        if name in values
        for axis, size in zip(named, values[name].shape)
    }
