"""The net that a run starts from, and what it may be."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from analysis.recording.atomic_files import path_of
from nets import Architecture, cost, seed_of
from nets.checks import check_count, check_fraction


@dataclass(frozen=True)
class Start:
    """The net that a run starts from, as a part of the limit network.

    Args:
        width: fraction of the limit's inner widths, above 0 and at most 1.
        blocks: blocks of each stage; null keeps all.
        stream: fraction of the limit's residual streams, above 0 and at most 1.
        architecture: a run's architecture.json to start from instead, at any width and depth; the
            others are left out then. All of it trains, whatever that run held or was fading.
    """

    width: float = 0.25
    blocks: int | None = 1
    stream: float = 1.0
    architecture: str | None = None

    def __post_init__(self) -> None:
        check_fraction("start.width", self.width)
        check_fraction("start.stream", self.stream)
        if self.blocks is not None:
            check_count("start.blocks", self.blocks)
        if self.architecture is not None:
            for name in ("width", "blocks", "stream"):
                if (value := getattr(self, name)) != getattr(Start, name):
                    got = "null" if value is None else value
                    told = f"start.{name} must be left out with start.architecture, got {got}"
                    raise ValueError(told)

    def within(self, limit: Architecture) -> Architecture:
        """Give the net; a ValueError if it costs more than the limit or is made for other data."""
        first = seed_of(limit, self.width, self.blocks, self.stream)
        if self.architecture is not None:
            first = _read_architecture(self.architecture)
            if (first.image, first.classes) != (limit.image, limit.classes):
                wanted, got = (
                    f"images {net.image} and {net.classes} classes" for net in (limit, first)
                )
                raise ValueError(
                    f"start.architecture must be made for this data ({wanted}), got {got}"
                )
        if cost(first).flops > cost(limit).flops or cost(first).parameters > cost(limit).parameters:
            raise ValueError(f"start must cost at most the limit {cost(limit)}, got {cost(first)}")
        return first


def _read_architecture(path: str) -> Architecture:
    """Read an architecture to train from fresh weights, of which nothing is held and none fade."""
    file = path_of("start.architecture", path)
    try:
        found = Architecture.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"start.architecture must be an architecture.json, got {path!r}: {why}"
        ) from None
    return found.thawed().with_each_block(lambda block: replace(block, fade=0))
