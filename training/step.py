"""One training step and one evaluation: nothing here asks the device within a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nets.growth import mode
from training.data import evaluation_batches
from training.settings import Common
from training.sources import Images

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "classification": functional.cross_entropy,
    "regression": functional.mse_loss,
}


@dataclass(frozen=True)
class Precision:
    """Where and how to compute: a device, and whether under bfloat16 autocast."""

    device: torch.device
    bf16: bool

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
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if device.type == "cuda"
            else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
        return cls(
            device, settings.precision == "bf16" or (settings.precision == "auto" and native)
        )

    def autocast(self) -> torch.autocast:
        """Give the autocast context of this precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def make_optimizer(net: nn.Module, settings: Common) -> torch.optim.Optimizer:
    """Make the optimizer with two groups: weights decay, BatchNorm and biases do not."""
    weights = [parameter for parameter in net.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in net.parameters() if parameter.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    if settings.optimizer == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(
            groups, rate, momentum=settings.momentum, nesterov=nesterov, fused=True
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(groups, rate, fused=True)


def train_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    precision: Precision,
    window: Tensor,
) -> None:
    """Take one step and add (summed loss, correct, images) to `window`, (3,) float64."""
    with precision.autocast():
        outputs = net(inputs)
    value = loss(outputs.float(), targets)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    window += _sums(value.detach(), outputs.detach(), targets)


def _sums(value: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    count = value.new_full((), len(targets), dtype=torch.float64)
    correct = count.new_zeros(())
    if not targets.is_floating_point():
        correct = (outputs.argmax(1) == targets).sum().double()
    return torch.stack([value.double() * count, correct, count])


def means_of(window: Tensor, classification: bool) -> tuple[float | None, float | None]:
    """Give loss and accuracy (None for regression) of a window: one copy from the device."""
    total, correct, count = window.tolist()
    if not count:
        return None, None
    return total / count, correct / count if classification else None


@torch.no_grad()
def evaluate(
    net: nn.Module, images: Images, mean: Tensor, std: Tensor, loss: Loss, precision: Precision
) -> tuple[float | None, float | None]:
    """Give loss and accuracy over all images, in eval mode; buffers and modes stay as they are."""
    sums = torch.zeros(3, dtype=torch.float64, device=precision.device)
    with mode(net, training=False):
        for inputs, targets in evaluation_batches(images, mean, std, precision.device):
            with precision.autocast():
                outputs = net(inputs)
            sums += _sums(loss(outputs.float(), targets), outputs, targets)
    return means_of(sums, not images.targets.is_floating_point())
