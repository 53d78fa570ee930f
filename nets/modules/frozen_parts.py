"""Layers of which a part is held fixed: what is held is a buffer, so no optimizer can move it.

An entry (a weight, say) that is held in part is split into pieces: buffers NAME_held1, NAME_held2
and parameters NAME_free1, ..., NAME_free. The layer joins them in its forward pass, and gives them
joined under its own NAME. An entry that is held as a whole is a buffer under its own NAME.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional

from nets.plan.blocks import Bands

THIN = 8
"""Channels from which on oneDNN is right; see `StridedConv2d`."""


class Piece(NamedTuple):
    """A part of an entry: its name in the module, its place in the entry, whether it is held."""

    name: str
    place: tuple[slice, ...]
    held: bool


class Part(NamedTuple):
    """A parameter, as a part of the joined entry `entry`; `place` is empty if it is all of it."""

    name: str
    parameter: nn.Parameter
    entry: str
    place: tuple[slice, ...]


def pieces_of(name: str, shape: tuple[int, ...], bands: Bands) -> list[list[Piece]]:
    """Split an entry: rows of pieces from top to bottom, each from left to right."""
    total, columns = (*shape, 1)[:2]
    rows, start = [], 0
    for number, (height, width) in enumerate(bands, start=1):
        here = slice(start, start + height)
        left, right = slice(0, width), slice(width, columns)
        row = [
            Piece(f"{name}_held{number}", (here, left), True),
            Piece(f"{name}_free{number}", (here, right), False),
        ]
        sizes = (width, columns - width)
        rows.append([piece for piece, size in zip(row, sizes) if size > 0 and height > 0])
        start += height
    if start < total:
        rows.append([Piece(f"{name}_free", (slice(start, None), slice(0, columns)), False)])
    rows = [row for row in rows if row]
    if len(shape) == 1:
        rows = [[Piece(p.name, p.place[:1], p.held) for p in row] for row in rows]
    return rows


def hold(module: nn.Module, name: str, bands: Bands) -> None:
    """Turn the bands of a layer's parameter into buffers."""
    whole = getattr(module, name)
    rows = pieces_of(name, whole.shape, bands)
    parts = [piece for row in rows for piece in row]
    if not any(piece.held for piece in parts):
        return
    delattr(module, name)
    if len(parts) == 1:
        module.register_buffer(name, whole.detach())
        return
    for piece in parts:
        value = whole.detach()[piece.place].clone()
        if piece.held:
            module.register_buffer(piece.name, value)
        else:
            module.register_parameter(piece.name, nn.Parameter(value))
    if type(module) in _JOINING:
        module.__class__ = _JOINING[type(module)]  # as torch.nn.utils.parametrize does
    module.pieces = {**getattr(module, "pieces", {}), name: rows}  # pyright: ignore


def split_entries(net: nn.Module) -> dict[str, list[Piece]]:
    """Give the pieces, under their full names, of every entry that is split."""
    found = {}
    for path, module in net.named_modules():
        for name, rows in vars(module).get("pieces", {}).items():
            found[f"{path}.{name}"] = [
                piece._replace(name=f"{path}.{piece.name}") for row in rows for piece in row
            ]
    return found


def parts_of(net: nn.Module) -> dict[str, list[Part]]:
    """Give the parameters of every joined entry; none for one that is frozen."""
    where = {
        piece.name: (entry, piece.place)
        for entry, pieces in split_entries(net).items()
        for piece in pieces
    }
    found: dict[str, list[Part]] = {}
    for name, value in tensors_of(net).items():
        if isinstance(value, nn.Parameter):
            entry, place = where.get(name, (name, ()))
            found.setdefault(entry, []).append(Part(name, value, entry, place))
    return found


def tensors_of(net: nn.Module) -> dict[str, Tensor]:
    """Give all parameters and buffers, in the order of a state dict, whose hooks do not hear it."""
    return {
        f"{path}.{leaf}" if path else leaf: value
        for path, module in net.named_modules()
        for tensors in (module._parameters, module._buffers)
        for leaf, value in tensors.items()
        if value is not None
    }


