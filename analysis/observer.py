"""Reads layers while a network trains: hooks on the forward pass and the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from analysis.layers import Layer, layers_of
from analysis.parameters import ParameterNorms
from analysis.record import STATISTICS, LayerReading
from nets.growth import Grown
from nets.modules import Network


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Give mean and standard deviation over all entries, float64 scalars on the device of `x`.

    Sums run over deviations from each position's mean (two passes), so a large mean cancels
    nothing; half precision is read in float32.
    """
    x = x.detach()
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    if x.dim() < 3:
        variance, mean = torch.var_mean(x.double(), correction=0)
        return mean, variance.sqrt()
    axes = tuple(range(2, x.dim()))
    means = x.mean(axes, keepdim=True)
    within = torch.linalg.vector_norm(x - means, dim=axes).double().square().sum() / x.numel()
    between, mean = torch.var_mean(means.double(), correction=0)
    return mean, (within + between).sqrt()


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
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every = every
        self.step = step
        self.edited = dict(edited or {})
        self._handles: list[Any] = []
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
        if isinstance(self.net, Network) and isinstance(grown, Network):
            before, now = self.net.architecture.widths, grown.architecture.widths
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
            width = len(STATISTICS)
            self._last = {
                layer.path: LayerReading(
                    layer.block,
                    layer.role,
                    **dict(
                        zip(STATISTICS, means[index * width : (index + 1) * width], strict=True)
                    ),
                    edited=self.edited.get(layer.block or ""),
                )
                for index, layer in enumerate(self.layers)
            }
            self._totals, self._counts = None, [0] * len(self._counts)
        self._window_start = self.step
        return self._last

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

    def _aim(self, net: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.net, self.optimizer = net, optimizer
        self.layers: list[Layer] = layers_of(net)
        self._norms = ParameterNorms(net, self.layers)
        self._values: list[tuple[int, Tensor]] = []  # of this step
        self._spread: dict[
            str, Tensor
        ] = {}  # std of what a block adds up, by path, of this forward
        self._totals: Tensor | None = None  # over the window
        self._counts = [0] * (len(self.layers) * len(STATISTICS))
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._last: dict[str, LayerReading] = {}
        self._window_start = self.step
        self._reading = self._sampled = self._pending = False

    def _attach(self) -> None:
        self._attached = True
        hooks = self._handles
        hooks.append(self.net.register_forward_pre_hook(self._begin_forward))
        for index, layer in enumerate(self.layers):
            module = self.net.get_submodule(layer.path)
            hooks.append(module.register_forward_hook(self._reader(index, layer)))
        ends = {layer.shortcut for layer in self.layers} - {layer.path for layer in self.layers}
        for path in filter(None, ends):
            hooks.append(
                self.net.get_submodule(path).register_forward_hook(self._spread_reader(path))
            )
        if self.optimizer is not None:
            hooks.append(self.optimizer.register_step_pre_hook(self._before_update))
            hooks.append(self.optimizer.register_step_post_hook(self._after_update))

    def _detach(self) -> None:
        self._attached = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._norms.unwatch()

    def _begin_forward(self, module: nn.Module, args: Any) -> None:
        training = module.training and torch.is_grad_enabled()
        if training and self.optimizer is None:
            self._end_step_without_optimizer()
            self._norms.watch(lambda: self._sampled)  # each time: layers may be unfrozen
        self._reading = training and (self.step - self._window_start) % self.every == 0
        if training:
            self._sampled, self._pending = self._reading, True

    def _reader(self, index: int, layer: Layer) -> Callable[..., None]:
        slots = {name: index * len(STATISTICS) + k for k, name in enumerate(STATISTICS)}

        def read(module: nn.Module, args: Any, output: Any) -> None:
            if (
                not self._reading
                or not isinstance(output, Tensor)
                or not output.is_floating_point()
            ):
                return
            mean, std = moments(output)
            self._spread[layer.path] = std
            self._values.append((slots["response_mean"], mean))
            self._values.append((slots["response_std"], std))
            if layer.rectified:
                peaks = output.detach().transpose(0, 1).flatten(1).amax(1)  # (N, C, ...) -> (C,)
                self._values.append((slots["dead_fraction"], (peaks <= 0).double().mean()))
            if layer.branch is not None and layer.shortcut is not None:
                ratio = self._spread[layer.branch] / self._spread[layer.shortcut]
                self._values.append((slots["residual_ratio"], ratio))

        return read

    def _spread_reader(self, path: str) -> Callable[..., None]:
        def read(module: nn.Module, args: Any, output: Tensor) -> None:
            if self._reading:
                self._spread[path] = moments(output)[1]

        return read

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._sampled and self._pending:
            self._norms.before_update(getattr(optimizer, "grad_scale", None))

    def _after_update(self, *_: Any) -> None:
        if self._sampled and self._pending:
            self._values.extend(self._norms.after_update())
            self._add_values()
        self.step += 1
        self._pending = self._reading = False

    def _end_step_without_optimizer(self) -> None:
        if self.optimizer is not None or not self._pending:
            return
        if self._sampled:
            self._values.extend(self._norms.of_gradients())
            self._add_values()
        self.step += 1
        self._pending = self._reading = False

    def _add_values(self) -> None:
        if not self._values:
            return
        slots = tuple(slot for slot, _ in self._values)
        values = torch.stack([value for _, value in self._values])
        if slots not in self._indices:
            self._indices[slots] = torch.tensor(slots, device=values.device)
        if self._totals is None:
            self._totals = values.new_zeros(len(self._counts))
        self._totals.index_add_(0, self._indices[slots], values)
        for slot in slots:
            self._counts[slot] += 1
        self._values, self._spread = [], {}
