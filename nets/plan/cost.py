"""What an architecture costs: parameters, and floating-point operations as integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from nets.plan.architecture import Architecture
from nets.plan.blocks import KERNELS, Block, Stage


@dataclass(frozen=True)
class Cost:
    """Parameters (BatchNorm's too) and FLOPs of one image's forward pass, 2 per multiply-add."""

    parameters: int
    flops: int


@dataclass(frozen=True)
class _Layer:
    incoming: int
    outgoing: int
    kernel: int  # 0: linear
    positions: int  # pixels of the output
    norm: int = 0  # channels of the BatchNorm beside it
    bias: bool = False
    held: bool = False  # no entry of its weight trains
    norm_held: bool = False
    bias_held: bool = False
    place: str = "inner"  # or "entry" of a block, or its "shortcut"

    @property
    def flops(self) -> int:
        return 2 * self.positions * self.incoming * self.outgoing * max(self.kernel, 1) ** 2

    @property
    def parameters(self) -> int:
        weights = self.incoming * self.outgoing * max(self.kernel, 1) ** 2
        return weights + 2 * self.norm + self.outgoing * self.bias


def _halved(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def _layers(architecture: Architecture) -> Iterator[_Layer]:
    """List the layers in the order of the forward pass."""
    kernels, post = KERNELS[architecture.block], architecture.order == "post"
    size = (architecture.image[1], architecture.image[2]) if kernels[0] else (1, 1)
    incoming = architecture.inputs
    if architecture.stem != "none":
        if architecture.stem == "imagenet":
            size = _halved(size, 2)
        kernel = {"cifar": 3, "imagenet": 7, "dense": 0}[architecture.stem]
        width = architecture.stem_width
        held = architecture.frozen_stem == width
        yield _Layer(
            incoming,
            width,
            kernel,
            size[0] * size[1],
            width if post else 0,
            held=held,
            norm_held=held,
        )
        if architecture.stem == "imagenet":
            size = _halved(size, 2)
        incoming = width
    for stage in architecture.stages:
        for position, block in enumerate(stage.blocks):
            if architecture.block == "plain":
                held = _covers(architecture.plain_bands(block.name), block.width, incoming)
                fixed = block.frozen == block.width
                yield _Layer(incoming, block.width, 0, 1, bias=True, held=held, bias_held=fixed)
                incoming = block.width
                continue
            after = _halved(size, stage.stride if position == 0 else 1)
            yield from _layers_of(block, stage, incoming, size, after, architecture)
            size, incoming = after, stage.width
    held = norm_held = architecture.frozen_head == incoming
    if architecture.block == "plain":
        held = _covers(architecture.plain_bands("head"), architecture.classes, incoming)
    norm = incoming if not post else 0
    yield _Layer(
        incoming, architecture.classes, 0, 1, norm, bias=True, held=held, norm_held=norm_held
    )


def _layers_of(
    block: Block,
    stage: Stage,
    incoming: int,
    size: tuple[int, int],
    after: tuple[int, int],
    architecture: Architecture,
) -> Iterator[_Layer]:
    """List the layers of a residual block, its shortcut last."""
    kernels, post = KERNELS[architecture.block], architecture.order == "post"
    strided = kernels.index(3) if 3 in kernels else 0
    widths = [incoming, *[block.width] * (len(kernels) - 1), stage.width]
    count = len(kernels)
    for index, kernel in enumerate(kernels):
        height, width = after if index >= strided else size
        axis = index + post
        yield _Layer(
            widths[index],
            widths[index + 1],
            kernel,
            height * width,
            widths[axis],
            held=_covers(block.bands(index, count), widths[index + 1], widths[index]),
            norm_held=block.held_on(axis, count) == widths[axis],
            place="inner" if index else "entry",
        )
    if block == stage.blocks[0] and stage.projection:
        held = block.held_on(0, count), block.held_on(count, count)
        yield _Layer(
            incoming,
            stage.width,
            min(kernels[0], 1),
            after[0] * after[1],
            stage.width if post else 0,
            held=held == (incoming, stage.width),
            norm_held=held[1] == stage.width,
            place="shortcut",
        )


def _covers(bands: tuple[tuple[int, int], ...], rows: int, columns: int) -> bool:
    tall = sum(height for height, _ in bands) >= rows
    return tall and all(width >= columns for height, width in bands if height)


@lru_cache(maxsize=4096)
def cost(architecture: Architecture) -> Cost:
    """Count parameters, frozen ones too, and forward FLOPs, as torch's FlopCounterMode does."""
    layers = list(_layers(architecture))
    return Cost(sum(layer.parameters for layer in layers), sum(layer.flops for layer in layers))


@lru_cache(maxsize=4096)
def train_flops(architecture: Architecture) -> int:
    """Count one image's training FLOPs: forward, and the gradients that are really computed.

    A layer has a weight gradient unless all of it is frozen, and an input gradient if anything
    before it trains. The images themselves get none.
    """
    total, pre = 0, architecture.order == "pre"
    behind = entry = False  # whether something trains before this layer, before this block
    for layer in _layers(architecture):
        norm_trains = layer.norm > 0 and not layer.norm_held
        if layer.place == "shortcut":
            before = entry
        else:
            behind |= pre and norm_trains
            before = behind
            entry = behind if layer.place == "entry" else entry
        total += layer.flops * (1 + (not layer.held) + before)
        behind |= not layer.held or norm_trains or (layer.bias and not layer.bias_held)
    return total
