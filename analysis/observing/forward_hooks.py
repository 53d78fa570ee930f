"""The hooks on a network's forward pass, there only while a step is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from analysis.examining.asked_responses import AskedResponses
from analysis.measuring.dead_channels import by_channel, dead_fractions
from analysis.measuring.norm_layers import FEEDERS, NormActivation, channel_axis, first_of, is_norm
from analysis.measuring.responses import Response, Responses
from analysis.observing.hooks import Hooks, hold_compiled_code, hooked_backward, why_unreadable
from analysis.observing.watched_layers import Layer
from analysis.summing.side_stream import SideStream
from analysis.summing.step_sums import Values
from analysis.tracing.autograd_graph import Graph
from analysis.tracing.pairing import Pairing
from nets.modules.network import Network

Extra = Callable[[Tensor], Tensor]
"""A statistic of one's own: takes a layer's output, detached, gives a 0-d tensor on its device."""
_DISPATCH = vars(Tensor)["__torch_dispatch__"]
FORWARDS = 64
"""Forwards of mere parts of the net after which what was read is put away."""


class ForwardHooks:
    """Reads what the layers give in training forwards while `listen` is on.

    Compiled code does not call hooks that came after it, so it rests while they are there:
    `torch.compile`'s stance is then "force_eager". Compiled code is neither lost nor added.

    Args:
        net: the network.
        layers: of it.
        names: of all statistics.
        extra: those of one's own.
        also: what was asked for by name.
        begin: is called before each training forward.
        put_away: is called when much was read and no forward of the net began.
        pairs: feeders by norm, of those that are known.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Sequence[Layer],
        names: Sequence[str],
        extra: Mapping[str, Extra],
        also: Sequence[str],
        begin: Callable[[], None],
        put_away: Callable[[], None],
        pairs: Mapping[str, str],
    ) -> None:
        self._net, self._layers, self._names, self._extra = net, layers, names, extra
        self._slots = [
            {name: index * len(names) + k for k, name in enumerate(names)}
            for index in range(len(layers))
        ]
        self._begin, self._put_away = begin, put_away
        self._placed = Hooks()
        self._responses = Responses()
        self._latest: dict[str, Response] = {}  # by path
        self._own: list[tuple[int, Tensor]] = []
        self._asked = AskedResponses(also, names)
        self.scale: Tensor | None = None  # by which the loss of the step under way was multiplied
        # of a network that is not ours
        self._graph = Graph()
        self._pairing = None if isinstance(net, Network) else Pairing(pairs, self._graph)
        self._feeders = {
            row.path
            for row in layers
            if row.chosen and self._pairing and isinstance(net.get_submodule(row.path), FEEDERS)
        }
        self._shares: list[tuple[str, int, Tensor]] = []  # of dead channels, if a relu follows
        self._insides: list[NormActivation] = []
        self._read_inside: set[str] = set()  # norms under way that have been read
        self.modes: set[bool] = set()  # of forwards with gradients, training or not
        self.passed: str | None = None  # why forwards of this step were not read, if any

    def __bool__(self) -> bool:
        """Say whether anything was read since the last `take`."""
        return bool(self._responses)

    @property
    def on(self) -> bool:
        """Whether the hooks are there."""
        return bool(self._placed)

    def trains(self) -> bool:
        """Say whether a forward that runs now would be one of training, and can be read."""
        if not torch.is_grad_enabled():
            return False
        self.modes.add(self._net.training)
        if not self._net.training:
            return False
        why = why_unreadable()
        self.passed = why or self.passed
        return why is None

    def listen(self, on: bool) -> None:
        """Put the hooks on the layers, or leave nothing there."""
        if on and not self._placed:
            hold_compiled_code(self, True)
            self._attach()
        elif self._placed and not on:
            hold_compiled_code(self, False)
            for inside in self._insides:
                inside.end()  # of a forward that was interrupted
            self._placed.remove()
            self._insides.clear()
            self._read_inside.clear()

    def look(self) -> None:
        """Copy what the optimizer's update would change."""
        self._responses.look()

    @property
    def beside(self) -> SideStream:
        """A stream for work that a captured step does not wait for."""
        return self._responses.beside

    def take(self, ended: bool = True) -> Values:
        """Give the statistics that follow from what was read, and begin the next step.

        `ended` says whether the one under way is over, or goes on with another forward.
        """
        self._graph.settle()
        if self._pairing:
            self._pairing.prune()
        for path, slot, share in self._shares:
            if self._graph.follows(path):
                self._responses.share(slot, share)
        self._shares.clear()
        own, self._own = self._own, []
        self._latest.clear()
        asked = self._asked.take(ended, self.scale)
        if ended:
            self.scale = None
        return [*self._responses.take(), *(((slot,), value) for slot, value in own), *asked]

    @property
    def pairs(self) -> Mapping[str, str]:
        """Feeders by norm, as far as is known."""
        return self._pairing.pairs if self._pairing else {}

    def settle(self) -> bool:
        """Say at the end of a step whether its forwards showed other `pairs`."""
        self._graph.look()
        return self._pairing is not None and self._pairing.settle()

    def _attach(self) -> None:
        for index, layer in enumerate(self._layers):
            if not (layer.chosen or self._pairing):
                continue
            source = self._net.get_submodule(layer.source or layer.path)
            if self._pairing and NormActivation.suits(source):
                self._attach_inside(source, layer, index)
            self._listen_to(source, layer, index)
        if self._pairing:
            self._pairing.hooked = hooked_backward(self._net)
        self._placed.before(self._net, self._begin_forward)
        self._placed.after(self._net, self._end_forward, always=True)
        self._attach_sides()

    def _attach_sides(self) -> None:
        """Read both sides of the chosen blocks' residual ratios, also where they are no layers."""
        rows = {layer.path: layer for layer in self._layers}
        chosen = [layer for layer in self._layers if layer.chosen]
        read = {layer.path for layer in chosen}
        for layer in chosen:
            for path in {layer.branch, layer.shortcut} - read - {None}:
                assert path is not None
                read.add(path)
                row = rows.get(path, Layer(path, "stream", small_mean=layer.small_mean))
                source = self._net.get_submodule(row.source or path)
                self._listen_to(source, replace(row, chosen=True), None)

    def _attach_inside(self, norm: nn.Module, layer: Layer, index: int) -> None:
        """Read a norm's response before the activation that is inside the norm."""

        def read(x: Tensor) -> None:
            if self.trains() and self._can_read(x) and self._chosen(layer):
                self._keep(norm, layer, index, x, self._responses.read(norm, x))
                self._read_inside.add(layer.path)

        inside = NormActivation(norm, read)
        self._insides.append(inside)
        self._placed.inside(inside)

    def _begin_forward(self, module: nn.Module, args: Any) -> None:
        # it is called once more where a hook before it removed it
        if self.on and module is self._net and self.trains():
            if self._pairing:
                self._pairing.begin_forward()
                self._pairing.hooked = hooked_backward(self._net)
            self._begin()

    def _end_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self._net and why_unreadable() is None:
            self._responses.end_forward()
            self._graph.end_forward(output)
            if self._pairing:
                self._pairing.end_forward(output is not None)

    def _listen_to(self, source: nn.Module, layer: Layer, index: int | None) -> None:
        """Hook the module that makes a layer's output, or a mere shortcut's, which has no index."""
        feeds, is_fed = isinstance(source, FEEDERS), is_norm(source)

        def read(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if module is not source:  # a replica, which runs in a thread of its own
                self.passed = "in replicas (DataParallel)"
                return
            output = first_of(output)
            if not (isinstance(output, Tensor) and self.trains() and self._can_read(output)):
                return
            if len(self._responses) >= FORWARDS * len(self._layers):
                self._put_away()
            if self._pairing:
                if is_fed:
                    taken = next(iter((*args, *kwargs.values())), None)
                    self._pairing.take(layer.path, taken, output)
                self._graph.reach(output)
                if feeds and self._pairing.give(layer.path, output):
                    return  # its norm's output is read
            if not self._chosen(layer):
                return
            if layer.path in self._read_inside:
                self._read_inside.remove(layer.path)
                return
            response = self._responses.read(module, output, layer.small_mean)
            self._keep(module, layer, index, output, response)

        self._placed.after(source, read, kwargs=True)

    def _chosen(self, layer: Layer) -> bool:
        """Say whether a layer is read: it was chosen, or what feeds it was, or may have been."""
        if layer.chosen or not self._pairing:
            return layer.chosen
        feeder = self._pairing.pairs.get(layer.path)
        return feeder in self._feeders if feeder else bool(self._feeders)

    def _keep(
        self, source: nn.Module, layer: Layer, index: int | None, x: Tensor, response: Response
    ) -> None:
        """Note what a layer gave, a tensor and its moments, which are those of a response."""
        self._latest[layer.path] = response
        if index is None:
            return
        slots = self._slots[index]
        self._responses.keep(slots["response_mean"], response)
        if layer.rectified:
            self._responses.dead(slots["dead_fraction"], x)
        elif self._pairing:
            self._look_for_dead(source, layer.path, slots["dead_fraction"], x)
        if layer.branch in self._latest and layer.shortcut in self._latest:
            branch, shortcut = self._latest[layer.branch], self._latest[layer.shortcut]
            self._responses.ratio(slots["residual_ratio"], branch, shortcut)
        self._asked.read(index * len(self._names), x)
        for name, function in self._extra.items():
            value = _scalar(name, function(x.detach()))
            self._own.append((slots[name], value.to(torch.float64, copy=True).view(1)))

    def _look_for_dead(self, source: nn.Module, path: str, slot: int, x: Tensor) -> None:
        """Note the share of dead channels if a relu follows, or if that is still to be seen."""
        follows, axis = self._graph.follows(path), channel_axis(source, x)
        if axis is None or follows is False or not x.numel():
            return
        if follows is None and x.grad_fn is None:
            return  # frozen: what takes it is not in the graph
        # now, for others may work on it in place
        share = dead_fractions([by_channel(x.detach(), axis)], self._responses.known)
        if follows:
            self._responses.share(slot, share)
        else:
            self._graph.note(path, x)
            self._shares.append((path, slot, share))

    def _can_read(self, output: Tensor) -> bool:
        kind: Any = type(output)
        if kind.__torch_dispatch__ is not _DISPATCH or output.is_nested:
            self.passed = f"that give a {kind.__name__}"
            return False
        entries = output.numel() > 0  # else its mean is undefined
        return entries and output.is_floating_point() and output.layout is torch.strided


def _scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim():
        kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"extra[{name!r}] must give a 0-d tensor, got {kind}")
    return value.detach()
