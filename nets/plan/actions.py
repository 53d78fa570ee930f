"""What an edit of an architecture is, and the edits that add something, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from nets.checks import check_choice, check_count, check_fraction, in_one_line
from nets.plan.architecture import Architecture
from nets.plan.blocks import DROPS, Block

INITIALIZERS = ("he", "xavier", "net2net", "gradmax", "variance-transfer", "xavier-outgoing")
"""The known names; nets.initializing.by_name has the objects."""
MOST_OF_A_REASON = 1000
"""Characters."""


@dataclass(frozen=True)
class Action:
    """An edit of an architecture.

    Where it has a `reason`, for logs, that is kept as one line of text of at most 1000 characters:
    None as nothing, another value (a statistic, say) as it prints.
    """

    def __post_init__(self) -> None:
        if hasattr(self, "reason"):
            reason: Any = self.reason  # pyright: ignore[reportAttributeAccessIssue]
            text = "" if reason is None else in_one_line(reason, MOST_OF_A_REASON)
            object.__setattr__(self, "reason", text)

    def edit(self, architecture: Architecture) -> Architecture:
        """Give the next architecture; a ValueError says why there is none."""
        raise ValueError(f"{type(self).__name__} does not say how it edits an architecture")


@dataclass(frozen=True)
class Reasoned(Action):
    """An edit in the box, with a `reason`; printed, it begins with what it does."""

    reason: str = field(default="", compare=False, kw_only=True)

    def __repr__(self) -> str:
        items = sorted(fields(self), key=lambda item: bool(item.kw_only))
        values = ", ".join(f"{item.name}={getattr(self, item.name)!r}" for item in items)
        return f"{type(self).__name__}({values})"


@dataclass(frozen=True, repr=False)
class Addition(Reasoned):
    """An edit that makes the network larger; `initializer` overrides the one given to `grow`."""

    initializer: Any = field(default=None, compare=False, kw_only=True)


@dataclass(frozen=True, repr=False)
class Widen(Addition):
    """Add `by` inner channels to a block; the outputs of the network stay the same.

    Args:
        block: its name, "stage1.block2", say.
        by: at least 1; a bottleneck gains so many at both places.
        initializer, reason: of the edit alone; edits that differ in nothing else are equal. None
            is the initializer given to `grow`.
    """

    block: str
    by: int

    def edit(self, architecture: Architecture) -> Architecture:
        check_count("by", self.by)
        architecture.stage_of(self.block)
        block = architecture.blocks[self.block]
        return architecture.with_block(replace(block, width=block.width + self.by))


@dataclass(frozen=True, repr=False)
class WidenStage(Addition):
    """Add `by` channels to a residual stream; the outputs of the network stay the same.

    One atomic edit through all that gives to the stream and takes from it. Stages that hand the
    stream on without a projection, and a stem that does, share it and widen with it.

    Args:
        stage: its name, "stage2", say.
        by: at least 1.
        initializer, reason: as of Widen.
    """

    stage: str
    by: int

    def edit(self, architecture: Architecture) -> Architecture:
        check_count("by", self.by)
        stages = architecture.stages
        names = [stage.name for stage in stages]
        check_choice("stage", self.stage, tuple(names))
        if architecture.block == "plain":
            raise ValueError(f"{self.stage} is of a plain net: it has no residual stream to widen")
        first = last = names.index(self.stage)
        while first > 0 and not stages[first].projection:
            first -= 1
        while last + 1 < len(stages) and not stages[last + 1].projection:
            last += 1
        wider = tuple(
            replace(stage, width=stage.width + self.by) if first <= number <= last else stage
            for number, stage in enumerate(stages)
        )
        from_stem = first == 0 and not stages[0].projection
        stem_width = architecture.stem_width + self.by * from_stem
        return replace(architecture, stages=wider, stem_width=stem_width)


@dataclass(frozen=True, repr=False)
class Insert(Addition):
    """Add a block after one of the same stage; it gets the stage's next name.

    In a plain net the new layer starts as the identity, so it must be at least as wide as the layer
    before it.

    Args:
        after: the name of the block before it.
        width: inner channels, at least 1.
        survival: chance in (0, 1] to keep its branch in training; 1 drops it never.
        initializer, reason: as of Widen.
    """

    after: str
    width: int
    survival: float = 1.0

    def edit(self, architecture: Architecture) -> Architecture:
        check_count("width", self.width)
        check_fraction("survival", self.survival)
        stage = architecture.stage_of(self.after)
        before = architecture.blocks[self.after]
        check_repeatable(architecture, "inserted")
        if architecture.block == "plain" and self.width < before.width:
            raise ValueError(
                f"width must be at least {before.width}, the width of {self.after} "
                f"(a new layer of a plain net starts as the identity), got {self.width}"
            )
        if architecture.block == "plain" and before.frozen and not before.whole:
            raise ValueError(
                f"after must be a layer without frozen channels, whose outgoing columns are frozen "
                f"too; {self.after} has {before.frozen}"
            )
        born = Block(f"{stage.name}.block{stage.births + 1}", self.width, self.survival)
        place = stage.blocks.index(before) + 1
        blocks = (*stage.blocks[:place], born, *stage.blocks[place:])
        return architecture.with_stage(replace(stage, blocks=blocks, births=stage.births + 1))


@dataclass(frozen=True, repr=False)
class SetSurvival(Reasoned):
    """Set the probability in (0, 1] with which a block's branch is kept in training.

    Kept branches are scaled by 1/probability, as in torchvision.ops.StochasticDepth (Huang et al.
    2016, arXiv 1603.09382), with its modes: "batch" draws once for a batch, "row" for each sample.
    A plain net has no branch to drop.
    """

    block: str
    probability: float
    mode: str = "batch"

    def edit(self, architecture: Architecture) -> Architecture:
        check_fraction("probability", self.probability)
        check_choice("mode", self.mode, DROPS)
        architecture.stage_of(self.block)
        if architecture.block == "plain":
            raise ValueError(
                f"{self.block} is a layer of a plain net: it has no residual branch to drop"
            )
        return architecture.with_block(
            replace(architecture.blocks[self.block], survival=self.probability, drop=self.mode)
        )


def adds_capacity(action: Action) -> bool:
    """Say whether the action makes the network larger."""
    return isinstance(action, Addition)


def check_repeatable(architecture: Architecture, done: str) -> None:
    """Raise a ValueError if a block that adds nothing would still change what passes it."""
    if not architecture.repeatable:
        raise ValueError(
            f"order must be pre, or activation relu, for a block to be {done} without a trace, got "
            f"{architecture.order} and {architecture.activation}"
        )
