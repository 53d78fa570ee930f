"""Rank correlation of the layers' statistics with what growth at each site brought."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean
from typing import Any

from analysis.observing.reading import STATISTICS
from analysis.recording.phrases import phrase
from analysis.recording.record import Record
from nets import Action, Insert, cost

NONE = "none"
LEAST_SITES = 3
"""A rank correlation over fewer sites is left out."""


@dataclass(frozen=True)
class Site:
    """A growth that was tried, and by how much the loss was lower with it, one gain a data order.

    `action` is None for a growth at several places. `flops` and `parameters` are what it adds.
    """

    name: str
    action: Action | None
    flops: int
    parameters: int
    gains: tuple[float, ...]

    @property
    def block(self) -> str:
        """The block that is widened, or after which one is inserted."""
        return getattr(self.action, "after", "") or getattr(self.action, "block", "")


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a statistic with the gain, over `sites` growths of one kind.

    `rho` is with the mean gain; `orders` has that of each data order alone.
    """

    statistic: str
    kind: str
    sites: int
    rho: float
    orders: tuple[float, ...]


def site_of(
    record: Record, actions: Sequence[Action], gains: Sequence[float], name: str = ""
) -> Site:
    """Give the growth as a row, sized against the architecture of the record."""
    architecture = record.architecture
    for action in actions:
        architecture = architecture.apply(action)
    before, after = record.cost, cost(architecture)
    return Site(
        name or ", ".join(map(phrase, actions)),
        actions[0] if len(actions) == 1 else None,
        after.flops - before.flops,
        after.parameters - before.parameters,
        tuple(gains),
    )


def block_statistics(record: Record) -> dict[str, dict[str, float]]:
    """Give every statistic by name and role, such as "response_std, inner", as {block: value}.

    Of a block's several inner layers the mean counts, of its streams the block's own output. Last
    comes the place of the block in the network: a statistic that tells no more than it has merely
    found the stage.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for path, reading in record.layers.items():
        block = reading.block
        if block is None or (reading.role == "stream" and path != block):
            continue
        for name in (*STATISTICS, *reading.extra):
            value = reading.value(name)
            if value is not None:
                found.setdefault(f"{name}, {reading.role}", {}).setdefault(block, []).append(value)
    table = {name: {b: mean(v) for b, v in blocks.items()} for name, blocks in found.items()}
    if record.importance:
        table["importance"] = dict(record.importance)
    table |= {name: dict(found) for name, found in record.probes.items()}
    table["place in the network"] = {b: float(i) for i, b in enumerate(record.architecture.blocks)}
    return table


def correlations(record: Record, sites: Sequence[Site]) -> list[Correlation]:
    """Give each statistic's rank correlation with the gain, for widening and inserting apart.

    What is the same at all sites, or is known of fewer than three, has none.
    """
    found = []
    for kind in ("widen", "insert"):
        of_kind = [
            s for s in sites if s.action and isinstance(s.action, Insert) == (kind != "widen")
        ]
        for statistic, values in block_statistics(record).items():
            known = [site for site in of_kind if site.block in values]
            ranked = [values[site.block] for site in known]
            rho = spearman(ranked, [mean(site.gains) for site in known])
            if rho is not None:
                alone = [spearman(ranked, gains) for gains in zip(*(s.gains for s in known))]
                orders = tuple(each for each in alone if each is not None)
                found.append(Correlation(statistic, kind, len(known), rho, orders))
    return found


def agreement(sites: Sequence[Site]) -> float | None:
    """Give the mean rank correlation between the gains of two data orders.

    No statistic can be expected to tell the gains better than another data order does.
    """
    orders = list(zip(*(site.gains for site in sites if site.action is not None)))
    pairs = [spearman(one, other) for one, other in combinations(orders, 2)]
    known = [rho for rho in pairs if rho is not None]
    return mean(known) if known else None


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Give Spearman's rank correlation, None for fewer than three pairs or values all the same."""
    from scipy.stats import spearmanr  # imported late: it takes most of a second

    if len(first) < LEAST_SITES or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that are not finite
        test: Any = spearmanr(first, second)
    return float(test.statistic) if test.statistic == test.statistic else None
