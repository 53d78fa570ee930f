"""A run in its folder: begun, or resumed from the checkpoint that is there."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis import Observer, read_history
from analysis.recording.timeline import statistics_of
from analysis.showing.tensorboard_writer import Board
from nets import CohortRates, Network, build, cost
from training.computing import distributed
from training.computing.budget import Budget, Progress
from training.computing.clock import Clock
from training.computing.optimizer import make_optimizer, make_rates
from training.computing.torch_settings import own_process, spare_threads
from training.computing.wrapped_model import model_of, to_device
from training.data.splits import part_of
from training.deciding.call_policy import check_policy, own_copy
from training.keeping.checkpoint import (
    load_checkpoint,
    load_optimizer_state,
    network_of,
    set_generators,
)
from training.keeping.folder_lock import alone
from training.keeping.picture_files import comparison_of
from training.keeping.result_files import cut_back
from training.keeping.run_folder import binding, claim
from training.keeping.run_state import ROWS, Run
from training.running.prepare import Prepared, check_processes, prepare
from training.settings.config_yaml import settings_to_dict, settings_to_yaml
from training.settings.train_settings import Train
from training.stepping.captured_step import captured_of


def open_run(settings: Train) -> Run:
    """Begin a run in its folder, or resume the one that is there; nobody else may write there.

    Raises:
        ValueError: the data, the settings or the folder cannot be used, or another process uses it;
            nothing is overwritten.
    """
    with ExitStack() as held:
        held.enter_context(own_process(settings))
        check_policy(settings.policy)
        settings = replace(settings, policy=own_copy(settings.policy))
        text, prepared = settings_to_yaml(settings), prepare(settings)
        spared = spare_threads(settings, cost(prepared.limit).flops)
        check_processes(prepared.data)
        held.enter_context(distributed.on_first(alone(settings.folder)))
        run = _open(settings, text, prepared)
        run.spared = spared
        run.held = held.pop_all()
    return run


def _open(settings: Train, text: str, prepared: Prepared) -> Run:
    """Begin or resume the run in a folder that is ours; `text` is its config.yaml."""
    folder, plain = settings.folder, settings_to_dict(settings)
    distributed.from_first(lambda: claim(folder, plain, text, settings.resume, prepared.data))
    path = folder / "checkpoint.pt"
    state = load_checkpoint(path, binding(plain)) if path.exists() else None
    run = revived(settings, prepared, state, path)
    run.captured = captured_of(settings, run.precision.device)
    progress = run.progress
    run.history = read_history(folder, progress.records, "out") if progress.records else []
    distributed.from_first(lambda: cut_back(folder, progress.records, progress.step))
    if distributed.rank() == 0:
        # From the start: TensorBoard purges nothing at the first such mark that it sees.
        charted = bool(statistics_of(run.history))
        many = comparison_of(folder) is not None
        run.board = Board(folder, progress.step + 1, charted, run.history, many)
    return run


def revived(settings: Train, prepared: Prepared, state: dict[str, Any] | None, path: Path) -> Run:
    """Give a run as a checkpoint's state has it, or as it begins; it writes nothing anywhere."""
    torch.manual_seed(settings.seed)
    run = _begin(settings, prepared, *_networks(settings, prepared, state, path))
    if state is not None:
        saved = run.net, run.optimizer, run.scaler, run.rates, run.observer, run.window
        run.progress = restore(state, path, *saved)
        run.saved = run.progress.seconds
        run.trace[0] = run.window
    run.clock.lead(run.optimizer)
    return run


def _begin(settings: Train, prepared: Prepared, net: Network, ema: Network | None) -> Run:
    """Give the run as it is before its first step."""
    splits, model = prepared.splits, model_of(net, settings)
    mean, std = prepared.statistics
    optimizer, device = make_optimizer(net, settings), prepared.precision.device
    window = torch.zeros(3, dtype=torch.float64, device=device)
    return Run(
        settings=settings,
        folder=settings.folder,
        precision=prepared.precision,
        splits=splits,
        judged=part_of(splits.validation, settings.validation_images).to(device),
        statistics=(mean.to(device), std.to(device)),
        batches=prepared.batches,
        loss=prepared.loss,
        limit=cost(prepared.limit),
        budget=Budget.of(settings, prepared.limit, len(splits.train)),
        probe=prepared.probe(),
        net=net,
        model=model,
        ema=ema,
        optimizer=optimizer,
        scaler=prepared.precision.scaler(),
        observer=Observer(net, optimizer, settings.observe_every, all_ranks=True),
        window=window,
        trace=window.new_zeros(ROWS, 3),
        clock=Clock(device),
        rates=make_rates(net, optimizer, settings),
    )


def restore(
    state: dict[str, Any],
    path: Path,
    net: Network,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rates: CohortRates | None = None,
    observer: Observer | None = None,
    window: Tensor | None = None,
) -> Progress:
    """Put a checkpoint's state into fresh objects, and give its counters.

    Raises:
        ValueError: something is missing, or does not fit.
    """
    try:
        load_optimizer_state(net, optimizer, state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        if rates is not None:
            rates.load_state_dict(state["rates"])
        set_generators(state, net.draw.device)
        if observer is not None:
            observer.load_state_dict(_own_part(state))
        if window is not None and distributed.rank() == 0:  # it is the sum over all processes
            window.copy_(state["window"].reshape(3))
        return Progress(**state["progress"])
    except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error!r}") from None


def _own_part(state: dict[str, Any]) -> dict[str, Any]:
    """Give what this process had read, of as many processes as there are; else what rank 0 had."""
    all_ = state.get("observers") or []
    return all_[distributed.rank()] if len(all_) == distributed.size() else state["observer"]


def _networks(
    settings: Train, prepared: Prepared, state: dict[str, Any] | None, path: Path
) -> tuple[Network, Network | None]:
    """Give the network and, if asked for, the running average of its weights."""
    device, ema = prepared.precision.device, None
    if state is None:
        net = build(prepared.first, settings.seed, initializer=settings.initializer)
    else:
        net = network_of(state, path)
    if settings.ema:
        ema = deepcopy(net) if state is None else network_of(state, path, "ema")
        ema = to_device(ema.requires_grad_(False), device)
    return to_device(net, device), ema
