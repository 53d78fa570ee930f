"""What a growth step costs in training steps, and what it does to the outputs; gromo beside it.

python -m benchmarks.growth --rounds 10 --batches 40

Both widen a block of a pre-activation ResNet with inner layers of half width. Ours uses one batch
as a probe; gromo 0.1.0 (pip install '.[bench]') gathers statistics over `--batches` batches first,
as its method asks for, and is left out where it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.timing import counts, interleaved, random_batch, ratios, step_of
from nets import Widen, build, grow, preset, seed_of
from nets.growing.grow import output_difference

BY = 8
ARCHITECTURE = seed_of(preset("resnet20", order="pre"), width=0.5, blocks=None)
Growth = Callable[[], nn.Module]


def ours(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[nn.Module, Growth]:
    """Give a net with some steps behind it, and its growth."""
    net = build(ARCHITECTURE)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    warm_up(net, optimizer, inputs, targets)
    probe = inputs, targets
    return net, lambda: grow(net, [Widen("stage2.block2", BY)], optimizer, probe=probe).network


def gromo(inputs: torch.Tensor, targets: torch.Tensor, batches: int) -> tuple[nn.Module, Growth]:
    """Give gromo's net of the same shape, and its growth by its own method."""
    from gromo.containers.resnet import init_full_resnet_structure  # pyright: ignore

    net: Any = init_full_resnet_structure(
        input_shape=(3, 32, 32),
        out_features=10,
        hidden_channels=(8, 16, 32),
        number_of_blocks_per_stage=3,
        inplanes=16,
        nb_stages=3,
        small_inputs=True,
        skip_first_downsample=False,
    )
    warm_up(net, torch.optim.SGD(net.parameters(), 0.01, momentum=0.9), inputs, targets)

    def grown() -> nn.Module:
        other = deepcopy(net)
        other.set_growing_layers(index=4)
        other.init_computation()
        for _ in range(batches):
            other.zero_grad()
            functional.cross_entropy(other(inputs), targets).backward()
            other.update_computation()
        other.compute_optimal_updates(maximum_added_neurons=BY)
        other.reset_computation()
        other.dummy_select_update()
        other.set_scaling_factor(1.0)
        other.apply_change()
        return other

    return net, grown


def warm_up(net: nn.Module, optimizer: torch.optim.Optimizer, *batch: torch.Tensor) -> None:
    """Take a few steps, so that nothing is at its first value."""
    step = step_of(net, optimizer, *batch)
    for _ in range(5):
        step()


def row(
    name: str, net: nn.Module, grown: Growth, rounds: int, inputs: torch.Tensor, *targets: Any
) -> str:
    """Measure steps and growths in turn, and give a line of the table."""
    optimizer = torch.optim.SGD(net.parameters(), 0.0, momentum=0.9)  # time, but no movement
    seconds = interleaved(
        {"step": step_of(net, optimizer, inputs, *targets), "growth": grown}, rounds
    )
    moved = output_difference(net, grown(), inputs)
    best = [min(seconds[turn]) for turn in ("step", "growth")]
    times = f"{1000 * best[0]:9.1f} {1000 * best[1]:10.1f}"
    figures = "".join(f" {ratio:7.2f}" for ratio in ratios(seconds, "growth", "step"))
    return f"{name:36} {times}{figures} {moved:11.2g}"


def main() -> None:
    """Print the table."""
    chosen = counts(__doc__ or "", batch=128, rounds=10, batches=40)
    inputs, targets = random_batch(ARCHITECTURE, chosen.batch, torch.contiguous_format)
    print(f"widening by {BY}")
    print(f"{'':36} {'step ms':>9} {'growth ms':>10} {'best':>7} {'median':>7} {'outputs':>11}")
    print(row("growthrings", *ours(inputs, targets), chosen.rounds, inputs, targets))
    if find_spec("gromo") is None:
        print("gromo is not installed: pip install '.[bench]'")
        return
    name = f"gromo, {chosen.batches} batches of statistics"
    theirs = gromo(inputs, targets, chosen.batches)
    print(row(name, *theirs, chosen.rounds, inputs, targets))


if __name__ == "__main__":
    main()
