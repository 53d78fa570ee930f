"""The description of a network as frozen data, which alone builds the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nets.actions import Action

KERNELS = {"basic": (3, 3), "bottleneck": (1, 3, 1), "dense": (0, 0), "plain": (0,)}
"""Kernel sizes of a block's layers, by kind of block; 0 is a linear layer."""
ORDERS = ("post", "pre")
STEMS = ("cifar", "imagenet", "dense", "none")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise a ValueError that lists the known values unless `value` is one of them."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise a ValueError unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_fraction(name: str, value: object) -> None:
    """Raise a ValueError unless `value` is a number above 0 and at most 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")


@dataclass(frozen=True)
class Block:
    """One block: its name (never reused), inner width in channels, survival in (0, 1]."""

    name: str
    width: int
    survival: float = 1.0

    def __post_init__(self) -> None:
        check_count(f"width of {self.name}", self.width)
        check_fraction(f"survival of {self.name}", self.survival)


@dataclass(frozen=True)
class Stage:
    """Blocks on one residual stream of `width` channels.

    The first block changes the resolution by `stride` and, with `projection`, reaches the stream
    through a 1x1 convolution (He et al. 2015, option B). `births` counts the blocks ever born here,
    so that names stay unique. In a plain net, which has no stream, `width` is 0.
    """

    name: str
    width: int
    blocks: tuple[Block, ...]
    stride: int = 1
    projection: bool = False
    births: int = 0

    def __post_init__(self) -> None:
        check_count(f"width of {self.name}", self.width, least=0)
        check_count(f"stride of {self.name}", self.stride)
        if not self.blocks:
            raise ValueError(f"{self.name} must have at least one block")
        if self.projection not in (True, False):
            raise ValueError(
                f"projection of {self.name} must be true or false, got {self.projection!r}"
            )
        check_count(f"births of {self.name}", self.births, least=len(self.blocks))
        for block in self.blocks:
            number = str(block.name).removeprefix(f"{self.name}.block")
            born = number.isdecimal() and 1 <= int(number) <= self.births
            if not born or block.name != f"{self.name}.block{int(number)}":
                names = f"{self.name}.block1 to {self.name}.block{self.births}"
                raise ValueError(
                    f"block names of {self.name} must be among {names}, got {block.name!r}"
                )


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

    def __post_init__(self) -> None:
        check_choice("order", self.order, ORDERS)
        check_choice("stem", self.stem, STEMS)
        check_choice("block", self.block, tuple(KERNELS))
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

    def apply(self, action: Action) -> Architecture:
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

    def to_dict(self) -> dict[str, Any]:
        """Give plain dicts, lists, numbers and strings, ready for JSON."""
        data = asdict(self)
        data["image"] = list(self.image)
        data["stages"] = [{**stage, "blocks": list(stage["blocks"])} for stage in data["stages"]]
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
                    {**stage, "blocks": tuple(_known(Block, block) for block in stage["blocks"])},
                )
                for stage in d["stages"]
            )
            return _known(cls, {**d, "stages": stages, "image": tuple(d["image"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"architecture cannot be read: {error!r}") from None


def _known(kind: Any, values: Mapping[str, Any]) -> Any:
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise ValueError(f"architecture has unknown fields: {', '.join(sorted(unknown))}")
    return kind(**values)
