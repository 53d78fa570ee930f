"""How new entries begin: initializers as objects, known by name in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nets.growing.assembly import assemble
from nets.growing.channel_scores import best_rows
from nets.growing.entry_sources import Carried, Sources, Values
from nets.modules.random_draws import generator_of
from nets.plan.actions import INITIALIZERS as NAMES
from nets.plan.actions import Action, Widen, WidenStage
from nets.plan.architecture import Architecture
from nets.plan.blocks import Bands
from nets.plan.layers import layer_specs

Distribution = Callable[[tuple[int, ...], torch.Generator], Tensor]
"""Takes a weight's shape, (outputs, inputs, *kernel), and a CPU generator; gives float32."""
SHARE = 0.3
"""What a copy takes of its original's outgoing weights. Equal halves would stay alike for ever."""


@dataclass(frozen=True)
class Edit:
    """An action on its way, as an initializer sees it.

    Args:
        action: what is done.
        before: where the edits stood before it: values, probe batch, loss, seed.
        after: the architecture after it.
        new: joined values after it, of the network and then of its EMA if there is one, which an
            initializer changes in place.
        sources: where the entries of `new` come from; of running statistics that are copied from
            another channel that is changed here.
    """

    action: Action
    before: Carried
    after: Architecture
    new: list[Values]
    sources: Sources


def he(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from N(0, 2 / fan_in) (He et al. 2015, arXiv 1502.01852, equation 10)."""
    fan_in = torch.Size(shape[1:]).numel()
    return torch.randn(shape, generator=generator, dtype=torch.float32) * (2 / fan_in) ** 0.5


def xavier(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw from U(-a, a), a = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""
    kernel = torch.Size(shape[2:]).numel()
    bound = (6 / ((shape[0] + shape[1]) * kernel)) ** 0.5
    return (2 * torch.rand(shape, generator=generator, dtype=torch.float32) - 1) * bound


@dataclass(frozen=True)
class Initializer:
    """New weights are drawn.

    Args:
        draw: gives new weights.
        silent: whether old rows get zeros in their new columns, which keeps outputs.
    """

    draw: Distribution = he
    silent: bool = True

    def fill(self, edit: Edit) -> None:
        """Change new values in place; what was drawn stands as it is."""

    def measures(self, action: Action) -> bool:
        """Say whether it looks at gradients of the probe batch for an action."""
        return False


class GradMax(Initializer):
    """New channels of a block look where the loss falls fastest; all else is drawn."""

    def measures(self, action: Action) -> bool:
        """Say that it does when a block is widened."""
        return isinstance(action, Widen)

    def fill(self, edit: Edit) -> None:
        """Write the best incoming rows of a widened block; see nets.growing.channel_scores."""
        action = edit.action
        if not isinstance(action, Widen):
            return
        before = edit.before
        present = assemble(before.origin, before.architecture, before.values[0])
        rows = best_rows(present, action.block, action.by, before.probe, before.loss)
        for values, earlier in zip(edit.new, before.values):
            for name, value in rows.items():
                start, columns = earlier[name].shape[:2]
                values[name][start : start + len(value), :columns] = value.to(values[name])


class Net2Net(Initializer):
    """New channels copy old ones; new blocks are drawn.

    Chen et al. 2016, Net2Net, arXiv 1511.05641, section 2.2. A copy has the rows of its original,
    BatchNorm's entries with them, and takes a share of its outgoing columns; of columns that are
    held fixed it takes nothing and starts with zeros. A channel whose running statistics are held
    is no original, since a copy would normalise by the batch; where all are held, new channels stay
    as they are.
    """

    def fill(self, edit: Edit) -> None:
        """Turn the new channels of every axis that has grown into copies."""
        if not isinstance(edit.action, Widen | WidenStage):
            return
        specs, originals = layer_specs(edit.before.architecture), _originals(edit)
        sizes = _sizes(edit.before.architecture)
        for spec in specs:
            if spec.axes[0] not in originals:
                continue
            rows, start = originals[spec.axes[0]], sizes[spec.axes[0]]
            for leaf in spec.entries:
                name = f"{spec.name}.{leaf}"
                for values in edit.new:
                    values[name][start:] = values[name][rows]
                if leaf.startswith("running"):
                    edit.sources[name][0][start:] = rows
        for spec in specs:
            if spec.axes[-1] not in originals or len(spec.axes) < 2:
                continue
            start = sizes[spec.axes[1]]
            for copy, original in enumerate(originals[spec.axes[1]].tolist(), start):
                for values in edit.new:
                    _share_column(values[f"{spec.name}.weight"], copy, original, spec.held)


def _originals(edit: Edit) -> dict[str, Tensor]:
    """Give, by axis that has grown, the old channels that its new ones copy."""
    old, new, originals = _sizes(edit.before.architecture), _sizes(edit.after), {}
    held = dict.fromkeys(old, 0)  # leading channels that some BatchNorm holds the statistics of
    for spec in layer_specs(edit.before.architecture):
        if spec.kind == "norm":
            held[spec.axes[0]] = max(held[spec.axes[0]], spec.held_channels)
    for axis, size in old.items():
        if new[axis] > size > held[axis]:
            generator = generator_of(edit.before.seed, "net2net", axis, size)
            count = (new[axis] - size,)
            originals[axis] = torch.randint(held[axis], size, count, generator=generator)
    return originals


def _sizes(architecture: Architecture) -> dict[str, int]:
    """Give the size of every axis."""
    specs = layer_specs(architecture)
    return {axis: size for spec in specs for axis, size in zip(spec.axes, spec.shape)}


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


INITIALIZERS = {
    "he": Initializer(),
    "xavier": Initializer(xavier),
    "net2net": Net2Net(),
    "gradmax": GradMax(),
    "xavier-outgoing": Initializer(xavier, silent=False),
}
assert tuple(INITIALIZERS) == NAMES  # which are known without torch


def initializer_of(choice: str | Distribution | Initializer) -> Initializer:
    """Give the initializer of that name; a function of (shape, generator) draws new weights.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if isinstance(choice, Initializer):
        return choice
    if callable(choice):
        return Initializer(choice)
    if not isinstance(choice, str) or choice not in INITIALIZERS:
        known = ", ".join(INITIALIZERS)
        raise ValueError(f"initializer must be one of {known}, or a function; got {choice!r}")
    return INITIALIZERS[choice]
