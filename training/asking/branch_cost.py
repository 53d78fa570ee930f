"""How long branches train: for equal FLOPs or equal steps, and what that takes in all."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import ceil
from pathlib import Path

from analysis.judging.growth_sites import KINDS
from nets import Action, Architecture, train_flops
from nets.checks import check_choice, check_count
from training.asking.branch_points import BranchPoint

BUDGETS = ("flops", "steps")


@dataclass(frozen=True)
class Plan:
    """How long branches train, in how many data orders, and at which sites.

    Args:
        steps: of the branch that does what was done.
        orders: data orders.
        budget: flops: every branch trains for as many FLOPs as that one, growing included; steps:
            for as many steps.
        kinds: of sites.
        sites: of each kind at the most; None for all.
    """

    steps: int = 200
    orders: int = 3
    budget: str = "flops"
    kinds: tuple[str, ...] = tuple(KINDS)
    sites: int | None = None

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("orders", self.orders)
        check_choice("budget", self.budget, BUDGETS)
        if not self.kinds:
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got none")
        for kind in self.kinds:
            check_choice("kinds", kind, tuple(KINDS))
        if self.sites is not None:
            check_count("sites", self.sites)

    def steps_of(self, point: BranchPoint, architecture: Architecture, spent: int = 0) -> int:
        """Give how many steps a branch takes whose growth has cost so many FLOPs; at least 1.

        As a run it ends with the first step that reaches the budget.
        """
        if self.budget == "steps":
            return self.steps
        images = point.settings.batch_size
        after = reduce(Architecture.apply, point.record.applied, point.record.architecture)
        left = self.steps * images * train_flops(after) - spent
        return max(1, ceil(left / (images * train_flops(architecture))))


def work(plan: Plan, point: BranchPoint, actions: Sequence[Action]) -> tuple[int, int]:
    """Give about how many steps and training FLOPs a branch takes."""
    architecture = reduce(Architecture.apply, actions, point.record.architecture)
    steps = plan.steps_of(point, architecture)
    return steps, steps * point.settings.batch_size * train_flops(architecture)


def seconds_a_flop(run: Path) -> float | None:
    """Give how long a run took for a training FLOP, records and all, as its metrics.csv says."""
    try:
        lines = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
        last = list(csv.DictReader(lines))[-1]
        return float(last["seconds"]) / float(last["train_flops"])
    except (OSError, LookupError, ValueError, TypeError, ZeroDivisionError):
        return None
