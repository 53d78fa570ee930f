"""The edits that hold a part of the network fixed, and let it train again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nets.checks import check_choice, check_count
from nets.plan.actions import Reasoned
from nets.plan.architecture import Architecture
from nets.plan.blocks import Block, Frozen


@dataclass(frozen=True, repr=False)
class Freeze(Reasoned):
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


@dataclass(frozen=True, repr=False)
class Unfreeze(Reasoned):
    """Let a block, a stage, the stem or the head train again, all of it."""

    target: str

    def edit(self, architecture: Architecture) -> Architecture:
        names = _blocks_of(architecture, self.target)
        if self.target == "stem":
            return replace(architecture, frozen_stem=0)
        if self.target == "head":
            return replace(architecture, frozen_head=0)
        for name in names:
            thawed = replace(architecture.blocks[name], held=None)
            architecture = architecture.with_block(thawed)
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
    held = Frozen(channels, architecture.widths_around(name), whole)
    return replace(architecture.blocks[name], held=held)
