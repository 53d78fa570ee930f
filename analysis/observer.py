"""Reads layers while a network trains: hooks on the forward pass and the optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from analysis.breaks import Breaks
from analysis.hooks import Extra, ForwardHooks, HookForm, Values, values_of
from analysis.layers import Layer, paired, rows_of, unwrap
from analysis.parameters import ParameterForm, ParameterNorms, ParameterNotes
from analysis.record import STATISTICS, LayerReading
from analysis.waiting import Waiting
from nets.growth import Grown
from nets.modules import Network


class Observer:
    """Reads the layers of any `torch.nn.Module` while it trains inside a `with` block.

    Nothing is read back from the device before `readings()`, which makes one copy. Forwards in eval
    mode or without gradients are ignored. Steps that are not read run without hooks on the layers,
    and nothing is left on the module at the end. `LayerReading` defines the statistics.

        with Observer(net, optimizer, every=10) as observer:
            ...  # training steps
            readings = observer.readings()
            grown = grow(net, actions, optimizer)
            observer.follow(grown)

    A BatchNorm's response is told by its running statistics where they can, to 1e-5, and in half
    precision as it was before rounding; `analysis/taps.py` says where that is too little.

    A net under `torch.compile` runs uncompiled in the steps that are read (and only in these: take
    `every=10` or more). Around DistributedDataParallel each process reads its own batches. Layers
    have the names that they have inside the wrapper.

    Args:
        net: our network, or any module; a module's path is the name of its reading.
        optimizer: its steps are the steps that count, gradients are read as it sees them (after
            clipping and unscaling) and update ratios become available. Without it every training
            forward counts as a step, and gradients are read as the backward pass leaves them.
        every: read every so many steps, the first step of every window among them.
        step: steps already taken, for a resumed run.
        edited: step of the last edit by block, for a resumed run.
        extra: statistics of one's own, by name: functions that take a layer's output (detached, not
            to be changed) and give a 0-d tensor on its device, without `.item()`. Their means over
            the window are in `LayerReading.extra`:

                Observer(net, optimizer, extra={"largest": lambda output: output.abs().amax()})

    Raises:
        ValueError: `every` below 1, a name in `extra` that is taken, or a net compiled in place
            (`net.compile()`) without an optimizer.
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
        self._handles: list[Any] = []  # of the hooks that stay while the `with` block lasts
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
        self._waiting.flush()
        if any(self._counts) or not self._last:
            totals = self._totals.tolist() if self._totals is not None else self._counts
            means = [total / count if count else None for total, count in zip(totals, self._counts)]
            width = len(self._names)
            self._last = {
                layer.path: self._reading(layer, means[index * width : (index + 1) * width])
                for index, layer in enumerate(self._rows)
                if layer.modules
            }
            self._totals, self._counts = None, [0] * len(self._counts)
            self._breaks = Breaks()
        self._window_start = self.step
        self._prepare()
        return self._last

    def _reading(self, layer: Layer, means: list[float | None]) -> LayerReading:
        values = dict(zip(self._names, means, strict=True))
        extra = {name: value for name in self.extra if (value := values.pop(name)) is not None}
        edited = self.edited.get(layer.block or "")
        return LayerReading(layer.block, layer.role, **values, edited=edited, extra=extra)

    def skip(self) -> None:
        """Count a step whose update was left out; what was read of it is dropped."""
        self._hooks.take()
        self.step += 1
        self._prepare()

    def first_broken(self) -> tuple[str, str, int] | None:
        """Say which statistic of this window was NaN or infinite first; None if all are finite.

        Gives the layer's path, the statistic, and how many more layers broke in the same reading.
        Of these it is the first whose response broke, if any did: what comes after follows from it.
        """
        self._waiting.flush()
        width, forward = len(self._names), ("response_mean", "response_std")
        broken = self._breaks.first()
        broken = [slot for slot in broken if self._rows[slot // width].modules] or broken
        broken = [slot for slot in broken if self._names[slot % width] in forward] or broken
        if not broken:
            return None
        others = len({slot // width for slot in broken}) - 1
        return self._rows[broken[0] // width].path, self._names[broken[0] % width], others

    def state_dict(self) -> dict[str, Any]:
        """Give all that a resumed observer of the same network needs to go on exactly."""
        self._waiting.flush()
        totals = None if self._totals is None else self._totals.to("cpu", copy=True)
        window = {"start": self._window_start, "totals": totals, "counts": list(self._counts)}
        last = {path: {**asdict(r), "extra": dict(r.extra)} for path, r in self._last.items()}
        return {"step": self.step, "edited": dict(self.edited), "window": window, "last": last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        window, size = state["window"], len(self._rows) * len(self._names)
        if len(window["counts"]) != size:
            raise ValueError(
                f"state must hold {size} counts, a layer's {len(self._names)} statistics for each "
                f"of {len(self._rows)} layers, got {len(window['counts'])}"
            )
        self._hooks.take()  # what was read before is not of this window
        self._waiting.drop()
        self._breaks = Breaks()
        self.step, self.edited = state["step"], dict(state["edited"])
        self._window_start, self._counts = window["start"], list(window["counts"])
        device = next(self.net.parameters()).device
        totals = window["totals"]
        self._totals = None if totals is None else totals.to(device, copy=True)
        self._last = {path: LayerReading(**values) for path, values in state["last"].items()}
        self._prepare()

    def _aim(self, net: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.net, self.optimizer = net, optimizer
        self._inner = unwrap(net)
        if optimizer is None and net is self._inner and net._compiled_call_impl is not None:
            raise ValueError("optimizer must be given for a net compiled in place, got None")
        self._alone = rows_of(self._inner)
        self._hooks = ForwardHooks(self._inner, self._alone, self._names, self.extra)
        self._parameters = ParameterNorms(self._inner, self._alone, len(self._names))
        self._pair(self._hooks.pairs)
        self._waiting = Waiting(self._work_out)  # read, but not yet in the totals
        self._totals: Tensor | None = None  # over the window
        self._counts = [0] * (len(self._rows) * len(self._names))
        self._breaks = Breaks()
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._last: dict[str, LayerReading] = {}
        self._window_start = self.step
        self._pending = False

    def _pair(self, pairs: Mapping[str, str]) -> None:
        """Read norms together with what feeds them; what feeds one is no layer of its own."""
        self._rows = paired(self._alone, pairs)
        self.layers: list[Layer] = [row for row in self._rows if row.modules]
        self._parameters.own(self._inner, self._rows)

    def _look_at_pairs(self) -> None:
        """Pair norms otherwise if the step's forwards showed so."""
        if self._hooks.settle():
            self._waiting.flush()
            before = self._rows
            self._pair(self._hooks.pairs)
            moved = [k for k, row in enumerate(self._rows) if row.modules != before[k].modules]
            self._forget(moved)  # what their parameters gave was of others

    def _forget(self, rows: list[int]) -> None:
        width, kept = len(self._names), ("gradient_norm", "weight_norm", "update_ratio")
        slots = [row * width + self._names.index(name) for row in rows for name in kept]
        for slot in slots:
            self._counts[slot] = 0
        if self._totals is not None:
            self._totals[slots] = 0.0

    def _attach(self) -> None:
        self._attached = True
        if self.optimizer is None:
            self._handles.append(self.net.register_forward_pre_hook(self._begin_forward))
        else:
            self._handles.append(self.optimizer.register_step_pre_hook(self._before_update))
            self._handles.append(self.optimizer.register_step_post_hook(self._after_update))
        self._prepare()

    def _detach(self) -> None:
        self._attached = False
        self._prepare()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _prepare(self) -> None:
        """Listen to the forwards to come if their step is to be read."""
        due = self._attached and (self.step - self._window_start) % self.every == 0
        self._hooks.listen(due)
        if not due:
            self._parameters.unwatch()

    def _begin_forward(self, module: nn.Module, args: Any) -> None:
        if self._hooks.trains():  # without an optimizer a step ends where the next begins
            self._end_step_without_optimizer()
            if self._hooks.on:
                self._parameters.watch()  # each time: layers may be unfrozen
            self._pending = True

    def _end_step_without_optimizer(self) -> None:
        if self._pending:
            self._pending = False
            self._look_at_pairs()
            self._end_step(self._parameters.of_gradients())

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._hooks:
            self._look_at_pairs()
            self._parameters.before_update(getattr(optimizer, "grad_scale", None))

    def _after_update(self, *_: Any) -> None:
        self._end_step(self._parameters.after_update())

    def _end_step(self, notes: ParameterNotes | None) -> None:
        if self._hooks:
            hooks, numbers = self._hooks.take()
            parameters, norms = notes or (None, [])
            self._waiting.add((hooks, parameters), numbers + norms)
        self.step += 1
        self._prepare()

    def _work_out(self, form: tuple[HookForm, ParameterForm | None], numbers: Tensor) -> None:
        """Add what the steps gave that were read to the window's totals.

        Of a step the values are the same to the last bit whichever steps it is worked out with.
        """
        hooks, parameters = form
        with torch.inference_mode(False), torch.no_grad():
            found = values_of(hooks, numbers[:, : hooks.count])
            if parameters is not None:
                found += self._parameters.values_of(parameters, numbers[:, hooks.count :])
            self._add(found)

    def _add(self, found: Values) -> None:
        """Add the values of some steps to the window's totals, one step after the other."""
        slots = tuple(slot for places, _ in found for slot in places)
        values = torch.cat([value for _, value in found], 1)
        if slots not in self._indices:
            self._indices[slots] = torch.tensor(slots, device=values.device)
        readings = values.new_zeros(len(values), len(self._counts))
        readings.index_add_(1, self._indices[slots], values)
        for reading in readings:
            self._totals = reading if self._totals is None else self._totals + reading
            self._breaks.add(self._totals)
        for slot in slots:
            self._counts[slot] += len(values)
