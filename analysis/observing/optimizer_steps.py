"""Tells when optimizers update a network, whichever they are: torch calls hooks at every step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


class OptimizerSteps:
    """Calls back at the steps of optimizers; a step within a step is part of the outer one.

    An optimizer gets hooks of its own where it first steps, and keeps them until `stop`.

    Args:
        concerns: says whether an optimizer's steps matter.
        before: is called before an update, with the optimizer and whether gradients will come from
            a closure.
        look: is called when gradients are there: after a closure, and before a step within a step.
        after: is called after the update, with the optimizer.
    """

    stays_behind = True  # when `grow` carries an optimizer's hooks: the new one gets its own

    def __init__(
        self,
        concerns: Callable[[Any], bool],
        before: Callable[[Any, bool], None],
        look: Callable[[], None],
        after: Callable[[Any], None],
    ) -> None:
        self._concerns, self._before, self._look, self._after = concerns, before, look, after
        self._discovery: Any = None
        self._handles: WeakKeyDictionary[Optimizer, list[Any]] = WeakKeyDictionary()
        self._outer: tuple[Optimizer, FrameType] | None = None  # the step under way

    def start(self) -> None:
        """Listen to all optimizers."""
        # where an optimizer's step is compiled, what it calls here is left as it is; not before
        # now, for it loads torch's compiler, as the first optimizer has done
        keep: Any = torch.compiler.disable
        self._concerns, self._before = keep(self._concerns), keep(self._before)
        self._look, self._after = keep(self._look), keep(self._after)
        self._discovery = register_optimizer_step_pre_hook(self._meet)

    def stop(self) -> None:
        """Leave nothing on any optimizer."""
        if self._discovery is not None:
            self._discovery.remove()
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles.clear()
        self._discovery = self._outer = None

    def _meet(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer not in self._handles and self._concerns(optimizer):
            self._handles[optimizer] = [
                optimizer.register_step_pre_hook(self._begin),
                optimizer.register_step_post_hook(self._end),
            ]

    def _begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if self._outer is not None and _runs(self._outer[1]):
            self._look()
            return None
        self._outer = optimizer, sys._getframe(1)
        closure = kwargs.get("closure") if len(args) < 2 else args[1]
        self._before(optimizer, callable(closure))
        if not callable(closure):
            return None
        closed = self._closed(closure)
        if len(args) < 2:
            return args, {**kwargs, "closure": closed}
        return (args[0], closed, *args[2:]), kwargs

    def _closed(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        """Look at the gradients that the closure gives at first, those of the weights before."""
        looked = False

        def closed(*args: Any, **kwargs: Any) -> Any:
            nonlocal looked
            result = closure(*args, **kwargs)
            if not looked:
                looked = True
                self._look()
            return result

        return closed

    def _end(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # a step that calls that of its base class has hooks called twice for the same optimizer
        if self._outer is not None and self._outer[1] is sys._getframe(1):
            self._outer = None
            self._after(optimizer)


def _runs(frame: FrameType) -> bool:
    """Say whether a frame is among the callers; one whose step failed is not."""
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is frame
