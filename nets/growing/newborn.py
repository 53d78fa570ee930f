"""How tensors that an optimizer has not seen begin: with updates of the size of their siblings'.

Divided by the root of its own square, the first gradient of a tensor gives updates of a whole
learning rate, some ten times those of tensors that have trained for long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


def newborn_state(
    parameter: Tensor, sibling: Tensor, known: Mapping[str, Any], group: Mapping[str, Any]
) -> State | None:
    """Give the state, at step 0, in which a new tensor starts; None for an empty one.

    Moments are 0 but for the second, which makes the first update as large as the sibling's, for
    equal gradients. In Adam it counts like one gradient among those to come.

    Args:
        parameter: the new tensor.
        sibling: an old one, a like layer's.
        known: the sibling's state.
        group: the options of the new tensor's group.
    """
    if "exp_avg_sq" in known:
        filled, value = "exp_avg_sq", _of_adam(known, group)
    elif "square_avg" in known:
        mean = known.get("grad_avg")
        spread = known["square_avg"] - (0 if mean is None else mean.square())
        filled, value = "square_avg", spread.mean()
    else:
        return None
    state: State = {}
    for key, old in known.items():
        if not isinstance(old, Tensor) or old.shape != sibling.shape:
            state[key] = torch.zeros_like(old) if isinstance(old, Tensor) else old
            continue
        state[key] = torch.zeros_like(parameter, dtype=old.dtype).detach()
    state[filled] += value.to(state[filled])
    return state


def _of_adam(known: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """Give v0 for which the first update, g / sqrt(g^2 + k v), is of the size of m / sqrt(v).

    m, a mean of gradients, is as large as they are where they agree, and smaller by the root of
    (1 + beta1) / (1 - beta1) where they are noise; k lies between, within a factor of 2.1.
    """
    first, second = map(float, group["betas"])
    squares = known.get("max_exp_avg_sq", known["exp_avg_sq"])
    if second == 0:
        return torch.zeros_like(squares.mean())
    step = known["step"].to(squares.device)
    mean = squares.mean() / (1 - second**step)
    return ((1 + first) / (1 - first)) ** 0.5 * mean * (1 - second) / second
