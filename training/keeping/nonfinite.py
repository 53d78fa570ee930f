"""A run stops before anything that is not finite is written; what it judges alone becomes None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite
from typing import TYPE_CHECKING

from analysis import LayerReading

if TYPE_CHECKING:
    from torch import Tensor

    from training.keeping.run_state import Run


class NonFinite(Exception):
    """A loss, weight or output is NaN or infinite; one line says since when and what is left."""


def check_losses(run: Run, losses: Sequence[float | None]) -> None:
    """Check the training losses of the latest steps, None for those that were skipped.

    Raises:
        NonFinite: one is NaN or infinite.
    """
    before = run.progress.step - len(losses)
    for step, loss in enumerate(losses, start=before + 1):
        if loss is not None and not isfinite(loss):
            raise NonFinite(f"the training loss is {loss} at step {step}, {_told(run)}")


def check_window(run: Run, loss: float | None) -> None:
    """Raise NonFinite if all steps since the last record were left out: they have no loss."""
    before = run.history[-1].step if run.history else 0
    if loss is None and run.progress.step > before:
        steps = f"steps {before + 1} to {run.progress.step}"
        raise NonFinite(f"no loss and gradients of {steps} were finite, {_told(run)}")


def check_validation(run: Run, loss: float | None) -> None:
    """Raise NonFinite if the validation loss is NaN or infinite."""
    if finite(loss) != loss:
        raise NonFinite(f"the validation loss is {loss} at step {run.progress.step}, {_told(run)}")


def check_growth(run: Run, difference: float | None) -> None:
    """Raise NonFinite if a grown network, or the one before it, gives outputs that are not."""
    if finite(difference) != difference:
        raise NonFinite(
            f"outputs after growth are not finite at step {run.progress.step}: they differ by "
            f"{difference}, {_told(run)}"
        )


def check_state(run: Run) -> None:
    """Raise NonFinite if the weights, their average or the optimizer's state are not finite."""
    from nets.modules.frozen_parts import tensors_of

    tensors = tensors_of(run.net)  # a state dict would detach each
    if run.ema is not None:
        tensors |= {f"average of {name}": value for name, value in tensors_of(run.ema).items()}
    for name, parameter in run.net.named_parameters():
        values = run.optimizer.state.get(parameter, {})
        tensors |= {f"{key} of {name}": value for key, value in values.items()}
    broken = first_nonfinite(tensors)
    if broken:
        raise NonFinite(f"{broken} is not finite at step {run.progress.step}, {_told(run)}")


def first_nonfinite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor that is not finite; one question to the device for all of them.

    The largest size of a tensor's entries is NaN or infinite if one of them is, in any precision.
    """
    import torch

    kinds: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if torch.is_tensor(value) and value.is_floating_point() and value.numel():
            kinds.setdefault((value.device, value.dtype), {})[name] = value
    if not kinds:
        return None
    with torch.no_grad():
        largest = [
            torch.stack(torch._foreach_norm(list(alike.values()), inf)).isfinite()
            for alike in kinds.values()  # of one kind: many in one kernel
        ]
    names = [name for alike in kinds.values() for name in alike]
    sound = torch.cat([part.to(largest[0].device) for part in largest]).tolist()
    broken = {name for name, good in zip(names, sound, strict=True) if not good}
    return next((name for name in tensors if name in broken), None)


def finite(value: float | None) -> float | None:
    """Give the number, or None if it is NaN or infinite."""
    return value if value is not None and isfinite(value) else None


def finite_readings(layers: Mapping[str, LayerReading]) -> dict[str, LayerReading]:
    """Give the readings with None for statistics that are not finite.

    While losses and weights are finite that is, in float16, the gradient of a step that the scaler
    left out.
    """
    found = {}
    for path, reading in layers.items():
        values = {k: v for k, v in vars(reading).items() if isinstance(v, float)}
        broken = {name: None for name, value in values.items() if not isfinite(value)}
        extra = {name: value for name, value in reading.extra.items() if isfinite(value)}
        found[path] = replace(reading, **broken, extra=extra)
    return found


def _told(run: Run) -> str:
    """Say which layer's reading broke first, and what the run can go on from."""
    broken = run.observer.first_broken()
    told = "every layer's reading so far is finite"
    if broken:
        path, statistic, others = broken
        told = f"in the layers' readings first {statistic} of {path}"
        told += f" (at once with {others} more layers)" if others else ""
    path = run.folder / "checkpoint.pt"
    if not path.exists():
        return f"{told}; there is no checkpoint yet"
    from training.keeping.checkpoint import load_checkpoint

    step = load_checkpoint(path, {})["progress"]["step"]
    return f"{told}; the last checkpoint, of step {step}, is {path}"
