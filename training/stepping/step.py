"""One training step: batch, forward, backward, update, running average, sums.

A function of tensors alone: what changes from step to step lies on the device (`Clock`, the draws
of `Batches`, the networks' own counters), so that the step can be captured once and replayed.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from nets import train_flops
from training.computing import distributed
from training.computing.evaluation import Loss, at_least_float32, sums_of
from training.computing.learning_rate import learning_rate
from training.computing.optimizer import UNSCALED, Precision
from training.computing.wrapped_model import apart
from training.keeping.run_state import Run
from training.stepping.update import not_finite, tensors_of, update


def take_step(run: Run) -> None:
    """Take one step of a run, and count it."""
    set_clock(run)
    if run.captured is None:
        step_on_device(run)
    else:
        run.captured.step(run)
    _count(run)


def set_clock(run: Run) -> None:
    """Say which step is next: its learning rate, its batch, its places in average and losses."""
    progress, factor = run.progress, run.factor
    run.batches.join(factor)
    progress.make_room(run.batches.per_epoch, factor)
    run.batches.begin(progress.epoch)
    run.clock.set(
        rate=learning_rate(run.settings, run.spent, factor),
        # an average that reaches as far back in images (Busbridge et al. 2023, arXiv 2307.13813)
        weight=weight_in_average(run.settings.ema**factor, progress.step + 1),
        position=progress.position,
        row=run.untold + 1,
    )


def step_on_device(run: Run) -> None:
    """Do the whole work of the step that the clock says; it moves no counter."""
    inputs, targets = run.batches.at(run.clock.position)
    how = run.loss, run.precision, run.window, run.settings.accumulate, run.scaler
    skip = run.settings.nonfinite == "skip"
    with run.precision.searching(run.settled):
        skipped = train_step(run.model, run.optimizer, inputs, targets, *how, skip)
    if run.ema is not None:
        weight = run.clock.weight
        average(run.ema, run.net, weight if skipped is None else weight * (1 - skipped))
    run.trace.index_copy_(0, run.clock.row, run.window[None])


def _count(run: Run) -> None:
    progress = run.progress
    progress.step += 1
    run.untold += 1
    joined = run.batches.joined
    progress.next_batch(run.batches.per_epoch, joined)
    progress.images += joined * run.batches.batch_size
    progress.flops += joined * run.batches.batch_size * train_flops(run.net.architecture)


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
) -> Tensor | None:
    """Take one step and add (summed loss, correct, images) to `window`, (3,) float64.

    `net` is in the form that is called: itself, compiled, or wrapped for several processes. The
    gradients of `accumulate` parts of the batch, one after the other, are summed: the step is that
    of the whole batch, but BatchNorm sees a part at a time. Nothing waits for the device.

    With `skip` a step whose loss or gradients are not finite changes nothing but the gradients.
    Infinite gradients of float16 are the scaler's affair.

    Returns:
        With `skip` whether the step was left out, 1 or 0, () float32 on the device.
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
    if not skip:
        update(optimizer, scaler)
        return None
    gradients = [] if scaler.is_enabled() else [v.grad for v in net.parameters()]
    skipped = distributed.most(not_finite([window, *gradients]))
    held += tensors_of(scaler)
    before += [value.clone() for value in tensors_of(scaler)]
    update(optimizer, scaler, skipped)
    for value, old in zip(held, before):
        value.copy_(torch.where(skipped > 0, old, value))
    return skipped


def weight_in_average(decay: float, step: int) -> float:
    """Give the weight of step number `step`, from 1, in a running average.

    A young average forgets faster: its decay is (1 + step) / (10 + step) where that is smaller.
    """
    return 1 - min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def average(ema: nn.Module, net: nn.Module, weight: Tensor) -> None:
    """Move a running average of weights and floating buffers on, by `weight`, () float32."""
    values = [[*one.parameters(), *one.buffers()] for one in (ema, net)]
    counts = [[value for value in own if not value.is_floating_point()] for own in values]
    torch._foreach_copy_(counts[0], counts[1])  # how far a branch has faded, say
    old, new = ([value for value in own if value.is_floating_point()] for own in values)
    change = torch._foreach_sub(new, old)
    torch._foreach_mul_(change, weight)  # a lerp takes no weight that lies on the device
    torch._foreach_add_(old, change)
