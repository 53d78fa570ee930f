"""Reads gradients and weights around optimizers' updates, from which update ratios follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from analysis.examining.loss_scale import loss_scale
from analysis.measuring.parameter_copies import ParameterCopies
from analysis.summing.norms_by_layer import (
    MadeGradients,
    NormsByLayer,
    ParameterNorms,
    ParameterStatistics,
)

SMALL = 2**22  # entries of a network up to which the room for copies is kept from step to step


@dataclass(eq=False, kw_only=True)
class Update(ParameterNorms):
    """What is read of one optimizer's update."""

    optimizer: int  # its id
    complete: bool  # whether it holds all parameters
    copies: ParameterCopies  # of the weights before, of all parameters or of those that it holds
    scale: Tensor | None = None  # by which the loss was multiplied, (1,), if that matters
    kept: set[int] = field(default_factory=set)  # whose weights are there


class ParameterReader:
    """Reads one step's gradients: before and after updates of optimizers, or as hooks see them.

    Parameters without a gradient do not count.

    Args:
        net: whose parameters they are.
        owned: by layer, the parameters that are read as the layer's.
        statistics: names of all that a layer has.
        also: what was asked for by name.
    """

    def __init__(
        self,
        net: nn.Module,
        owned: Sequence[Sequence[Tensor]],
        statistics: Sequence[str],
        also: Sequence[str] = (),
    ) -> None:
        named = {name: p for name, p in net.named_parameters() if not is_lazy(p)}
        self._named, self._statistics, self._also = named, statistics, also
        self._names, self._parameters = list(named), list(named.values())
        self._position = {id(parameter): k for k, parameter in enumerate(self._parameters)}
        self.own(owned)
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}  # gradient and weight, by parameter
        self._watched: dict[int, Any] = {}  # hook handles, by parameter
        self.gone: str | None = None  # a parameter whose gradient was gone before it was seen
        self._all = tuple(range(len(self._parameters)))
        self._free: dict[tuple[int, ...], list[ParameterCopies]] = {}  # by what they are for
        self._update: Update | None = None  # under way
        self._made: MadeGradients | None = None  # by the last backward pass
        self._ends: dict[int, Any] = {}  # hook handles, by parameter
        self._awaited = False  # whether the end of the backward pass under way is awaited
        self._reduced = False  # whether what the hooks saw is reduced at that end

    def own(self, owned: Sequence[Sequence[Tensor]]) -> None:
        """Say which parameters are which layer's."""
        owners: list[list[int]] = [[] for _ in self._parameters]
        for layer, parameters in enumerate(owned):
            for parameter in parameters:
                if id(parameter) in self._position:
                    owners[self._position[id(parameter)]].append(layer)
        self._by_layer = NormsByLayer(self._named, owners, self._statistics, len(owned))

    def held_by(self, optimizer: Any) -> frozenset[int]:
        """Say which of the parameters an optimizer holds."""
        groups = getattr(optimizer, "param_groups", None) or ()
        held = {self._position.get(id(p), -1) for group in groups for p in group["params"]}
        return frozenset(held - {-1})

    def watch(self, reduced: bool) -> None:
        """Hook the gradients of parameters not hooked yet, for loops without a known optimizer.

        Those that DistributedDataParallel has `reduced` are there when the backward pass has ended.
        """
        self._reduced = reduced

        def hook(index: int) -> Callable[[Tensor], None]:
            def read(parameter: Tensor) -> None:
                if parameter.grad is None:  # an optimizer in the backward pass took it
                    self.gone = self._names[index]
                    return
                gradient = parameter.grad.detach()
                gradient = gradient if reduced else gradient.clone()
                self._seen[index] = gradient, parameter.detach().clone()
                if reduced:
                    self._await_end()

            read.stays_behind = True  # pyright: ignore[reportFunctionMemberAccess]
            return read

        for index, parameter in enumerate(self._parameters):
            if parameter.requires_grad and index not in self._watched:
                handle = parameter.register_post_accumulate_grad_hook(hook(index))
                self._watched[index] = handle

    def await_backward(self) -> None:
        """Read the gradients when a backward pass has ended, if that was asked for."""
        if "gradient_norm_before_clipping" not in self._also:
            return

        def wait(parameter: Tensor) -> None:
            self._await_end()

        wait.stays_behind = True  # pyright: ignore[reportFunctionMemberAccess]
        for index, parameter in enumerate(self._parameters):
            if parameter.requires_grad and index not in self._ends:
                self._ends[index] = parameter.register_post_accumulate_grad_hook(wait)

    def _await_end(self) -> None:
        if not self._awaited:
            self._awaited = True
            # twice: what DistributedDataParallel queued by then has reduced the gradients
            _when_ended(lambda: _when_ended(self._backward_ended))

    @torch.no_grad()
    def _backward_ended(self) -> None:
        self._awaited = False
        for index, (_, weight) in self._seen.items() if self._reduced else ():
            if (grad := self._parameters[index].grad) is not None:
                self._seen[index] = grad.detach().clone(), weight
        if "gradient_norm_before_clipping" not in self._also:
            return
        grads = {k: grad for k, p in enumerate(self._parameters) if (grad := p.grad) is not None}
        if grads:
            copies = self._copies(self._all)
            copies.keep(list(grads), _dense(list(grads.values())))
            norms = copies.norms()
            self._made = MadeGradients(copies.members, frozenset(grads), norms)
            self._release(copies)

    def unwatch(self) -> None:
        """Remove the hooks that `watch` and `await_backward` set."""
        for handle in (*self._watched.values(), *self._ends.values()):
            handle.remove()
        self._watched.clear()
        self._ends.clear()

    def drop(self) -> None:
        """Forget an update under way."""
        self._update = None
        self._awaited = False

    def forget_backward(self) -> None:
        """Forget what a backward pass has left: the step that it was of is over."""
        self._made = None

    @torch.no_grad()
    def before_update(self, optimizer: Any, alone: bool, closure: bool) -> None:
        """Read gradients and weights as the optimizer finds them, and keep the weights.

        Args:
            optimizer: whose update it is.
            alone: read only what it holds, or all that has a gradient.
            closure: the gradients come later; `look` reads them.
        """
        self._update = None  # of a step that failed
        if not self._parameters:
            return
        held = self.held_by(optimizer)
        copies = self._copies(tuple(sorted(held)) if alone else self._all)
        self._update = Update(
            optimizer=id(optimizer),
            held=held,
            complete=len(held) == len(self._all),
            copies=copies,
            members=copies.members,
            scaler=_scaler_of(optimizer),
            scale=loss_scale(optimizer) if self._made is not None else None,
        )
        if closure:
            self._keep(self._update, copies.members)
        else:
            self._look(self._update, copies)

    @torch.no_grad()
    def look(self) -> None:
        """Read the gradients of the update under way, which are there by now."""
        if self._update is not None:
            copies = self._copies(self._update.copies.members)
            self._look(self._update, copies)
            self._release(copies)

    def _look(self, update: Update, copies: ParameterCopies) -> None:
        """Read gradients, by way of copies, and keep weights that are not kept yet."""
        found = {k: grad for k in copies.members if (grad := self._parameters[k].grad) is not None}
        update.present = tuple(found)
        if found:
            gradients = _dense(list(found.values()))
            kept = "gradient_histogram" in self._also
            update.gradients = copies.norms_of(update.present, gradients, kept)
            self._count("gradient_histogram", update, copies)
            if self._made is not None:
                update.made = replace(self._made, scale=update.scale)
        self._keep(update, [index for index in found if index not in update.kept])

    def _count(self, name: str, norms: ParameterNorms, copies: ParameterCopies) -> None:
        """Count what the copies hold, if that was asked for."""
        if name in self._also:
            factor: Tensor | int = -1  # of updates: the copies hold before minus after
            if name == "gradient_histogram":
                factor = norms.scaler[0].reciprocal() if norms.scaler else 1
            norms.buckets[name] = copies.count(factor)

    def _keep(self, update: Update, indices: Sequence[int]) -> None:
        if indices:
            update.copies.keep(indices, [self._parameters[index] for index in indices])
            update.kept.update(indices)
            update.weights = update.copies.norms()

    @torch.no_grad()
    def after_update(self) -> Update | None:
        """End the update under way, and give it; None if there was no gradient."""
        update = self._update
        if update is not None and update.gradients is None:
            self.look()  # no closure was called
        self._update = None
        if update is None or not update.present:
            return None
        update.copies.subtract([self._parameters[index] for index in update.copies.members])
        update.steps = update.copies.norms()
        self._count("update_histogram", update, update.copies)
        self._release(update.copies)
        return update

    def of_updates(self, updates: Sequence[Update]) -> ParameterStatistics | None:
        """Give the step's statistics by layer; None if there was no update."""
        updates = [update for update in updates if update.present]
        return self._by_layer.of(updates) if updates else None

    @torch.no_grad()
    def of_gradients(self) -> ParameterStatistics | None:
        """Give the same of the gradients that the hooks saw, and of the weights then."""
        seen, self._seen = self._seen, {}
        if not seen:
            return None
        present, copies = tuple(sorted(seen)), self._copies(self._all)
        norms = ParameterNorms(held=frozenset(present), members=copies.members, present=present)
        gradients, weights = zip(*(seen[index] for index in present))
        copies.keep(present, _dense(gradients))
        norms.gradients = copies.norms()
        self._count("gradient_histogram", norms, copies)
        copies.keep(present, list(weights))
        norms.weights = copies.norms()
        self._release(copies)
        return self._by_layer.of([norms])

    def _copies(self, members: tuple[int, ...]) -> ParameterCopies:
        free = self._free.get(members)
        if free:
            return free.pop()
        return ParameterCopies(members, [self._parameters[index] for index in members])

    def _release(self, copies: ParameterCopies) -> None:
        if copies.entries.numel() <= SMALL:
            self._free.setdefault(copies.members, []).append(copies)


def _scaler_of(optimizer: Any) -> list[Tensor]:
    """Give what a scaler told a fused optimizer, which unscales inside its step.

    The scale, and 1 where the update is left out; both will have changed after the step. Nothing
    without a scaler.
    """
    scale, skips = (getattr(optimizer, name, None) for name in ("grad_scale", "found_inf"))
    if isinstance(scale, Tensor):
        none = torch.zeros_like(scale) if skips is None else skips
        return [value.detach().clone().view(1) for value in (scale, none)]
    if isinstance(skips, Tensor):  # unscaled before the step
        return [torch.ones_like(skips).view(1), skips.detach().clone().view(1)]
    return []


def _when_ended(call: Callable[[], None]) -> None:
    """Have it called when the backward pass under way has ended, after what is queued by now."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(call)


def _dense(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors]
