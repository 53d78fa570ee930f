"""One training step: batch, forward, backward, update, running average, sums."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from nets import train_flops
from training.computing import distributed
from training.computing.evaluation import Loss, at_least_float32, sums_of
from training.computing.learning_rate import learning_rate, set_learning_rate
from training.computing.optimizer import UNSCALED, Precision
from training.computing.wrapped_model import apart
from training.keeping.run_state import Run


def take_step(run: Run) -> None:
    """Take one step of a run, and count it."""
    set_learning_rate(run.optimizer, learning_rate(run.settings, run.spent))
    skipped = step_on_device(run)
    _count(run, skipped)


def step_on_device(run: Run) -> bool:
    """Do the whole work of a step; give whether it was skipped, see `train_step`.

    It moves no counter and, unless steps that are not finite are skipped, asks nothing of the
    device: a function of the run's tensors, the place in the data and the learning rate.
    """
    progress, settings = run.progress, run.settings
    inputs, targets = run.batches.batch(progress.epoch, progress.position)
    how = run.loss, run.precision, run.window, settings.accumulate, run.scaler
    skip = settings.nonfinite == "skip"
    skipped = train_step(run.model, run.optimizer, inputs, targets, *how, skip)
    if run.ema is not None and not skipped:
        average(run.ema, run.net, settings.ema, progress.step + 1)
    run.trace.append(run.window.clone())
    return skipped


def _count(run: Run, skipped: bool) -> None:
    progress = run.progress
    progress.step += 1
    if skipped:
        progress.skipped += 1
    if run.observer.step < progress.step:  # the update was left out, by us or by the scaler
        run.observer.skip()
    progress.next_batch(run.batches.per_epoch)
    progress.images += run.batches.batch_size
    progress.flops += run.batches.batch_size * train_flops(run.net.architecture)


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
            value = loss(at_least_float32(outputs), wanted)
            scaler.scale(value * (len(wanted) / len(targets))).backward()
        window += sums_of(value.detach(), outputs.detach(), wanted)
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
    return not distributed.greatest(float(~sound))


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
