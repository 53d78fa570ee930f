"""BatchNorm of which the first channels are held fixed, and normalise by held statistics."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional

from nets.modules.frozen_parts import Joining, hold, joined

_CONVERTS = nn.SyncBatchNorm.convert_sync_batchnorm.__code__


class _HeldBatchNorm(Joining, nn.modules.batchnorm._BatchNorm):
    """BatchNorm of which the first `held` channels use and keep their running statistics.

    In training too, as torchvision.ops.FrozenBatchNorm2d does. (Batch statistics in training and
    held ones in evaluation would make two different networks of one.)
    """

    def __init__(self, channels: int, held: int) -> None:
        super().__init__(channels)
        self.held = held
        for name in ("weight", "bias"):
            hold(self, name, ((held, 1),))

    @property
    def weight(self) -> Any:
        if sys._getframe(1).f_code is _CONVERTS:  # it would go on to torch's words on FloatTensors
            raise ValueError(
                "net must have no held BatchNorm to become synchronised, got one of which "
                f"{self.held} of {self.num_features} channels are frozen: convert it before"
            )
        return joined(self, "weight")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...)."""
        mean, variance = self.running_mean, self.running_var
        weight, bias = joined(self, "weight"), joined(self, "bias")
        assert mean is not None
        assert variance is not None
        if not self.training or self.held == self.num_features:
            return functional.batch_norm(input, mean, variance, weight, bias, False, 0.0, self.eps)
        if isinstance(input, Proxy):
            raise ValueError("net must be in eval mode for torch.fx: a BatchNorm is held in part")
        if input.numel() == self.num_features:
            shape = tuple(input.shape)
            raise ValueError(f"Expected more than 1 value per channel when training, got {shape}")
        held = mean[: self.held], variance[: self.held]
        output, *batch = _PartlyHeld.apply(input, weight, bias, *held, self.eps)
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            share = self.momentum
            if share is None:  # the mean over all batches, as in torch
                share = 1 / self.num_batches_tracked.to(mean.dtype)
            for running, now in zip((mean, variance), batch):
                running[self.held :].lerp_(now[self.held :].to(running.dtype), share)
        return output

    def reset_running_stats(self) -> None:
        """Forget the running statistics of the channels that are not held."""
        held = getattr(self, "held", 0)
        if held == self.num_features:
            return
        with torch.no_grad():
            for values, start in ((self.running_mean, 0), (self.running_var, 1)):
                assert values is not None
                values[held:] = start
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.zero_()


class HeldBatchNorm1d(_HeldBatchNorm, nn.BatchNorm1d):
    """BatchNorm1d of which the first `held` channels use and keep their running statistics."""


class HeldBatchNorm2d(_HeldBatchNorm, nn.BatchNorm2d):
    """BatchNorm2d of which the first `held` channels use and keep their running statistics."""


class _PartlyHeld(torch.autograd.Function):
    """BatchNorm in training with given statistics for the first channels.

    Also gives mean and unbiased variance of the batch, (C,) each. In terms of torch's fused kernels
    it takes one pass more than BatchNorm; slicing and concatenating the activations takes four.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        held_mean: Tensor,
        held_variance: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        held, count = len(held_mean), x.numel() // x.shape[1]
        mean, variance = torch.zeros_like(weight), torch.zeros_like(weight)
        torch.native_batch_norm(x, weight, bias, mean, variance, True, 1.0, eps)
        biased = variance * ((count - 1) / count)
        used_mean = torch.cat([held_mean, mean[held:]])
        used_variance = torch.cat([held_variance, biased[held:]])
        y = functional.batch_norm(x, used_mean, used_variance, weight, bias, False, 0.0, eps)
        ctx.held, ctx.eps = held, eps
        ctx.save_for_backward(x, weight, used_mean, (used_variance + eps).rsqrt())
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        gradient, held = gradients[0], ctx.held
        by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        # where the statistics are given, no gradient goes through them
        scale = (weight * inverse)[:held].view(1, -1, *[1] * (x.dim() - 2))
        by_x[:, :held] = gradient[:, :held] * scale.to(gradient.dtype)
        return by_x, by_weight, by_bias, None, None, None
