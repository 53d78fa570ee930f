"""What layers an architecture has, said once: modules, costs, axes and what is held follow it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from nets.plan.architecture import Architecture, check_architecture
from nets.plan.blocks import KERNELS, NOTHING, Bands, Block, Frozen

_STEMS = {"cifar": ("conv", 3, 1), "imagenet": ("conv", 7, 2), "dense": ("linear", 0, 1)}
"""Layer, kernel size and stride."""


class Axis(NamedTuple):
    """A dimension of weights that edits change as one: its name in the network and its size."""

    name: str
    size: int


@dataclass(frozen=True)
class LayerSpec:
    """One layer: a convolution, a linear layer or a BatchNorm.

    Args:
        name: its path among the modules, "stage1.block2.conv1", "stem.bn" or "head.linear", say.
        kind: "conv", "linear" or "norm".
        shape: of its weight: (outgoing, incoming, height, width), (outgoing, incoming) or
            (channels,).
        axes: a name for each of the first two dimensions (the only one of a norm). Dimensions of
            one name are coupled: an edit changes all of them, in all layers.
        stride: of a convolution.
        size: (height, width) of what it gives; () without pixels.
        bias: whether a convolution or linear layer has one.
        held: what is held of the weight of a convolution or linear layer.
        held_channels: leading channels of which the bias, or all entries of a norm, are held.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stride: int = 1
    size: tuple[int, ...] = ()
    bias: bool = False
    held: Bands = ()
    held_channels: int = 0

    @property
    def home(self) -> str:
        """The part of the network that it belongs to: "stem", a block or "head"."""
        parts = self.name.split(".")
        return ".".join(parts[:2]) if parts[0].startswith("stage") else parts[0]

    @property
    def leaf(self) -> str:
        """Its path within that part."""
        return self.name.removeprefix(f"{self.home}.")

    @property
    def entries(self) -> dict[str, tuple[str, ...]]:
        """The axes of everything that it keeps, by name: weight, bias, running statistics."""
        norm = self.kind == "norm"
        rest = ("bias", "running_mean", "running_var") if norm else ("bias",) * self.bias
        return {"weight": self.axes, **dict.fromkeys(rest, self.axes[:1])}

    @property
    def parameters(self) -> int:
        """Its parameters, frozen ones too."""
        channels = self.shape[0] * (self.kind == "norm" or self.bias)
        return prod(self.shape) + channels

    @property
    def flops(self) -> int:
        """Operations for one image, 2 per multiply-add; none for a norm."""
        return 0 if self.kind == "norm" else 2 * prod(self.shape) * prod(self.size)

    @property
    def weight_trains(self) -> bool:
        """Whether some of the weight is not held."""
        if self.kind == "norm":
            return self.held_channels < self.shape[0]
        tall = sum(height for height, _ in self.held) >= self.shape[0]
        return not tall or any(width < self.shape[1] for height, width in self.held if height)

    @property
    def trains(self) -> bool:
        """Whether anything of it is not held."""
        return self.weight_trains or (self.bias and self.held_channels < self.shape[0])


def layer_specs(architecture: Architecture) -> tuple[LayerSpec, ...]:
    """List the layers in the order of the forward pass, a shortcut after the block's branch."""
    check_architecture(architecture)
    kept = vars(architecture)  # beside its cached properties
    if "layer_specs" not in kept:
        kept["layer_specs"] = tuple(_layers(architecture))
    return kept["layer_specs"]


def _layers(architecture: Architecture) -> Iterator[LayerSpec]:
    stem, stream, size = _stem(architecture)
    yield from stem
    before = NOTHING
    for stage in architecture.stages:
        outgoing = Axis(stage.name, stage.width) if stage.projection else stream
        for block in stage.blocks:
            if architecture.block == "plain":
                yield _plain(block, stream, before)
                stream, before = Axis(f"{block.name}:1", block.width), block.held or NOTHING
                continue
            first = block == stage.blocks[0]
            stride = stage.stride if first else 1
            yield from _branch(architecture, block, (stream, outgoing), size, stride)
            if first and stage.projection:
                yield from _shortcut(architecture, block, (stream, outgoing), size, stride)
            size, stream = _strided(size, stride), outgoing
    yield from _head(architecture, stream, size, before)


