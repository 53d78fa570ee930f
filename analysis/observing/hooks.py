"""Hooks on modules that copies of the modules do not have, and which forwards they cannot read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from types import MethodType
from typing import Any

import torch
from torch import nn

from analysis.measuring.norm_layers import NormActivation

_KEPT = ("_forward_hooks", "_forward_pre_hooks")
_STATE = "__getstate__"
_C: Any = torch._C


class Hook:
    """Calls a function while it sits on a module.

    Where a module of a class with a way of its own to be copied takes it along, it is a hook that
    does nothing; pickled, that is a function of the standard library, which loads anywhere.
    """

    stays_behind = True  # when `grow` carries hooks

    def __init__(self, call: Callable[..., None] | None) -> None:
        self._call = call

    def __call__(self, *args: Any) -> None:
        # what traces the net into other code must see nothing here
        if self._call is not None and not torch.compiler.is_compiling():
            self._call(*args)

    def __deepcopy__(self, memo: Any) -> Hook:
        return Hook(None)

    def __reduce__(self) -> Any:
        return getattr, (nullcontext(), "__exit__")

    @property
    def __name__(self) -> str:
        raise AttributeError(
            "torch.jit.script cannot compile a network while an Observer reads it; "
            "give it a copy.deepcopy of the network"
        )


class Hooks:
    """Hooks put on modules, to be removed together.

    While they are there a module's state, which is what copies and pickles are made of, leaves them
    out.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._modules: list[nn.Module] = []

    def __bool__(self) -> bool:
        return bool(self._handles)

    def before(self, module: nn.Module, call: Callable[..., None], kwargs: bool = False) -> None:
        """Have it called before the module's forwards, with the module and its arguments."""
        handle = module.register_forward_pre_hook(Hook(call), with_kwargs=kwargs)
        self._handles.append(handle)
        self._hide(module)

    def after(
        self,
        module: nn.Module,
        call: Callable[..., None],
        always: bool = False,
        kwargs: bool = False,
    ) -> None:
        """Have it called after the module's forwards, `always` also after those that fail."""
        handle = module.register_forward_hook(Hook(call), with_kwargs=kwargs, always_call=always)
        self._handles.append(handle)
        self._hide(module)

    def inside(self, activation: NormActivation) -> None:
        """Have it look at the norm's forwards and at those of the norm's children."""
        for child in activation.norm.children():
            self.before(child, activation.before_child)
        self.before(activation.norm, activation.begin, kwargs=True)
        self.after(activation.norm, activation.end, always=True)

    def remove(self) -> None:
        """Leave nothing on the modules."""
        for handle in self._handles:
            handle.remove()
        for module in self._modules:
            if not any(isinstance(hook, Hook) for hook in _hooks_of(module)):
                vars(module).pop(_STATE, None)
        self._handles.clear()
        self._modules.clear()

    def _hide(self, module: nn.Module) -> None:
        kind: Any = type(module)
        plain = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
        if plain and not hasattr(kind, "__deepcopy__"):
            vars(module).setdefault(_STATE, MethodType(_state_without_hooks, module))
            self._modules.append(module)


def _hooks_of(module: nn.Module) -> list[Any]:
    return [hook for name in _KEPT for hook in getattr(module, name).values()]


def _state_without_hooks(module: nn.Module) -> Any:
    """Give what the module's class says its state is, but for hooks of ours."""
    state: Any = type(module).__getstate__(module)  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(state, dict):
        return state
    state = {name: value for name, value in state.items() if name != _STATE}
    for name in _KEPT:
        for flags in (name, f"{name}_always_called", f"{name}_with_kwargs"):
            if flags in state:
                hooks = getattr(module, name)
                state[flags] = OrderedDict(
                    (key, value)
                    for key, value in state[flags].items()
                    if not isinstance(hooks.get(key), Hook)
                )
    return state


_state_without_hooks.stays_behind = True  # pyright: ignore[reportFunctionMemberAccess]


def hooked_backward(net: nn.Module) -> bool:
    """Say whether modules have hooks on their backward pass, for which torch wraps tensors."""
    kept = torch.nn.modules.module
    everywhere = kept._global_backward_hooks or kept._global_backward_pre_hooks
    modules = net.modules()
    return bool(everywhere) or any(m._backward_hooks or m._backward_pre_hooks for m in modules)


def why_unreadable() -> str | None:
    """Say where a forward runs now whose numbers are not to be had; None for any other."""
    if _C._functorch.peek_interpreter_stack() is not None:
        return "under torch.func"
    if torch.autograd.forward_ad._current_level >= 0:
        return "under forward-mode differentiation"
    if _C._get_dispatch_mode(_C._TorchDispatchModeKey.FAKE) is not None:
        return "under FakeTensorMode"
    return "under torch.jit.trace" if _C._get_tracing_state() is not None else None


_holding: set[object] = set()
_stances: list[Any] = []  # what was in force before the first of them


def hold_compiled_code(by: object, hold: bool) -> None:
    """Let compiled code rest for an object, or no longer; it runs again after the last."""
    if hold and not _holding:
        _stances.append(torch.compiler.set_stance("force_eager"))
    (_holding.add if hold else _holding.discard)(by)
    if not _holding:
        _stances.pop().__exit__(None, None, None)
