"""What of a network is read: its layers and parameters, for as long as it consists of the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from analysis.examining.layer_choice import LayerChoice, as_predicate
from analysis.examining.requests import HISTOGRAMS
from analysis.measuring.norm_layers import FEEDERS, first_of, is_norm
from analysis.measuring.update_ratios import ParameterReader
from analysis.observing.forward_hooks import Extra, ForwardHooks
from analysis.observing.hooks import Hooks, hooked_backward
from analysis.observing.watched_layers import Layer, certain_pairs, paired, parameters_of, rows_of
from analysis.observing.window import Window
from analysis.tracing.autograd_graph import Graph
from analysis.tracing.pairing import Pairing
from nets.modules.network import Network

_OF_PARAMETERS = ("gradient_norm", "weight_norm", "update_ratio")


class WatchedNetwork:
    """The layers of a network, with what reads their outputs and parameters, and their window.

    Args:
        net: without wrappers.
        statistics: names of all that a layer has.
        layers: which of them are read; see `Observer`.
        extra, also, begin, put_away: see `ForwardHooks`.
        pairs: feeders by norm, of those that are known from before.
    """

    def __init__(
        self,
        net: nn.Module,
        statistics: Sequence[str],
        layers: LayerChoice,
        extra: Mapping[str, Extra],
        also: Sequence[str],
        begin: Callable[[], None],
        put_away: Callable[[], None],
        pairs: Mapping[str, str],
    ) -> None:
        self.net, self.statistics = net, statistics
        self._chosen, self._also, self._callbacks = layers, also, (extra, also, begin, put_away)
        self.members = Members(net)
        self._alone = chosen_of(rows_of(net), net, layers)  # norms and what feeds them apart
        self._sources = [net.get_submodule(row.path) for row in self._alone]
        paths = {row.path for row in self._alone}
        known = {n: path for n, path in pairs.items() if paths.issuperset((n, path))}
        pairs = {**certain_pairs(net, self._alone), **known}
        self.hooks = ForwardHooks(net, self._alone, statistics, *self._callbacks, pairs)
        self.rows = paired(self._alone, self.hooks.pairs)
        self.parameters = ParameterReader(net, self._owned(), statistics, also)
        self.window = Window(self.rows, statistics, [one for one in also if one in HISTOGRAMS])

    @property
    def layers(self) -> list[Layer]:
        """Those of `rows` that are read; what feeds a norm is no layer of its own."""
        return [row for row in self.rows if row.modules]

    def pair_again(self) -> None:
        """Pair norms with what feeds them otherwise, if the step's forwards showed so."""
        if not self.hooks.settle():
            return
        before, self.rows = self.rows, paired(self._alone, self.hooks.pairs)
        self.parameters.own(self._owned())
        slots = enumerate(
            (row, old, name) for row, old in zip(self.rows, before) for name in self.statistics
        )
        places = [
            None if row.modules != old.modules and name in _OF_PARAMETERS else place
            for place, (row, old, name) in slots
        ]
        self.window.rearrange(self.rows, places)

    def read_parameters_anew(self) -> None:
        """Go on with parameters that were replaced or changed."""
        self.parameters.unwatch()
        self.members = Members(self.net)
        self.parameters = ParameterReader(self.net, self._owned(), self.statistics, self._also)

    def anew(self) -> WatchedNetwork:
        """Look at the network again, whose modules changed, and leave no hooks of this one.

        Layers that are as they were go on with their windows.
        """
        modules = dict(self.net.named_modules())
        layers = list(zip(self.rows, self._sources))
        same = {row.path for row, one in layers if modules.get(row.path) is one}
        pairs = {n: path for n, path in self.hooks.pairs.items() if same.issuperset((n, path))}
        listened, passed, modes = self.hooks.on, self.hooks.passed, self.hooks.modes
        self.hooks.listen(False)
        self.parameters.unwatch()
        given = self.statistics, self._chosen, *self._callbacks
        again = WatchedNetwork(self.net, *given, pairs)
        before = {layer: place for place, layer in enumerate(layers)}
        places = [before.get(layer) for layer in zip(again.rows, again._sources)]
        width = range(len(self.statistics))
        slots = [None if at is None else at * len(width) + k for at in places for k in width]
        again.window = self.window
        again.window.rearrange(again.rows, slots)
        again.hooks.passed, again.hooks.modes = passed, modes
        again.hooks.listen(listened)
        return again

    def _owned(self) -> list[list[nn.Parameter]]:
        return [parameters_of(self.net, row) for row in self.rows]


def chosen_of(rows: Sequence[Layer], net: nn.Module, layers: LayerChoice) -> list[Layer]:
    """Give the rows, marked as `layers` chooses them; see `Observer`."""
    wanted = as_predicate(layers)
    if wanted is None:
        return list(rows)
    return [replace(row, chosen=wanted(row.path, net.get_submodule(row.path))) for row in rows]


def layers_while(net: nn.Module, run: Callable[[], object]) -> list[Layer]:
    """Give the layers of a network, in one that is not ours as the forwards of `run` show them."""
    rows = rows_of(net)
    graph, hooks = Graph(), Hooks()
    pairing = Pairing(certain_pairs(net, rows), graph)
    pairing.hooked = hooked_backward(net)

    def look(path: str, module: nn.Module) -> None:
        def see(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if is_norm(module):
                pairing.take(path, next(iter((*args, *kwargs.values())), None), first_of(output))
            if isinstance(module, FEEDERS):
                pairing.give(path, output)

        hooks.after(module, see, kwargs=True)

    for row in () if isinstance(net, Network) else rows:
        look(row.path, net.get_submodule(row.path))
    hooks.after(net, lambda module, args, output: graph.end_forward(output))
    try:
        run()
    finally:
        hooks.remove()
    pairing.settle()
    return [layer for layer in paired(rows, pairing.pairs) if layer.modules]


class Members:
    """The modules and parameters of a network, as they were when this was made."""

    def __init__(self, net: nn.Module) -> None:
        children = [module._modules for module in net.modules()]
        own = [module._parameters for module in net.modules()]
        self._children = [(now, list(now.items())) for now in children if now]
        self._own = [(now, list(map(id, now.values()))) for now in own if now]
        # most have none of one or the other
        self._childless, self._bare = ([now for now in all_ if not now] for all_ in (children, own))
        self._kinds = [(parameter, _kind(parameter)) for parameter in net.parameters()]

    def same_modules(self) -> bool:
        """Say whether the modules are the same; it does not look at their parameters."""
        same = all(list(now.items()) == then for now, then in self._children)
        return same and not any(self._childless)

    def same_parameters(self) -> bool:
        """Say whether the parameters of these modules are the same, of the same kind."""
        same = all(list(map(id, now.values())) == then for now, then in self._own)
        kinds = all(_kind(parameter) == kind for parameter, kind in self._kinds)
        return same and kinds and not any(self._bare)

    def swapped(self) -> bool:
        """Say whether other tensors stand in for parameters now, as in `functional_call`."""
        values = [value for now, _ in self._own for value in now.values()]
        return any(isinstance(v, Tensor) and not isinstance(v, nn.Parameter) for v in values)


def _kind(parameter: Tensor) -> Any:
    return None if is_lazy(parameter) else (parameter.dtype, parameter.device, parameter.shape)
