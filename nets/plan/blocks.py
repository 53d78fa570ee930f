"""The parts of an architecture as frozen data: blocks, and stages of blocks on one stream."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nets.checks import check_choice, check_count, check_fraction

KERNELS = {"basic": (3, 3), "bottleneck": (1, 3, 1), "dense": (0, 0), "plain": (0,)}
"""Kernel sizes of a block's layers, by kind of block; 0 is a linear layer."""
DROPS = ("batch", "row")


@dataclass(frozen=True)
class Block:
    """One block on its stage's stream.

    Args:
        name: never reused.
        width: inner channels.
        survival: chance in (0, 1] to keep the branch in training.
        drop: "batch" keeps or drops the branch for a whole batch, "row" for each sample.
        frozen: leading inner channels that are held fixed, with their BatchNorm entries and their
            outgoing columns.
        held: widths (incoming, inner, outgoing) at the time of freezing: columns and rows that came
            later train.
        whole: the rest of the block, its outer BatchNorm and its shortcut, is held fixed too.
        fade: steps over which the branch fades to nothing; 0 if it does not.
    """

    name: str
    width: int
    survival: float = 1.0
    drop: str = "batch"
    frozen: int = 0
    held: tuple[int, int, int] = (0, 0, 0)
    whole: bool = False
    fade: int = 0

    def __post_init__(self) -> None:
        check_count(f"width of {self.name}", self.width)
        check_fraction(f"survival of {self.name}", self.survival)
        check_choice(f"drop of {self.name}", self.drop, DROPS)
        check_count(f"frozen of {self.name}", self.frozen, least=0)
        check_count(f"fade of {self.name}", self.fade, least=0)
        if self.whole not in (True, False):
            raise ValueError(f"whole of {self.name} must be true or false, got {self.whole!r}")
        if not isinstance(self.held, tuple) or len(self.held) != 3:
            raise ValueError(f"held of {self.name} must be three widths, got {self.held!r}")
        for size in self.held:
            check_count(f"held of {self.name}", size, least=0)
        if not self.frozen <= self.held[1] <= self.width:
            raise ValueError(
                f"frozen of {self.name} must be at most its width {self.width} when frozen, got "
                f"{self.frozen} of {self.held[1]}"
            )

    def bands(self, layer: int, count: int) -> tuple[tuple[int, int], ...]:
        """Give what is held of the weight of layer number `layer` of `count`: nets.modules.held."""
        incoming, inner, outgoing = self.held
        if layer == 0:
            return ((self.frozen, incoming),)
        if layer == count - 1:
            return ((outgoing, self.frozen),)
        return ((self.frozen, inner), (inner - self.frozen, self.frozen))

    def held_on(self, axis: int, count: int) -> int:
        """Give the channels held on axis 0 (incoming), 1 ... (inner) or `count` (outgoing)."""
        if 0 < axis < count:
            return self.frozen
        return self.held[0 if axis == 0 else 2] if self.whole else 0

    def thawed(self) -> Block:
        """Give this block with nothing held fixed."""
        return replace(self, frozen=0, held=(0, 0, 0), whole=False)


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
