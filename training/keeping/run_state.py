"""The state of a run between its steps: networks, optimizer, data, counters, history."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from analysis import Observer, Record
from analysis.showing.tensorboard_writer import Board
from nets import Architecture, CohortRates, Cost, Network
from policies import Never
from training.computing.budget import Budget, Progress
from training.computing.clock import Clock
from training.computing.evaluation import Loss
from training.computing.learning_rate import batch_factor
from training.computing.optimizer import Precision
from training.data.batches import Batches
from training.data.images import Images
from training.data.splits import Splits
from training.settings.train_settings import Train

ROWS = 4097
T = TypeVar("T")


class CapturedStep(Protocol):
    """A run's step, captured once and replayed."""

    def step(self, run: Run) -> None:
        """Do what `training.stepping.step.step_on_device` does."""
        ...

    def repeated(self, name: str, work: Callable[[], T]) -> T:
        """Do some other work on the device, which changes nothing there."""
        ...

    def forget(self) -> None:
        """Drop what was captured, of a network that has grown."""
        ...


@dataclass
class Run:
    """All that a training loop holds between steps.

    `model` is the network in the form that training steps call: wrapped for several processes,
    compiled. The board is rank 0's. On several processes layers are read on each one's part of the
    batches, and a record has the means over all of them; gradients are those of the whole batch.
    """

    settings: Train
    folder: Path
    precision: Precision
    splits: Splits
    judged: Images  # of the validation split, on the device: what records look at
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
    trace: Tensor  # (ROWS, 3): `window` before and after every step that losses.csv lacks
    clock: Clock  # the next step's numbers
    rates: CohortRates | None = None  # None: all weights share the clock's
    captured: CapturedStep | None = None  # None: steps run as they are written
    untold: int = 0  # steps that losses.csv lacks
    progress: Progress = field(default_factory=Progress)
    history: list[Record] = field(default_factory=list)
    board: Board | None = None
    held: ExitStack = field(default_factory=ExitStack)  # the folder's lock, the process's settings
    saved: float = 0.0  # progress.seconds at the last checkpoint, the same in all processes
    spared: bool = False  # whether it has one thread because its limit is small; told once
    stateful: bool = False  # whether the policy was seen to change, which is told once

    def repeated(self, name: str, work: Callable[[], T]) -> T:
        """Do work that changes nothing, and is the same until the network grows, as a replay.

        The tensors that it gives are there until the next such work or step.
        """
        return work() if self.captured is None else self.captured.repeated(name, work)

    def factor_of(self, architecture: Architecture) -> int:
        """Give how many batches of `batch_size` a step of a network takes; see `batch_growth`."""
        return batch_factor(self.settings, self.limit, architecture, self.batches.per_epoch)

    @property
    def factor(self) -> int:
        """How many batches of `batch_size` the next step takes."""
        return self.factor_of(self.net.architecture)

    @property
    def spent(self) -> float:
        """Fraction of the budget spent."""
        return self.budget.spent(self.progress)

    @property
    def record_due(self) -> bool:
        """Whether another part of the budget has been spent since the last record."""
        return int(self.spent * self.settings.record_count) > self.progress.boundary

    @property
    def settled(self) -> bool:
        """Whether nothing grows any more, so that looking for the fastest algorithms pays.

        Measured on an H200, the search takes 0.4 s or more for a new ResNet-20, and saves 0.35 ms
        of its captured step.
        """
        static = isinstance(self.settings.policy, Never)
        return static or self.spent > self.settings.grow_until

    @property
    def ended(self) -> bool:
        """Whether the budget is spent and the last record made.

        A probe or a growth may use up what was left for that record.
        """
        return self.spent >= 1 and not self.record_due
