"""Growth of a given cost at sites in order of preference: within the limit, and a block's cap."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, floor, inf
from random import Random
from typing import Any, NamedTuple

from analysis import Record
from nets import Action, Architecture, Cost, Insert, Widen, WidenStage, cost
from nets.checks import check_choice, check_fraction
from nets.plan.blocks import Stage
from policies.base import growths, largest_amount, room
from policies.times import History, Time, check_time, growths_to_come

MOST = 2.0
"""A block's inner width at most, as a multiple of its stream's, unless another is asked for.

In bottlenecks, whose streams are four times as wide as the blocks, of a quarter of its stream's.
The other way round a stream is widened up to as many times the thinnest block of its stage.
"""
_REST = 0.25
"""A growth that has used all but this part of its FLOPs is whole; smaller edits are crumbs."""


KINDS = {"widen": ("widen",), "insert": ("insert",), "both": ("widen", "insert")}
"""What the setting `edit` of a policy lets it do to blocks."""


@dataclass(frozen=True)
class Choice:
    """A growth at a block: "widen" it, "insert" after it, or widen the "stream" of its stage."""

    kind: str
    block: str
    reason: str = ""


def kinds_of(history: History, edit: str, streams: bool | None) -> tuple[str, ...]:
    """Give the kinds of growth that a policy chooses from, in turn.

    `streams` None takes streams in turn if the blocks of the first net fill theirs, as where it
    began with thin ones.
    """
    if streams is None:
        first = history[0].architecture
        streams = first.block != "plain" and all(
            block.width >= full_width(first, stage)
            for stage in first.stages
            for block in stage.blocks
        )
    return (*KINDS[edit], "stream") if streams else KINDS[edit]


def last_kinds(edit: str, streams: bool | None) -> tuple[str, ...]:
    """Give the kinds of growth that a policy falls back on where its choices have no room.

    Blocks that can only widen come to their cap, and need wider streams then.
    """
    return (*KINDS[edit], "stream") if streams is None and edit == "widen" else ()


def check_growth(policy: Any) -> None:
    """Raise a ValueError unless the settings that growing policies share are in range."""
    check_time("every", policy.every)
    check_time("cooldown", policy.cooldown, least=0)
    if policy.share is not None:
        check_fraction("share", policy.share)
    streams = getattr(policy, "streams", None)
    if streams is not None and not isinstance(streams, bool):
        raise ValueError(f"streams must be true, false or null, got {streams!r}")
    check_choice("edit", getattr(policy, "edit", "both"), tuple(KINDS))
    check_widest(getattr(policy, "widest", None))


def check_widest(widest: object) -> None:
    """Raise a ValueError unless it is a number of at least 1, or None for no cap."""
    number = isinstance(widest, int | float) and not isinstance(widest, bool)
    if widest is not None and not (number and 1 <= widest < inf):  # pyright: ignore
        raise ValueError(f"widest must be at least 1 and finite, or null, got {widest!r}")


def share_of(history: History, share: float | None, every: Time) -> float:
    """Give the share of the limit that a growth adds now: `share`, or else an equal part of all.

    What is left of the limit's FLOPs is divided by the growths to come, this one included, so that
    the last of them reaches the limit, and each makes up what those before it missed.
    """
    record = history[-1]
    if share is not None:
        return share
    left = record.limit.flops - record.cost.flops
    return left / record.limit.flops / growths_to_come(history, every)


def shuffled(record: Record, names: Iterable[str]) -> list[str]:
    """Give the names in an order drawn from (seed, step): a stable sort then breaks ties by it."""
    found = list(names)
    Random(f"{record.seed}:{record.step}").shuffle(found)
    return found


def kinds_in_turn(history: History, block: str, kinds: Sequence[str]) -> list[str]:
    """Give the kinds of growth, first what was done least often at this site.

    Each site has turns of its own, so that no rhythm of a policy keeps one from a kind. A stream is
    a site of its own.
    """
    stage = history[-1].architecture.stage_of(block).name
    done = [site_of(action) for action in growths(history)]
    counts = {kind: done.count((kind, stage if kind == "stream" else block)) for kind in kinds}
    return sorted(kinds, key=lambda kind: counts[kind])


def site_of(action: Widen | WidenStage | Insert) -> tuple[str, str]:
    """Give the kind of a growth, and the block or stage that it was at."""
    if isinstance(action, WidenStage):
        return "stream", action.stage
    return ("insert", action.after) if isinstance(action, Insert) else ("widen", action.block)


def grow_at(
    history: History,
    choices: Sequence[Choice],
    share: float,
    widest: float | None = MOST,
    *,
    survival: float = 1.0,
    others: Sequence[Choice] = (),
) -> list[Action]:
    """Give the growth by `share` of the limit's FLOPs at the first of the choices that can.

    A choice takes as much as it may, a new block no more than the width of its stream; what it
    leaves goes to the next. One is passed over if the parameters that it takes would be
    missing for the FLOPs that are left, at the rate of the cheapest site. `others` are taken where
    the choices have no room for all but a quarter of the share.

    Args:
        history: the present record is the last.
        choices: in order of preference.
        share: of the limit's FLOPs, above 0 and at most 1.
        widest: see `MOST`; None for no cap.
        survival: of newborn blocks.
        others: what is left where there is no choice.

    Raises:
        ValueError: the record has no limit.
    """
    record = history[-1]
    whole, parameters = room(record, share)
    architecture, actions = record.architecture, list[Action]()
    kinds = dict.fromkeys(choice.kind for choice in (*choices, *others))
    rate = _cheapest_rate(architecture, kinds, widest)
    missing = parameters < rate * (record.limit.flops - record.cost.flops)
    last = 0.0 if missing else rate  # nothing can be held back where it is missing already
    for offered, reserve in ((choices, rate), (others, rate), ((*choices, *others), last)):
        for choice in offered:
            part = whole - _added(architecture, record)
            if part <= _REST * whole:
                break
            action = _fitting(architecture, choice, record.limit, part, reserve, widest, survival)
            if action is not None:
                actions.append(action)
                architecture = architecture.apply(action)
    return said(actions, architecture, record.limit)


def _added(architecture: Architecture, record: Record) -> int:
    return cost(architecture).flops - record.cost.flops


def _fitting(
    architecture: Architecture,
    choice: Choice,
    limit: Cost,
    part: float,
    rate: float,
    widest: float | None,
    survival: float,
) -> Action | None:
    """Give the largest edit of a choice that adds at most `part` FLOPs; None if there is none.

    A crumb is none: an edit that adds less than a quarter of both `part` and its layer's width.
    """
    now = cost(architecture)
    parameters = limit.parameters - now.parameters
    spare = max(0.0, parameters - rate * (limit.flops - now.flops))
    edit = edit_of(architecture, choice, widest, survival)
    if edit.least > edit.most:
        return None
    try:
        amount = largest_amount(
            architecture,
            edit.make,
            edit.least,
            part,
            parameters,
            lambda flops, more: rate == 0 or more - rate * flops <= spare,
        )
    except ValueError:  # the architecture takes no such edit
        return None
    amount = int(min(amount, edit.most))
    if not amount:
        return None
    added = cost(architecture.apply(edit.make(amount))).flops - now.flops
    crumb = added < _REST * part and amount < _REST * edit.width
    return None if crumb else edit.make(amount)


def full_width(architecture: Architecture, stage: Stage) -> int:
    """Give the inner width that goes with a stage's stream as published; 0 in a plain net."""
    return max(1, stage.width // 4) if architecture.block == "bottleneck" else stage.width


class Edit(NamedTuple):
    """A growth by some amount: how it is made, its least and most amount, and what is there."""

    make: Callable[[int], Action]
    least: int
    most: float
    width: int


def edit_of(
    architecture: Architecture, choice: Choice, widest: float | None, survival: float = 1.0
) -> Edit:
    """Give the growth that a choice stands for, within the cap."""
    name, why, stage = choice.block, choice.reason, architecture.stage_of(choice.block)
    width, full = architecture.blocks[name].width, full_width(architecture, stage)
    if choice.kind == "stream":
        thinnest = min(block.width for block in stage.blocks)
        most = floor((widest or MOST) * thinnest / full * stage.width) if full else 0
        make = partial(WidenStage, stage.name, reason=why)
        return Edit(make, 1, most - stage.width, stage.width)
    if choice.kind == "insert":
        least = ceil(full / 4) or width  # a layer of a plain net begins as the identity
        make = partial(Insert, name, survival=survival, reason=why)
        return Edit(make, least, full or inf, full)
    most = floor(widest * full) - width if widest and full else inf
    return Edit(partial(Widen, name, reason=why), 1, most, width)


def _cheapest_rate(
    architecture: Architecture, kinds: Collection[str], widest: float | None
) -> float:
    """Give the fewest parameters for a FLOP at any stage, and 2 % more for what is rounded.

    Of the kinds of growth that counts which a cap does not end: new blocks, else wider streams.
    """
    kind = next((kind for kind in ("insert", "stream", "widen") if kind in kinds), "widen")
    now, rates = cost(architecture), list[float]()
    for stage in architecture.stages:
        edit = edit_of(architecture, Choice(kind, stage.blocks[0].name), widest)
        try:
            after = cost(architecture.apply(edit.make(edit.least)))
        except ValueError:  # the architecture takes no such edit
            continue
        rates.append((after.parameters - now.parameters) / (after.flops - now.flops))
    return 1.02 * min(rates, default=0.0)


def said(actions: Sequence[Action], after: Architecture, limit: Cost) -> list[Action]:
    """Give the actions; the reason of the last says which of the limit's costs is reached.

    Reached is 98 % and more.
    """
    costs = cost(after)
    reached = [
        name
        for name, used, most in (
            ("FLOPs", costs.flops, limit.flops),
            ("parameters", costs.parameters, limit.parameters),
        )
        if used >= 0.98 * most
    ]
    if not actions or not reached:
        return list(actions)
    last: Any = actions[-1]
    reason = f"{last.reason}; reaches the limit's {' and '.join(reached)}"
    return [*actions[:-1], replace(last, reason=reason.removeprefix("; "))]
