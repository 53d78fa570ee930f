"""What a comparison can be told: what a run can, and its rows, seeds and engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from nets import Initializer
from nets.checks import check_count
from policies import LayerStatistic, Never, Periodic, Plateau, Policy, RandomSite, StochasticDepth
from training.settings.checks import (
    check_compare,
    check_policy_and_start,
    check_published,
    folder_of,
    named_rows,
    of_row,
)
from training.settings.start_settings import Start
from training.settings.train_settings import Common

OWN = ("schedule", "lr", "rates", "initializer", "batch_growth", "data", "net")
"""What a row may have other than the comparison."""


@dataclass(frozen=True)
class Cell:
    """One row of a comparison.

    Args:
        policy: when and where to grow.
        start: the net to start from; by default as for a training run.
        schedule: of the learning rate, if other than the comparison's.
        lr: the largest learning rate, if other than the comparison's.
        rates: of learning, shared or cohort, if other than the comparison's.
        initializer: of first and new weights, if other than the comparison's.
        batch_growth: if other than the comparison's; 1 is none.
        data: the data set, if other than the comparison's; rows are judged beside those on the same
            data and net.
        net: the limit, if other than the comparison's.
        scratch: a row whose final architecture this row trains from fresh weights, without growth,
            seed by seed.
        yoked: a row at whose times this row grows, by the same kinds and costs, at random sites.
        published: the test accuracy in % that the literature gives for such a row, [mean] or [mean,
            spread]; it is printed beside ours.
    """

    policy: Policy = field(default_factory=Never)
    start: Start | None = None
    schedule: str | None = None
    lr: float | None = None
    rates: str | None = None
    initializer: Initializer | str | None = None
    batch_growth: int | None = None
    data: str | None = None
    net: str | None = None
    scratch: str | None = None
    yoked: str | None = None
    published: list[float] | None = None

    def __post_init__(self) -> None:
        check_policy_and_start(self)
        check_published(self.published)
        if self.batch_growth is not None:
            check_count("batch_growth", self.batch_growth)

    @property
    def source(self) -> str | None:
        """The row that must be finished before this one."""
        return self.yoked if self.scratch is None else self.scratch

    @property
    def is_static(self) -> bool:
        """Whether the row belongs to the static frontier."""
        return isinstance(self.policy, Never) and self.source is None


def pair_of(primary: Sequence[str] | str | None) -> tuple[str, str] | None:
    """Give the two rows that a primary comparison names."""
    if primary is None:
        return None
    words = primary.split(" vs ") if isinstance(primary, str) else primary
    return tuple(str(word).strip() for word in words)  # pyright: ignore[reportReturnType]: checked


def standard_cells() -> dict[str, Cell]:
    """Give the rows of a comparison: static nets, controls and policies."""
    return {
        "static-quarter": Cell(Never(), Start(0.25, None)),
        "static-half": Cell(Never(), Start(0.5, None)),
        "static-full": Cell(Never(), Start(1, None)),
        "periodic": Cell(Periodic()),
        "random-site": Cell(RandomSite()),
        "plateau": Cell(Plateau()),
        "layer-statistic": Cell(LayerStatistic()),
        "stochastic-depth": Cell(StochasticDepth()),
    }


@dataclass(frozen=True, kw_only=True)
class Compare(Common):
    """Policies x seeds in one table, at equal budget, limit and data order.

    Args:
        seeds: one run of every row each.
        cells: the rows by name; by default static nets at a quarter, half and all of the limit's
            width, and every policy in the box.
        only: the rows that this call runs, as [a, b] or "a,b"; by default all. The comparison keeps
            all of its rows: a later call without it runs the rest.
        primary: the claim, named before the first run: two rows, as [a, b] or "a vs b".
        out: the folder; it holds ROW/seedN/, comparison.csv, comparison.md and report.html. What is
            finished in it is not run again.
        engine: pool (processes on this machine) or ray.
        workers: runs at a time, without ray; by default per_gpu on every GPU, or on CPUs as many as
            there are cores for their threads. 1 runs them in this process.
        per_gpu: runs at a time on each GPU; by default 1, since processes take turns on a GPU, and
            where NVIDIA's MPS runs, so that they need not, 8 of nets as small as resnet20 and 4
            of those as small as resnet56.
        address: of a Ray cluster to join, such as auto or HOST:6379; by default Ray runs here.
        dry_run: print the matrix and what it will take, and run nothing.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    cells: dict[str, Cell] = field(default_factory=standard_cells)
    only: list[str] | str | None = None
    primary: list[str] | str | None = None
    out: str = "runs/comparison"
    engine: str = "pool"
    workers: int | None = None
    per_gpu: int | None = None
    address: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "cells", named_rows(self.cells, Cell))
        check_compare(self)
        for name in self.cells:
            with of_row(name):
                Common(**self.common(name))

    @property
    def folder(self) -> Path:
        """The comparison's folder."""
        return folder_of(self.out)

    @property
    def pair(self) -> tuple[str, str] | None:
        """The two rows of the primary comparison."""
        return pair_of(self.primary)

    @property
    def chosen(self) -> list[str]:
        """The rows that this call runs."""
        if self.only is None:
            return list(self.cells)
        if not isinstance(self.only, str):
            return list(dict.fromkeys(map(str, self.only)))
        whole = self.only in self.cells  # a name may hold a comma
        names = [self.only] if whole else map(str.strip, self.only.split(","))
        return list(dict.fromkeys(names))

    def common(self, name: str) -> dict[str, Any]:
        """Give by name what a row's runs are told beside policy, start, seed and folder.

        What the row has of its own goes first, then what the row that it follows has: `scratch` or
        `yoked` takes that one's schedule, learning rates, initializer and growth of the batch.
        """
        cell = self.cells[name]
        rows = (cell,) if cell.source is None else (cell, self.cells[cell.source])
        found: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(Common)}
        for item in OWN:
            given = (getattr(row, item) for row in rows)
            found[item] = next((value for value in given if value is not None), found[item])
        return found

    def ground(self, name: str) -> tuple[str, str]:
        """Give a row's data and net: rows that share them are judged together."""
        cell = self.cells[name]
        data = self.data if cell.data is None else cell.data
        return data, self.net if cell.net is None else cell.net
