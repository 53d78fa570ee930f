"""Whether a network still consists of the same modules and parameters, at little cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Members:
    """The modules and parameters of a network, as they were when this was made."""

    def __init__(self, net: nn.Module) -> None:
        modules = list(net.modules())
        self._children = [(m._modules, list(m._modules.items())) for m in modules]
        self._own = [(m._parameters, list(map(id, m._parameters.values()))) for m in modules]
        self._kinds = [(parameter, _kind(parameter)) for parameter in net.parameters()]

    def same_modules(self) -> bool:
        """Say whether the modules are the same; it does not look at their parameters."""
        return all(list(now.items()) == then for now, then in self._children)

    def same_parameters(self) -> bool:
        """Say whether the parameters of these modules are the same, of the same kind."""
        return all(list(map(id, now.values())) == then for now, then in self._own) and all(
            _kind(parameter) == kind for parameter, kind in self._kinds
        )

    def swapped(self) -> bool:
        """Say whether other tensors stand in for parameters now, as in `functional_call`."""
        values = [value for now, _ in self._own for value in now.values()]
        return any(isinstance(v, Tensor) and not isinstance(v, nn.Parameter) for v in values)


def _kind(parameter: Tensor) -> Any:
    return None if is_lazy(parameter) else (parameter.dtype, parameter.device, parameter.shape)
