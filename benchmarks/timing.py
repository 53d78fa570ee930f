"""Interleaved timing: rounds in which everything that is compared takes one turn each."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nets import Architecture


def training_arguments(description: str, data: str, rounds: int) -> dict[str, Any]:
    """Read the settings of a training run, and the rounds, from the command line."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, default in (("data", data), ("data-dir", "data"), ("net", "resnet20")):
        parser.add_argument(f"--{name}", default=default)
    for name in ("precision", "device"):
        parser.add_argument(f"--{name}", default="auto")
    for name, number in (("batch-size", 128), ("threads", None), ("rounds", rounds)):
        parser.add_argument(f"--{name}", type=int, default=number)
    return vars(parser.parse_args())


def counts(description: str, **defaults: int) -> argparse.Namespace:
    """Read numbers from the command line, set the threads, and say with what is measured."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for name, default in {**defaults, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    told = ", ".join(f"{name} {value}" for name, value in vars(chosen).items())
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, float32, {told}\n")
    return chosen


def interleaved(turns: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Give the seconds of every turn by name, after two rounds that do not count.

    What a turn left for a GPU to do is a part of it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 2):
        for name, turn in turns.items():
            start = perf_counter()
            turn()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 2:
                seconds[name].append(perf_counter() - start)
    return seconds


def ratios(seconds: Mapping[str, list[float]], name: str, base: str) -> tuple[float, float]:
    """Give best over best, and the median of the rounds' ratios."""
    pairs = zip(seconds[name], seconds[base], strict=True)
    return min(seconds[name]) / min(seconds[base]), median(one / two for one, two in pairs)


def step_of(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    half: bool = False,
) -> Callable[[], None]:
    """Give a training step on one batch as a function without arguments; `half` is bf16."""

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            outputs = net(inputs)
        functional.cross_entropy(outputs.float(), targets).backward()
        optimizer.step()

    return step


def random_batch(
    architecture: Architecture, size: int, layout: torch.memory_format = torch.channels_last
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give normal images, (size, channels, height, width), and classes for a network."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, *architecture.image, generator=generator)
    targets = torch.randint(architecture.classes, (size,), generator=generator)
    return inputs.contiguous(memory_format=layout), targets
