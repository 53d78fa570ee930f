"""Reads layers while a network trains: hooks on the forward pass and the optimizer's step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from analysis.observing.forward_hooks import Extra
from analysis.observing.reading import STATISTICS, LayerReading
from analysis.observing.step_reader import StepReader
from analysis.observing.watched_layers import Layer, unwrap
from nets.growing.grow import Grown
from nets.modules.network import Network

_SILENT = (
    "no response of {!r}{} was read: it has gradients, but did not run as a module or gave no "
    "floating-point tensor, so its response_mean and response_std are None"
)
_UNSEEN = (
    "{} training forwards, but no step of the optimizer was seen, so nothing was read; give the "
    "optimizer that updates the network, a torch.optim.Optimizer, or None"
)


class Observer(StepReader):
    """Reads the layers of any `torch.nn.Module` while it trains inside a `with` block.

    Nothing is read back from the device before `readings()`, which makes one copy. Forwards in eval
    mode or without gradients are ignored. Steps that are not read run without hooks on the layers,
    and nothing is left on the module at the end. `LayerReading` defines the statistics.

        with Observer(net, optimizer, every=10) as observer:
            ...  # training steps
            readings = observer.readings()
            grown = grow(net, actions, optimizer)
            observer.follow(grown)

    A BatchNorm's response is told by what it keeps for the backward pass, whatever its momentum: to
    1e-5 unless its inputs' variance is below eps / 100, and in half precision as it was before
    rounding (see `analysis/measuring/batchnorm_std.py`).

    Modules and parameters may be replaced: a layer that stays goes on with its window, a new one
    begins. Copies and pickles of the net have nothing of the observer. Forwards under torch.func,
    in forward-mode differentiation, of fake tensors and of DataParallel's replicas are not read.
    What is None for such a reason a UserWarning of `readings` tells, once.

    `layers` lists what is read. In a network that is not ours it is revised when a forward that is
    read shows which norm takes which layer's output.

    A net under `torch.compile` runs uncompiled in the steps that are read (and only in these: take
    `every=10` or more). Around DistributedDataParallel each process reads its own batches. Layers
    have the names that they have inside the wrapper.

    Args:
        net: our network, or any module; a module's path is the name of its reading.
        optimizer: its steps are the steps that count, gradients are read as it sees them (after
            clipping and unscaling; of a closure's those of the first call) and update ratios
            become available. Steps of one made anew, over parameters of its own, count too; steps
            over others are read with the step they belong to. Without it every training forward
            counts as a step, and gradients are read as the backward pass leaves them.
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
        taken = set(extra or {}).intersection(STATISTICS)
        if taken:
            raise ValueError(f"extra must not be named {', '.join(STATISTICS)}, got {min(taken)!r}")
        super().__init__(every, step, extra or {})
        self.edited = dict(edited or {})
        self._last: dict[str, LayerReading] = {}
        self._aim(net, optimizer)

    @property
    def layers(self) -> list[Layer]:
        """What is read, in the order of definition."""
        return self._watched.layers

    def __enter__(self) -> Observer:
        self._attach()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_step_without_optimizer()
        self._close()
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
        old, new = self._watched.net, unwrap(grown)
        if isinstance(old, Network) and isinstance(new, Network):
            before, now = old.architecture.widths, new.architecture.widths
            self.edited.update({n: self.step for n, w in now.items() if before.get(n) != w})
        self._aim(grown, optimizer)
        self._last = {}
        if attached:
            self._attach()

    def readings(self) -> dict[str, LayerReading]:
        """Give what was read since the last call, by module path, and begin a new window.

        If nothing was read since then, give the same readings again. What could not be read is
        None, and a UserWarning says why, once.
        """
        self._end_step_without_optimizer()
        self._close()
        if self._watched.window or not self._last:
            self._last = self._watched.window.readings(self.edited)
            self._doubt_silent_layers()
            self._watched.window.begin()
        if self._forwards > 1 and self.step == self._window_start:
            self._doubt("unseen", _UNSEEN.format(self._forwards))
        self._window_start = self.step
        self._prepare()
        for kind, text in self._doubts.items():
            self._doubts[kind] = ""
            if text:
                warnings.warn(text, stacklevel=2)
        return self._last

    def skip(self) -> None:
        """Count a step whose update was left out; what was read of it is dropped.

        For loops that leave an update out by themselves, and for a GradScaler that did (its
        optimizer's step is then not called, unless it is a fused one).
        """
        self._close()
        self._watched.hooks.take()
        self._begin_step()

    def first_broken(self) -> tuple[str, str, int] | None:
        """Say which statistic of this window was NaN or infinite first; None if all are finite.

        Gives the layer's path, the statistic, and how many more layers broke in the same reading.
        Of these it is the first whose response broke, if any did: what comes after follows from it.
        """
        self._close()
        return self._watched.window.first_broken()

    def state_dict(self) -> dict[str, Any]:
        """Give all that a resumed observer of the same network needs to go on exactly."""
        self._close()
        window = {"start": self._window_start, **self._watched.window.state()}
        last = {path: {**asdict(r), "extra": dict(r.extra)} for path, r in self._last.items()}
        found = {"step": self.step, "edited": dict(self.edited), "window": window, "last": last}
        return {**found, "pairs": dict(self._watched.hooks.pairs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        window, rows, names = state["window"], self._watched.rows, self._watched.statistics
        size = len(rows) * len(names)
        if len(window["counts"]) != size:
            raise ValueError(
                f"state must hold {size} counts, a layer's {len(names)} statistics for each "
                f"of {len(rows)} layers, got {len(window['counts'])}"
            )
        self._watched.hooks.take()  # what was read before is not of this window
        if state.get("pairs"):
            self._watched.hooks.listen(False)
            self._survey(state["pairs"])
        self._late = None
        self._watched.window.load(window, next(self.net.parameters()).device)
        self._window_start, self.edited = window["start"], dict(state["edited"])
        self._last = {path: LayerReading(**values) for path, values in state["last"].items()}
        self._begin_step()
        self.step = state["step"]
        self._prepare()

    def _doubt_silent_layers(self) -> None:
        """Name layers that have gradients and no response, where others have one."""
        read = self._last.items()
        silent = [path for path, one in read if one.gradient_norm and one.response_std is None]
        if len(silent) < sum(one.gradient_norm is not None for _, one in read):
            more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
            if silent:
                self._doubt("silent", _SILENT.format(silent[0] or "the network itself", more))
