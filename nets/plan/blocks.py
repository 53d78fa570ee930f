"""The parts of an architecture as frozen data: blocks, and stages of blocks on one stream."""

from __future__ import annotations

from dataclasses import dataclass

from nets.checks import check_choice, check_count, check_fraction

KERNELS = {"basic": (3, 3), "bottleneck": (1, 3, 1), "dense": (0, 0), "plain": (0,)}
"""Kernel sizes of a block's layers, by kind of block; 0 is a linear layer."""
DROPS = ("batch", "row")
Bands = tuple[tuple[int, int], ...]
"""What is held of a weight, from its first row on: (rows, leading columns held in these)."""


@dataclass(frozen=True)
class Frozen:
    """What of a block is held fixed.

    Args:
        channels: leading inner channels, with their BatchNorm entries and their outgoing columns.
        widths: incoming, inner and outgoing at the time of freezing: columns and rows that came
            later train.
        whole: the rest of the block too, its outer BatchNorm and its shortcut.
    """

    channels: int
    widths: tuple[int, int, int]
    whole: bool = False

    def bands(self, layer: int, count: int) -> Bands:
        """Give what is held of the weight of layer number `layer` of the `count` of a branch."""
        incoming, inner, outgoing = self.widths
        if layer == 0:
            return ((self.channels, incoming),)
        if layer == count - 1:
            return ((outgoing, self.channels),)
        return ((self.channels, inner), (inner - self.channels, self.channels))

    def outer(self, end: int) -> int:
        """Give the channels held of what enters the block (0) or of what leaves it (2)."""
        return self.widths[end] if self.whole else 0

    @property
    def behind(self) -> int:
        """The columns of a plain net's next layer that are held with this one."""
        return 0 if self.whole else self.channels


NOTHING = Frozen(0, (0, 0, 0))


@dataclass(frozen=True)
class Block:
    """One block on its stage's stream.

    Args:
        name: never reused.
        width: inner channels.
        survival: chance in (0, 1] to keep the branch in training.
        drop: "batch" keeps or drops the branch for a whole batch, "row" for each sample.
        held: what is held fixed; None where all of it trains.
        fade: steps over which the branch fades to nothing; 0 if it does not.
    """

    name: str
    width: int
    survival: float = 1.0
    drop: str = "batch"
    held: Frozen | None = None
    fade: int = 0

    def __post_init__(self) -> None:
        check_count(f"width of {self.name}", self.width)
        check_fraction(f"survival of {self.name}", self.survival)
        check_choice(f"drop of {self.name}", self.drop, DROPS)
        check_count(f"fade of {self.name}", self.fade, least=0)
        if self.held is not None:
            self._check_held(self.held)

    def _check_held(self, held: Frozen) -> None:
        if not isinstance(held, Frozen):
            raise ValueError(f"held of {self.name} must be Frozen or None, got {held!r}")
        check_count(f"frozen of {self.name}", held.channels, least=0)
        if held.whole not in (True, False):
            raise ValueError(f"whole of {self.name} must be true or false, got {held.whole!r}")
        if not isinstance(held.widths, tuple) or len(held.widths) != 3:
            raise ValueError(f"held of {self.name} must be three widths, got {held.widths!r}")
        for size in held.widths:
            check_count(f"held of {self.name}", size, least=0)
        if not held.channels <= held.widths[1] <= self.width:
            raise ValueError(
                f"frozen of {self.name} must be at most its width {self.width} when frozen, got "
                f"{held.channels} of {held.widths[1]}"
            )

    @property
    def frozen(self) -> int:
        """Leading inner channels that are held fixed."""
        return self.held.channels if self.held else 0

    @property
    def whole(self) -> bool:
        """Whether all that the block was when it was frozen is held fixed."""
        return self.held is not None and self.held.whole


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
