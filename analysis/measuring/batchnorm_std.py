"""Responses of BatchNorms, told by what they keep for the backward pass, without a look at outputs.

A BatchNorm has computed s = 1 / sqrt(v + eps) for the variance v of its input already, and autograd
holds it. The moments of its output follow: mean(b), and the root of mean(w^2 v s^2) + var(b), over
channels, where v s^2 = 1 - eps s^2. That is exact to the rounding of s, 1e-7, times (v + eps) / v:
to 1e-5 where v is at least eps / 100. Running statistics and momentum play no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from analysis.measuring.channel_means import means_by_layer
from analysis.measuring.mean_and_std import deviations

_EXACT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # a subclass may normalise otherwise
_AUTOGRAD: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
_WIDE = (torch.float32, torch.float64)
_KERNELS = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")


class Told(NamedTuple):
    """What a BatchNorm's forward tells of its output: eps, weight, bias and 1 / sqrt(v + eps)."""

    eps: float
    weight: Tensor  # (C,), as are the others: those of the forward, whatever the module has later
    bias: Tensor
    inverse: Tensor


def told_by(norm: Any, output: Tensor) -> Told | None:
    """Give what the forward that made this output just now tells; None if it cannot be told."""
    if type(norm) not in _EXACT or not norm.training:
        return None
    weight, bias = norm.weight, norm.bias
    if weight is None or bias is None or weight.dtype not in _WIDE:
        return None
    node: Any = output.grad_fn
    if node is None or node.name() not in _KERNELS:  # none, or what a hook made of the output
        return None
    if _AUTOGRAD._top_saved_tensors_default_hooks(False) is not None:
        return None  # to ask for what is kept would have it computed anew, or moved
    inverse = node._saved_result2
    sound = inverse.dtype in _WIDE and inverse.numel() == norm.num_features
    return Told(norm.eps, weight, bias, inverse) if sound else None


@torch.no_grad()
def batchnorm_moments(norms: Sequence[Told], known: dict[Any, Any]) -> Tensor:
    """Give mean and std of norms' outputs, (norms, 2) float64.

    `known` keeps what stays the same from step to step, which is sent to the device once.
    """
    every_eps, *parts = zip(*norms)
    device = norms[0].inverse.device
    widths = [norm.inverse.numel() for norm in norms]
    key = "eps", *every_eps, *widths, device
    if key not in known:
        eps = [eps for eps, width in zip(every_eps, widths) for _ in range(width)]
        constants = [[1.0] * (len(eps) + 1), [*(-one for one in eps), 0.0]]
        both = torch.tensor(constants, dtype=torch.float64, device=device)
        known[key] = both, torch.zeros(1, device=device)
    (ones, minus_eps), zero = known[key]
    weights, biases, inverses = ([part.to(device) for part in kind] for kind in parts)
    # of the channels of all norms, and of one more that is 0
    numbers = torch.cat([*biases, zero, *inverses, zero, *weights, zero]).double().view(3, -1)
    bias, inverse, weight = numbers.square().unbind()
    share = torch.addcmul(ones, minus_eps, inverse).clamp_min_(0)  # v / (v + eps)
    torch.addcmul(bias, weight, share, out=numbers[1])  # mean squares beside the means
    return deviations(means_by_layer(numbers[:2], widths, known))
