"""The edits that add nothing: removing, narrowing, holding fixed, dropping in training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nets.checks import check_choice, check_count, check_fraction
from nets.plan.actions import Action, check_repeatable
from nets.plan.architecture import Architecture
from nets.plan.blocks import DROPS, Block

SALIENCIES = ("magnitude", "activation", "obd")


@dataclass(frozen=True)
class Remove(Action):
    """Take a block away, at once or after its branch has faded.

    With `steps`, the branch is scaled from 1 down to 0 over so many training forwards, and a second
    Remove with `steps=0` takes the block away; the outputs are then exactly those before. Without,
    they jump. A block that changes the stream, a stage's only one, and a layer of a plain net,
    which has no shortcut, stay.
    """

    block: str
    steps: int = 0
    reason: str = field(default="", compare=False, kw_only=True)

    def edit(self, architecture: Architecture) -> Architecture:
        check_count("steps", self.steps, least=0)
        stage = architecture.stage_of(self.block)
        block = architecture.blocks[self.block]
        if architecture.block == "plain":
            raise ValueError(
                f"block {self.block} is a layer of a plain net: no shortcut replaces it"
            )
        if len(stage.blocks) == 1:
            raise ValueError(f"block {self.block} is the only one of {stage.name}")
        if stage.projection and stage.blocks[0] == block:
            raise ValueError(
                f"block {self.block} must stay: it leads into the stream of {stage.name}"
            )
        check_repeatable(architecture, "removed")
        if self.steps:
            if block.fade:
                raise ValueError(f"block {self.block} is fading already, over {block.fade} steps")
            return architecture.with_block(replace(block, fade=self.steps))
        blocks = tuple(other for other in stage.blocks if other != block)
        return architecture.with_stage(replace(stage, blocks=blocks))


@dataclass(frozen=True)
class Narrow(Action):
    """Take the `by` least useful inner channels of a block away, of those that are not frozen.

    Exact for channels whose outgoing weights are 0. A bottleneck loses so many at both places.

    Args:
        saliency: "magnitude": the norm of a channel's outgoing weights, times its BatchNorm's scale
            (after Li et al. 2017, arXiv 1608.08710); "activation": how often it is not 0 on a probe
            batch (one minus APoZ, Hu et al. 2016, arXiv 1607.03250, equation 1); "obd": half the
            expected squared derivative of the loss by a gate on it (Optimal Brain Damage, LeCun et
            al. 1990, in the form for channels of Theis et al. 2018, arXiv 1801.05787, equation 8).
            `grow` needs a probe for the second, its targets and a loss for the third.
    """

    block: str
    by: int
    saliency: str = "magnitude"
    reason: str = field(default="", compare=False, kw_only=True)

    def edit(self, architecture: Architecture) -> Architecture:
        check_count("by", self.by)
        check_choice("saliency", self.saliency, SALIENCIES)
        architecture.stage_of(self.block)
        block = architecture.blocks[self.block]
        most = min(block.width - 1, block.width - block.frozen)
        if self.by > most:
            raise ValueError(
                f"by must be at most {most} for {self.block}, which has {block.width} channels, "
                f"{block.frozen} of them frozen; got {self.by}"
            )
        width = block.width - self.by
        held = (block.held[0], min(block.held[1], width), block.held[2])
        narrower = replace(block, width=width, held=held)
        if architecture.block == "plain":
            return _with_layer(architecture, narrower)
        return architecture.with_block(narrower)


def _with_layer(architecture: Architecture, narrower: Block) -> Architecture:
    """Give a plain net with a narrower layer; what is held around it is at most what is left."""
    blocks = {**architecture.blocks, narrower.name: narrower}
    names, head = list(blocks), architecture.frozen_head
    place = names.index(narrower.name)
    if place > 0:
        before = blocks[names[place - 1]]
        held = (*before.held[:2], min(before.held[2], narrower.width))
        blocks[before.name] = replace(before, held=held)
    if place + 1 < len(names):
        after = blocks[names[place + 1]]
        blocks[after.name] = replace(
            after, held=(min(after.held[0], narrower.width), *after.held[1:])
        )
    else:
        head = min(head, narrower.width)
    stages = tuple(
        replace(stage, blocks=tuple(blocks[block.name] for block in stage.blocks))
        for stage in architecture.stages
    )
    return replace(architecture, stages=stages, frozen_head=head)


@dataclass(frozen=True)
class Freeze(Action):
    """Hold a block, a stage, the stem or the head fixed: no optimizer can move it.

    What is frozen becomes buffers; its BatchNorm entries keep and use their running statistics in
    training too. Later additions to it train. Eval outputs stay the same.

    Args:
        target: a block, a stage, "stem" or "head".
        channels: of a block: how many of its leading inner channels, with their outgoing columns;
            None holds all of the target. Shortcut and outer BatchNorm of a block are held only with
            all of it. A plain net's layer that is held as a whole leaves the next one free.
    """

    target: str
    channels: int | None = None
    reason: str = field(default="", compare=False, kw_only=True)

    def edit(self, architecture: Architecture) -> Architecture:
        names = _blocks_of(architecture, self.target)
        if self.channels is not None:
            return self._edit_channels(architecture)
        if self.target == "stem":
            return replace(architecture, frozen_stem=architecture.stem_width)
        if self.target == "head":
            return replace(architecture, frozen_head=architecture.outgoing)
        for name in names:
            width = architecture.blocks[name].width
            architecture = architecture.with_block(_frozen(architecture, name, width, whole=True))
        return architecture

    def _edit_channels(self, architecture: Architecture) -> Architecture:
        if self.target not in architecture.blocks:
            raise ValueError(f"channels can be given for a block only, got target {self.target!r}")
        block = architecture.blocks[self.target]
        check_count("channels", self.channels, least=max(1, block.frozen))
        assert self.channels is not None
        if self.channels > block.width:
            raise ValueError(
                f"channels must be at most {block.width}, the width of {self.target}, got "
                f"{self.channels}"
            )
        return architecture.with_block(
            _frozen(architecture, self.target, self.channels, whole=block.whole)
        )


@dataclass(frozen=True)
class Unfreeze(Action):
    """Let a block, a stage, the stem or the head train again, all of it."""

    target: str
    reason: str = field(default="", compare=False, kw_only=True)

    def edit(self, architecture: Architecture) -> Architecture:
        names = _blocks_of(architecture, self.target)
        if self.target == "stem":
            return replace(architecture, frozen_stem=0)
        if self.target == "head":
            return replace(architecture, frozen_head=0)
        for name in names:
            architecture = architecture.with_block(architecture.blocks[name].thawed())
        return architecture


def _blocks_of(architecture: Architecture, target: str) -> tuple[str, ...]:
    """Name the blocks of a target; none for stem and head."""
    stages = {stage.name: stage for stage in architecture.stages}
    stem = () if architecture.stem == "none" else ("stem",)
    check_choice("target", target, (*stem, *stages, *architecture.blocks, "head"))
    if target in stages:
        return tuple(block.name for block in stages[target].blocks)
    return (target,) if target in architecture.blocks else ()


def _frozen(architecture: Architecture, name: str, channels: int, whole: bool) -> Block:
    block = architecture.blocks[name]
    held = (architecture.incoming[name], block.width, architecture.following(name))
    return replace(block, frozen=channels, held=held, whole=whole)


@dataclass(frozen=True)
class SetSurvival(Action):
    """Set the probability in (0, 1] with which a block's branch is kept in training.

    Kept branches are scaled by 1/probability, as in torchvision.ops.StochasticDepth (Huang et al.
    2016, arXiv 1603.09382), with its modes: "batch" draws once for a batch, "row" for each sample.
    A plain net has no branch to drop.
    """

    block: str
    probability: float
    mode: str = "batch"
    reason: str = field(default="", compare=False, kw_only=True)

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
