"""One training step and one evaluation: nothing here asks the device within a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from nets.modules.passes import mode
from training.data.batches import evaluation_batches
from training.data.images import Images
from training.keeping import ranks
from training.running.model import apart
from training.settings.common import Common

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "classification": functional.cross_entropy,
    "regression": functional.mse_loss,
}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IN_CACHE = 125  # images judged at a time on a CPU: what is made of more leaves its cache
UNSCALED = torch.amp.GradScaler(enabled=False)


@dataclass(frozen=True)
class Precision:
    """Where and how to compute: a device, and under autocast to `dtype` unless that is float32."""

    device: torch.device
    dtype: torch.dtype

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
        return cls(device, DTYPES.get(settings.precision, auto))

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
        return torch.autocast(self.device.type, self.dtype if enabled else None, enabled=enabled)

    def scaler(self) -> torch.amp.GradScaler:
        """Give what keeps small gradients of float16 from becoming 0; it does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def slow_settings(settings: Common, precision: Precision) -> list[str]:
    """Give a line for every setting with which this device crawls; mostly there are none."""
    device, lines = precision.device.type, []
    if not precision.is_native:
        lines.append(
            f"slow: this {device} emulates {settings.precision} (a CPU took ten times as long as "
            "for float32); --precision auto takes what it computes itself"
        )
    if settings.compile and device == "cpu":
        lines.append("slow: --compile takes 30 to 100 s on a CPU, at the start and at every growth")
    return lines


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
        optimizer = torch.optim.SGD(
            groups, rate, momentum=settings.momentum, nesterov=nesterov, fused=True
        )
        if nesterov and settings.precision == "fp16":
            # torch 2.14 leaves them uninitialised when the scaler skips the first step
            for value in net.parameters():
                optimizer.state[value]["momentum_buffer"] = torch.zeros_like(value)
        return optimizer
    if settings.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, rate, foreach=True)  # there is no fused one
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
    accumulate: int = 1,
    scaler: torch.amp.GradScaler = UNSCALED,
    skip: bool = False,
) -> bool:
    """Take one step and add (summed loss, correct, images) to `window`, (3,) float64.

    `net` is in the form that is called: itself, compiled, or wrapped for several processes. The
    gradients of `accumulate` parts of the batch, one after the other, are summed: the step is that
    of the whole batch, but BatchNorm sees a part at a time. The scaler of float16 asks the device
    whether a gradient was infinite, unless the optimizer is a fused one.

    With `skip` a step whose loss or gradients are not finite changes nothing but the gradients,
    and the answer is true; the host waits for the device to know. Infinite gradients of float16 are
    the scaler's affair.
    """
    held = [window, *net.buffers()] if skip else []
    before = [value.clone() for value in held]
    optimizer.zero_grad()
    parts = zip(inputs.tensor_split(accumulate), targets.tensor_split(accumulate))
    for number, (images, wanted) in enumerate(parts, start=1):
        with nullcontext() if number == accumulate else apart(net):
            with precision.autocast():
                outputs = net(images)
            value = loss(_at_least_float32(outputs), wanted)
            scaler.scale(value * (len(wanted) / len(targets))).backward()
        window += _sums(value.detach(), outputs.detach(), wanted)
    if skip and not _is_finite(window, () if scaler.is_enabled() else net.parameters()):
        torch._foreach_copy_(held, before)
        return True
    scaler.step(optimizer)
    scaler.update()
    return False


def _is_finite(window: Tensor, parameters: Iterable[nn.Parameter]) -> bool:
    """Say whether the sums and all gradients are finite, in every process."""
    gradients = [value.grad for value in parameters if value.grad is not None]
    sound = torch.stack([value.isfinite().all() for value in (window, *gradients)]).all()
    return not ranks.greatest(float(~sound))


@torch.no_grad()
def average(ema: nn.Module, net: nn.Module, decay: float, step: int) -> None:
    """Move a running average of weights and floating buffers on, after step number `step`, from 1.

    A young average forgets faster: its decay is (1 + step) / (10 + step) where that is smaller.
    """
    values = [[*one.parameters(), *one.buffers()] for one in (ema, net)]
    counts = [[value for value in own if not value.is_floating_point()] for own in values]
    torch._foreach_copy_(counts[0], counts[1])  # how far a branch has faded, say
    values = [[value for value in own if value.is_floating_point()] for own in values]
    torch._foreach_lerp_(*values, weight=1 - min(decay, (1 + step) / (10 + step)))


def _at_least_float32(outputs: Tensor) -> Tensor:
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


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
    """Give loss and accuracy over all images, in eval mode; buffers and modes stay as they are.

    Several processes share the images; all must call it, and all get the same.
    """
    if ranks.size() > 1:
        images = images.take(torch.arange(ranks.rank(), len(images), ranks.size()))
    sums = torch.zeros(3, dtype=torch.float64, device=precision.device)
    device = precision.device
    at_once = IN_CACHE if device.type == "cpu" else 500
    batches = evaluation_batches(images, mean, std, device, at_once) if len(images) else ()
    with mode(net, training=False):
        for inputs, targets in batches:
            with precision.autocast():
                outputs = net(inputs)
            sums += _sums(loss(_at_least_float32(outputs), targets), outputs, targets)
    return means_of(ranks.total(sums), not images.targets.is_floating_point())
