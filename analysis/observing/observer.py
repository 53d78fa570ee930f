"""Reads layers while a network trains: hooks on the forward pass and the optimizer's step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from analysis.observing.hooking import Hooks
from analysis.observing.hooks import Extra, ForwardHooks, HookForm
from analysis.observing.layers import Layer, certain_pairs, paired, rows_of, unwrap
from analysis.observing.members import Members
from analysis.observing.parameters import ParameterNorms, ParameterNotes, Update
from analysis.observing.reading import STATISTICS, LayerReading
from analysis.observing.updates import Updates
from analysis.observing.window import Window
from nets.growing.grow import Grown
from nets.modules.network import Network


@dataclass
class _Late:
    """A step that ended with an update of some parameters; others may follow."""

    form: HookForm
    numbers: list[Tensor]
    updates: list[Update]

    @property
    def complete(self) -> bool:
        """Whether no other optimizer can follow."""
        return all(update.complete for update in self.updates)

    def has(self, optimizer: Any) -> bool:
        """Say whether an optimizer's update is among the updates."""
        return any(update.optimizer == id(optimizer) for update in self.updates)


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

    A BatchNorm's response is told by what it keeps for the backward pass, whatever its momentum: to
    1e-5 unless its inputs' variance is below eps / 100, and in half precision as it was before
    rounding (see `analysis/measuring/taps.py`).

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
        self.every = every
        self.step = step
        self.edited = dict(edited or {})
        self.extra = dict(extra or {})
        taken = set(self.extra).intersection(STATISTICS)
        if taken:
            raise ValueError(f"extra must not be named {', '.join(STATISTICS)}, got {min(taken)!r}")
        self._names = (*STATISTICS, *self.extra)
        self._placed = Hooks()  # those that stay while the `with` block lasts
        self._attached = False
        self._updates = Updates(self._concerns, self._before, self._look, self._after)
        self._doubts: dict[str, str] = {}  # what to warn of, by kind; empty once it was
        self._aim(net, optimizer)

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
        old, new = self._inner, unwrap(grown)
        if isinstance(old, Network) and isinstance(new, Network):
            before, now = old.architecture.widths, new.architecture.widths
            self.edited.update({n: self.step for n, w in now.items() if before.get(n) != w})
        self._aim(grown, optimizer)
        if attached:
            self._attach()

    def readings(self) -> dict[str, LayerReading]:
        """Give what was read since the last call, by module path, and begin a new window.

        If nothing was read since then, give the same readings again. What could not be read is
        None, and a UserWarning says why, once.
        """
        self._end_step_without_optimizer()
        self._close()
        means, width = self._window.means(), len(self._names)
        if self._window or not self._last:
            self._last = {
                layer.path: self._reading(layer, means[index * width : (index + 1) * width])
                for index, layer in enumerate(self._rows)
                if layer.modules
            }
            self._doubt_silent_layers()
            self._window.begin(len(means))
        if self._forwards > 1 and self.step == self._window_start:
            self._doubt("unseen", _UNSEEN.format(self._forwards))
        self._window_start = self.step
        self._prepare()
        for kind, text in self._doubts.items():
            self._doubts[kind] = ""
            if text:
                warnings.warn(text, stacklevel=2)
        return self._last

    def _reading(self, layer: Layer, means: list[float | None]) -> LayerReading:
        values = dict(zip(self._names, means, strict=True))
        extra = {name: value for name in self.extra if (value := values.pop(name)) is not None}
        edited = self.edited.get(layer.block or "")
        return LayerReading(layer.block, layer.role, **values, edited=edited, extra=extra)

    def skip(self) -> None:
        """Count a step whose update was left out; what was read of it is dropped.

        For loops that leave an update out by themselves, and for a GradScaler that did (its
        optimizer's step is then not called, unless it is a fused one).
        """
        self._close()
        self._hooks.take()
        self._begin_step()

    def first_broken(self) -> tuple[str, str, int] | None:
        """Say which statistic of this window was NaN or infinite first; None if all are finite.

        Gives the layer's path, the statistic, and how many more layers broke in the same reading.
        Of these it is the first whose response broke, if any did: what comes after follows from it.
        """
        self._close()
        width, forward = len(self._names), ("response_mean", "response_std")
        broken = self._window.broken()
        broken = [slot for slot in broken if self._rows[slot // width].modules] or broken
        broken = [slot for slot in broken if self._names[slot % width] in forward] or broken
        if not broken:
            return None
        others = len({slot // width for slot in broken}) - 1
        return self._rows[broken[0] // width].path, self._names[broken[0] % width], others

    def state_dict(self) -> dict[str, Any]:
        """Give all that a resumed observer of the same network needs to go on exactly."""
        self._close()
        window = {"start": self._window_start, **self._window.state()}
        last = {path: {**asdict(r), "extra": dict(r.extra)} for path, r in self._last.items()}
        found = {"step": self.step, "edited": dict(self.edited), "window": window, "last": last}
        return {**found, "pairs": dict(self._hooks.pairs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        window, size = state["window"], len(self._rows) * len(self._names)
        if len(window["counts"]) != size:
            raise ValueError(
                f"state must hold {size} counts, a layer's {len(self._names)} statistics for each "
                f"of {len(self._rows)} layers, got {len(window['counts'])}"
            )
        self._hooks.take()  # what was read before is not of this window
        if state.get("pairs"):
            self._hooks.listen(False)
            self._survey(state["pairs"])
        self._late = None
        self._window.load(window, next(self.net.parameters()).device)
        self._window_start, self.edited = window["start"], dict(state["edited"])
        self._last = {path: LayerReading(**values) for path, values in state["last"].items()}
        self._begin_step()
        self.step = state["step"]
        self._prepare()

    def _aim(self, net: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.net, self.optimizer = net, optimizer
        self._inner = unwrap(net)
        if optimizer is None and net is self._inner and net._compiled_call_impl is not None:
            raise ValueError("optimizer must be given for a net compiled in place, got None")
        self._survey()
        self._window = Window(len(self._rows) * len(self._names))
        self._last: dict[str, LayerReading] = {}
        self._window_start = self.step
        self._adopted: Any = None  # weak, the optimizer that stands in for the one given
        self._counted = False  # whether the update under way ends a step
        self._late: _Late | None = None
        self._usual = 0  # training forwards of the last step
        self._forget_step()

    def _survey(self, pairs: Mapping[str, str] | None = None) -> None:
        """Look at what the network consists of; `pairs` of norms and their feeders are known."""
        self._members = Members(self._inner)
        self._alone = rows_of(self._inner)
        self._sources = [self._inner.get_submodule(row.path) for row in self._alone]
        self._parameters = ParameterNorms(self._inner, self._alone, len(self._names))
        paths = {row.path for row in self._alone}
        known = {n: path for n, path in (pairs or {}).items() if paths.issuperset((n, path))}
        pairs = {**certain_pairs(self._inner, self._alone), **known}
        self._hooks = ForwardHooks(
            self._inner, self._alone, self._names, self.extra, self._begin, self._put_aside, pairs
        )
        self._pair()

    def _pair(self) -> None:
        """Read norms together with what feeds them; what feeds one is no layer of its own."""
        self._rows = paired(self._alone, self._hooks.pairs)
        self.layers: list[Layer] = [row for row in self._rows if row.modules]
        self._parameters.own(self._inner, self._rows)

    def _look_at_pairs(self) -> None:
        """Pair norms otherwise if the step's forwards showed so."""
        if self._hooks.settle():
            before = self._rows
            self._pair()
            self._window.rearrange(
                [
                    None if row.modules != old.modules and name in _OF_PARAMETERS else place
                    for place, (row, old, name) in enumerate(
                        (row, old, name)
                        for row, old in zip(self._rows, before)
                        for name in self._names
                    )
                ]
            )

    def _doubt_silent_layers(self) -> None:
        """Name layers that have gradients and no response, where others have one."""
        read = self._last.items()
        silent = [path for path, one in read if one.gradient_norm and one.response_std is None]
        if len(silent) < sum(one.gradient_norm is not None for _, one in read):
            more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
            if silent:
                self._doubt("silent", _SILENT.format(silent[0] or "the network itself", more))

    def _survey_again(self) -> None:
        """Look at a network whose modules changed; layers that did not go on with their windows."""
        self._close()
        if self._hooks:
            self._put_aside()
        listened, passed = self._hooks.on, self._hooks.passed
        layers, sources = self._rows, self._sources
        modules = dict(self._inner.named_modules())
        same = {row.path for row, one in zip(layers, sources) if modules.get(row.path) is one}
        pairs = {n: path for n, path in self._hooks.pairs.items() if same.issuperset((n, path))}
        self._hooks.listen(False)
        self._parameters.unwatch()
        self._survey(pairs)
        before = {
            (layer, source): place for place, (layer, source) in enumerate(zip(layers, sources))
        }
        places = [before.get(pair) for pair in zip(self._rows, self._sources)]
        width = range(len(self._names))
        self._window.rearrange(
            [None if place is None else place * len(width) + k for place in places for k in width]
        )
        self._joined.clear()
        self._hooks.passed = passed
        self._hooks.listen(listened)

    def _attach(self) -> None:
        self._attached = True
        if self.optimizer is None:
            self._placed.before(self.net, self._begin_without_optimizer)
        else:
            self._updates.start()
        self._prepare()

    def _detach(self) -> None:
        self._attached = False
        self._prepare()
        self._updates.stop()
        self._placed.remove()

    def _prepare(self) -> None:
        """Listen to the forwards to come if their step is to be read."""
        due = self._attached and (self.step - self._window_start) % self.every == 0
        if due and not self._hooks.on and not self._members.same_modules():
            self._survey_again()
        self._hooks.listen(due)
        if not due:
            self._parameters.unwatch()

    def _begin(self) -> None:
        """Begin a training forward that is read."""
        self._close()
        if not self._members.same_modules():
            self._survey_again()
        self._forwards += 1
        if self._hooks and self._forwards > max(1, self._usual):
            self._put_aside()  # so that a step without an end takes no more and more memory

    def _put_aside(self) -> None:
        self._window.put_aside(*self._hooks.take())

    def _begin_without_optimizer(self, module: nn.Module, args: Any) -> None:
        if module is self.net and self._hooks.trains():
            self._end_step_without_optimizer()  # a step ends where the next begins
            if self._hooks.on:
                self._check_parameters()
                self._parameters.watch()  # each time: layers may be unfrozen
            self._pending = True

    def _end_step_without_optimizer(self) -> None:
        if self._pending:
            self._look_at_pairs()
            notes = self._parameters.of_gradients()
            if self._parameters.gone:
                self._doubt("gone", _GONE.format(self._parameters.gone))
            if self._has_read:
                self._add(*self._hooks.take(), notes)
            self._begin_step()

    @property
    def _has_read(self) -> bool:
        """Whether anything was read of this step, or should have been."""
        return bool(self._hooks or self._window.aside or self._hooks.passed)

    def _check_parameters(self) -> None:
        """See whether the parameters are still the network's."""
        if not self._forwards and not self._members.same_modules():
            self._survey_again()
        elif not (self._members.same_parameters() or self._members.swapped()):
            self._close()
            self._parameters.unwatch()
            self._members = Members(self._inner)
            self._parameters = ParameterNorms(self._inner, self._rows, len(self._names))

    def _concerns(self, optimizer: Any) -> bool:
        if optimizer is self.optimizer:
            return True
        self._check_parameters()
        return bool(self._parameters.held_by(optimizer))

    def _counts(self, optimizer: Any) -> bool:
        """Say whether an optimizer's step is one of training.

        So are steps of the one given, and of one that holds parameters of its own; if it holds none
        of the network's, of the first that does.
        """
        given, held = self.optimizer, self._parameters.held_by
        if optimizer is given and self._adopted is None:
            return True
        main = held(given)
        if not main:
            adopted = self._adopted and self._adopted()
            main = held(adopted) if adopted is not None else None
            if not main:
                self._adopted, main = ref(optimizer), held(optimizer)
        return not main.isdisjoint(held(optimizer))

    def _before(self, optimizer: Any, closure: bool) -> None:
        if self._hooks.on or self._has_read or optimizer is not self.optimizer:
            self._check_parameters()
        self._counted = self._counts(optimizer)
        if self._counted or (self._late and self._late.has(optimizer)):
            self._close()
        late = self._late is not None
        if self._has_read or late or (closure and self._hooks.on):
            self._hooks.look()
            self._look_at_pairs()
            self._parameters.before_update(optimizer, not self._counted, closure)

    def _look(self) -> None:
        self._parameters.look()

    def _after(self, optimizer: Any) -> None:
        update = self._parameters.after_update()
        updates = [update] if update is not None else []
        if self._counted:
            self._end_step([*self._joined.values(), *updates])
        elif self._late is not None:
            self._late.updates.extend(updates)
        else:
            self._joined.update({update.optimizer: update for update in updates})

    def _end_step(self, updates: list[Update]) -> None:
        if self._has_read or updates:
            if self._hooks.passed and not (self._hooks or self._window.aside):
                self._doubt("passed", _PASSED.format(self._hooks.passed))
            self._late = _Late(*self._hooks.take(), updates)
            if self._late.complete:
                self._close()
        self._begin_step()

    def _close(self) -> None:
        """Add the step that ended last, if it waited for updates of other optimizers."""
        late, self._late = self._late, None
        if late is not None:
            notes = self._parameters.of_updates(late.updates)
            if notes is not None and notes[0].plan.unheld is not None:
                self._doubt("unheld", _UNHELD.format(notes[0].plan.unheld))
            self._add(late.form, late.numbers, notes)

    def _add(self, form: HookForm, numbers: list[Tensor], notes: ParameterNotes | None) -> None:
        parameters, norms = notes or (None, [])
        if numbers or norms or self._window.aside:
            self._window.add((form, parameters), numbers + norms)

    def _begin_step(self) -> None:
        """Count the step that is over."""
        self.step += 1
        self._usual = self._forwards
        self._forget_step()
        self._prepare()

    def _forget_step(self) -> None:
        self._forwards = 0  # of training, in this step
        self._pending = False
        self._joined: dict[int, Update] = {}  # of this step, by optimizers whose steps don't count
        self._hooks.passed = None
        self._parameters.drop()
        self._window.drop_aside()

    def _doubt(self, kind: str, text: str) -> None:
        """Have the next readings warn, unless they did so before."""
        self._doubts.setdefault(kind, f"Observer: {text}")


_OF_PARAMETERS = ("gradient_norm", "weight_norm", "update_ratio")
_SILENT = (
    "no response of {!r}{} was read: it has gradients, but did not run as a module or gave no "
    "floating-point tensor, so its response_mean and response_std are None"
)
_UNSEEN = (
    "{} training forwards, but no step of the optimizer was seen, so nothing was read; give the "
    "optimizer that updates the network, a torch.optim.Optimizer, or None"
)
_GONE = (
    "the gradient of {} was gone when the backward pass had made it, so gradient_norm is None; "
    "give the optimizer that updates it"
)
_PASSED = "forwards {} are not read, so responses are None"
_UNHELD = (
    "no optimizer that stepped holds {}, which has a gradient; the update_ratio of layers without "
    "an update is None"
)