def give_values(net: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Let a network hold these tensors, by name as in its state dict, in place of its own.

    Raises:
        ValueError: one is missing, is of another shape, or is no entry of the network.
    """
    rest = dict(values)
    for path, module in net.named_modules():
        for tensors in (vars(module)["_parameters"], vars(module)["_buffers"]):
            for leaf, old in tensors.items():
                if old is None:
                    continue
                name = f"{path}.{leaf}" if path else leaf
                value = rest.pop(name, None)
                if value is None or value.shape != old.shape:
                    got = None if value is None else tuple(value.shape)
                    raise ValueError(f"{name} must have shape {tuple(old.shape)}, got {got}")
                tensors[leaf] = nn.Parameter(value) if isinstance(old, nn.Parameter) else value
    if rest:
        raise ValueError(f"values must be of entries of the network, got {next(iter(rest))}")


def join_values(net: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the values of a state dict of `net` with all split entries joined."""
    joined = dict(values)
    for name, pieces in split_entries(net).items():
        parts = [(joined.pop(piece.name), piece.place) for piece in pieces]
        shape = [0, 0][: len(parts[0][1])]
        for part, place in parts:
            ends = [(where.start or 0) + size for where, size in zip(place, part.shape)]
            shape = [max(pair) for pair in zip(shape, ends)]
        whole = parts[0][0].new_zeros((*shape, *parts[0][0].shape[2:]))
        for part, place in parts:
            whole[place] = part
        joined[name] = whole
    return joined


def split_values(net: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give joined values as the state dict of `net` has them."""
    split = dict(values)
    for name, pieces in split_entries(net).items():
        whole = split.pop(name)
        split.update({piece.name: whole[piece.place].clone() for piece in pieces})
    return split


def joined(module: nn.Module, name: str) -> Any:
    """Give a weight or bias of a layer, joined if it is held in part."""
    rows = getattr(module, "pieces", {}).get(name)
    if rows is None:
        known = module._parameters if name in module._parameters else module._buffers
        if name not in known:
            raise AttributeError(f"{type(module).__name__} has no {name}")
        return known[name]
    parts = [[getattr(module, piece.name) for piece in row] for row in rows]
    bars = [torch.cat(row, 1) if len(row) > 1 else row[0] for row in parts]
    return torch.cat(bars) if len(bars) > 1 else bars[0]


class Joining:
    """Gives `weight` and `bias` joined from their pieces."""

    @property
    def weight(self) -> Any:
        return joined(self, "weight")  # pyright: ignore[reportArgumentType]

    @property
    def bias(self) -> Any:
        return joined(self, "bias")  # pyright: ignore[reportArgumentType]


class JoiningConv2d(Joining, nn.Conv2d):
    """A convolution whose weight is held in part."""


class StridedConv2d(nn.Conv2d):
    """A convolution that leaves out pixels, around what oneDNN 3.12 computes wrongly on a CPU.

    Both are wrong weight gradients, anew each time: of 1x1 kernels of stride 2 on fewer than `THIN`
    channels in channels_last (with AVX2; by up to 50 %, and it writes outside of its memory), and
    of larger ones in bf16 whose output is one pixel wide (with AVX-512; taps in the padding).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Take (N, C, H, W) and give (N, outgoing, H / stride, W / stride), rounded up."""
        if isinstance(input, Proxy) or input.device.type != "cpu":
            return super().forward(input)
        (rows, columns), (height, width) = self.stride, input.shape[-2:]
        if self.kernel_size == (1, 1) and self.in_channels < THIN:
            return functional.conv2d(input[..., ::rows, ::columns], self.weight, self.bias)
        if height <= rows or width <= columns:
            (above, left) = self.padding
            whole = functional.pad(input, (left, left, above, above))  # pyright: ignore
            return functional.conv2d(whole, self.weight, self.bias, self.stride)
        return super().forward(input)


class JoiningStridedConv2d(Joining, StridedConv2d):
    """A convolution that leaves out pixels, whose weight is held in part."""


class JoiningLinear(Joining, nn.Linear):
    """A linear layer whose weight is held in part."""


_JOINING: dict[type, type] = {
    nn.Conv2d: JoiningConv2d,
    StridedConv2d: JoiningStridedConv2d,
    nn.Linear: JoiningLinear,
}
