"""What many tests begin with: small nets, batches from a seed, and steps of training on them."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from nets import Architecture, Block, Network, Stage, build
from nets.modules.frozen_parts import join_values

CLASSES, CLIP, FLOAT = 4, 0.05, torch.float32
FLAT_STEMS = {"dense": "dense", "plain": "none"}
KINDS = ("basic", "bottleneck", "dense", "plain")
CASES = [(kind, order) for kind in KINDS for order in ("post", "pre")][:-1]  # plain has no order


def architecture_of(
    kind: str = "basic",
    order: str = "post",
    stem: str = "cifar",
    widths: tuple[tuple[int, ...], ...] = ((3, 2), (4,)),
    streams: tuple[int, ...] = (4, 6),
    classes: int = CLASSES,
    image: tuple[int, ...] = (),
    survivals: tuple[float, ...] = (),
    **settings: Any,
) -> Architecture:
    """A tiny net: inner widths by stage, and the first blocks' chances of surviving (else 1)."""
    streamless, flat, stages, incoming = kind == "plain", kind in FLAT_STEMS, [], streams[0]
    chances = iter(survivals)
    for number, (inner, stream) in enumerate(zip(widths, streams, strict=True), start=1):
        blocks = tuple(
            Block(f"stage{number}.block{place}", width, next(chances, 1.0))
            for place, width in enumerate(inner, start=1)
        )
        stride = 1 if number == 1 or flat else 2
        projection = not streamless and (stride > 1 or stream != incoming)
        width, incoming = 0 if streamless else stream, stream
        stages.append(Stage(f"stage{number}", width, blocks, stride, projection, len(blocks)))
    image = image or ((5,) if flat else (2, 12, 12) if stem == "imagenet" else (2, 6, 6))
    stem_width, order = (0, "post") if streamless else (streams[0], order)
    stem = FLAT_STEMS.get(kind, stem)
    return Architecture(tuple(stages), classes, image, stem_width, order, stem, kind, **settings)


def three_blocks(kind: str = "basic", order: str = "post") -> Architecture:
    """Two stages: two blocks of widths 3 and 4, then one of 4."""
    return architecture_of(kind, order, widths=((3, 4), (4,)), streams=(4, 5), classes=3)


def plain(*widths: int, image: tuple[int, ...] = (5,), classes: int = 3) -> Architecture:
    """A net without residuals, of one stage."""
    return architecture_of("plain", widths=(widths,), streams=(0,), classes=classes, image=image)


_tiny = partial(architecture_of, widths=((5, 3), (4,)), streams=(6, 8))
NETS = {
    "basic": _tiny("basic"),
    "basic pre": _tiny("basic", "pre"),
    "bottleneck": _tiny("bottleneck", stem="imagenet", image=(2, 16, 16)),
    "bottleneck pre": _tiny("bottleneck", "pre"),
    "dense": _tiny("dense", image=(7,)),
    "dense pre": _tiny("dense", "pre", image=(7,)),
    "plain": plain(6, 5, image=(7,), classes=CLASSES),
}


def network_of(name: str, seed: int = 0) -> Network:
    """One of NETS whose BatchNorm entries are not 1 and 0, and with some dead channels."""
    net = build(NETS[name], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        for path, bias in net.named_parameters():
            if path.endswith("bias") and "block1" in path:
                bias[:2] = -50
    return net


class Doubled(nn.BatchNorm2d):
    """Responds otherwise than its running statistics tell; carries no activation."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normal values, the same whenever they are asked for."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(
    image: tuple[int, ...], seed: int = 0, count: int = 12, classes: int = CLASSES, drawn=FLOAT
) -> tuple[Tensor, Tensor]:
    """Normal inputs (N, *image) and random targets (N,); other values where drawn in float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *image, generator=generator, dtype=drawn)
    return inputs, torch.randint(classes, (count,), generator=generator)


