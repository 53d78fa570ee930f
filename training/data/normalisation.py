"""Pixels to floats of mean 0 and std 1, channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.images import Images


def channel_statistics(images: Images) -> tuple[Tensor, Tensor]:
    """Give mean and std of every channel, (C,) each, in pixel units; a std of 0 becomes 1."""
    if images.pixels.dtype == torch.uint8:  # counted by level: exact, and without a copy in floats
        channels = images.pixels.flatten(0, -2).unbind(-1)  # (N, H, W, C) -> C times (N * H * W,)
        levels = torch.arange(256, dtype=torch.float64)
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels])
        shares = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
        mean = shares @ levels
        std = (shares * (levels - mean[:, None]).square()).sum(1).sqrt()
    else:
        mean, std = images.pixels.double().mean(0), images.pixels.double().std(0, correction=0)
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Give (pixels - mean) / std in float32: (B, H, W, C) -> (B, C, H, W) in channels_last.

    Inputs that are no images, (B, C), keep their shape.
    """
    # Whole images of means and stds: the CPU broadcasts over three channels many times slower.
    shift, scale = (value.expand(pixels.shape[1:]).contiguous() for value in (mean, std))
    values = pixels.to(torch.float32, copy=True).sub_(shift).div_(scale)
    return values.permute(0, 3, 1, 2) if values.ndim == 4 else values
