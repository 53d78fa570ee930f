"""The places in a run from which branches begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import Record, read_history
from analysis.recording.phrases import no_growth
from nets import Action
from nets.plan.actions import adds_capacity
from training.asking.recorded_settings import Told, told_of
from training.computing.learning_rate import batch_factor
from training.settings.train_settings import Train

ALL = "all"


@dataclass(frozen=True)
class BranchPoint:
    """The place in a run where the branches begin: its record, and the state before its growth.

    `identity` is what the kept checkpoint must hold of the run's settings, `policy` those of its
    policy as config.yaml has them.
    """

    run: Path
    record: Record
    settings: Train
    identity: dict[str, Any] = field(default_factory=dict)
    policy: Any = None

    @property
    def state(self) -> Path:
        """The kept checkpoint."""
        return self.run / "growth" / f"step{self.record.step:07d}.pt"

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.run / "branch" / f"step{self.record.step:07d}"

    @property
    def images(self) -> int:
        """How many images a step of a branch takes (an epoch holds more than one such step)."""
        limit, architecture = self.record.limit, self.record.architecture
        return self.settings.batch_size * batch_factor(self.settings, limit, architecture)

    @property
    def grown(self) -> tuple[Action, ...]:
        """What the run added here."""
        return tuple(filter(adds_capacity, self.record.applied))

    @property
    def done(self) -> tuple[Action, ...]:
        """All that the run did here, in order, with initializers as objects where files name them.

        Raises:
            ValueError: an initializer is known by its name alone.
        """
        return Told(self.settings, self.identity, self.policy).done(self.record, self.run)


def branch_point_of(run: Path, at: int | None = None) -> BranchPoint:
    """Find a growth step of a run, by default the first; a ValueError lists those there are."""
    return points_of([run], at)[0]


def points_of(runs: Sequence[Path], at: int | str | None = None) -> list[BranchPoint]:
    """Find growth steps of runs: the first of each, all, or those of the numbers, such as "61,122".

    Raises:
        ValueError: a run has none, or a number is not one of them; the message lists them.
    """
    wanted = numbers_of(at)
    named = dict[Path, Path]()  # one folder has many names
    for run in runs:
        named.setdefault(run.resolve(), run)
    by_run = {run: _points(run) for run in named.values()}
    if wanted is None:
        return [points[0] for points in by_run.values()]
    if isinstance(wanted, str):
        return [point for points in by_run.values() for point in points]
    steps = {run: [point.record.step for point in points] for run, points in by_run.items()}
    known = " and ".join(f"{', '.join(map(str, own))} of {run}" for run, own in steps.items())
    for number in wanted:
        if not any(number in own for own in steps.values()):
            raise ValueError(f"at must be one of the growth steps {known}, got {number}")
    for run, own in steps.items():
        if not set(own) & set(wanted):
            raise ValueError(
                f"at must have one of the growth steps of {run} too: {known}, got {at}"
            )
    return [p for points in by_run.values() for p in points if p.record.step in wanted]


def numbers_of(at: int | str | None) -> Sequence[int] | str | None:
    """Give the steps that a text such as "61,122" names, "all" as it is, None for none.

    Raises:
        ValueError: it names no integers.
    """
    if at is None:
        return None
    if at == ALL:
        return ALL
    try:
        return [int(word) for word in str(at).split(",")]
    except ValueError:
        raise ValueError(
            f"at must be an integer, got {at!r}; or several, such as 61,122, or {ALL}"
        ) from None


def _points(run: Path) -> list[BranchPoint]:
    """Give all growth steps of a run whose state it kept."""
    history = read_history(run, name="run")
    told = told_of(run)
    rest = told.settings, told.identity, told.policy
    points = [BranchPoint(run, record, *rest) for record in history]
    points = [point for point in points if point.grown and point.state.exists()]
    if not points:
        why = no_growth(history) or "its growth/ is gone; train it again"
        raise ValueError(
            f"run must have a growth step whose state it kept in growth/, got {run}: {why}"
        )
    return points
