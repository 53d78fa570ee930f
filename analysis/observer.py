"""Reads layers while a network trains: hooks on the forward pass and the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from analysis.layers import Layer, layers_of, unwrap
from analysis.parameters import ParameterNorms
from analysis.record import STATISTICS, LayerReading
from analysis.responses import Response, Responses, tells_variance
from nets.growth import Grown
from nets.modules import Network

Extra = Callable[[Tensor], Tensor]
"""A statistic of one's own: takes a layer's output, detached, gives a 0-d tensor on its device."""


class Observer:
    """Reads the layers of any `torch.nn.Module` while it trains inside a `with` block.

    Nothing is read back from the device before `readings()`, which makes one copy. Forwards in eval
    mode or without gradients are ignored, and nothing is left on the module at the end.

        with Observer(net, optimizer, every=10) as observer:
            ...  # training steps
            readings = observer.readings()
            grown = grow(net, actions, optimizer)
            observer.follow(grown)

    Args:
        net: our network, or any module; a module's path is the name of its reading.
        optimizer: its steps are the steps that count, gradients are read as it sees them (after
            clipping and unscaling) and update ratios become available. Without it every training
            forward counts as a step, and gradients are read as the backward pass leaves them.
        every: read every so many steps, the first step of every window among them.
        step: steps already taken, for a resumed run.
        edited: step of the last edit by block, for a resumed run.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        every: int = 1,
        *,
        step: int = 0,
        edited: dict[str, int] | None = None,
        extra: Mapping[str, Extra] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every
        self.step = step
        self.edited = dict(edited or {})
        self.extra = dict(extra or {})
        taken = set(self.extra).intersection(STATISTICS)
        if taken:
            raise ValueError(f"extra must not be named {', '.join(STATISTICS)}, got {min(taken)!r}")
        self._names = (*STATISTICS, *self.extra)
        self._lasting: list[Any] = []  # hooks of the whole `with` block
        self._hooks: list[Any] = []  # hooks of a step that is read
        self._attached = False
        self._aim(net, optimizer)

    def __enter__(self) -> Observer:
        self._attach()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_step_without_optimizer()
        self._detach()

    def follow(
        self, grown: Grown | nn.Module, optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Go on with the network that replaces the one watched; what was not yet read is dropped.

        Args:
            grown: what `grow` gave (network and optimizer are taken from it), or a module.
            optimizer: with a module: its optimizer.
        """
        self._end_step_without_optimizer()
        attached = self._attached
        self._detach()
        if isinstance(grown, Grown):
            grown, optimizer = grown.network, grown.optimizer
        old, new = self._inner, unwrap(grown)
        if isinstance(old, Network) and isinstance(new, Network):
            before, now = old.architecture.widths, new.architecture.widths
            self.edited.update({n: self.step for n, w in now.items() if before.get(n) != w})
        self._aim(grown, optimizer)
        if attached:
            self._attach()

    def readings(self) -> dict[str, LayerReading]:
        """Give what was read since the last call, by module path, and begin a new window.

        If nothing was read since then, give the same readings again.
        """
        self._end_step_without_optimizer()
        if any(self._counts) or not self._last:
            totals = self._totals.tolist() if self._totals is not None else self._counts
            means = [total / count if count else None for total, count in zip(totals, self._counts)]
            width = len(self._names)
            self._last = {
                layer.path: self._reading(layer, means[index * width : (index + 1) * width])
                for index, layer in enumerate(self.layers)
            }
            self._totals, self._counts = None, [0] * len(self._counts)
        self._window_start = self.step
        self._prepare()
        return self._last

    def _reading(self, layer: Layer, means: list[float | None]) -> LayerReading:
        values = dict(zip(self._names, means, strict=True))
        extra = {name: value for name in self.extra if (value := values.pop(name)) is not None}
        edited = self.edited.get(layer.block or "")
        return LayerReading(layer.block, layer.role, **values, edited=edited, extra=extra)

    def state_dict(self) -> dict[str, Any]:
        """Give all that a resumed observer of the same network needs to go on exactly."""
        totals = None if self._totals is None else self._totals.to("cpu", copy=True)
        window = {"start": self._window_start, "totals": totals, "counts": list(self._counts)}
        last = {path: asdict(reading) for path, reading in self._last.items()}
        return {"step": self.step, "edited": dict(self.edited), "window": window, "last": last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.step, self.edited, window = state["step"], dict(state["edited"]), state["window"]
        self._window_start, self._counts = window["start"], list(window["counts"])
        device = next(self.net.parameters()).device
        totals = window["totals"]
        self._totals = None if totals is None else totals.to(device, copy=True)
        self._last = {path: LayerReading(**values) for path, values in state["last"].items()}
        self._prepare()

    def _aim(self, net: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.net, self.optimizer = net, optimizer
        self._inner = unwrap(net)
        self.layers: list[Layer] = layers_of(self._inner)
        self._parameters = ParameterNorms(self._inner, self.layers, len(self._names))
        self._responses = Responses()
        self._norms: list[nn.Module] = []  # whose variance may be told
        self._latest: dict[str, Response] = {}  # of what a block adds up, by path
        self._values: list[tuple[tuple[int, ...], Tensor]] = []  # of this step, by slot
        self._totals: Tensor | None = None  # over the window
        self._counts = [0] * (len(self.layers) * len(self._names))
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._last: dict[str, LayerReading] = {}
        self._window_start = self.step
        self._pending = False

    def _attach(self) -> None:
        self._attached = True
        if self.optimizer is None:
            self._lasting.append(self.net.register_forward_pre_hook(self._begin_forward))
        else:
            self._lasting.append(self.optimizer.register_step_pre_hook(self._before_update))
            self._lasting.append(self.optimizer.register_step_post_hook(self._after_update))
        self._prepare()

    def _detach(self) -> None:
        self._attached = False
        self._listen(False)
        for handle in self._lasting:
            handle.remove()
        self._lasting.clear()

    def _prepare(self) -> None:
        """Listen to the coming forwards if their step is to be read."""
        due = (self.step - self._window_start) % self.every == 0
        self._listen(self._attached and due)

    def _listen(self, listen: bool) -> None:
        """Hook the layers, or leave nothing on them: steps that are not read cost nothing.

        Compiled code does not call hooks that came after it, so it rests while they are there.
        """
        if listen == bool(self._hooks):
            return
        if listen:
            self._stance = torch.compiler.set_stance("force_eager")
            self._hook_layers()
        else:
            self._stance.__exit__(None, None, None)
            for handle in self._hooks:
                handle.remove()
            self._hooks.clear()
            self._parameters.unwatch()

    def _hook_layers(self) -> None:
        self._norms = []
        for index, layer in enumerate(self.layers):
            source = self._inner.get_submodule(layer.source or layer.path)
            if tells_variance(source):
                self._norms.append(source)
                self._hooks.append(source.register_forward_pre_hook(self._before_norm))
            self._hooks.append(source.register_forward_hook(self._reader(layer, index)))
        self._hooks.append(self._inner.register_forward_pre_hook(self._hold_norms))
        paths = {layer.path for layer in self.layers}
        for layer in self.layers:
            if layer.shortcut and layer.shortcut not in paths:
                module = self._inner.get_submodule(layer.shortcut)
                shortcut = Layer(layer.shortcut, "stream", near_zero=layer.near_zero)
                self._hooks.append(module.register_forward_hook(self._reader(shortcut)))

    def _trains(self) -> bool:
        return self._inner.training and torch.is_grad_enabled()

    def _begin_forward(self, module: nn.Module, args: Any) -> None:
        if self._trains():  # without an optimizer a step ends where the next begins
            self._end_step_without_optimizer()
            self._prepare()
            if self._hooks:
                self._parameters.watch()  # each time: layers may be unfrozen
            self._pending = True

    def _hold_norms(self, module: nn.Module, args: Any) -> None:
        if self._trains():
            self._responses.hold(self._norms)

    def _before_norm(self, norm: nn.Module, args: Any) -> None:
        self._responses.before(norm, self._trains())

    def _reader(self, layer: Layer, index: int | None = None) -> Callable[..., None]:
        """Make the hook of a layer, or of a mere shortcut, which has no index."""
        slots = {name: (index or 0) * len(self._names) + k for k, name in enumerate(self._names)}

        def read(module: nn.Module, args: Any, output: Any) -> None:
            if not self._trains() or not isinstance(output, Tensor):
                return
            if not output.is_floating_point():
                return
            response = self._responses.tap(module, output)
            if response is None:
                response = self._responses.read(output, layer.near_zero)
            self._latest[layer.path] = response
            if index is None:
                return
            self._responses.keep(slots["response_mean"], response)
            if layer.rectified:
                self._responses.dead(slots["dead_fraction"], output)
            if layer.branch is not None and layer.shortcut is not None:
                ends = self._latest[layer.branch], self._latest[layer.shortcut]
                self._responses.ratio(slots["residual_ratio"], *ends)
            for name, function in self.extra.items():
                value = _scalar(name, function(output.detach()))
                self._values.append(((slots[name],), value.double().view(1)))

        return read

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._responses:
            self._parameters.before_update(getattr(optimizer, "grad_scale", None))

    def _after_update(self, *_: Any) -> None:
        self._end_step(self._parameters.after_update())

    def _end_step_without_optimizer(self) -> None:
        if self._pending:
            self._pending = False
            self._end_step(self._parameters.of_gradients())

    def _end_step(self, norms: list[tuple[tuple[int, ...], Tensor]]) -> None:
        if self._responses:
            self._add([*self._values, *self._responses.take(), *norms])
        self._values, self._latest = [], {}
        self.step += 1
        self._prepare()

    def _add(self, found: list[tuple[tuple[int, ...], Tensor]]) -> None:
        """Add a step's values to the window's totals."""
        slots = tuple(slot for places, _ in found for slot in places)
        values = torch.cat([value for _, value in found])
        if slots not in self._indices:
            self._indices[slots] = torch.tensor(slots, device=values.device)
        if self._totals is None:
            self._totals = values.new_zeros(len(self._counts))
        self._totals.index_add_(0, self._indices[slots], values)
        for slot in slots:
            self._counts[slot] += 1


def _scalar(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.dim():
        kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"extra[{name!r}] must give a 0-d tensor, got {kind}")
    return value.detach()
