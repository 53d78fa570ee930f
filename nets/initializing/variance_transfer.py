"""variance-transfer: new channels in pairs that cancel, and old weights made to fit a wider net."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from nets.initializing.edit import Edit
from nets.initializing.initializer import Initializer
from nets.plan.layers import LayerSpec, layer_specs

OUTPUT = "head.linear"


@dataclass(frozen=True)
class VarianceTransfer(Initializer):
    """New channels come in pairs that cancel, and what they meet is rescaled to the new fan-in.

    Yuan et al. 2023, arXiv 2306.12700, section 3.1 and table 1. The two channels of a pair have the
    same incoming weights V and outgoing ones Z and -Z, so that outputs stay; the first gradients by
    V are opposite and part them. Old weights of a layer whose inputs grow from C to C' channels are
    multiplied by sqrt(C / C'), those of the output layer by C / C', and running statistics of the
    BatchNorm behind such a layer go with them: mean by the factor, variance by its square. New
    weights are drawn from N(0, 1 / fan_in), those of the output layer from N(0, 1 / fan_in^2),
    fan_in being that after growth and counting a kernel's taps; so is a first network.

    Outputs move by the rescaling alone: behind BatchNorm by no more than its epsilon makes of it,
    in a pre-activation network by what a branch's last layer loses, and by the output layer.
    A layer of which something is held, or behind which statistics are, is not rescaled. Without
    rescaling (`rescale=False`, the paper's plain growing) outputs stay. Of an odd number of
    channels the last has no partner and outgoing weights of zero; a new block is drawn and starts
    as the identity. Dropout in front of the output layer drops the channels of a pair one by one.

    The learning rate by cohort of the same paper is no matter of initial values.
    """

    rescale: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "moves_outputs", self.rescale)

    def draw(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw from N(0, 1 / fan_in), or for the output layer from N(0, 1 / fan_in^2)."""
        fan_in = torch.Size(shape[1:]).numel()
        scale = 1 / fan_in if name == f"{OUTPUT}.weight" else fan_in**-0.5
        return torch.randn(shape, generator=generator, dtype=torch.float32) * scale

    def new_values(self, edit: Edit) -> Mapping[str, Tensor]:
        """Give the rows of pairs, then their columns and what is rescaled."""
        values: dict[str, Tensor] = {}
        norm_behind, held = _norms_behind(edit), _held(edit)
        for axis in edit.grown:
            half = (axis.size - axis.start) // 2
            one, other = (slice(start, start + half) for start in (axis.start, axis.start + half))
            for layer in axis.incoming:
                weight = _value(values, edit, f"{layer.name}.weight")
                weight[other] = weight[one]
            for layer in axis.outgoing:
                weight = _value(values, edit, name := f"{layer.name}.weight")
                rows, factor = len(edit.old[name]), axis.start / axis.size
                drawn = edit.drawn[name][:rows, one].to(weight)
                weight[:rows, one], weight[:rows, other] = drawn, -drawn
                behind = norm_behind[layer.name].name if layer.name in norm_behind else None
                if not self.rescale or not held.isdisjoint((layer.name, behind)):
                    continue
                factor = factor if layer.name == OUTPUT else factor**0.5
                weight[:rows, : axis.start] *= factor
                if behind:
                    _value(values, edit, f"{behind}.running_mean")[:rows] *= factor
                    _value(values, edit, f"{behind}.running_var")[:rows] *= factor**2
        return values


def _value(values: dict[str, Tensor], edit: Edit, name: str) -> Tensor:
    """Give an entry's values so far, to write in."""
    if name not in values:
        values[name] = edit.value(name)
    return values[name]


def _held(edit: Edit) -> set[str]:
    """Give the layers of which weights, or BatchNorm's entries, are held before or after."""
    specs = [*layer_specs(edit.before), *layer_specs(edit.after)]
    return {spec.name for spec in specs if spec.held_channels or any(map(min, spec.held))}


def _norms_behind(edit: Edit) -> dict[str, LayerSpec]:
    """Give, by layer, the BatchNorm that takes what it gives, and that alone."""
    return {
        layer.name: norm
        for layer, norm in pairwise(layer_specs(edit.after))
        if norm.kind == "norm" and layer.kind != "norm" and norm.home == layer.home
    }
