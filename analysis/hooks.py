"""The hooks on a network's forward pass, there only while a step is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from analysis.layers import Layer
from analysis.responses import ForwardForm, Response, Responses
from analysis.responses import values_of as responses_of
from analysis.taps import tells_variance

Extra = Callable[[Tensor], Tensor]
"""A statistic of one's own: takes a layer's output, detached, gives a 0-d tensor on its device."""
Values = list[tuple[tuple[int, ...], Tensor]]
"""Slots, layer * len(names) + statistic, and what belongs there in each step, (steps, slots)."""


class HookForm(NamedTuple):
    """What the numbers of a step are: those of the responses, then statistics of one's own."""

    responses: ForwardForm
    own: tuple[int, ...]  # slots
    count: int  # of all


class ForwardHooks:
    """Reads what the layers give in training forwards while `listen` is on.

    Compiled code does not call hooks that came after it, so it rests while they are there:
    `torch.compile`'s stance is then "force_eager". Compiled code is neither lost nor added.
    """

    stays_behind = True  # when `grow` carries hooks

    def __init__(
        self,
        net: nn.Module,
        layers: Sequence[Layer],
        names: Sequence[str],
        extra: Mapping[str, Extra],
    ) -> None:
        self._net, self._layers, self._names, self._extra = net, layers, names, extra
        self._handles: list[Any] = []
        self._norms: list[nn.Module] = []  # whose variance may be told
        self._responses = Responses()
        self._latest: dict[str, Response] = {}  # by path
        self._own: list[tuple[int, Tensor]] = []

    def __bool__(self) -> bool:
        """Say whether anything was read since the last `take`."""
        return bool(self._responses)

    @property
    def on(self) -> bool:
        """Whether the hooks are there."""
        return bool(self._handles)

    def trains(self) -> bool:
        """Say whether a forward that runs now would be one of training."""
        return self._net.training and torch.is_grad_enabled()

    def listen(self, on: bool) -> None:
        """Put the hooks on the layers, or leave nothing there."""
        if on and not self._handles:
            _hold_compiled_code(self, True)
            self._attach()
        elif self._handles and not on:
            _hold_compiled_code(self, False)
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    def take(self) -> tuple[HookForm, list[Tensor]]:
        """Give what was read, numbers in 1-D parts, and begin the next step."""
        form, numbers = self._responses.take()
        own, self._own = self._own, []
        self._latest.clear()
        numbers += [value for _, value in own]
        count = sum(map(len, numbers))
        return HookForm(form, tuple(slot for slot, _ in own), count), numbers

    def _attach(self) -> None:
        self._norms = []
        for index, layer in enumerate(self._layers):
            source = self._net.get_submodule(layer.source or layer.path)
            if tells_variance(source):
                self._norms.append(source)
            self._handles.append(self._listen_to(source, layer, index))
        self._handles.append(self._net.register_forward_pre_hook(self._hold_norms))
        end = self._net.register_forward_hook(self._end_forward, always_call=True)
        self._handles.append(end)  # also where the forward fails: what follows may restore the net
        paths = {layer.path for layer in self._layers}
        for layer in self._layers:
            if layer.shortcut and layer.shortcut not in paths:
                module = self._net.get_submodule(layer.shortcut)
                shortcut = Layer(layer.shortcut, "stream", near_zero=layer.near_zero)
                self._handles.append(self._listen_to(module, shortcut, None))

    def _hold_norms(self, module: nn.Module, args: Any) -> None:
        if self.on and self.trains():  # it is called once more where a hook before it removed it
            self._responses.hold(self._norms)

    def _end_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        self._responses.end_forward()

    def _listen_to(self, source: nn.Module, layer: Layer, index: int | None) -> Any:
        """Hook the module that makes a layer's output, or a mere shortcut's, which has no index."""
        slots = {name: (index or 0) * len(self._names) + k for k, name in enumerate(self._names)}
        first, dead, ratio = (
            slots[name] for name in ("response_mean", "dead_fraction", "residual_ratio")
        )
        responses, latest, extra = self._responses, self._latest, list(self._extra.items())

        def read(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            inputs = args or tuple(kwargs.values())
            if not (self.trains() and isinstance(output, Tensor)):
                responses.forget(module, inputs)
                return
            response = responses.tap(module, inputs, output)
            if response is None:
                if not output.is_floating_point():
                    return
                response = responses.read(output, layer.near_zero)
            latest[layer.path] = response
            if index is None:
                return
            responses.keep(first, response)
            if layer.rectified:
                responses.dead(dead, output)
            if layer.branch in latest and layer.shortcut in latest:
                responses.ratio(ratio, latest[layer.branch], latest[layer.shortcut])
            for name, function in extra:
                value = _scalar(name, function(output.detach()))
                self._own.append((slots[name], value.to(torch.float64, copy=True).view(1)))

        read.stays_behind = True  # pyright: ignore[reportFunctionMemberAccess]
        return source.register_forward_hook(read, with_kwargs=True)


def values_of(form: HookForm, numbers: Tensor) -> Values:
    """Give the statistics that follow from the numbers of some steps, (steps, numbers) float64."""
    responses, own = numbers.split([numbers.shape[1] - len(form.own), len(form.own)], 1)
    return [*responses_of(form.responses, responses), (form.own, own)]


_holding: set[ForwardHooks] = set()
_stances: list[Any] = []  # what was in force before the first of them


def _hold_compiled_code(hooks: ForwardHooks, hold: bool) -> None:
    """Let compiled code rest for these hooks, or no longer; it runs again after the last."""
    if hold and not _holding:
        _stances.append(torch.compiler.set_stance("force_eager"))
    (_holding.add if hold else _holding.discard)(hooks)
    if not _holding:
        _stances.pop().__exit__(None, None, None)


def _scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim():
        kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"extra[{name!r}] must give a 0-d tensor, got {kind}")
    return value.detach()
