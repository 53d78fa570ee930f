"""How much a run may spend, and how much it has spent."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nets import Architecture, train_flops
from training.settings.train_settings import Common


@dataclass
class Progress:
    """Where a run is: counters that a checkpoint holds. `seconds` is wall-clock, all else exact."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # batches of this epoch, of `batch_size`, that are behind
    images: int = 0
    flops: int = 0
    seconds: float = 0.0
    records: int = 0
    boundary: int = 0  # equal parts of the budget that have had their record
    skipped: int = 0  # steps left out because a loss or gradient was not finite

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not isinstance(value, int if item.type == "int" else int | float) or value < 0:
                raise ValueError(f"{item.name} must be a number of at least 0, got {value!r}")

    def next_batch(self, per_epoch: int, joined: int = 1) -> None:
        """Count so many batches, taken as one; after an epoch's last one the next epoch begins."""
        self.position += joined
        self.make_room(per_epoch)

    def make_room(self, per_epoch: int, joined: int = 1) -> None:
        """Begin the next epoch if this one has too few batches left to take so many as one.

        Those are left out, as the incomplete last batch of an epoch is.
        """
        if self.position + joined > per_epoch:
            self.epoch, self.position = self.epoch + 1, 0


@dataclass(frozen=True)
class Budget:
    """A total of FLOPs, images or seconds; `kind` says which."""

    kind: str
    total: float

    @classmethod
    def of(cls, settings: Common, limit: Architecture, images: int) -> Budget:
        """Give the budget of the settings for a training set of so many images."""
        totals = {
            "flops": max(1, round(settings.epochs * images * train_flops(limit))),
            "epochs": max(1, round(settings.epochs * images)),
            "seconds": settings.epochs,
        }
        return cls(settings.budget, totals[settings.budget])

    def spent(self, progress: Progress) -> float:
        """Give the fraction spent, in [0, 1]."""
        used = {"flops": progress.flops, "epochs": progress.images, "seconds": progress.seconds}
        return min(1.0, used[self.kind] / self.total)
