"""The growths that were tried at one place in a run, and what the layers said there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import mean

from analysis.observing.reading import STATISTICS
from analysis.recording.phrases import phrase
from analysis.recording.record import Record
from nets import Action, Architecture, Insert, Widen, WidenStage, cost

KINDS = {"widen": Widen, "insert": Insert, "streams": WidenStage}
"""Kinds of sites: a block's inner channels, a new block after one, the channels of a stream."""


@dataclass(frozen=True)
class Site:
    """A growth that was tried, and by how much the loss was lower with it, one gain a data order.

    `action` is None for a growth that is no site: at several places, say. `flops` and `parameters`
    are what it adds, `steps` what a branch with it took.
    """

    name: str
    action: Action | None
    flops: int
    parameters: int
    gains: tuple[float, ...]
    steps: int = 0

    @property
    def kind(self) -> str:
        """One of KINDS, or nothing."""
        return next((name for name, kind in KINDS.items() if isinstance(self.action, kind)), "")

    @property
    def finite(self) -> bool:
        """Whether every gain is a number; one of a branch that diverged is not."""
        return all(map(isfinite, self.gains))


def site_of(
    before: Architecture,
    actions: Sequence[Action],
    gains: Sequence[float] = (),
    name: str = "",
    steps: int = 0,
) -> Site:
    """Give the growth as a row, sized against the architecture before it."""
    after = before
    for action in actions:
        after = after.apply(action)
    old, new = cost(before), cost(after)
    return Site(
        name or ", ".join(map(phrase, actions)),
        actions[0] if len(actions) == 1 else None,
        new.flops - old.flops,
        new.parameters - old.parameters,
        tuple(gains),
        steps,
    )


def blocks_of(site: Site, architecture: Architecture) -> list[str]:
    """Give the block that a site widens or inserts after, or those on the stream that it widens."""
    if isinstance(site.action, WidenStage):
        pairs = zip(architecture.stages, architecture.apply(site.action).stages)
        wider = [stage for stage, after in pairs if stage.width != after.width]
        return [block.name for stage in wider for block in stage.blocks]
    place = getattr(site.action, "after", "") or getattr(site.action, "block", "")
    return [place] if place else []


def value_at(site: Site, architecture: Architecture, values: Mapping[str, float]) -> float | None:
    """Give a statistic of blocks at a site: of a stream the mean over its blocks, if it has one."""
    known = [values[block] for block in blocks_of(site, architecture) if block in values]
    return mean(known) if known else None


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
    table |= {name: dict(found) for name, found in record.of_blocks.items()}
    table["place in the network"] = {b: float(i) for i, b in enumerate(record.architecture.blocks)}
    return table
