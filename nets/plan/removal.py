"""The edits that take something away: blocks, and channels of blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nets.checks import check_choice, check_count
from nets.plan.actions import Reasoned, check_repeatable
from nets.plan.architecture import Architecture
from nets.plan.blocks import Block

SALIENCIES = ("magnitude", "activation", "obd")


@dataclass(frozen=True, repr=False)
class Remove(Reasoned):
    """Take a block away, at once or after its branch has faded.

    With `steps`, the branch is scaled from 1 down to 0 over so many training forwards, and a second
    Remove with `steps=0` takes the block away; the outputs are then exactly those before. Without,
    they jump. A block that changes the stream, a stage's only one, and a layer of a plain net,
    which has no shortcut, stay.
    """

    block: str
    steps: int = 0

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


@dataclass(frozen=True, repr=False)
class Narrow(Reasoned):
    """Take the `by` least useful inner channels of a block away, of those that are not frozen.

    Exact for channels whose outgoing weights are 0. A bottleneck loses so many at both places.

    Args:
        saliency: "magnitude": the norm of a channel's outgoing weights, times that of its
            BatchNorm's weight and bias (after Li et al. 2017, arXiv 1608.08710); "activation": how
            often it is not 0 on a probe batch (one minus APoZ, Hu et al. 2016, arXiv 1607.03250,
            equation 1); "obd": half the expected squared derivative of the loss by a gate on it
            (Optimal Brain Damage, LeCun et al. 1990, in the form for channels of Theis et al. 2018,
            arXiv 1801.05787, equation 8). `grow` needs a probe for the second, its targets and a
            loss for the third.
    """

    block: str
    by: int
    saliency: str = "magnitude"

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
        narrower = _with_width(block, 1, block.width - self.by)
        if architecture.block == "plain":
            return _with_layer(architecture, narrower)
        return architecture.with_block(narrower)


def _with_width(block: Block, place: int, width: int) -> Block:
    """Give a block after its incoming, inner or outgoing width (0, 1 or 2) has shrunk."""
    held = block.held
    if held:
        widths = [min(size, width) if at == place else size for at, size in enumerate(held.widths)]
        held = replace(held, widths=(widths[0], widths[1], widths[2]))
    return replace(block, held=held, width=width if place == 1 else block.width)


def _with_layer(architecture: Architecture, narrower: Block) -> Architecture:
    """Give a plain net with a narrower layer; what is held around it is at most what is left."""
    blocks = {**architecture.blocks, narrower.name: narrower}
    names, head = list(blocks), architecture.frozen_head
    place, width = names.index(narrower.name), narrower.width
    for before in names[:place][-1:]:
        blocks[before] = _with_width(blocks[before], 2, width)
    for after in names[place + 1 :][:1]:
        blocks[after] = _with_width(blocks[after], 0, width)
    if names[-1] == narrower.name:
        head = min(head, width)
    narrowed = architecture.with_each_block(lambda block: blocks[block.name])
    return replace(narrowed, frozen_head=head)
