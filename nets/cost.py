"""What an architecture costs: parameters, and floating-point operations as integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from nets.architecture import KERNELS, Architecture


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
    kernels, post = KERNELS[architecture.block], architecture.order == "post"
    convolutional = kernels[0] > 0
    height, width = architecture.image[1:] if convolutional else (1, 1)
    size, incoming = (height, width), architecture.inputs
    if architecture.stem != "none":
        if architecture.stem == "imagenet":
            size = _halved(size, 2)
        kernel = {"cifar": 3, "imagenet": 7, "dense": 0}[architecture.stem]
        norm = architecture.stem_width if post else 0
        yield _Layer(incoming, architecture.stem_width, kernel, size[0] * size[1], norm)
        if architecture.stem == "imagenet":
            size = _halved(size, 2)
        incoming = architecture.stem_width
    for stage in architecture.stages:
        for position, block in enumerate(stage.blocks):
            if architecture.block == "plain":
                yield _Layer(incoming, block.width, 0, 1, bias=True)
                incoming = block.width
                continue
            stride = stage.stride if position == 0 else 1
            after = _halved(size, stride)
            strided = kernels.index(3) if convolutional else 0
            widths = [incoming, *[block.width] * (len(kernels) - 1), stage.width]
            for index, kernel in enumerate(kernels):
                pixels = after if index >= strided else size
                norm = widths[index + 1] if post else widths[index]
                yield _Layer(widths[index], widths[index + 1], kernel, pixels[0] * pixels[1], norm)
            if position == 0 and stage.projection:
                norm = stage.width if post else 0
                yield _Layer(
                    incoming, stage.width, 1 if convolutional else 0, after[0] * after[1], norm
                )
            size, incoming = after, stage.width
    norm = incoming if not post else 0
    yield _Layer(incoming, architecture.classes, 0, 1, norm, bias=True)


@lru_cache(maxsize=4096)
def cost(architecture: Architecture) -> Cost:
    """Count parameters and forward FLOPs, as torch's FlopCounterMode does."""
    layers = list(_layers(architecture))
    return Cost(sum(layer.parameters for layer in layers), sum(layer.flops for layer in layers))


@lru_cache(maxsize=4096)
def train_flops(architecture: Architecture) -> int:
    """Count one image's training FLOPs: forward, weights' and inputs' gradients.

    The images themselves get no gradient, so the first layer's backward pass is its weights' alone.
    """
    layers = list(_layers(architecture))
    return 3 * sum(layer.flops for layer in layers) - layers[0].flops
