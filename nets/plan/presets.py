"""Architectures by their names in the literature, and the small nets from which they can grow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from nets.checks import check_count, check_fraction, meant
from nets.plan.architecture import Architecture, check_architecture
from nets.plan.blocks import Block, Stage

_CIFAR_DEPTHS = (8, 14, 20, 32, 44, 56, 110)
_IMAGENET = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
    "wide_resnet50_2": ("bottleneck", (3, 4, 6, 3)),
}


def preset_names() -> tuple[str, ...]:
    """Give the known names; any `wrn-DEPTH-FACTOR` and `mlp-WIDTH` is known too."""
    cifar = tuple(f"resnet{depth}" for depth in _CIFAR_DEPTHS)
    return (*cifar, *_IMAGENET, "wrn-16-2", "wrn-28-10", "mlp-500")


def preset(
    name: str,
    *,
    classes: int = 10,
    image: tuple[int, ...] = (3, 32, 32),
    order: str | None = None,
    stem: str | None = None,
    block: str | None = None,
    activation: str = "relu",
    dropout: float = 0.0,
) -> Architecture:
    """Give a known architecture.

    Args:
        name: `resnet8/14/20/32/44/56/110` (He et al. 2015, section 4.2, with projection shortcuts),
            `wrn-D-K` (Zagoruyko and Komodakis 2016, arXiv 1605.07146: depth D = 6n + 4, widening
            factor K), `resnet18/34/50/101/152` (He et al. 2015, table 1, in torchvision's shape),
            `wide_resnet50_2` (inner width twice as large) or `mlp-W` (one hidden layer of W units).
        classes: outputs.
        image: shape of one input, (channels, height, width); any shape for `mlp-W`.
        order: "post" or "pre"; by default as published ("pre" for wrn, else "post").
        stem: "cifar" or "imagenet"; by default as published.
        block: "basic" or "bottleneck"; by default as published.
        activation: "relu", "gelu" or "tanh".
        dropout: chance in [0, 1) to zero an activation inside a block.

    Raises:
        ValueError: an unknown name (the message lists the known ones) or an impossible setting.
    """
    mlp = re.fullmatch(r"mlp-(\d+)", name)
    if mlp and (order or stem or block):
        raise ValueError(f"order, stem and block do not apply to {name}")
    family = _mlp(int(mlp[1])) if mlp else _family(name, block)
    return Architecture(
        stages=family.stages,
        classes=classes,
        image=tuple(image),
        stem_width=family.stem_width,
        order=order or family.order,
        stem=stem or family.stem,
        block=family.block,
        activation=activation,
        dropout=dropout,
    )


class _Family(NamedTuple):
    """What a name in the literature stands for."""

    stages: tuple[Stage, ...]
    stem_width: int
    order: str
    stem: str
    block: str


def _mlp(width: int) -> _Family:
    try:
        layer = Block("stage1.block1", width)
    except ValueError as error:
        raise ValueError(
            f"net must be mlp-W of at least 1 unit, got 'mlp-{width}': {error}"
        ) from None
    return _Family((Stage("stage1", 0, (layer,), births=1),), 0, "post", "none", "plain")


def _family(name: str, block: str | None) -> _Family:
    """Give the residual network of that name, with blocks of another kind if one is given."""
    wide = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if wide and (int(wide[1]) - 4) % 6 == 0 and int(wide[1]) > 4 and int(wide[2]) > 0:
        widths = [16 * int(wide[2]) * scale for scale in (1, 2, 4)]
        stages = _stages([(int(wide[1]) - 4) // 6] * 3, widths, block or "basic", 16)
        return _Family(stages, 16, "pre", "cifar", block or "basic")
    if name in _IMAGENET:
        kind, counts = _IMAGENET[name]
        inner = 2 if name == "wide_resnet50_2" else 1
        stages = _stages(counts, [64, 128, 256, 512], block or kind, 64, inner)
        return _Family(stages, 64, "post", "imagenet", block or kind)
    if name in preset_names() and name.startswith("resnet"):
        stages = _stages([(int(name[6:]) - 2) // 6] * 3, [16, 32, 64], block or "basic", 16)
        return _Family(stages, 16, "post", "cifar", block or "basic")
    words = f"{', '.join(preset_names())} (or wrn-D-K, mlp-W); got {name!r}"
    raise ValueError(f"net must be one of {words}{meant(name, _near(name))}")


def _stages(
    counts: Sequence[int], widths: Sequence[int], kind: str, incoming: int, inner: int = 1
) -> tuple[Stage, ...]:
    """Give stages of so many blocks each, `inner` times as wide as said; all but one halve."""
    stages = []
    for index, (count, width) in enumerate(zip(counts, widths, strict=True), start=1):
        names = [f"stage{index}.block{number}" for number in range(1, count + 1)]
        blocks = tuple(Block(name, inner * width) for name in names)
        stride, stream = 1 if index == 1 else 2, width * (4 if kind == "bottleneck" else 1)
        projects = stride > 1 or stream != incoming
        stages.append(Stage(f"stage{index}", stream, blocks, stride, projects, count))
        incoming = stream
    return tuple(stages)


def _near(name: str) -> tuple[str, ...]:
    """Give the known names, and the ones of any size that its own numbers would make."""
    numbers = re.findall(r"[1-9]\d*", name)
    own = [f"mlp-{numbers[0]}"] if len(numbers) == 1 else []
    if len(numbers) == 2 and int(numbers[0]) > 4 and (int(numbers[0]) - 4) % 6 == 0:
        own = [f"wrn-{numbers[0]}-{numbers[1]}"]
    return (*preset_names(), *own)


def seed_of(
    architecture: Architecture, width: float = 0.25, blocks: int | None = 1, stream: float = 1.0
) -> Architecture:
    """Give a smaller net that can grow into `architecture`: thinner, with fewer blocks.

    Args:
        architecture: the large net.
        width: fraction of every inner width that stays, above 0 and at most 1 (at least one channel
            stays).
        blocks: how many blocks of each stage stay, counted from its first; None keeps all.
        stream: fraction of every residual stream that stays, above 0 and at most 1, as for `width`;
            a stem that hands its channels on as they are is as wide as the stream. A stem before a
            projection, which no growth widens, stays as it is.

    Raises:
        ValueError: a setting is out of its range, or a net without streams should have thinner
            ones.
    """
    check_architecture(architecture)
    check_fraction("width", width)
    check_fraction("stream", stream)
    if blocks is not None:
        check_count("blocks", blocks)
    if architecture.block == "plain" and stream != 1:
        raise ValueError(f"stream must be 1 for a plain net, which has none, got {stream}")
    stages, architecture = [], architecture.thawed()
    for stage in architecture.stages:
        kept = tuple(
            replace(block, width=_part(block.width, width)) for block in stage.blocks[:blocks]
        )
        births = max(int(block.name.rpartition("block")[2]) for block in kept)
        thin = _part(stage.width, stream) if stage.width else 0
        stages.append(replace(stage, width=thin, blocks=kept, births=births))
    stem = architecture.stem_width
    if stages[0].width and not stages[0].projection:
        stem = stages[0].width
    return replace(architecture, stages=tuple(stages), stem_width=stem)


def _part(width: int, fraction: float) -> int:
    return max(1, round(width * fraction))
