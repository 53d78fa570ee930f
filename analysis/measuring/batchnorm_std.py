"""Responses of BatchNorms, told by what they keep for the backward pass, without a look at outputs.

A BatchNorm has computed s = 1 / sqrt(v + eps) for the variance v of its input already, and autograd
holds it. The moments of its output follow: mean(b), and the root of mean(w^2 v s^2) + var(b), over
channels, where v s^2 = 1 - eps s^2. That is exact to the rounding of s, 1e-7, times (v + eps) / v:
to 1e-5 where v is at least eps / 100. Running statistics and momentum play no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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
    if type(norm) not in _EXACT or not norm.training or not norm.affine:
        return None
    node: Any = output.grad_fn
    if node is None or node.name() not in _KERNELS:  # none, or what a hook made of the output
        return None
    if _AUTOGRAD._top_saved_tensors_default_hooks(False) is not None:
        return None  # to ask for what is kept would have it computed anew, or moved
    inverse = node._saved_result2
    sound = inverse.dtype in _WIDE and len(inverse) == norm.num_features
    return inverse if sound and norm.weight.dtype in _WIDE else None


@torch.no_grad()
def batchnorm_moments(
    norms: Sequence[Any], inverses: Sequence[Tensor], known: dict[Any, Any]
) -> Tensor:
    """Give mean and std of norms' outputs, (norms, 2) float64, from `saved_inverse_std` of each.

    `known` keeps what stays the same from step to step, which is sent to the device once.
    """
    parts = [*inverses, *(norm.weight for norm in norms), *(norm.bias for norm in norms)]
    device = parts[0].device
    numbers = torch.cat([part.to(device) for part in parts]).double()
    inverse, weight, bias = numbers.view(3, -1).unbind()  # of the channels of all norms
    key = "norms", tuple((norm.num_features, norm.eps) for norm in norms), device
    if key not in known:
        known[key] = _constants(*key[1:])
    eps, channels, widths = known[key]
    share = (1 - eps * inverse.square()).clamp_min(0)  # v / (v + eps)
    power = weight.square() * share
    filled = functional.pad(torch.stack([bias, power + bias.square()]), (0, 1))
    mean, square = filled[:, channels].sum(-1) / widths
    return torch.stack([mean, (square - mean.square()).clamp_min(0).sqrt()], -1)


def _constants(
    norms: tuple[tuple[int, float], ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Give, for (channels, eps) of norms, what places their channels among all.

    The eps of all channels, (channels,); which channels are each norm's, (norms, most), those of
    narrower ones filled up with the number of all; how many these are, (norms,).
    """
    widths = [width for width, _ in norms]
    eps = [eps for width, eps in norms for _ in range(width)]
    channels = [
        [*range(end - width, end), *[len(eps)] * (max(widths) - width)]
        for end, width in zip(accumulate(widths), widths)
    ]
    return (
        torch.tensor(eps, dtype=torch.float64, device=device),
        torch.tensor(channels, device=device),
        torch.tensor(widths, device=device),
    )
