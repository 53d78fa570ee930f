"""Responses of BatchNorms, told by what they keep for the backward pass, without a look at outputs.

A BatchNorm has computed s = 1 / sqrt(v + eps) for the variance v of its input already, and autograd
holds it. The moments of its output follow: mean(b), and the root of mean(w^2 v s^2) + var(b), over
channels, where v s^2 = 1 - eps s^2. That is exact to the rounding of s, 1e-7, times (v + eps) / v:
to 1e-5 where v is at least eps / 100. Running statistics and momentum play no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from analysis.measuring.channel_means import means_by_layer
from analysis.measuring.mean_and_std import deviations

_EXACT = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # a subclass may normalise otherwise
_AUTOGRAD: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
_WIDE = (torch.float32, torch.float64)
_KERNELS = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")


def saved_inverse_std(norm: Any, output: Tensor) -> Tensor | None:
    """Give 1 / sqrt(v + eps) of the forward that made this output; None if it cannot be told.

    Args:
        norm: any module.
        output: what it gave just now.
    """
    if type(norm) not in _EXACT or not norm.training:
        return None
    weight = norm.weight
    if weight is None or norm.bias is None or weight.dtype not in _WIDE:
        return None
    node: Any = output.grad_fn
    if node is None or node.name() not in _KERNELS:  # none, or what a hook made of the output
        return None
    if _AUTOGRAD._top_saved_tensors_default_hooks(False) is not None:
        return None  # to ask for what is kept would have it computed anew, or moved
    inverse = node._saved_result2
    sound = inverse.dtype in _WIDE and inverse.numel() == norm.num_features
    return inverse if sound else None


@torch.no_grad()
def batchnorm_moments(
    norms: Sequence[Any], inverses: Sequence[Tensor], known: dict[Any, Any]
) -> Tensor:
    """Give mean and std of norms' outputs, (norms, 2) float64, from `saved_inverse_std` of each.

    `known` keeps what stays the same from step to step, which is sent to the device once.
    """
    device = inverses[0].device
    widths = [norm.num_features for norm in norms]
    key = "eps", *(norm.eps for norm in norms), *widths, device
    if key not in known:
        eps = [norm.eps for norm in norms for _ in range(norm.num_features)]
        constants = [torch.ones(len(eps) + 1), -torch.tensor([*eps, 0.0], dtype=torch.float64)]
        known[key] = torch.stack(constants).to(device), torch.zeros(1, device=device)
    (ones, minus_eps), zero = known[key]
    weights, biases = zip(*((norm.weight.to(device), norm.bias.to(device)) for norm in norms))
    inverses = [inverse.to(device) for inverse in inverses]
    # of the channels of all norms, and of one more that is 0
    numbers = torch.cat([*biases, zero, *inverses, zero, *weights, zero]).double().view(3, -1)
    bias, inverse, weight = numbers.square().unbind()
    share = torch.addcmul(ones, minus_eps, inverse).clamp_min_(0)  # v / (v + eps)
    torch.addcmul(bias, weight, share, out=numbers[1])  # mean squares beside the means
    return deviations(means_by_layer(numbers[:2], widths, known))
