"""The loss and accuracy of a network: their sums over a batch, their means over a split."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from nets import Network, layer_specs
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
MOST = 2000  # judged at a time on a GPU
_SHARE, _BYTES = 1 / 8, 32  # of its memory; per entry of the largest response: 8 of float32 at once


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


def images_at_once(net: nn.Module, images: int, device: torch.device) -> int:
    """Give how many of so many images are judged at a time; it hangs on the kind of device alone.

    On a GPU as many as its memory has room for, in parts of one size; on others few.
    """
    if device.type != "cuda" or not isinstance(net, Network):
        return IN_CACHE
    specs = layer_specs(net.architecture)
    entries = max(spec.shape[0] * prod(spec.size) for spec in specs)  # of one image's responses
    memory = torch.cuda.get_device_properties(device).total_memory
    most = max(1, min(MOST, int(memory * _SHARE / (_BYTES * entries))))
    return ceil(images / ceil(images / most)) if images else most


def evaluate(
    net: nn.Module, images: Images, mean: Tensor, std: Tensor, loss: Loss, precision: Precision
) -> tuple[float | None, float | None]:
    """Give loss and accuracy over all images, in eval mode; buffers and modes stay as they are.

    Several processes share the images; all must call it, and all get the same.
    """
    sums = sums_over(net, images, mean, std, loss, precision)
    return means_of(distributed.total(sums), not images.targets.is_floating_point())


@torch.no_grad()
def sums_over(
    net: nn.Module, images: Images, mean: Tensor, std: Tensor, loss: Loss, precision: Precision
) -> Tensor:
    """Give (summed loss, correct, images) of this process's part, (3,) float64; see `evaluate`."""
    if distributed.size() > 1:
        images = images.take(torch.arange(distributed.rank(), len(images), distributed.size()))
    sums = torch.zeros(3, dtype=torch.float64, device=precision.device)
    device = precision.device
    at_once = images_at_once(net, len(images), device)
    batches = evaluation_batches(images, mean, std, device, at_once) if len(images) else ()
    with in_mode(net, training=False):
        for inputs, targets in batches:
            with precision.autocast():
                outputs = net(inputs)
            sums += sums_of(loss(at_least_float32(outputs), targets), outputs, targets)
    return sums
