"""A run in progress: its data, network, optimizer and counters, made anew or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from analysis import Observer, Record, read_history
from analysis.recording.files import writing
from analysis.recording.timeline import statistics_of
from analysis.showing.board import Board
from nets import Architecture, Cost, Network, build, cost
from nets.checks import check_count
from nets.modules.draws import generator_of
from training.data.augmenting import augment_of
from training.data.batches import Batches, evaluation_batches
from training.data.identity import difference, identity_of
from training.data.images import Images
from training.data.normalisation import channel_statistics
from training.data.splits import Splits, load, part_of
from training.keeping import ranks
from training.keeping.budget import Budget, Progress
from training.keeping.folder import append_losses, binding, claim, cut_back
from training.keeping.locks import alone
from training.keeping.process import own_process
from training.running.checkpoint import (
    load_checkpoint,
    load_optimizer_state,
    network_of,
    save_checkpoint,
    set_generators,
)
from training.running.finite import check_losses, check_state
from training.running.judgement import check_policy, own_copy
from training.running.model import model_of
from training.running.step import LOSSES, Loss, Precision, make_optimizer
from training.settings.config_yaml import settings_to_dict, settings_to_yaml
from training.settings.train import Train

PROBE = 128
"""Training images of the probe batch; growth is checked on the first CHECKED of them."""
CHECKED = 32


@dataclass
class Run:
    """All that a training loop holds between steps.

    `model` is the network in the form that training steps call: wrapped for several processes,
    compiled. The board is rank 0's. On several processes layers are read on each one's part of the
    batches, and rank 0's readings are the record's; gradients are those of the whole batch.
    """

    settings: Train
    folder: Path
    precision: Precision
    splits: Splits
    judged: Images  # of the validation split: what records look at
    statistics: tuple[Tensor, Tensor]  # mean and std by channel
    batches: Batches
    loss: Loss
    limit: Cost
    budget: Budget
    probe: tuple[Tensor, Tensor]
    net: Network
    model: nn.Module
    ema: Network | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    observer: Observer
    window: Tensor  # (3,) summed loss, correct, images of this process since the last record
    trace: list[Tensor]  # `window` after every step that losses.csv lacks, and once before them
    progress: Progress
    history: list[Record]
    board: Board | None
    held: ExitStack  # the lock on the folder, and what the process was like before
    stateful: bool = False  # whether the policy was seen to change, which is told once

    @property
    def spent(self) -> float:
        """Fraction of the budget spent."""
        return self.budget.spent(self.progress)

    @property
    def record_due(self) -> bool:
        """Whether another part of the budget has been spent since the last record."""
        return int(self.spent * self.settings.record_count) > self.progress.boundary

    def write_losses(self) -> None:
        """Add the latest steps to losses.csv; all processes call it, rank 0 writes.

        Raises:
            NonFinite: a loss is NaN or infinite; nothing is written then.
        """
        sums = ranks.total(torch.stack(self.trace)).diff(dim=0)  # (steps, 3)
        losses = [total / count if count else None for total, _, count in sums.tolist()]
        check_losses(self, losses)
        if ranks.rank() == 0:
            append_losses(self.folder, self.progress.step - len(losses), losses)

    def save(self, name: str = "checkpoint.pt") -> None:
        """Write the state to a file of the run folder; all processes call it, rank 0 writes.

        Raises:
            NonFinite: a part of the state is NaN or infinite; nothing is written then.
        """
        check_state(self)
        window = ranks.total(self.window)
        if ranks.rank() > 0:
            return
        path = self.folder / name
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        identity = binding(settings_to_dict(self.settings))
        save_checkpoint(
            path,
            self.net,
            self.optimizer,
            self.progress,
            self.observer,
            window,
            identity,
            self.ema,
            self.scaler,
        )


@dataclass(frozen=True)
class Ground:
    """What a run stands on: all that can be refused before anything is written."""

    precision: Precision
    splits: Splits
    statistics: tuple[Tensor, Tensor]  # mean and std by channel
    batches: Batches
    limit: Architecture
    first: Architecture
    data: Mapping[str, Any]  # what makes the data the same, of `training.data.identity`


def ground_of(settings: Train) -> Ground:
    """Load the data and check the settings against it.

    Raises:
        ValueError: the data or the settings cannot be used.
    """
    precision = Precision.of(settings)
    least = 2 * settings.accumulate * ranks.size()  # BatchNorm needs two images
    check_count("batch_size", settings.batch_size, least)
    splits = load(settings.data, settings.data_dir)
    limit = settings.limit(splits.classes, splits.image)
    first = settings.first(limit)
    statistics = channel_statistics(splits.train)
    augment = augment_of(settings.data, settings.augment, splits.image)
    batches = Batches(
        splits.train,
        settings.batch_size,
        settings.seed,
        precision.device,
        augment,
        *statistics,
        ranks.rank(),
        ranks.size(),
    )
    data = identity_of(splits, augment)
    return Ground(precision, splits, statistics, batches, limit, first, data)


def check_processes(data: Mapping[str, Any]) -> None:
    """Raise a ValueError on every process if one of them, on another machine, say, sees others."""
    told = difference(ranks.from_first(lambda: data), data)
    if ranks.greatest(bool(told)):
        here = told or "other data on another process"
        raise ValueError(f"data must be the same on all processes, got {here}")


def open_run(settings: Train) -> Run:
    """Make a run in its folder, or take up the one that is there; nobody else may write there.

    Raises:
        ValueError: the data, the settings or the folder cannot be used, or another process uses it;
            nothing is overwritten.
    """
    with ExitStack() as held:
        held.enter_context(own_process(settings))
        check_policy(settings.policy)
        settings = replace(settings, policy=own_copy(settings.policy))
        text, ground = settings_to_yaml(settings), ground_of(settings)
        check_processes(ground.data)
        held.enter_context(ranks.on_first(alone(settings.folder)))
        run = _open(settings, text, ground)
        run.held = held.pop_all()
    return run


def _open(settings: Train, text: str, ground: Ground) -> Run:
    """Make or take up the run in a folder that is ours; `text` is its config.yaml."""
    device, folder = ground.precision.device, settings.folder
    plain = settings_to_dict(settings)
    ranks.from_first(lambda: claim(folder, plain, text, settings.resume, ground.data))
    path = folder / "checkpoint.pt"
    state = load_checkpoint(path, binding(plain)) if path.exists() else None
    torch.manual_seed(settings.seed)
    net, ema = _networks(state, path, ground.first, settings, device)
    model = model_of(net, settings)
    optimizer, scaler = make_optimizer(net, settings), ground.precision.scaler()
    observer = Observer(net, optimizer, settings.observe_every)
    window = torch.zeros(3, dtype=torch.float64, device=device)
    progress = Progress()
    if state is not None:
        progress = restore(state, path, net, optimizer, scaler, observer, window)
    history = read_history(folder, progress.records) if progress.records else []
    # From the start: TensorBoard purges nothing at the first such mark that it sees.
    marks = {"purge_step": progress.step + 1, "charted": bool(statistics_of(history))}
    ranks.from_first(lambda: cut_back(folder, progress.records, progress.step))
    return Run(
        settings=settings,
        folder=folder,
        precision=ground.precision,
        splits=ground.splits,
        judged=part_of(ground.splits.validation, settings.validation_images),
        statistics=ground.statistics,
        batches=ground.batches,
        loss=LOSSES[ground.splits.task],
        limit=cost(ground.limit),
        budget=Budget.of(settings, ground.limit, len(ground.splits.train)),
        probe=probe_of(ground.splits, ground.statistics, device),
        net=net,
        model=model,
        ema=ema,
        optimizer=optimizer,
        scaler=scaler,
        observer=observer,
        window=window,
        trace=[window.clone()],
        progress=progress,
        history=history,
        board=Board(folder, **marks) if ranks.rank() == 0 else None,
        held=ExitStack(),
    )


def restore(
    state: dict[str, Any],
    path: Path,
    net: Network,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
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
        set_generators(state, net.draw.device)
        if observer is not None:
            observer.load_state_dict(state["observer"])
        if window is not None and ranks.rank() == 0:  # it is the sum over all processes
            window.copy_(state["window"].reshape(3))
        return Progress(**state["progress"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error!r}") from None


def _networks(
    state: dict[str, Any] | None,
    path: Path,
    first: Architecture,
    settings: Train,
    device: torch.device,
) -> tuple[Network, Network | None]:
    """Give the network and, if asked for, the running average of its weights."""
    if state is None:
        net = build(first, settings.seed, initializer=settings.initializer)
    else:
        net = network_of(state, path)
    ema = None
    if settings.ema:
        ema = deepcopy(net) if state is None else network_of(state, path, "ema")
        ema = ema.requires_grad_(False).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return net.to(device, memory_format=torch.channels_last), ema  # pyright: ignore[reportCallIssue]


def probe_of(
    splits: Splits, statistics: tuple[Tensor, Tensor], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Give the fixed probe batch: training images, the same for every run on this data."""
    order = torch.randperm(len(splits.train), generator=generator_of("probe"))[:PROBE]
    chosen = splits.train.take(order)
    return next(evaluation_batches(chosen, *statistics, device, batch_size=PROBE))
