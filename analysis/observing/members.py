"""Whether a network still consists of the same modules and parameters, at little cost."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Members:
    """The modules and parameters of a network, as they were when this was made."""

    def __init__(self, net: nn.Module) -> None:
        children = [module._modules for module in net.modules()]
        own = [module._parameters for module in net.modules()]
        self._children = [(now, list(now.items())) for now in children if now]
        self._own = [(now, list(map(id, now.values()))) for now in own if now]
        # most have none of one or the other
        self._childless, self._bare = ([now for now in all_ if not now] for all_ in (children, own))
        self._kinds = [(parameter, _kind(parameter)) for parameter in net.parameters()]

    def same_modules(self) -> bool:
        """Say whether the modules are the same; it does not look at their parameters."""
        same = all(list(now.items()) == then for now, then in self._children)
        return same and not any(self._childless)

    def same_parameters(self) -> bool:
        """Say whether the parameters of these modules are the same, of the same kind."""
        same = all(list(map(id, now.values())) == then for now, then in self._own)
        kinds = all(_kind(parameter) == kind for parameter, kind in self._kinds)
        return same and kinds and not any(self._bare)

    def swapped(self) -> bool:
        """Say whether other tensors stand in for parameters now, as in `functional_call`."""
        values = [value for now, _ in self._own for value in now.values()]
        return any(isinstance(v, Tensor) and not isinstance(v, nn.Parameter) for v in values)


def _kind(parameter: Tensor) -> Any:
    return None if is_lazy(parameter) else (parameter.dtype, parameter.device, parameter.shape)
