"""The loss and accuracy of a network: their sums over a batch, their means over a split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from nets.modules.probe_batch import in_mode
from training.computing import distributed
from training.computing.optimizer import Precision
from training.data.batches import evaluation_batches
from training.data.images import Images

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "classification": functional.cross_entropy,
    "regression": functional.mse_loss,
}
IN_CACHE = 125  # images judged at a time on a CPU: what is made of more leaves its cache


def at_least_float32(outputs: Tensor) -> Tensor:
    """Give a network's outputs in the precision of losses."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def sums_of(value: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    """Give (summed loss, correct, images) of a batch whose mean loss is `value`, (3,) float64."""
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
    """Give loss and accuracy over all images, in eval mode; buffers and modes stay as they are.

    Several processes share the images; all must call it, and all get the same.
    """
    if distributed.size() > 1:
        images = images.take(torch.arange(distributed.rank(), len(images), distributed.size()))
    sums = torch.zeros(3, dtype=torch.float64, device=precision.device)
    device = precision.device
    at_once = IN_CACHE if device.type == "cpu" else 500
    batches = evaluation_batches(images, mean, std, device, at_once) if len(images) else ()
    with in_mode(net, training=False):
        for inputs, targets in batches:
            with precision.autocast():
                outputs = net(inputs)
            sums += sums_of(loss(at_least_float32(outputs), targets), outputs, targets)
    return means_of(distributed.total(sums), not images.targets.is_floating_point())
