"""net2net: new channels are copies of old ones, which share the work unequally."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nets.initializing.edit import Edit, GrownAxis
from nets.initializing.initializer import Initializer
from nets.plan.blocks import Bands
from nets.plan.layers import layer_specs

SHARE = 0.3
"""What a copy takes of its original's outgoing weights. Equal halves would stay alike for ever."""


class Net2Net(Initializer):
    """New channels copy old ones; new blocks are drawn as by he.

    Chen et al. 2016, Net2Net, arXiv 1511.05641, section 2.2. A copy has the rows of its original,
    BatchNorm's entries with them, and takes a share of its outgoing columns; of columns that are
    held fixed it takes nothing and starts with zeros. A channel whose running statistics are held
    is no original, since a copy would normalise by the batch; where all are held, new channels stay
    as they are.
    """

    def new_values(self, edit: Edit) -> Mapping[str, Tensor]:
        """Turn the new channels of every axis that has grown into copies."""
        values: dict[str, Tensor] = {}
        originals = {
            axis: rows for axis in edit.grown if (rows := _originals(edit, axis)) is not None
        }
        for axis, rows in originals.items():
            for spec in (*axis.incoming, *axis.norms):
                for leaf in spec.entries:
                    name = f"{spec.name}.{leaf}"
                    values[name] = edit.value(name)
                    values[name][axis.start :] = values[name][rows]
                    if leaf.startswith("running"):
                        edit.sources[name][0][axis.start :] = rows
        held = {spec.name: spec.held for spec in layer_specs(edit.before)}
        for axis, rows in originals.items():
            for spec in axis.outgoing:
                name = f"{spec.name}.weight"
                value = values.setdefault(name, edit.value(name))
                for copy, original in enumerate(rows.tolist(), axis.start):
                    _share_column(value, copy, original, held[spec.name])
        return values


def _originals(edit: Edit, axis: GrownAxis) -> Tensor | None:
    """Give the old channels that the new ones copy, (new,); None if all have held statistics."""
    specs = layer_specs(edit.before)
    norms = [spec for spec in specs if spec.kind == "norm" and spec.axes[0] == axis.name]
    held = max((spec.held_channels for spec in norms), default=0)
    if held >= axis.start:
        return None
    generator = edit.generator("net2net", axis.name, axis.start)
    size = (axis.size - axis.start,)
    return torch.randint(held, axis.start, size, generator=generator, device="cpu")


def _share_column(value: Tensor, copy: int, original: int, bands: Bands) -> None:
    share = torch.full((len(value),), SHARE, dtype=value.dtype, device=value.device)
    start = 0
    for rows, columns in bands:
        if original < columns:
            share[start : start + rows] = 0
        start += rows
    part = value[:, original] * share.view(-1, *[1] * (value.dim() - 2))
    value[:, copy] = part
    value[:, original] -= part
