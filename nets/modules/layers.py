"""The layers that networks are made of, by the axes that they share, and draws without the host."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nets.modules.held import Bands, HeldBatchNorm1d, HeldBatchNorm2d, StridedConv2d, hold

Draw = Tensor
"""(2,) int64: the seed and the number of training forwards so far; stochastic depth draws from it.
"""


class Axis(NamedTuple):
    """A dimension of weights that edits change as one: its name in the network and its size."""

    name: str
    size: int


def layer_of(
    incoming: Axis,
    outgoing: Axis,
    kernel: int,
    stride: int = 1,
    held: Bands = (),
    bias: bool = False,
    held_bias: int = 0,
) -> nn.Module:
    """Make a convolution, or for kernel 0 a linear layer, of which a part may be held fixed."""
    convolution = StridedConv2d if stride > 1 else nn.Conv2d
    layer = (
        convolution(incoming.size, outgoing.size, kernel, stride, kernel // 2, bias=bias)
        if kernel
        else nn.Linear(incoming.size, outgoing.size, bias=bias)
    )
    hold(layer, "weight", held)
    if bias:
        hold(layer, "bias", ((held_bias, 1),))
    layer.axes = (outgoing.name, incoming.name)  # pyright: ignore
    return layer


def norm_of(channels: Axis, kernel: int, held: int = 0) -> nn.Module:
    """Make a BatchNorm, of which the first `held` channels may be held fixed."""
    if held:
        norm = (HeldBatchNorm2d if kernel else HeldBatchNorm1d)(channels.size, held)
    else:
        norm = (nn.BatchNorm2d if kernel else nn.BatchNorm1d)(channels.size)
    norm.axes = (channels.name,)  # pyright: ignore
    return norm


def axes_of(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name the axes of every entry: (rows, columns) of weights, (rows,) of what goes by channel."""
    found = {}
    for path, module in net.named_modules():
        axes = getattr(module, "axes", ())
        for leaf in ("weight", "bias", "running_mean", "running_var") if axes else ():
            found[f"{path}.{leaf}"] = axes if leaf == "weight" else axes[:1]
    return found


ACTIVATIONS = {
    "relu": partial(functional.relu, inplace=True),
    "gelu": functional.gelu,
    "tanh": torch.tanh,
}


def uniform(draw: Draw, salt: int, samples: int | None = None) -> Tensor:
    """Give a number in [0, 1) that depends on (seed, step, salt) alone, without asking the host.

    With `samples`, so many numbers, which depend on their place as well. The mixing steps are those
    of splitmix64 (Steele et al. 2014) in int64 arithmetic that wraps around.
    """
    bits = draw[0] * -7046029254386353131 + draw[1] * -4658895280553007687 + salt
    if samples is not None:
        places = torch.arange(1, samples + 1, device=draw.device)
        bits = bits + places * -7723592293110705685
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685), (31, 1)):
        bits = (bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return (bits & ((1 << 53) - 1)).double() / (1 << 53)
