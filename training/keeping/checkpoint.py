"""A run's state in one file: architecture, weights, optimizer state by name, counters."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from analysis import Observer
from analysis.recording.atomic_files import write_whole
from nets import Architecture, CohortRates, Network
from training.computing.budget import Progress
from training.computing.optimizer import UNSCALED
from training.keeping.run_folder import binding, completed
from training.settings.named_runs import with_names

_CAPTURABLE = "capturable"


def optimizer_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give options and state by parameter name, so that a grown network finds its own again."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in net.named_parameters()}
    groups = [
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    for group in groups:
        group["lr"] = float(group["lr"])  # a run's own is a tensor, of its clock
    state = {names[parameter]: dict(values) for parameter, values in optimizer.state.items()}
    return {"groups": groups, "state": state}


def load_optimizer_state(
    net: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Any]
) -> None:
    """Put back what `optimizer_state` gave; groups and options become the saved ones.

    State goes to the devices on which the optimizer wants it, from whatever device it was saved on.
    """
    parameters = dict(net.named_parameters())
    for name, values in saved["state"].items():
        _check_shapes(name, parameters[name], values)
    names = [name for group in saved["groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [dict(group) for group in saved["groups"]]
    device = next(iter(parameters.values())).device.type
    for group in groups:
        if _CAPTURABLE in group and device in ("cpu", "cuda"):  # of a run from another device
            group[_CAPTURABLE] = device == "cuda"
    optimizer.param_groups = [
        {**group, "params": [parameters[name] for name in group["params"]]} for group in groups
    ]
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups]
    # torch knows which state belongs on the device: `step` does if the step is fused or captured
    state = {numbers[name]: values for name, values in saved["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def set_generators(state: dict[str, Any], device: torch.device) -> None:
    """Put back the global generators of the CPU and of a run's GPU, where a checkpoint has it.

    A checkpoint of a CPU goes on on a GPU with the generator as its seed left it, and the other way
    round. Rank 0 has written it, and every rank takes it: all of them began with the run's seed.
    """
    torch.set_rng_state(state["generator"])
    generator = state.get("cuda_generator")  # older checkpoints have none
    if generator is not None and device.type == "cuda":
        torch.cuda.set_rng_state(generator, device)


def _check_shapes(name: str, parameter: torch.Tensor, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if torch.is_tensor(value) and value.dim() > 0 and value.shape != parameter.shape:
            raise ValueError(
                f"{key} of {name} is {tuple(value.shape)}, not {tuple(parameter.shape)}"
            )


def save_checkpoint(
    path: Path,
    net: Network,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    observer: Observer,
    window: torch.Tensor,
    identity: dict[str, Any],
    ema: Network | None = None,
    scaler: torch.amp.GradScaler = UNSCALED,
    rates: CohortRates | None = None,
    observers: Sequence[dict[str, Any]] = (),
) -> None:
    """Write the whole state; a reader sees the old file or the new one.

    `observers` are the states of those of all processes, if there are several.
    """
    state = {
        "architecture": net.architecture.to_dict(),
        "weights": net.state_dict(),
        "ema": None if ema is None else ema.state_dict(),
        "optimizer": optimizer_state(net, optimizer),
        "scaler": scaler.state_dict(),
        "rates": None if rates is None else rates.state_dict(),
        "generator": torch.get_rng_state(),
        "cuda_generator": torch.cuda.get_rng_state(window.device) if window.is_cuda else None,
        "progress": asdict(progress),
        "observer": observer.state_dict(),
        "observers": list(observers) if len(observers) > 1 else [],
        "window": window,
        "identity": identity,
    }
    buffer = io.BytesIO()
    torch.save(_on_host(state, window.device), buffer)
    write_whole(path, buffer.getvalue())


def _on_host(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Give a state whose tensors lie on the CPU; all are copied before the host waits, once."""
    if device.type != "cuda":
        return state
    copied = tree_map_only(torch.Tensor, lambda value: value.to("cpu", non_blocking=True), state)
    torch.cuda.current_stream(device).synchronize()
    return copied


def load_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint, on the CPU; it cannot run code (weights_only).

    Raises:
        ValueError: it is cut short, no checkpoint of ours, or of a run with another identity.
    """
    try:
        with catch_warnings():
            simplefilter("ignore")  # of a file that is no checkpoint
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        found = binding(completed(dict(state["identity"])))
        architecture = Architecture.from_dict(state["architecture"])
    except Exception as error:  # torch raises many kinds for a damaged file
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {path} cannot be read: {first[:120]}") from None
    # where recorded runs lie is config.yaml's to say
    found, wanted = (with_names(each, lambda path: Path(path).name) for each in (found, identity))
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(
                f"checkpoint {path} is of another run: {name} is {found.get(name)!r}, not {value!r}"
            )
    return {**state, "architecture": architecture}


def network_of(state: dict[str, Any], path: Path, part: str = "weights") -> Network:
    """Build a checkpoint's network, on the CPU; a ValueError if its weights do not fit.

    `part` is "weights", or "ema" for their running average.
    """
    with torch.device("meta"):
        net = Network(state["architecture"])
    try:
        net.load_state_dict(state[part], assign=True)
    except (RuntimeError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"checkpoint {path}: its weights are not those of its architecture"
        ) from None
    return net