def axes_of(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """Name the axes of every entry: (rows, columns) of weights, (rows,) of what goes by channel."""
    return {
        f"{spec.name}.{leaf}": axes
        for spec in layer_specs(architecture)
        for leaf, axes in spec.entries.items()
    }


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Give the shape of every entry of the network's state, frozen parts joined to the rest."""
    kept = vars(architecture)
    if "shapes_of" not in kept:
        kept["shapes_of"] = _shapes(architecture)
    return dict(kept["shapes_of"])


def _shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in layer_specs(architecture):
        by_channel = dict.fromkeys(spec.entries, spec.shape[:1])
        counts = {"num_batches_tracked": ()} if spec.kind == "norm" else {}
        for leaf, shape in {**by_channel, "weight": spec.shape, **counts}.items():
            shapes[f"{spec.name}.{leaf}"] = shape
    for name, block in architecture.blocks.items():
        if block.fade:
            shapes[f"{name}.fade"] = ()
    return {**shapes, "draw": (2,)}


def _strided(size: tuple[int, ...], stride: int) -> tuple[int, ...]:
    return tuple(-(-side // stride) for side in size)


def _layer(
    name: str, kernel: int, outgoing: Axis, incoming: Axis, size: tuple[int, ...], **rest: Any
) -> LayerSpec:
    kind = "conv" if kernel else "linear"
    shape = (outgoing.size, incoming.size, *[kernel, kernel][: 2 * bool(kernel)])
    return LayerSpec(name, kind, shape, (outgoing.name, incoming.name), size=size, **rest)


def _norm(name: str, channels: Axis, size: tuple[int, ...], held: int) -> LayerSpec:
    return LayerSpec(
        name, "norm", (channels.size,), (channels.name,), size=size, held_channels=held
    )


def _stem(architecture: Architecture) -> tuple[list[LayerSpec], Axis, tuple[int, ...]]:
    """Give the layers of the stem, the stream that leaves it and its (height, width)."""
    image, size = Axis("image", architecture.inputs), tuple(architecture.image[1:])
    size = size if KERNELS[architecture.block][0] else ()
    if architecture.stem == "none":
        return [], image, size
    leaf, kernel, stride = _STEMS[architecture.stem]
    stream, held = Axis("stem", architecture.stem_width), architecture.frozen_stem
    size, bands = _strided(size, stride), ((held, image.size),) if held else ()
    specs = [_layer(f"stem.{leaf}", kernel, stream, image, size, stride=stride, held=bands)]
    if architecture.order == "post":
        specs.append(_norm("stem.bn", stream, size, held))
    return specs, stream, _strided(size, 2) if architecture.stem == "imagenet" else size


def _branch(
    architecture: Architecture,
    block: Block,
    ends: tuple[Axis, Axis],
    size: tuple[int, ...],
    stride: int,
) -> Iterator[LayerSpec]:
    """List the layers of a residual block's branch, each beside its norm."""
    kernels, post = KERNELS[architecture.block], architecture.order == "post"
    inner = [Axis(f"{block.name}:{number}", block.width) for number in range(1, len(kernels))]
    axes = [ends[0], *inner, ends[1]]
    frozen, count = block.held or NOTHING, len(kernels)
    held = [frozen.outer(0), *[frozen.channels] * (count - 1), frozen.outer(2)]
    strided = kernels.index(3) if 3 in kernels else 0
    for index, kernel in enumerate(kernels):
        now = stride if index == strided else 1
        entering, size = size, _strided(size, now)
        layer = _layer(
            f"{block.name}.{'conv' if kernel else 'linear'}{index + 1}",
            kernel,
            axes[index + 1],
            axes[index],
            size,
            stride=now,
            held=frozen.bands(index, count),
        )
        place = index + post
        norm = _norm(
            f"{block.name}.bn{index + 1}", axes[place], size if post else entering, held[place]
        )
        yield from (layer, norm) if post else (norm, layer)


def _shortcut(
    architecture: Architecture,
    block: Block,
    ends: tuple[Axis, Axis],
    size: tuple[int, ...],
    stride: int,
) -> Iterator[LayerSpec]:
    kernel, size = min(KERNELS[architecture.block][0], 1), _strided(size, stride)
    incoming, outgoing = ((block.held or NOTHING).outer(end) for end in (0, 2))
    name = f"{block.name}.shortcut.{'conv' if kernel else 'linear'}"
    bands = ((outgoing, incoming),)
    yield _layer(name, kernel, ends[1], ends[0], size, stride=stride, held=bands)
    if architecture.order == "post":
        yield _norm(f"{block.name}.shortcut.bn", ends[1], size, outgoing)


def _plain(block: Block, incoming: Axis, before: Frozen) -> LayerSpec:
    """Give the layer of a plain net, behind one of which `before` is held.

    Held are its own rows, and the columns behind those channels of the layer before that were
    frozen by their number. (A whole layer that is frozen leaves the next one free.)
    """
    held, behind = block.held or NOTHING, before.behind
    rows = max(held.channels, before.widths[2]) if behind else held.channels
    bands = ((held.channels, max(held.widths[0], behind)), (rows - held.channels, behind))
    axis = Axis(f"{block.name}:1", block.width)
    return _layer(
        f"{block.name}.linear",
        0,
        axis,
        incoming,
        (),
        bias=True,
        held=bands,
        held_channels=held.channels,
    )


def _head(
    architecture: Architecture, stream: Axis, size: tuple[int, ...], before: Frozen
) -> Iterator[LayerSpec]:
    classes, held = Axis("classes", architecture.classes), architecture.frozen_head
    if architecture.order == "pre":
        yield _norm("head.bn", stream, size, held)
    yield _layer(
        "head.linear",
        0,
        classes,
        stream,
        (),
        bias=True,
        held=((classes.size, max(held, before.behind)),),
        held_channels=classes.size if held else 0,
    )
