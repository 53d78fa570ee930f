"""What a policy is, and the `where` functions that policies call; `when` is in policies.times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import isfinite

from analysis import Record
from analysis.recording.probed import Probe
from analysis.recording.record import UNBOUNDED
from nets import Action, Architecture, Insert, Widen, WidenStage, cost
from policies.times import (
    History,
    Time,
    due,
    flat,
    in_records,
    levelled,
    losses_of,
    since_growth,
    stalled,
)

__all__ = [
    "History",
    "Policy",
    "Time",
    "due",
    "flat",
    "growths",
    "in_records",
    "insert",
    "largest_amount",
    "largest_by",
    "largest_width",
    "levelled",
    "losses_of",
    "room",
    "series",
    "since_growth",
    "sites",
    "stalled",
    "widen",
]


class Policy(ABC):
    """Decides when and where to grow.

    Subclasses are frozen dataclasses whose fields are their settings. `decide` is a pure function
    of the history: no network, no state, randomness only from the record's seed and step. What
    needs the network is a probe: name it in `needs`, and the loop measures it into every record,
    where `probed` finds it. Amounts of growth are given as a `share` of the limit's FLOPs an image,
    times as fractions of the budget or counts of records (policies.times).

    A probe is one in the box ("importance", "effective_rank", "gradient_signal_to_noise", "gain")
    or a function of one's own. It takes a copy of the network in eval mode, the probe batch as
    (inputs, targets) and the loss, and gives finite numbers by block, or by layer's path; its
    name is the function's. An object that is called so is one too, under its `name`.
    """

    needs = tuple[Probe, ...]()  # unannotated: no field, and no name for jsonargparse to resolve

    def needs_at(self, history: History) -> Sequence[Probe]:
        """Give those of `needs` that history[-1], the present, must hold: all of them.

        A policy that decides now and then may leave out what it would pay for in vain.
        """
        return self.needs

    @abstractmethod
    def decide(self, history: History) -> Sequence[Action]:
        """Give the actions to take now; history[-1] is the present, with nothing decided yet."""


# Where ------------------------------------------------------------------------------------------


def series(history: History, layer: str, statistic: str) -> list[float]:
    """Give a layer's statistic over the records since the layer's block was last edited.

    Records in which it is missing, or not finite, are left out.
    """
    last = history[-1].layers.get(layer)
    values: list[float] = []
    for record in reversed(history):
        reading = record.layers.get(layer)
        if last is None or (reading is not None and reading.edited != last.edited):
            break
        value = None if reading is None else reading.value(statistic)
        values.extend([] if value is None or not isfinite(value) else [value])
    return values[::-1]


def growths(history: History) -> list[Widen | WidenStage | Insert]:
    """Give the growth actions that were applied, in order."""
    applied = [action for record in history for action in record.applied]
    return [action for action in applied if isinstance(action, Widen | WidenStage | Insert)]


def sites(history: History, cooldown: Time = 1) -> list[str]:
    """Give the blocks that may be edited: all but those edited within `cooldown`.

    Edited is what was born, widened (its stream too), narrowed, or had a block inserted after it. A
    newborn's statistics say what its initialisation did, not what it needs. A block that fades is
    left alone too.
    """
    records = in_records(history, cooldown)
    recent = [_places(record.architecture) for record in history[-records - 1 :]]
    blocks = history[-1].architecture.blocks
    rested = [name for name, now in recent[-1].items() if all(p.get(name) == now for p in recent)]
    return [name for name in rested if not blocks[name].fade]


def _places(architecture: Architecture) -> dict[str, tuple[tuple[int, int], str]]:
    """Give each block's widths and the name of the block after it."""
    following = [*architecture.blocks, ""][1:]
    return {
        name: (widths, after)
        for (name, widths), after in zip(architecture.widths.items(), following)
    }


def largest_by(
    architecture: Architecture, block: str, flops: float, parameters: float = float("inf")
) -> int:
    """Give the largest `by` for which Widen(block, by) adds at most so much; 0 if none."""
    return largest_amount(architecture, lambda by: Widen(block, by), 1, flops, parameters)


def largest_width(
    architecture: Architecture, after: str, flops: float, parameters: float = float("inf")
) -> int:
    """Give the largest `width` for which Insert(after, width) adds at most so much; 0 if none."""
    architecture.stage_of(after)  # refuses an unknown name
    least = architecture.blocks[after].width if architecture.block == "plain" else 1
    return largest_amount(architecture, lambda by: Insert(after, by), least, flops, parameters)


def largest_amount(
    architecture: Architecture,
    action: Callable[[int], Action],
    least: int,
    flops: float,
    parameters: float,
    spared: Callable[[int, int], bool] = lambda flops, parameters: True,
) -> int:
    """Give the largest amount, from `least` on, whose action adds at most so much; 0 if none.

    `spared` may refuse more of (FLOPs, parameters) added; what it refuses, it refuses of more too.
    """
    if flops == parameters == float("inf"):
        raise ValueError(f"flops must be finite unless parameters are, got {flops}")
    before = cost(architecture)

    def fits(amount: int) -> bool:
        after = cost(architecture.apply(action(amount)))
        added = after.flops - before.flops, after.parameters - before.parameters
        return added[0] <= flops and added[1] <= parameters and spared(*added)

    if not fits(least):
        return 0
    low, high = least, least * 2
    while fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def room(record: Record, share: float = 1.0) -> tuple[float, float]:
    """Give the FLOPs and parameters that a growth may add: `share` of the limit, within the limit.

    The share is of FLOPs; of parameters all that is left may be used.

    Raises:
        ValueError: the record has no limit.
    """
    if record.limit == UNBOUNDED:
        raise ValueError("limit must be given to grow by a share of it, got a record without one")
    left = record.limit.flops - record.cost.flops
    return min(share * record.limit.flops, left), record.limit.parameters - record.cost.parameters


def widen(history: History, block: str, share: float, reason: str = "") -> list[Action]:
    """Give the widening of a block that uses up `share`, or nothing if none fits."""
    by = largest_by(history[-1].architecture, block, *room(history[-1], share))
    return [Widen(block, by, reason=reason)] if by else []


def insert(
    history: History, after: str, share: float, reason: str = "", survival: float = 1.0
) -> list[Action]:
    """Give the insertion that uses up `share`, at most as wide as its stream.

    Nothing if less than a quarter of the stream's width fits. In a plain net, which has no stream,
    as wide as `share` allows.
    """
    architecture = history[-1].architecture
    width = largest_width(architecture, after, *room(history[-1], share))
    stream = architecture.stage_of(after).width
    if width == 0 or width < stream / 4:
        return []
    return [Insert(after, min(width, stream or width), survival, reason=reason)]
