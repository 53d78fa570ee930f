"""Where a network lacks capacity: stages ranked by how much the loss depends on them per FLOP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, hypot, log, sqrt
from statistics import fmean, stdev

from analysis.recording.record import Record
from nets import Architecture, Widen, cost

SEEDS = 0.2
"""Standard deviation of the logarithm of two stages' ratio between seeds (docs/capacity.md): what
the records of a single run cannot show. Two of it are a factor of 1.5."""
RECORDS = 10
"""So many of the last records are looked at."""
YOUNG = 2
"""So many records after an edit show what initialization did."""
LEAST = 3
"""Of fewer records nothing is said."""


@dataclass(frozen=True)
class Place:
    """A stage or a block.

    Args:
        name: its name.
        score: how much an image's loss depends on one of its channels, over the FLOPs of one
            more; the mean of the logarithms over the records, with 1 for the (geometric) mean of
            all stages.
        low, high: one standard error below it and above, as of `Ranking.error`.
        width: inner channels, summed over its blocks.
        share: its part of the net's FLOPs that goes with inner channels, in [0, 1].
    """

    name: str
    score: float
    low: float
    high: float
    width: int
    share: float


@dataclass(frozen=True)
class Ranking:
    """Where capacity is missing, the places where most is first.

    Args:
        places: stages, or the blocks of a net of one stage; empty where nothing could be compared.
        blocks: all blocks.
        first: the place where capacity is missing, None where nothing tells.
        ratio, error: how many times the score of the second the first's is, and the factor of one
            standard error: over the records, and `SEEDS`; 1 without two places.
        records: how many records were looked at.
        why: the verdict in one sentence.
    """

    places: tuple[Place, ...]
    blocks: tuple[Place, ...]
    first: str | None
    ratio: float
    error: float
    records: int
    why: str

    @property
    def verdict(self) -> str:
        """The first place's name, or "nothing tells"."""
        return self.first or "nothing tells"


def rank(history: Sequence[Record]) -> Ranking:
    """Rank the stages by how much the loss depends on a channel for the FLOPs that it costs.

    A stage whose channels each carry more of the loss than those of the others, FLOP for FLOP, has
    too few of them. Compared are the last records since the network last changed, without the first
    two: a record has one number a block (`Record.sensitivity`), and a stage has its blocks' mean.
    The first is named if it is two standard errors from the second, which are never less than a
    factor of 1.5. docs/capacity.md has what this tells and what it does not.

    Args:
        history: at least one record; those without sensitivities are left out.
    """
    chosen = _comparable(history)
    blocks = {name: _logs(chosen, [name]) for name in (chosen[-1].sensitivity if chosen else ())}
    stages: dict[str, list[str]] = {}
    for name in blocks:
        stages.setdefault(name.partition(".")[0], []).append(name)
    groups = stages if len(stages) > 1 else {name: [name] for name in blocks}
    if len(chosen) < LEAST or len(groups) < 2:
        return Ranking((), (), None, 1.0, 1.0, len(chosen), _nothing(history, chosen, groups))
    architecture, logs = chosen[-1].architecture, {n: _logs(chosen, b) for n, b in groups.items()}
    middle = fmean(fmean(values) for values in logs.values())
    own = {name: [name] for name in blocks}
    places = _places(architecture, groups, logs, middle)
    first, second = (logs[place.name] for place in places[:2])
    gaps = [one - other for one, other in zip(first, second)]
    gap, error = fmean(gaps), _error(gaps)
    named = gap >= 2 * error
    return Ranking(
        places,
        _places(architecture, own, blocks, middle),
        places[0].name if named else None,
        exp(gap),
        exp(error),
        len(chosen),
        _words(places, gap, error, named),
    )


def _comparable(history: Sequence[Record]) -> list[Record]:
    """Give the last records of the present network that hold what is compared."""
    now, since = history[-1].architecture.widths, len(history)
    while since and history[since - 1].architecture.widths == now:
        since -= 1
    rested = history[since + YOUNG :][-RECORDS:]
    known = set(history[-1].sensitivity)
    return [each for each in rested if known and known <= set(each.sensitivity)]


def _logs(records: Sequence[Record], blocks: Sequence[str]) -> list[float]:
    """Give, by record, the logarithm of the blocks' mean sensitivity for a FLOP."""
    found = []
    for record in records:
        prices = channel_flops(record.architecture)
        values = [record.sensitivity[block] / prices[block] for block in blocks]
        found.append(log(max(fmean(values), 1e-300)))
    return found


def _error(logs: Sequence[float]) -> float:
    """Give the standard error of a mean over records, and over seeds that nobody ran."""
    return hypot(stdev(logs) / sqrt(len(logs)), SEEDS)


@lru_cache(maxsize=64)
def channel_flops(architecture: Architecture) -> Mapping[str, int]:
    """Give, by block, the FLOPs an image that one inner channel more costs."""
    before = cost(architecture).flops
    return {
        name: cost(architecture.apply(Widen(name, 1))).flops - before
        for name, block in architecture.blocks.items()
        if not block.fade
    }


def _places(
    architecture: Architecture,
    groups: Mapping[str, Sequence[str]],
    logs: Mapping[str, Sequence[float]],
    middle: float,
) -> tuple[Place, ...]:
    prices, width = channel_flops(architecture), architecture.blocks
    total = sum(width[block].width * price for block, price in prices.items())
    places = []
    for name, members in groups.items():
        values = [value - middle for value in logs[name]]
        score, error = fmean(values), _error(values)
        flops = sum(width[block].width * prices[block] for block in members)
        size = sum(width[block].width for block in members)
        bounds = exp(score - error), exp(score + error)
        places.append(Place(name, exp(score), *bounds, size, flops / total))
    return tuple(sorted(places, key=lambda place: -place.score))


def _words(places: Sequence[Place], gap: float, error: float, named: bool) -> str:
    first, second = places[:2]
    low, high = exp(gap - 2 * error), exp(gap + 2 * error)
    times = f"{exp(gap):.1f} times as much ({low:.1f} to {high:.1f}) as on those of {second.name}"
    if named:
        return (
            f"Capacity is missing in {first.name}: per FLOP, the loss depends on its channels "
            f"{times}, the next."
        )
    return (
        f"Nothing tells: per FLOP, the loss depends on the channels of {first.name} {times}, which "
        "is within two standard errors of equal."
    )


def _nothing(
    history: Sequence[Record], chosen: Sequence[Record], groups: Mapping[str, object]
) -> str:
    if not any(record.sensitivity for record in history):
        return "Nothing tells: the records hold no sensitivities, as those of earlier versions."
    if len(chosen) < LEAST:
        return (
            f"Nothing tells yet: {LEAST} records are asked after the first {YOUNG} of the present "
            f"network, and there are {len(chosen)}."
        )
    return f"Nothing tells: there is only {', '.join(groups)}, and nothing to compare it with."
