"""New channels as copies of old ones (Chen et al. 2016, Net2Net, arXiv 1511.05641, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nets.growing.carry import Sources, Values
from nets.modules.draws import generator_of
from nets.modules.held import held_entries
from nets.modules.layers import axes_of
from nets.modules.network import Network

SHARE = 0.3
"""What a copy takes of its original's outgoing weights. Equal halves would stay alike for ever."""


def copy_channels(
    values: Values, old: Mapping[str, Tensor], sources: Sources, before: Network, seed: int
) -> None:
    """Turn the new channels of every axis that has grown into copies, in place.

    A copy has the rows of its original, BatchNorm's entries with them, and takes a share of its
    outgoing columns; of columns that are held fixed it takes nothing and starts with zeros. A
    channel whose running statistics are held is no original, since a copy would normalise by the
    batch; where all are held, new channels stay as they are.

    Args:
        values: the joined values after an edit that adds channels.
        old: the joined values before it.
        sources: where the values come from; running statistics are marked as coming from the
            original.
        before: the network before the edit.
        seed: with the axis it determines which channels are copied.
    """
    axes, sizes, held = axes_of(before), _sizes(before, old), held_entries(before)
    new = _sizes(before, values)
    originals = {}
    for axis, size in sizes.items():
        first = _held_statistics(before, axis)
        if new[axis] > size > first:
            generator = generator_of(seed, "net2net", axis, size)
            originals[axis] = torch.randint(first, size, (new[axis] - size,), generator=generator)
    for name, (axis, *_) in axes.items():
        if axis in originals and name in values:
            values[name][sizes[axis] :] = values[name][originals[axis]]
            if name.endswith(("running_mean", "running_var")):
                sources[name][0][sizes[axis] :] = originals[axis]
    for name, named in axes.items():
        if len(named) == 2 and named[1] in originals:
            start = sizes[named[1]]
            for copy, original in enumerate(originals[named[1]].tolist(), start):
                _share_column(values[name], copy, original, held[name])


def _share_column(value: Tensor, copy: int, original: int, held: Tensor) -> None:
    share = torch.full((len(value),), SHARE, dtype=value.dtype, device=value.device)
    share[: len(held)][held[:, original].to(share.device)] = 0
    part = value[:, original] * share.view(-1, *[1] * (value.dim() - 2))
    value[:, copy] = part
    value[:, original] -= part


def _held_statistics(net: Network, axis: str) -> int:
    """Give how many leading channels of an axis some BatchNorm normalises by held statistics."""
    norms = [module for module in net.modules() if getattr(module, "axes", ()) == (axis,)]
    return max((getattr(norm, "held", 0) for norm in norms), default=0)


def _sizes(net: Network, values: Mapping[str, Tensor]) -> dict[str, int]:
    """Give the size of every axis."""
    return {
        axis: size
        for name, named in axes_of(net).items()
        if name in values
        for axis, size in zip(named, values[name].shape)
    }
