"""Step times of ResNet-20 under observers, as ratios to the bare step: one batch of 128 images.

All ways take turns, sixteen steps at a time, so that what slows the machine slows them alike; every
way has a network of its own, trained on the same images. A time is the mean of sixteen steps.
"nothing again" is a second bare loop: how far its ratio is from 1 says how much of the others' is
noise. Freed memory stays with the process: how much of it glibc gives back and takes anew in a step
is a matter of luck that makes all steps of a run up to a tenth slower or none.

    python -m benchmarks.observer --data folder:PATH
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn

from analysis import Observer
from analysis.examining.requests import ALSO
from analysis.showing.tables import markdown
from benchmarks.timing import interleaved, step_of
from nets import build, preset
from training.commandline.process_memory import keep_memory
from training.data.splits import channel_statistics, load, normalised

BATCH, CLASSES, EVERY, STEPS = 128, 10, 10, 16


@contextmanager
def nothing(net: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Watch nothing."""
    yield


@contextmanager
def naive(net: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Watch the std of every layer's output, each brought to the host at once."""
    seen: dict[str, float] = {}

    def hook(name: str) -> Callable[..., None]:
        def read(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            seen[name] = output.detach().std().item()

        return read

    layers = [
        module.register_forward_hook(hook(name))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
    ]
    yield
    for handle in layers:
        handle.remove()


@contextmanager
def delve(net: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Watch with delve's defaults; its statistics are brought to the host once, at the end."""
    from delve import SaturationTracker

    logging.getLogger("delve.logger").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracker = SaturationTracker(folder, save_to="csv", modules=net, device="cpu")
        yield
        tracker.close()


def asking(name: str) -> Callable[..., Observer]:
    """Give the way that reads one thing more on request, at every step."""
    return lambda net, optimizer: Observer(net, optimizer, also=name)


def ways() -> dict[str, Any]:
    """Give the ways to watch, by name; delve only where it is installed."""
    found = {
        "nothing": nothing,
        "nothing again": nothing,
        "Observer, every step": lambda net, optimizer: Observer(net, optimizer),
        **{f"also {name}": asking(name) for name in ALSO},
        "std().item() in hooks": naive,
    }
    try:
        import delve as _  # noqa: F401
    except ImportError:
        return found
    return {**found, "delve 0.1.50": delve}


def batch_of(data: str, data_dir: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Give images in channels_last, (BATCH, 3, 32, 32), and their classes."""
    train = load(data, data_dir).train
    chosen = train.take(
        torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:BATCH]
    )
    return normalised(chosen.pixels, *channel_statistics(train)), chosen.targets


def times_of(
    half: bool, rounds: int, inputs: torch.Tensor, targets: torch.Tensor
) -> dict[str, list[float]]:
    """Give the seconds of a step of every way, in the mean of each round."""
    if not half:
        inputs = inputs.contiguous()
    with ExitStack() as stack:
        turns: dict[str, Callable[[], None]] = {}
        for name, way in ways().items():
            net = build(preset("resnet20", classes=CLASSES), seed=0)
            if half:
                net = net.to(memory_format=torch.channels_last)  # pyright: ignore
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
            stack.enter_context(way(net, optimizer))
            turns[name] = repeated(step_of(net, optimizer, inputs, targets, half))
        seconds = interleaved(turns, rounds)
    return {name: [turn / STEPS for turn in taken] for name, taken in seconds.items()}


def repeated(step: Callable[[], None]) -> Callable[[], None]:
    """Give a turn of consecutive steps, as in a training loop."""

    def turn() -> None:
        for _ in range(STEPS):
            step()

    return turn


def table_of(times: dict[str, list[float]]) -> str:
    """Give the ratios, best against best and median against median."""
    best, middle = min(times["nothing"]), median(times["nothing"])
    rows = [
        [
            name,
            f"{1e3 * min(seconds):.1f}",
            f"{min(seconds) / best:.3f}",
            f"{median(seconds) / middle:.3f}",
        ]
        for name, seconds in times.items()
    ]
    every = min(times["Observer, every step"])
    share = (every - best) / EVERY / best
    header = ["watched with", "ms", "best / best", "median / median"]
    sampled = f"Read every {EVERY} steps, its share of a step is {share:.2%}."
    return f"{markdown(header, rows)}\n\n{sampled}"


def main() -> None:
    """Print a table for each precision."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="cifar10", help="images of 32 x 32 in ten classes")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--rounds", type=int, default=12, help="of sixteen steps of each way")
    parser.add_argument("--precision", choices=("float32", "bf16"), nargs="*")
    arguments = parser.parse_args()
    keep_memory()
    batch = batch_of(arguments.data, arguments.data_dir)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.data}\n")
    for precision in arguments.precision or ("float32", "bf16"):
        times = times_of(precision == "bf16", arguments.rounds, *batch)
        print(f"{precision}\n\n{table_of(times)}\n")


if __name__ == "__main__":
    main()
