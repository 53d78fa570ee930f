"""What branches gave: kept in files as it comes, and told as tables, one growth step or several."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.judging.growth_sites import Site, site_of
from analysis.judging.rank_correlation import (
    Correlation,
    adjusted,
    chances,
    correlations,
    pooled,
)
from analysis.recording.atomic_files import write_whole
from analysis.recording.phrases import phrase, spread
from analysis.showing.tables import correlation_table, gain_table, pooled_table, to_csv
from nets.plan.actions import adds_capacity
from training.asking.branch_candidates import DONE, NONE, Candidates, base_of
from training.asking.branch_cost import Plan
from training.asking.branch_points import BranchPoint

Key = tuple[str, int, int, str]
"""Budget, steps, order, growth."""
_SHOWN = 3
"""Actions beside growth that are named."""


@dataclass
class Tried:
    """The branches of one growth step: what each does, what is left out, and what is finished."""

    point: BranchPoint
    wanted: Candidates
    left_out: list[str]
    finished: dict[Key, dict[str, Any]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file of what is finished."""
        return self.point.out / "branches.csv"

    def keep(self, plan: Plan, order: int, name: str, result: Mapping[str, Any]) -> None:
        """Write down one more finished branch."""
        self.finished[plan.budget, plan.steps, order, name] = dict(result)
        names = ("budget", "steps", "order", "growth")
        rows = [{**dict(zip(names, key)), **found} for key, found in self.finished.items()]
        write_whole(self.path, to_csv(rows))

    def results(self, plan: Plan, name: str) -> list[dict[str, Any]]:
        """Give what a growth came to, one result a data order."""
        orders = range(plan.orders)
        return [self.finished[plan.budget, plan.steps, order, name] for order in orders]

    def read(self) -> None:
        """Read what is finished.

        Rows of an earlier version, which grew and did nothing else at equal steps, count where the
        run did nothing else either.

        Raises:
            ValueError: the file cannot be read.
        """
        if not self.path.exists():
            return
        alone = all(map(adds_capacity, self.point.record.applied))
        try:
            for row in csv.DictReader(self.path.read_text(encoding="utf-8").splitlines()):
                key = row.get("budget") or "steps", int(row["steps"]), int(row["order"])
                result = {
                    "loss": float(row["loss"]),
                    "accuracy": float(row["accuracy"]) if row["accuracy"] else None,
                    "taken": int(row.get("taken") or row["steps"]),
                }
                if "budget" in row or alone:
                    self.finished[*key, row["growth"]] = result
        except (KeyError, ValueError, TypeError):
            raise ValueError(
                f"{self.path} cannot be read; remove it to train its branches anew"
            ) from None


def sites_of(tried: Tried, plan: Plan) -> list[Site]:
    """Give every growth with its gains, and the steps that its branch took."""
    base, before = tried.results(plan, NONE), base_of(tried.point)
    found = []
    for name, actions in tried.wanted.items():
        if name != NONE:
            results = tried.results(plan, name)
            gains = [one["loss"] - other["loss"] for one, other in zip(base, results)]
            grown = list(filter(adds_capacity, actions))
            site = site_of(before, grown, gains, name, results[0]["taken"])
            found.append(replace(site, action=None) if name.startswith(DONE) else site)
    return found


def report(tried: Tried, plan: Plan) -> tuple[str, list[Correlation]]:
    """Write gains.csv, correlations.csv and branch.md; give the last, and the correlations."""
    point, sites = tried.point, sites_of(tried, plan)
    record, base = point.record, tried.results(plan, NONE)
    found = correlations(record, sites)
    rows = [
        {"growth": site.name, "order": order, "gain": gain, "kind": site.kind, "steps": site.steps}
        for site in sites
        for order, gain in enumerate(site.gains)
    ]
    write_whole(point.out / "gains.csv", to_csv(rows))
    write_whole(point.out / "correlations.csv", to_csv(_rows(found)))
    flops = site_of(base_of(point), point.grown).flops
    lines = [
        f"# {point.run}, the growth at step {record.step} ({record.spent:.0%} of the budget)",
        f"{len(sites)} growths of about {flops:,} FLOPs, {plan.steps} steps, {plan.orders} data "
        f"orders (mean ± sample std over them). {_lengths(plan)} {_beside(tried)}"
        f"Without growth the validation loss is {spread([each['loss'] for each in base])} after "
        f"{base[0]['taken']} steps.",
        gain_table(sites, point.grown),
        "Rank correlation (Spearman) of the statistics at that step with the gain: mean over the "
        "data orders [lowest, highest of them], p from permuting the sites:",
        correlation_table(found, chances(sites)),
    ]
    if tried.left_out:
        lines.append("\n".join(["Left out:", *(f"- {line}" for line in tried.left_out)]))
    text = "\n\n".join(lines)
    write_whole(point.out / "branch.md", text + "\n")
    return text, found


def together(tries: Sequence[Tried], found: Sequence[Sequence[Correlation]]) -> str:
    """Read several growth steps together; write pooled.csv and pooled.md beside the first's."""
    runs = list(dict.fromkeys(each.point.run for each in tries))
    steps = [f"{each.point.run} step {each.point.record.step}" for each in tries]
    read, folder = pooled(found), tries[0].point.out.parent
    plain = [{**asdict(each), "points": " ".join(map(repr, each.points))} for each in read]
    write_whole(folder / "pooled.csv", to_csv(plain))
    text = "\n\n".join(
        [
            f"# {len(tries)} growth steps, runs: {len(runs)}",
            f"{', '.join(steps)}. Mean over the steps of their rank correlations [lowest, highest "
            "of them]. Steps of one run are not independent.",
            pooled_table(read, len(tries)),
        ]
    )
    write_whole(folder / "pooled.md", text + "\n")
    return text


def _rows(found: Sequence[Correlation]) -> list[dict[str, Any]]:
    raised = adjusted(found)
    return [
        {
            **asdict(each),
            "orders": " ".join(map(repr, each.orders)),
            "lowest": min(each.orders),
            "highest": max(each.orders),
            "holm_p": raised.get((each.statistic, each.kind)),
        }
        for each in found
    ]


def _lengths(plan: Plan) -> str:
    if plan.budget == "steps":
        return "All branches take as many steps, larger nets with more FLOPs."
    return (
        "All branches train for as many FLOPs as so many steps of the net that the run grew into, "
        "growing included."
    )


def _beside(tried: Tried) -> str:
    """Say what else is done in every branch."""
    beside = [action for action in tried.point.record.applied if not adds_capacity(action)]
    if not beside:
        return ""
    more = f" and {len(beside) - _SHOWN} more" if len(beside) > _SHOWN else ""
    kept = tried.wanted[NONE]
    without = "all of it" if len(kept) == len(beside) else f"{len(kept)} of {len(beside)}"
    names = ", ".join(map(phrase, beside[:_SHOWN]))
    return f"As the run did, every growth goes with {names}{more} (without growth: {without}). "
