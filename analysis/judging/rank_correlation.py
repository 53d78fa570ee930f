"""Rank correlation of the layers' statistics with what growth at each site brought, and chance.

One definition throughout: the value is the mean, over data orders, of Spearman's correlation of the
statistic with the gains of that order, and its spread is the lowest and the highest of those: both
lie in [-1, 1], and the value between the two. What chance alone gives comes from permuting the
sites, alike in all orders: the noise of the gains and their agreement stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations
from statistics import mean

import numpy as np

from analysis.judging.growth_sites import KINDS, Site, block_statistics, value_at
from analysis.judging.significance import holm
from analysis.recording.record import Record

LEAST_SITES = 3
"""A rank correlation over fewer sites is left out."""
LEVEL = 0.05
"""Where even the strongest correlation that the sites allow is above it by chance, none tells."""
EXACT, DRAWS = 8, 20_000
"""All permutations are tried of up to so many sites, and of more so many drawn ones."""


@dataclass(frozen=True)
class Correlation:
    """The rank correlation of a statistic with the gain, over `sites` growths of one kind.

    `rho` is the mean of `orders`, that of each data order alone. `p` is the share of permutations
    of the sites that give as much, with either sign, and `least_p` the smallest there could be.
    """

    statistic: str
    kind: str
    sites: int
    rho: float
    orders: tuple[float, ...]
    p: float
    least_p: float

    @property
    def telling(self) -> bool:
        """Whether so many sites, and values that differ, could tell it from chance at all."""
        return self.least_p <= LEVEL


@dataclass(frozen=True)
class Chance:
    """What chance gives for one kind of site.

    `bound`: at most 5 % of the permutations go beyond it, for a statistic without ties. `least_p`
    is the p of the strongest correlation possible. `agreement`: see there.
    """

    kind: str
    sites: int
    orders: int
    bound: float
    least_p: float
    agreement: float | None


@dataclass(frozen=True)
class Pooled:
    """A statistic's correlations at several growth steps: their mean, and the values themselves."""

    statistic: str
    kind: str
    rho: float
    points: tuple[float, ...]


def correlations(record: Record, sites: Sequence[Site]) -> list[Correlation]:
    """Give each statistic's rank correlation with the gain, for each kind of site apart.

    What is the same at all sites, or is known of fewer than three, has none; nor has a data order
    in which all gains are the same.
    """
    found, table = [], block_statistics(record)
    for kind in KINDS:
        for statistic, values in table.items():
            pairs = [
                (value, site.gains)
                for site in _of_kind(sites, kind)
                if (value := value_at(site, record.architecture, values)) is not None
            ]
            ranks = _ranks([value for value, _ in pairs])
            orders = _by_order([gains for _, gains in pairs])
            if ranks is None or not orders:
                continue
            each = tuple(_product(ranks, gains) for gains in orders)
            rho, null = mean(each), np.abs(_permuted(ranks) @ np.mean(orders, axis=0))
            p, least = (float(np.mean(null >= value - 1e-9)) for value in (abs(rho), null.max()))
            found.append(Correlation(statistic, kind, len(pairs), rho, each, p, least))
    return found


def chances(sites: Sequence[Site]) -> list[Chance]:
    """Give what chance alone gives, for each kind that has three sites or more."""
    found = []
    for kind in KINDS:
        own = _of_kind(sites, kind)
        ranks, orders = _ranks(range(len(own))), _by_order([site.gains for site in own])
        if ranks is not None and orders:
            null = np.abs(_permuted(ranks) @ np.mean(orders, axis=0))
            bound = float(np.quantile(null, 1 - LEVEL, method="higher"))
            least = float(np.mean(null >= null.max() - 1e-9))
            found.append(Chance(kind, len(own), len(orders), bound, least, agreement(own)))
    return found


def agreement(sites: Sequence[Site]) -> float | None:
    """Give the mean rank correlation between the gains of two data orders.

    It is the share of a gain's variance (of ranks) that is the site's and not noise: a statistic
    that knew it exactly would reach about its square root (Spearman 1904), and none is expected to
    tell more.
    """
    orders = zip(*(site.gains for site in sites if site.action is not None))
    pairs = [spearman(one, other) for one, other in combinations(list(orders), 2)]
    known = [rho for rho in pairs if rho is not None]
    return mean(known) if known else None


def pooled(points: Sequence[Sequence[Correlation]]) -> list[Pooled]:
    """Read the correlations of several growth steps together, each step counting alike.

    Those of too few sites to tell are left out. Steps of one run are not independent, so that no p
    is given.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for each in (one for point in points for one in point if one.telling):
        values.setdefault((each.statistic, each.kind), []).append(each.rho)
    return [Pooled(*key, mean(rhos), tuple(rhos)) for key, rhos in values.items()]


def adjusted(found: Sequence[Correlation]) -> Mapping[tuple[str, str], float]:
    """Give Holm's p by (statistic, kind), over all that could tell something."""
    keys = {f"{each.kind}: {each.statistic}": each for each in found if each.telling}
    raised = holm({name: each.p for name, each in keys.items()})
    return {(each.statistic, each.kind): raised[name] for name, each in keys.items()}


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Give Spearman's rank correlation, None for fewer than three pairs or values all the same.

    None too where a value is no number.
    """
    one, other = _ranks(first), _ranks(second)
    return None if one is None or other is None else _product(one, other)


def _of_kind(sites: Sequence[Site], kind: str) -> list[Site]:
    return [site for site in sites if site.kind == kind and site.finite]


def _by_order(gains: Sequence[Sequence[float]]) -> list[np.ndarray]:
    """Give the ranks of each data order's gains, those apart that are all the same."""
    return [ranks for order in zip(*gains) if (ranks := _ranks(order)) is not None]


def _ranks(values: Sequence[float]) -> np.ndarray | None:
    """Give ranks about 0 of norm 1, (n,), ties sharing their mean; None where there are none."""
    from scipy.stats import rankdata  # imported late: it takes most of a second

    if len(values) < LEAST_SITES or len(set(values)) < 2 or np.isnan(values).any():
        return None
    ranks = rankdata(values) - (len(values) + 1) / 2
    return ranks / np.linalg.norm(ranks)


def _product(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.clip(one @ other, -1, 1))


def _permuted(ranks: np.ndarray) -> np.ndarray:
    """Give the ranks in every order of the sites, or in many, their own first, (orders, n)."""
    return ranks[_permutations(len(ranks))]


@lru_cache(maxsize=16)
def _permutations(number: int) -> np.ndarray:
    if number <= EXACT:
        return np.array(list(permutations(range(number))))
    own = np.arange(number)[None]
    drawn = np.random.default_rng(0).permuted(np.tile(own, (DRAWS - 1, 1)), axis=1)
    return np.concatenate([own, drawn])
