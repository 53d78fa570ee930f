"""The initializers in the box by name, and how a name, a function or an object becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nets.initializing.distributions import Distribution, he, xavier
from nets.initializing.edit import Edit
from nets.initializing.gradmax import GradMax
from nets.initializing.initializer import Initializer
from nets.initializing.net2net import Net2Net
from nets.initializing.variance_transfer import VarianceTransfer
from nets.plan.actions import INITIALIZERS as NAMES


@dataclass(frozen=True, repr=False)
class Drawn(Initializer):
    """New weights are drawn from a distribution; old rows get zeros, and outputs stay."""

    distribution: Distribution = he

    def __repr__(self) -> str:
        return getattr(self.distribution, "__name__", repr(self.distribution))

    def draw(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw a weight of whatever name."""
        return self.distribution(shape, generator)


class DrawnOutgoing(Drawn):
    """What old rows get in new columns is drawn too: outputs move, as in the 2017 thesis."""

    moves_outputs = True

    def new_values(self, edit: Edit) -> Mapping[str, Tensor]:
        """Give the weights that take from new channels."""
        values = {}
        for axis in edit.grown:
            for layer in axis.outgoing:
                name = f"{layer.name}.weight"
                values[name], rows = edit.value(name), len(edit.old[name])
                values[name][:rows, axis.start :] = edit.drawn[name][:rows, axis.start :]
        return values


INITIALIZERS: dict[str, Initializer] = {
    "he": Drawn(),
    "xavier": Drawn(xavier),
    "net2net": Net2Net(),
    "gradmax": GradMax(),
    "variance-transfer": VarianceTransfer(),
    "xavier-outgoing": DrawnOutgoing(xavier),
}
assert tuple(INITIALIZERS) == NAMES  # which are known without torch


def initializer_of(choice: str | Distribution | Initializer) -> Initializer:
    """Give the initializer of that name; a function of (shape, generator) draws new weights.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if isinstance(choice, Initializer):
        return choice
    if isinstance(choice, type) and issubclass(choice, Initializer):
        name = choice.__name__
        raise ValueError(f"initializer must be an object, got the class {name}; give {name}()")
    if callable(choice):
        return Drawn(choice)
    if not isinstance(choice, str) or choice not in INITIALIZERS:
        known = ", ".join(INITIALIZERS)
        raise ValueError(
            f"initializer must be one of {known}, an Initializer, or a function; got {choice!r}"
        )
    return INITIALIZERS[choice]