def batch_for(
    architecture: Architecture, seed: int = 0, count: int = 16, dtype=FLOAT, drawn=FLOAT
) -> tuple[Tensor, Tensor]:
    """A batch that suits a net, drawn in one dtype and given in another."""
    inputs, targets = batch_of(architecture.image, seed, count, architecture.classes, drawn)
    return inputs.to(dtype), targets


def grey_images(count: int) -> tuple[Tensor, Tensor]:
    """Random pixels (N, 8, 8, 1) in bytes, and targets of ten classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 8, 8, 1), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(10, (count,), generator=generator)


def sgd(net: nn.Module, lr: float = 0.1, weight_decay: float = 1e-3, **options: Any) -> Optimizer:
    """SGD with momentum."""
    settings = {"momentum": 0.9, "weight_decay": weight_decay, **options}
    return torch.optim.SGD(net.parameters(), lr=lr, **settings)


def take_step(
    net: nn.Module, optimizer: Optimizer, inputs: Tensor, targets: Tensor, clip: float | None = None
) -> None:
    """One step of classification, the gradients' norm cut to `clip`."""
    optimizer.zero_grad()
    functional.cross_entropy(net(inputs), targets).backward()
    if clip:
        nn.utils.clip_grad_norm_(net.parameters(), clip)
    optimizer.step()


clipped_step = partial(take_step, clip=CLIP)


def train(
    net: Network,
    optimizer: Optimizer | None = None,
    steps: int = 3,
    first: int = 0,
    count: int = 16,
    drawn: torch.dtype = FLOAT,
) -> Optimizer:
    """Steps on random batches, the first of seed `first`: weights, statistics, step count move."""
    optimizer = optimizer or sgd(net, 0.05, 1e-2)
    dtype = next(net.parameters()).dtype
    for step in range(first, first + steps):
        take_step(net, optimizer, *batch_for(net.architecture, step, count, dtype, drawn))
    return optimizer


def trained(
    architecture: Architecture, dtype: torch.dtype = FLOAT, seed: int = 0, **how: Any
) -> Network:
    """A net with some steps of training behind it."""
    net = build(architecture, seed=seed).to(dtype)
    train(net, **how)
    return net


def in_double(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[Any, Any]:
    """Both in float64: two trainings side by side then stay together to far below the tolerance."""
    return net.double(), [(inputs.double(), targets) for inputs, targets in batches]


def hooks_of(net: nn.Module, optimizer: Optimizer | None = None) -> list[Any]:
    """All hooks that sit on modules, parameters and the optimizer."""
    found = []
    for module in net.modules():
        found += [name for name, value in vars(module).items() if name.endswith("_hooks") and value]
    for parameter in net.parameters():
        found += list((parameter._post_accumulate_grad_hooks or {}).values())
        found += list((parameter._backward_hooks or {}).values())
    if optimizer is not None:
        pairs = vars(optimizer).items()
        found += [name for name, value in pairs if name.startswith("_optimizer_step_") and value]
    return found


def differences(first: Any, second: Any, place: str = "") -> list[str]:
    """Name where nested data with tensors is not equal bit for bit, memory format included."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = first.dtype == second.dtype and first.stride() == second.stride()
        return [] if alike and torch.equal(first, second) else [place]
    if isinstance(first, list | tuple) and type(first) is type(second):
        first, second = dict(enumerate(first)), dict(enumerate(second))
    if isinstance(first, dict) and isinstance(second, dict) and list(first) == list(second):
        pairs = [(first[key], second[key], f"{place}/{key}") for key in first]
        return [where for pair in pairs for where in differences(*pair)]
    return [] if not isinstance(first, dict) and first == second else [place]


def held_entries(net):
    """Say of every joined entry of `net` which of its rows and columns are buffers, as bools."""
    parameters = {name for name, _ in net.named_parameters()}
    flags = {
        name: torch.full(value.shape[:2], name not in parameters, device="cpu")
        for name, value in net.state_dict().items()
    }
    return join_values(net, flags)
