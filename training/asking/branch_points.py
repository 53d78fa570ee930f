"""The places in a run from which branches begin, and the growths that are tried at one of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from analysis import Record, read_history
from analysis.judging.rank_correlation import NONE, site_of
from analysis.recording.phrases import no_growth, phrase
from nets import Action, Insert, Widen
from nets.plan.actions import INITIALIZERS, adds_capacity
from policies.base import largest_by, largest_width
from training.deciding.refusals import admit
from training.keeping.run_folder import binding, read_config
from training.settings.train_settings import Common, Train

LEAST_SHARE = 0.75
"""A growth that comes to less than this share of the recorded one's FLOPs is not of equal cost."""
Candidates = dict[str, tuple[Action, ...]]


@dataclass(frozen=True)
class BranchPoint:
    """The place in a run where the branches begin: its record, and the state before its growth.

    `identity` is what the kept checkpoint must hold of the run's settings.
    """

    run: Path
    record: Record
    settings: Train
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> Path:
        """The kept checkpoint."""
        return self.run / "growth" / f"step{self.record.step:07d}.pt"

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.run / "branch" / f"step{self.record.step:07d}"

    @property
    def grown(self) -> tuple[Action, ...]:
        """What the run added here."""
        return tuple(filter(adds_capacity, self.record.applied))


def branch_point_of(run: Path, at: int | None = None) -> BranchPoint:
    """Find a growth step of a run, by default the first; a ValueError lists those there are."""
    history = read_history(run)
    config = read_config(run)
    names = [item.name for item in fields(Common) if item.name in config]  # and no policy
    if "seed" not in config:
        raise ValueError(f"out: {run}/config.yaml cannot be read: it holds no seed")
    if not isinstance(config.get("initializer", ""), str):
        raise ValueError(
            f"initializer of {run} must be one of {', '.join(INITIALIZERS)} for a branch, which "
            "imports no class that a folder names"
        )
    settings = Train(**{name: config[name] for name in names}, seed=config["seed"], out=str(run))
    identity = binding({name: config[name] for name in (*names, "seed")})
    points = [BranchPoint(run, record, settings, identity) for record in history]
    points = [point for point in points if point.grown and point.state.exists()]
    if not points:
        why = no_growth(history) or "its growth/ is gone; train it again"
        raise ValueError(
            f"run must have a growth step whose state it kept in growth/, got {run}: {why}"
        )
    if at is None:
        return points[0]
    found = [point for point in points if point.record.step == at]
    if not found:
        steps = ", ".join(str(point.record.step) for point in points)
        raise ValueError(f"at must be one of the growth steps {steps} of {run}, got {at}")
    return found[0]


def candidates(point: BranchPoint) -> tuple[Candidates, list[str]]:
    """Give every growth at one site that costs as much as the recorded one, and no growth.

    The recorded one is among them, also where it is at several sites. Second come those that are
    left out, each as a line that says why.
    """
    record, grown = point.record, point.grown
    flops = site_of(record, grown, ()).flops
    found: Candidates = {NONE: ()}
    left_out = []
    for block in record.architecture.blocks:
        for kind, largest in ((Widen, largest_by), (Insert, largest_width)):
            try:
                amount = largest(record.architecture, block, flops)
                action = kind(block, max(1, amount))
                decision = admit(record.architecture, [action], record.limit, may_grow=True)
            except ValueError as error:
                left_out.append(f"{kind.__name__} at {block}: {error}")
                continue
            added = site_of(record, [action], ()).flops if decision.applied else 0
            if decision.refused:
                left_out.append(f"{phrase(action)}: {decision.refused[0][1]}")
            elif not LEAST_SHARE * flops <= added <= flops:
                left_out.append(f"{phrase(action)}: adds {added:,} FLOPs, not about {flops:,}")
            else:
                found[phrase(action)] = (action,)
    if grown not in found.values():
        done = "what was done: " + ", ".join(map(phrase, grown))
        unknown = {getattr(action, "initializer", None) for action in grown} - {None, *INITIALIZERS}
        if unknown:
            left_out.append(f"{done}: {unknown.pop()} is known by its name alone")
        else:
            found[done] = grown
    return found, left_out
