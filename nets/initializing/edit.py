"""What an initializer sees of an action on its way, and how what it gives is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nets.modules.network import Network
from nets.modules.probe_batch import End, Loss, judged, run_apart, tap
from nets.modules.random_draws import generator_of
from nets.plan.actions import Action
from nets.plan.architecture import Architecture
from nets.plan.cost import cost, train_flops
from nets.plan.layers import LayerSpec, layer_specs


@dataclass(frozen=True)
class GrownAxis:
    """Channels that an action adds at the end of an axis, and the layers on both sides of them.

    A block's inner channels are an axis, and so is a residual stream: see `LayerSpec.axes`.

    Args:
        name: of the axis.
        start: channels before: those from `start` on are new.
        size: channels after.
        incoming: the layers that give them: rows from `start` on are new.
        norms: the BatchNorms that they go through.
        outgoing: the layers that take them: columns from `start` on are new.
    """

    name: str
    start: int
    size: int
    incoming: tuple[LayerSpec, ...]
    norms: tuple[LayerSpec, ...]
    outgoing: tuple[LayerSpec, ...]


@dataclass
class Measured:
    """What was measured for an action, by key, and what that cost."""

    known: dict[Any, Any] = field(default_factory=dict)
    flops: int = 0


@dataclass(frozen=True)
class Edit:
    """An action on its way, as an initializer sees it: for a network, or its running average.

    Values are by entry ("stage1.block1.conv1.weight"), whole, with what is frozen in its place.

    Args:
        action: what is done.
        before: the architecture before it.
        after: the architecture after it.
        old: the values before it; they are the network's own, not to be changed.
        new: the values after it as they stand; to change one, take a copy by `value`.
        drawn: by weight of which some is new, all of it as `Initializer.draw` gave it.
        sources: by entry that changes, for rows and columns, where each comes from; -1: it is new.
            Write the original's place there for a running statistic that is a copy: new ones are
            estimated on the probe batch.
        seed: of the growth; see `generator`.
        probe: (inputs, targets), inputs alone, or None.
        loss: takes outputs and targets, gives their mean; or None.
        initializer: what the initializer is called in errors.
        values: those of the network before it, where `old` may be its average's.
        assemble: makes a network of an architecture and values.
        measured: what is known by now, for the network and its average together.
    """

    action: Action
    before: Architecture
    after: Architecture
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    drawn: Mapping[str, Tensor]
    sources: dict[str, tuple[Tensor, ...]]
    seed: int
    probe: Any
    loss: Loss | None
    initializer: str
    values: Mapping[str, Tensor]
    assemble: Callable[[Architecture, Mapping[str, Tensor]], Network]
    measured: Measured

    @property
    def grown(self) -> tuple[GrownAxis, ...]:
        """The axes that have grown; none where a block is inserted, whose axes are all new."""
        old, found = _sizes(self.before), []
        for name, size in _sizes(self.after).items():
            if size <= old.get(name, size):
                continue
            specs = layer_specs(self.after)
            rows = [spec for spec in specs if spec.axes[0] == name]
            layers = tuple(spec for spec in rows if spec.kind != "norm")
            norms = tuple(spec for spec in rows if spec.kind == "norm")
            columns = tuple(spec for spec in specs if spec.axes[1:] == (name,))
            found.append(GrownAxis(name, old[name], size, layers, norms, columns))
        return tuple(found)

    def value(self, name: str) -> Tensor:
        """Give a copy of an entry as it stands after the action."""
        return self.new[name].clone()

    def generator(self, *words: Any) -> torch.Generator:
        """Give a CPU generator that depends on the growth's seed and the words alone."""
        return generator_of(self.seed, *words)

    def tap(self, ends: Iterable[End], training: bool = True) -> dict[End, tuple[Tensor, Tensor]]:
        """Give what passes layers on the probe batch, and the loss's gradient by it; charged.

        Args:
            ends: (path of a layer, "input" or "output"), in the network before the action.
            training: whether BatchNorm uses the batch.

        Raises:
            ValueError: there is no pair of inputs and targets, or no loss.
        """
        ends = tuple(ends)
        return self.once(("tap", ends, training), lambda: self._tap(ends, training))

    def _tap(self, ends: tuple[End, ...], training: bool) -> dict[End, tuple[Tensor, Tensor]]:
        net, wish = self.network, f"initializer {self.initializer}"
        seen = tap(net, ends, self.probe, self.loss, training, wish)
        self.charge(len(self.probe[0]) * train_flops(self.before.thawed()))
        return seen

    def loss_with(self, values: Mapping[str, Tensor]) -> float:
        """Give the loss on the probe batch, in train mode, if these values were given; charged.

        Raises:
            ValueError: there is no pair of inputs and targets, or no loss.
        """
        wish = f"initializer {self.initializer}"
        inputs, targets, loss = judged(self.probe, self.loss, wish)
        network = self.assemble(self.after, {**self.new, **values})
        self.charge(len(inputs) * cost(self.after).flops)
        return float(loss(run_apart(network, inputs, training=True), targets))

    @property
    def network(self) -> Network:
        """The network before the action, itself and not its average; it is not to be changed."""
        return self.once("network", lambda: self.assemble(self.before, self.values))

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Give what `make` gives, made once for a network and its running average."""
        if key not in self.measured.known:
            self.measured.known[key] = make()
        return self.measured.known[key]

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Charge the matrix products and convolutions inside, as torch counts them."""
        with FlopCounterMode(display=False) as counter:
            yield
        self.charge(counter.get_total_flops())

    def charge(self, flops: int) -> None:
        """Charge computations that nothing else counts to the growth (2 FLOPs a multiply-add)."""
        self.measured.flops += flops


def _sizes(architecture: Architecture) -> dict[str, int]:
    """Give the size of every axis."""
    specs = layer_specs(architecture)
    return {axis: size for spec in specs for axis, size in zip(spec.axes, spec.shape)}
