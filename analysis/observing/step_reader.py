"""Reads the steps of training that are due: their forwards, and what optimizers make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from analysis.examining.layer_choice import LayerChoice
from analysis.examining.loss_scale import loss_scale
from analysis.examining.requests import statistics_asked
from analysis.measuring.update_ratios import Update
from analysis.observing.forward_hooks import Extra
from analysis.observing.hooks import Hooks
from analysis.observing.optimizer_steps import OptimizerSteps
from analysis.observing.reading import STATISTICS
from analysis.observing.watched_layers import unwrap
from analysis.observing.watched_network import WatchedNetwork
from analysis.summing.norms_by_layer import ParameterStatistics
from analysis.summing.step_sums import Values

_GONE = (
    "the gradient of {} was gone when the backward pass had made it, so gradient_norm is None; "
    "give the optimizer that updates it"
)
_PASSED = "forwards {} are not read, so responses are None"
_UNHELD = (
    "no optimizer that stepped holds {}, which has a gradient; the update_ratio of layers without "
    "an update is None"
)


class StepReader:
    """Counts steps, and adds to a window what is read of every so many; see `Observer`."""

    def __init__(
        self,
        every: int,
        step: int,
        extra: Mapping[str, Extra],
        also: Sequence[str],
        choice: LayerChoice,
        window: tuple[int, int | None],
    ) -> None:
        self.every, self.step = every, step
        self.from_step, self.to_step = window
        self.extra, self.also, self._choice = dict(extra), tuple(also), choice
        self._placed = Hooks()  # those that stay while the `with` block lasts
        self._attached = False
        self._updates = OptimizerSteps(self._concerns, self._before, self._look, self._after)
        self._doubts: dict[str, str] = {}  # what to warn of, by kind; empty once it was

    @property
    def due(self) -> bool:
        """Whether the next step is to be read."""
        if not self._attached or self.step < self.from_step:
            return False
        if self.to_step is not None and self.step >= self.to_step:
            return False
        return (self.step - max(self._window_start, self.from_step)) % self.every == 0

    def tensors(self) -> list[Tensor]:
        """Give the sums on the device to which a step that is read adds, in place."""
        return self._watched.window.tensors()

    def rehearse(self, step: Callable[[], object]) -> list[int]:
        """Run a step that counts for nothing, to capture it, and give what it would have counted.

        For loops that replay a captured step (a CUDA graph): a replay adds to `tensors`, and
        `count` says so. What the step has added to `tensors` is the caller's to put back.

        Raises:
            ValueError: there is no optimizer that holds all parameters: without one a step is added
                where the next one begins.
        """
        held = self._watched.parameters.held_by(self.optimizer)
        if len(held) < sum(1 for _ in self._watched.net.parameters()):
            raise ValueError("optimizer must hold all parameters for a step to be rehearsed")
        self._prepare()
        number, counted = self.step, self._watched.window.counted()
        try:
            with self._watched.hooks.beside.allowed():
                step()
            self._close()
        finally:
            found = self._watched.window.uncount(counted)
            self.step = number
        return found

    def count(self, counts: Sequence[int]) -> None:
        """Count a replay of the step of which `rehearse` gave the counts."""
        if self.due:
            self._watched.window.count(counts)
        self._begin_step()

    def _aim(self, net: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Begin to read a network."""
        self.net, self.optimizer = net, optimizer
        if optimizer is None and net is unwrap(net) and net._compiled_call_impl is not None:
            raise ValueError("optimizer must be given for a net compiled in place, got None")
        self._survey({})
        self._window_start = self.step
        self._adopted: Any = None  # weak, the optimizer that stands in for the one given
        self._counted = False  # whether the update under way ends a step
        # a step that ended with an update of some parameters; others may follow
        self._late: tuple[Values, list[Update]] | None = None
        self._forget_step()

    def _survey(self, pairs: Mapping[str, str]) -> None:
        """Look at what the network consists of; `pairs` of norms and their feeders are known."""
        names = (*STATISTICS, *self.extra, *statistics_asked(self.also))
        asked = self.extra, self.also, self._begin, self._put_aside
        self._watched = WatchedNetwork(unwrap(self.net), names, self._choice, *asked, pairs)

    def _survey_again(self) -> None:
        """Look at a network whose modules changed."""
        self._close()
        if self._watched.hooks:
            self._put_aside()
        self._watched = self._watched.anew()
        self._joined.clear()

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
        due = self.due
        if due and not self._watched.hooks.on and not self._watched.members.same_modules():
            self._survey_again()
        self._watched.hooks.listen(due)
        if not due:
            self._watched.parameters.unwatch()

    def _begin(self) -> None:
        """Begin a training forward that is read."""
        self._close()
        if not self._watched.members.same_modules():
            self._survey_again()
        self._forwards += 1
        self._watched.parameters.await_backward()  # each time: layers may be unfrozen
        if self._watched.hooks and self._forwards > 1:
            self._put_aside()  # so that a step without an end takes no more and more memory

    def _put_aside(self) -> None:
        self._watched.window.put_aside(self._watched.hooks.take(ended=False))

    def _begin_without_optimizer(self, module: nn.Module, args: Any) -> None:
        if module is self.net and self._watched.hooks.trains():
            self._end_step_without_optimizer()  # a step ends where the next begins
            if self._watched.hooks.on:
                self._check_parameters()
                # each time: layers may be unfrozen
                self._watched.parameters.watch(isinstance(self.net, DistributedDataParallel))
            self._pending = True

    def _end_step_without_optimizer(self) -> None:
        if self._pending:
            self._watched.pair_again()
            found = self._watched.parameters.of_gradients()
            gone = self._watched.parameters.gone
            if gone:
                self._doubt("gone", _GONE.format(gone))
            if self._has_read:
                self._add(self._watched.hooks.take(), found)
            self._begin_step()

    @property
    def _has_read(self) -> bool:
        """Whether anything was read of this step, or should have been."""
        return bool(self._watched.hooks or self._watched.window.aside or self._watched.hooks.passed)

    def _check_parameters(self) -> None:
        """See whether the parameters are still the network's."""
        members = self._watched.members
        if not self._forwards and not members.same_modules():
            self._survey_again()
        elif not (members.same_parameters() or members.swapped()):
            self._close()
            self._watched.read_parameters_anew()

    def _concerns(self, optimizer: Any) -> bool:
        if optimizer is self.optimizer:
            return True
        self._check_parameters()
        return bool(self._watched.parameters.held_by(optimizer))

    def _counts(self, optimizer: Any) -> bool:
        """Say whether an optimizer's step is one of training.

        So are steps of the one given, and of one that holds parameters of its own; if it holds none
        of the network's, of the first that does.
        """
        given, held = self.optimizer, self._watched.parameters.held_by
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
        if self._watched.hooks.on or self._has_read or optimizer is not self.optimizer:
            self._check_parameters()
        self._counted = self._counts(optimizer)
        updated = [update.optimizer for update in self._late[1]] if self._late else []
        if self._counted or id(optimizer) in updated:
            self._close()
        late = self._late is not None
        if self._has_read or late or (closure and self._watched.hooks.on):
            self._watched.hooks.look()
            if "activation_gradient" in self.also:
                self._watched.hooks.scale = loss_scale(optimizer)
            self._watched.pair_again()
            self._watched.parameters.before_update(optimizer, not self._counted, closure)

    def _look(self) -> None:
        self._watched.parameters.look()

    def _after(self, optimizer: Any) -> None:
        update = self._watched.parameters.after_update()
        updates = [update] if update is not None else []
        if self._counted:
            self._end_step([*self._joined.values(), *updates])
        elif self._late is not None:
            self._late[1].extend(updates)
        else:
            self._joined.update({update.optimizer: update for update in updates})

    def _end_step(self, updates: list[Update]) -> None:
        if self._has_read or updates:
            hooks = self._watched.hooks
            if hooks.passed and not (hooks or self._watched.window.aside):
                self._doubt("passed", _PASSED.format(hooks.passed))
            self._late = hooks.take(), updates
            if all(update.complete for update in updates):
                self._close()
        self._begin_step()

    def _close(self) -> None:
        """Add the step that ended last, if it waited for updates of other optimizers."""
        late, self._late = self._late, None
        if late is not None:
            values, updates = late
            found = self._watched.parameters.of_updates(updates)
            if found is not None and found.unheld is not None:
                self._doubt("unheld", _UNHELD.format(found.unheld))
            self._watched.parameters.forget_backward()
            left_out = [update.scaler[1] for update in updates if update.scaler]
            self._add(values, found, left_out)

    def _add(
        self, values: Values, found: ParameterStatistics | None, left_out: Sequence[Tensor] = ()
    ) -> None:
        of_parameters, undefined = (found.values, found.undefined) if found else ([], [])
        whole = found.whole if found else None
        if values or of_parameters or whole or self._watched.window.aside:
            self._watched.window.add(values + of_parameters, undefined, left_out, whole)

    def _begin_step(self) -> None:
        """Count the step that is over."""
        self.step += 1
        self._forget_step()
        self._prepare()

    def _forget_step(self) -> None:
        self._forwards = 0  # of training, in this step
        self._pending = False
        self._joined: dict[int, Update] = {}  # of this step, by optimizers whose steps don't count
        self._watched.hooks.passed = None
        self._watched.parameters.drop()
        self._watched.window.drop_aside()

    def _doubt(self, kind: str, text: str) -> None:
        """Have the next readings warn, unless they did so before."""
        self._doubts.setdefault(kind, f"Observer: {text}")
