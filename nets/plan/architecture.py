"""The description of a network as frozen data, which alone builds the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod
from typing import Any, Protocol

from nets.checks import check_choice, check_count
from nets.plan.blocks import KERNELS, NOTHING, Block, Frozen, Stage

ORDERS = ("post", "pre")
ACTIVATIONS = ("relu", "gelu", "tanh")
STEMS = ("cifar", "imagenet", "dense", "none")


class HasEdit(Protocol):
    """What `Architecture.apply` takes: an Action, see nets.plan.actions."""

    def edit(self, architecture: Architecture) -> Architecture: ...


@dataclass(frozen=True)
class Architecture:
    """A whole network as data.

    Args:
        stages: the residual stages, in order.
        classes: outputs of the network.
        image: shape of one input, (channels, height, width); dense and plain nets flatten any
            shape.
        stem_width: channels that leave the stem (0 without a stem).
        order: "post" is relu(x + F(x)) (He et al. 2015, arXiv 1512.03385); "pre" is x +
            F(relu(bn(x))) (He et al. 2016, arXiv 1603.05027).
        stem: "cifar" (3x3), "imagenet" (7x7, stride 2, max pooling), "dense" (linear) or "none".
        block: "basic", "bottleneck", "dense" (two linear layers, residual) or "plain" (a hidden
            layer, no residual).
        activation: "relu", "gelu" or "tanh".
        dropout: chance in [0, 1) to zero an activation before a block's last layer (Zagoruyko and
            Komodakis 2016, arXiv 1605.07146, section 2.4).
        frozen_stem: leading channels of the stem that are held fixed.
        frozen_head: leading inputs of the head that are held fixed, its bias with them.

    Raises:
        ValueError: a field is out of its range, a name is not unique or not like stage1.block1, or
            a stage without a projection changes its stream.
    """

    stages: tuple[Stage, ...]
    classes: int
    image: tuple[int, ...] = (3, 32, 32)
    stem_width: int = 16
    order: str = "post"
    stem: str = "cifar"
    block: str = "basic"
    activation: str = "relu"
    dropout: float = 0.0
    frozen_stem: int = 0
    frozen_head: int = 0

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        check_choice("stem", self.stem, STEMS)
        check_choice("block", self.block, tuple(KERNELS))
        check_choice("activation", self.activation, ACTIVATIONS)
        number = isinstance(self.dropout, int | float) and not isinstance(self.dropout, bool)
        if not number or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")
        check_count("classes", self.classes)
        for size in self.image:
            check_count("image", size)
        convolutional = KERNELS[self.block][0] > 0
        if convolutional and len(self.image) != 3:
            raise ValueError(f"image must be (channels, height, width), got {self.image}")
        if convolutional != (self.stem in ("cifar", "imagenet")) or (self.block == "plain") != (
            self.stem == "none"
        ):
            raise ValueError(f"stem {self.stem!r} does not go with block {self.block!r}")
        if not self.stages:
            raise ValueError("stages must not be empty")
        for number, stage in enumerate(self.stages, start=1):
            check_choice(f"name of stage {number}", stage.name, (f"stage{number}",))
        if len(self.blocks) != sum(len(stage.blocks) for stage in self.stages):
            raise ValueError("block names must be unique")
        check_count("stem_width", self.stem_width, least=0 if self.stem == "none" else 1)
        if self.block != "plain":
            self._check_streams()
        self._check_frozen()

    def _check_streams(self) -> None:
        incoming = self.stem_width
        for stage in self.stages:
            check_count(f"width of {stage.name}", stage.width)
            if not stage.projection and (stage.stride > 1 or stage.width != incoming):
                raise ValueError(
                    f"projection of {stage.name} must be true: the stream goes from {incoming} to "
                    f"{stage.width} channels at stride {stage.stride}"
                )
            incoming = stage.width

    def _check_frozen(self) -> None:
        for name, block in self.blocks.items():
            if not block.held:
                continue
            widths, held = self.widths_around(name), block.held.widths
            if any(size > width for size, width in zip(held, widths)):
                raise ValueError(f"held of {name} must be at most {widths}, got {held}")
        for part, width in (("stem", self.stem_width), ("head", self.outgoing)):
            count = getattr(self, f"frozen_{part}")
            check_count(f"frozen_{part}", count, least=0)
            if count > width:
                raise ValueError(f"frozen_{part} must be at most {width}, got {count}")

    @cached_property
    def blocks(self) -> Mapping[str, Block]:
        """Blocks by name, in the order of the forward pass."""
        return {block.name: block for stage in self.stages for block in stage.blocks}

    @cached_property
    def widths(self) -> Mapping[str, tuple[int, int]]:
        """Inner width and width of the stream, by block: an edit of a block changes one of them."""
        return {
            block.name: (block.width, stage.width)
            for stage in self.stages
            for block in stage.blocks
        }

    def widths_around(self, name: str) -> tuple[int, int, int]:
        """Give the channels that enter a block, its inner ones, and those it leads to.

        The last are its stream, or the next layer of a plain net.
        """
        names = list(self.blocks)
        place, stage = names.index(name), self.stage_of(name)
        before, after = names[:place][-1:], names[place + 1 :][:1]
        incoming = self.stem_width or self.inputs
        for earlier in before:
            incoming = self.stage_of(earlier).width or self.blocks[earlier].width
        following = self.blocks[after[0]].width if after else self.classes
        return incoming, self.blocks[name].width, stage.width or following

    @property
    def outgoing(self) -> int:
        """Channels that enter the head."""
        last = self.stages[-1]
        return last.width or last.blocks[-1].width

    @property
    def repeatable(self) -> bool:
        """Whether a block that adds nothing changes nothing: relu of a relu, or no outer one."""
        return self.activation == "relu" or (self.order == "pre" and self.block != "plain")

    @property
    def inputs(self) -> int:
        """Channels that enter the stem; the flattened size for dense and plain nets."""
        return self.image[0] if KERNELS[self.block][0] > 0 else prod(self.image)

    def stage_of(self, block: str) -> Stage:
        """Give the stage that holds `block`; a ValueError that lists the blocks if none does."""
        for stage in self.stages:
            if any(member.name == block for member in stage.blocks):
                return stage
        raise ValueError(f"block must be one of {', '.join(self.blocks)}; got {block!r}")

    def apply(self, action: HasEdit) -> Architecture:
        """Give the architecture after `action`; a ValueError says what is wrong with it."""
        if isinstance(action, type) or not hasattr(action, "edit"):
            raise ValueError(f"action must be an Action such as Widen or Insert, got {action!r}")
        return action.edit(self)

    def with_stage(self, stage: Stage) -> Architecture:
        """Give this architecture with the stage of the same name replaced."""
        stages = tuple(stage if old.name == stage.name else old for old in self.stages)
        return replace(self, stages=stages)

    def with_block(self, block: Block) -> Architecture:
        """Give this architecture with the block of the same name replaced."""
        stage = self.stage_of(block.name)
        blocks = tuple(block if old.name == block.name else old for old in stage.blocks)
        return self.with_stage(replace(stage, blocks=blocks))

    def with_each_block(self, change: Callable[[Block], Block]) -> Architecture:
        """Give this architecture with every block as `change` gives it, by the same name."""
        stages = (replace(stage, blocks=tuple(map(change, stage.blocks))) for stage in self.stages)
        return replace(self, stages=tuple(stages))

    def thawed(self) -> Architecture:
        """Give this architecture with nothing held fixed."""
        free = self.with_each_block(lambda block: replace(block, held=None))
        return replace(free, frozen_stem=0, frozen_head=0)

    def to_dict(self) -> dict[str, Any]:
        """Give plain dicts, lists, numbers and strings, ready for JSON.

        What a network rarely has (frozen channels, a fade, dropout) stands there only if it has it.
        """
        data = _said(self)
        data["image"] = list(self.image)
        data["stages"] = [
            {**_said(stage), "blocks": [_block_dict(block) for block in stage.blocks]}
            for stage in self.stages
        ]
        return data

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Architecture:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: an unknown or missing field, or a value out of its range.
        """
        try:
            stages = tuple(
                _known(
                    Stage,
                    {**stage, "blocks": tuple(map(_block, stage["blocks"]))},
                )
                for stage in d["stages"]
            )
            return _known(cls, {**d, "stages": stages, "image": tuple(d["image"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"architecture cannot be read: {error!r}") from None


def check_architecture(value: object) -> None:
    """Raise a ValueError unless `value` is an Architecture."""
    if not isinstance(value, Architecture):
        got = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
        raise ValueError(f"architecture must be an Architecture, as preset gives one, got {got}")


_ALWAYS = ("survival", "stem_width", "order", "stem", "block", "stride", "projection", "births")


def _said(part: Any) -> dict[str, Any]:
    """Give the fields of a dataclass that differ from their default, or always stand."""
    values = [(field, getattr(part, field.name)) for field in fields(part)]
    return {
        field.name: list(value) if isinstance(value, tuple) else value
        for field, value in values
        if field.name in _ALWAYS or value != field.default
    }


def _block_dict(block: Block) -> dict[str, Any]:
    """Give a block as a dict, in which what is held fixed takes three keys of its own."""
    data = _said(replace(block, held=None))
    if block.held:
        data |= {"frozen": block.held.channels, "held": list(block.held.widths)}
        data |= {"whole": True} if block.held.whole else {}
    return data


def _block(values: Mapping[str, Any]) -> Block:
    rest, held = dict(values), None
    found = {key: rest.pop(key) for key in ("frozen", "held", "whole") if key in rest}
    if found:
        widths = found.get("held", [0, 0, 0])
        widths = tuple(widths) if isinstance(widths, list | tuple) else widths
        held = Frozen(found.get("frozen", 0), widths, found.get("whole", False))
    return _known(Block, {**rest, "held": None if held == NOTHING else held})


def _known(kind: Any, values: Mapping[str, Any]) -> Any:
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        names = " ".join(", ".join(sorted(map(str, unknown))).split())
        raise ValueError(f"architecture has unknown fields: {names}")
    return kind(**values)
