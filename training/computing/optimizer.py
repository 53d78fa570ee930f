"""The optimizer that the settings name, with weight decay for weights alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from nets import CohortRates, Network
from training.computing import distributed
from training.settings.train_settings import Common


def make_optimizer(net: nn.Module, settings: Common) -> torch.optim.Optimizer:
    """Make the optimizer with two groups: weights decay, BatchNorm and biases do not.

    On a GPU its step can be captured.
    """
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in net.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    rate, on_gpu = settings.learning_rate, next(net.parameters()).is_cuda
    if settings.optimizer == "sgd":
        nesterov = settings.momentum > 0
        optimizer = torch.optim.SGD(
            groups, rate, momentum=settings.momentum, nesterov=nesterov, fused=True
        )
        if nesterov:
            # torch 2.14 leaves them uninitialised when the first step is skipped; with 0 it is the
            # same as without them
            for value in net.parameters():
                optimizer.state[value]["momentum_buffer"] = torch.zeros_like(value)
        return optimizer
    if settings.optimizer == "rmsprop":
        # there is no fused one
        return torch.optim.RMSprop(groups, rate, foreach=True, capturable=on_gpu)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(groups, rate, fused=True, capturable=on_gpu)


def make_rates(
    net: Network, optimizer: torch.optim.Optimizer, settings: Common
) -> CohortRates | None:
    """Give what lets each cohort have its own learning rate, if the settings say so."""
    return CohortRates(net, optimizer) if settings.rates == "cohort" else None


DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
UNSCALED = torch.amp.GradScaler(enabled=False)


@dataclass(frozen=True)
class Precision:
    """Where and how to compute: a device, and under autocast to `dtype` unless that is float32."""

    device: torch.device
    dtype: torch.dtype
    searches: bool = False  # whether cuDNN may look for its fastest algorithms

    @classmethod
    def of(cls, settings: Common) -> Precision:
        """Resolve `device` and `precision`; a ValueError if the device is not there."""
        name = settings.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.empty(0, device=device).cpu()  # the meta device makes tensors that cannot be read
        except (RuntimeError, AssertionError, NotImplementedError):
            raise ValueError(
                f"device must be auto, cpu or an available GPU, got {settings.device!r}"
            ) from None
        auto = torch.bfloat16 if cls(device, torch.bfloat16).is_native else torch.float32
        searches = device.type == "cuda" and not settings.deterministic
        return cls(device, DTYPES.get(settings.precision, auto), searches)

    @property
    def is_native(self) -> bool:
        """Whether the device computes in this precision itself, and does not emulate it."""
        if self.device.type == "cuda":  # all that torch supports compute float16
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            return self.dtype != torch.bfloat16 or native
        native = {
            torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
            torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
        }
        return self.dtype not in native or native[self.dtype]()

    def autocast(self) -> torch.autocast:
        """Give the autocast context of this precision."""
        enabled = self.dtype in (torch.bfloat16, torch.float16)
        # its cache of cast weights would not outlive a capture, and a step casts each but once
        return torch.autocast(
            self.device.type,
            self.dtype if enabled else None,
            enabled=enabled,
            cache_enabled=False,
        )

    @contextmanager
    def searching(self, wanted: bool = True) -> Iterator[None]:
        """Let cuDNN look for its fastest algorithms; what it finds it keeps, by shape.

        For training steps whose shapes stay: others are met too rarely to pay for the search.
        """
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = before or (wanted and self.searches)
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def wait(self) -> None:
        """Wait until the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def scaler(self) -> torch.amp.GradScaler:
        """Give what keeps small gradients of float16 from becoming 0; it does nothing otherwise."""
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        scaler.scale(torch.zeros((), device=self.device))  # what it holds there it makes now
        return scaler


def obstacle(device: torch.device) -> str | None:
    """Say why steps on a device can't be captured, or None."""
    if device.type != "cuda":
        return f"{device.type} has no CUDA graphs"
    if distributed.size() > 1:
        return "there are several processes"
    if any("expandable_segments:True" in os.environ.get(name, "") for name in _ALLOCATOR):
        return f"{_ALLOCATOR[0]} asks for expandable_segments"
    return None


def check_graph(settings: Common, device: torch.device) -> None:
    """Raise a ValueError if steps must be captured and can't be."""
    why = obstacle(device)
    if settings.graphs == "true" and why:
        raise ValueError(f"graph must be auto or false here, got true: {why}")


def slow_settings(settings: Common, precision: Precision) -> list[str]:
    """Give a line for every setting with which this device crawls; mostly there are none."""
    device, lines = precision.device.type, []
    if not precision.is_native:
        lines.append(
            f"slow: this {device} emulates {settings.precision} (a CPU took ten times as long as "
            "for float32); --precision auto takes what it computes itself"
        )
    why = obstacle(precision.device)
    if settings.graphs == "auto" and device == "cuda" and why:
        lines.append(f"slow: steps are not captured as a CUDA graph: {why}")
    if settings.compile and device == "cpu":
        lines.append("slow: --compile takes 30 to 100 s on a CPU, at the start and at every growth")
    return lines
