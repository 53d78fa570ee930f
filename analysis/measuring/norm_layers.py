"""Norms, what feeds them, and what the activation that some carry is applied to."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

FEEDERS = (nn.Linear, _ConvNd)
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NAMED = re.compile("(batch|layer|group|instance|rms|response)_?norm", re.IGNORECASE)

# names of functions of torch
_NORMALISE = re.compile("(batch|layer|group|instance|rms)_norm")
_REARRANGE = re.compile(
    "permute|transpose|movedim|view|reshape|flatten|unflatten|squeeze|unsqueeze|contiguous|clone"
    "|to|type|type_as|float|half|bfloat16"
)
_ACTIVATE = re.compile(
    "relu6?|leaky_relu|prelu|rrelu|[csg]?elu|silu|mish|(log)?sigmoid|softplus|softsign"
    "|tanh|tanhshrink|hard(swish|sigmoid|tanh|shrink)|softshrink|threshold|clamp(_min)?"
)


def is_norm(module: nn.Module) -> bool:
    """Say whether a module is a norm: one of torch's, or by its name with a weight for a channel.

    A module of that name that holds others with parameters is what a norm is part of.
    """
    if isinstance(module, _NORMS):
        return True
    if isinstance(module, FEEDERS) or not _NAMED.search(type(module).__name__):
        return False
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    held = sum(1 for _ in module.parameters()) - sum(1 for _ in module.parameters(recurse=False))
    flat = all(sum(size > 1 for size in tensor.shape) <= 1 for tensor in own)
    return bool(own) and flat and not held


def channel_axis(module: nn.Module, output: Tensor) -> int | None:
    """Say which axis of its output holds a layer's channels; None where nothing tells."""
    if isinstance(module, nn.Linear):
        return output.dim() - 1
    if isinstance(module, _ConvNd):
        return output.dim() - 1 - len(module.kernel_size)  # pyright: ignore
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) and not _is_odd(module):
        return output.dim() - len(module.normalized_shape)
    if isinstance(module, _BatchNorm | nn.GroupNorm) and not _is_odd(module):
        return 1
    if isinstance(module, _InstanceNorm) and not _is_odd(module):
        return output.dim() - module._get_no_batch_dim()
    weight = getattr(module, "weight", None)
    size = weight.numel() if isinstance(weight, Tensor) else getattr(module, "num_features", 0)
    axes = [axis for axis in range(1, output.dim()) if output.shape[axis] == size]
    return axes[0] if len(axes) == 1 else None


def _is_odd(norm: nn.Module) -> bool:
    """Whether a norm works otherwise than torch's, and perhaps has its activation inside."""
    return not type(norm).forward.__module__.startswith("torch.nn.modules")


class NormActivation(TorchFunctionMode):
    """Finds, while a norm of another's making runs, the tensor that its activation is applied to.

    That is what torch's normalisation gave, or is given to a child without parameters that keeps
    its shape. `found` is called with it before the activation, which may work in place.
    """

    def __init__(self, norm: nn.Module, found: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.norm, self._found = norm, found
        self._input: Tensor | None = None
        self._normed: list[Tensor] = []

    @staticmethod
    def suits(norm: nn.Module) -> bool:
        """Say whether a module is a norm that may have an activation inside."""
        return is_norm(norm) and _is_odd(norm)

    def end(self, *_: Any) -> None:
        """Look no longer: a hook after the norm, also where it failed."""
        self._input, self._normed = None, []
        if _get_current_function_mode_stack()[-1:] == [self]:
            self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See a function of torch that the norm calls; while it does, the mode is not in force."""
        if self._input is None:
            return func(*args, **(kwargs or {}))
        name, x = getattr(func, "__name__", "").removesuffix("_"), args[0] if args else None
        normed = any(x is tensor for tensor in self._normed)
        if normed and isinstance(x, Tensor) and _ACTIVATE.fullmatch(name):
            self._find(x)
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and (_REARRANGE if normed else _NORMALISE).fullmatch(name):
            self._normed.append(result)
        return result

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Look while the norm runs: a hook before it."""
        self.end()  # of a forward that failed
        x = next(iter((*args, *kwargs.values())), None)
        if isinstance(x, Tensor) and module is self.norm:  # not a replica
            self._input = x
            self.__enter__()

    def before_child(self, child: nn.Module, args: Any) -> None:
        """See what a child is given: a hook before it."""
        x = args[0] if args else None
        if self._input is None or not isinstance(x, Tensor):
            return
        plain = not self._normed and x is not self._input and x.shape == self._input.shape
        bare = next(child.parameters(), None) is None
        if (plain and bare) or any(x is tensor for tensor in self._normed):
            self._find(x)

    def _find(self, x: Tensor) -> None:
        """Tell what was found, once in a forward."""
        self.end()
        self._found(x)


def first_of(output: Any) -> Any:
    """Give a module's output, of several the first: an LSTM's or an attention's own."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output
